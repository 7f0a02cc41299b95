"""What episodes come to: alone and in batches, imagined and real; intervals; policies by name."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from astra_env.actions import ACTION_MODALITIES, DISCRETE_ACTIONS
from astra_env.envs.rewards import Reward
from policies.agents import EXPERTS, ExpertPolicy, RandomPolicy, load_policy, nearest_keys
from policies.evaluate import Evaluation, bootstrap_interval, evaluate, share_interval
from policies.mpc import MPCPolicy
from policies.worlds import Ending, LastInfo, Latents


def ends_by_its_seed(state):
    """Reward of the newest latent; episodes of odd seeds are solved in their second step."""
    done = (state.num_steps >= 2) & (state.seeds % 2 == 1)
    return Reward(state.newest.mean((1, 2, 3)), done, {})


class Stage(gym.Env):
    """A simulator that tells what happens: success or failure in its third step; the reward is the action's dx."""

    def __init__(self, success: bool = True) -> None:
        self.action_space = ACTION_MODALITIES["end_effector"].space()
        self.observation_space = gym.spaces.Box(0, 255, (32, 32, 3), np.uint8)
        self.success, self.count = success, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._see(1)

    def step(self, action):
        self.count += 1
        observation, info = self._see(4)
        return observation, float(action[0]), False, False, info

    def _see(self, num):
        frames = self.np_random.integers(0, 256, (num, 32, 32, 3), dtype=np.uint8)
        over = self.count >= 3
        return frames[-1], {"frames": frames, "success": over and self.success, "failure": over and not self.success}


def towards_the_bright_side(observation):
    """A function as a policy: it looks, and acts in one world or in many."""
    batch = observation if observation.ndim == 4 else observation[None]
    action = np.zeros((len(batch), 7), np.float32)
    action[:, 1] = np.where(batch[:, :, :16].mean((1, 2, 3)) > batch[:, :, 16:].mean((1, 2, 3)), 0.05, -0.05)
    return action if observation.ndim == 4 else action[0]


@pytest.fixture
def worlds(make, checkpoint):
    options = {"reward": ends_by_its_seed, "max_episode_steps": 4}
    return make(**options), [
        gym.make_vec(
            "Astra-RT1-v0",
            num_envs=3,
            vectorization_mode="vector_entry_point",
            world_model=checkpoint,
            device="cpu",
            autoreset_mode=mode,
            **options,
        )
        for mode in ("NextStep", "Disabled", "SameStep")
    ]


def test_many_worlds_come_to_the_same_as_one(worlds):
    """Episodes have the same seeds, however many run at once and whichever of them end early."""
    alone, (following, disabled, same) = worlds
    expected = evaluate(alone, towards_the_bright_side, episodes=8, seed=3)
    assert set(expected.lengths) == {2, 4} and expected.successes.tolist() == (expected.lengths == 2).tolist()
    for env in (following, disabled):
        found = evaluate(env, towards_the_bright_side, episodes=8, seed=3)
        np.testing.assert_array_equal(found.lengths, expected.lengths)
        np.testing.assert_array_equal(found.successes, expected.successes)
        np.testing.assert_allclose(found.returns, expected.returns, atol=1e-4)
    with pytest.raises(ValueError, match="make the worlds with autoreset_mode='Disabled'"):
        evaluate(same, towards_the_bright_side)


def test_the_seed_decides_everything(worlds):
    env = worlds[0]
    policy = RandomPolicy(env.action_space)
    first, again = (evaluate(env, policy, episodes=2, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first.returns, again.returns)
    assert (evaluate(env, policy, episodes=2, seed=5).returns != first.returns).any()


def test_planners_are_policies(worlds):
    env = worlds[0]
    policy = MPCPolicy(env, horizon=1, num_samples=4, num_iterations=1, num_elites=2)
    assert np.isfinite(evaluate(env, policy, episodes=1).mean_return)


def test_bad_questions_are_one_sentence(worlds):
    with pytest.raises(ValueError, match="number of episodes is 0"):
        evaluate(worlds[0], towards_the_bright_side, episodes=0)
    with pytest.raises(ValueError, match="expected a function of the observation"):
        evaluate(worlds[0], "me")


def test_simulators_end_as_imagined_worlds_do():
    for success in (True, False):
        found = evaluate(Ending(Stage(success), "Astra-RT1-v0"), lambda _: np.full(7, 0.05, np.float32), episodes=2)
        assert found.lengths.tolist() == [3, 3] and found.successes.tolist() == [success] * 2
        np.testing.assert_allclose(found.returns, 0.15, atol=1e-6)
    found = evaluate(Ending(Stage(), "Astra-MultiCam-v0"), lambda _: np.zeros(7, np.float32), episodes=1)
    assert found.lengths.tolist() == [24] and found.successes.tolist() == [True]  # a path is followed to its end


def test_latents_of_the_real_world_are_those_of_its_whole_video(make):
    """The last frames are enough: what lies before them no longer changes the newest latent."""
    world_model = make().unwrapped.world_model
    world = Latents(Stage(), world_model)
    seen, info = world.reset(seed=0)
    video, latents = [info["frames"]], [seen]
    for _ in range(7):
        seen, _, _, _, info = world.step(np.zeros(7, np.float32))
        assert seen in world.observation_space
        video.append(info["frames"])
        latents.append(seen)
    with torch.no_grad():
        whole = world_model.autoencoder.encode(torch.from_numpy(np.concatenate(video))[None])
    np.testing.assert_allclose(np.stack(latents, 1), whole[0], atol=1e-4)


def test_intervals():
    rng = np.random.default_rng(0)
    values = rng.normal(3.0, 2.0, 400)
    low, high = bootstrap_interval(values)
    np.testing.assert_allclose([low, high], values.mean() + np.array([-1.96, 1.96]) * values.std() / 20, atol=0.03)
    assert bootstrap_interval(values) == (low, high)
    np.testing.assert_allclose(share_interval(np.array([False] * 20)), (0, 0.161), atol=1e-3)
    np.testing.assert_allclose(share_interval(np.array([True] * 16 + [False] * 4)), (0.584, 0.919), atol=1e-3)


def test_success_is_worth_the_rest_of_the_episode():
    found = Evaluation(np.array([9.0, 3.0]), np.array([False, True]), np.array([10, 4]), 0)
    assert found.kept_returns(10).tolist() == [9.0, 9.0]
    told = found.to_json(10)
    assert told["mean_return"] == 6 and told["mean_kept_return"] == 9 and told["success_rate"] == 0.5


@pytest.mark.parametrize("environment", EXPERTS)
def test_experts_act_within_the_space(environment, make):
    world = LastInfo(make(id=environment))
    policy = ExpertPolicy(environment, world)
    pose = np.eye(4)
    pose[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]  # a level camera that looks along x
    world.info = {
        "pose": pose,
        "commanded_pose": pose,
        "next_pose": pose,
        "goal": np.array([2.0, 0.1, 0.0]),
        "objects": np.array([[2.0, 0.1, 0.0]]),
        "route": np.stack([np.arange(1, 7) * 5.0, np.zeros(6)], 1),
        "speed": 5.0,
        "gap": np.inf,
        "gap_speed": 0.0,
        "success": False,
    }
    actions = [policy.reset(seed).act(None) for seed in (0, 0, 1)]
    assert all(action in world.action_space for action in actions)
    np.testing.assert_array_equal(actions[0], actions[1])
    world.info = {}
    with pytest.raises(ValueError, match="evaluate it in the simulator"):
        policy.reset(0).act(None)


def test_the_nearest_keys():
    modality = ACTION_MODALITIES["camera"]
    table = DISCRETE_ACTIONS["camera"]
    actions = modality.discrete(table)
    np.testing.assert_array_equal(nearest_keys(0.9 * actions, modality), np.arange(len(table)))
    assert nearest_keys(actions[1], modality) == 1


def test_policies_by_name(make, tmp_path):
    world = LastInfo(make())
    assert isinstance(load_policy("random", "Astra-RT1-v0", world), RandomPolicy)
    assert isinstance(load_policy("expert", "Astra-RT1-v0", world), ExpertPolicy)
    mine = load_policy("test_evaluate:towards_the_bright_side", "Astra-RT1-v0", world)
    assert mine.act(np.zeros((32, 32, 3), np.uint8)) in world.action_space
    for name in ("nobody", "numpy:nothing", str(tmp_path / "nowhere")):
        with pytest.raises(ValueError, match="expected 'random', 'expert', 'mpc', module:function"):
            load_policy(name, "Astra-RT1-v0", world)
    (tmp_path / "some.zip").touch()
    with pytest.raises(ValueError, match="name it with --algorithm"):
        load_policy(str(tmp_path / "some.zip"), "Astra-RT1-v0", world)
