"""Stable-Baselines3, CleanRL-like loops and TorchRL on the native vector environment."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecTransposeImage

from astra_env.envs.rewards import Reward
from policies.goals import GoalWorlds
from policies.sb3 import (
    ALGORITHMS,
    HerReplayBuffer,
    LatentFeatures,
    SB3Policy,
    SB3VecEnv,
    VecMonitor,
    load,
    rescaled,
    save,
)

MODES = ("NextStep", "SameStep", "Disabled")
N = 3


def endless(state):
    """A reward under which no episode ends."""
    value = state.newest.mean((1, 2, 3))
    return Reward(value, value > 1e6, {"brightness": value})


def told_by_the_action(state):
    """1 for a camera that goes forward, 0 for one that goes back: an action leads to a pose at once."""
    ahead = state.poses[:, 2, 3] / state.num_steps.clamp(min=1) / 0.2
    return Reward(((ahead + 1) / 2).float(), ahead > 1e6, {})


def second_step_of_odd_seeds(state):
    """A reward whose episodes end by themselves after two steps where the world's seed is odd."""
    done = (state.num_steps >= 2) & (state.seeds % 2 == 1)
    return Reward(state.num_steps.float(), done, {})


@pytest.fixture
def make_vec(checkpoint):
    def make_worlds(environment="Astra-RT1-v0", num_envs=N, **options):
        given = {"world_model": checkpoint, "device": "cpu", "reward": endless, **options}
        return gym.make_vec(environment, num_envs=num_envs, vectorization_mode="vector_entry_point", **given)

    return make_worlds


def trace(env, num=6, seed=5):
    """What Stable-Baselines3 gets from some steps of fixed actions."""
    env.seed(seed)
    observations = [env.reset()]
    rng = np.random.default_rng(0)
    steps = []
    for _ in range(num):
        actions = rng.uniform(-1, 1, (env.num_envs, *env.action_space.shape)).astype(np.float32)
        steps.append(env.step(actions))
        observations.append(steps[-1][0])
    return observations, steps


def test_every_autoreset_mode_gives_what_single_environments_do(make, make_vec):
    """DummyVecEnv over single worlds is Stable-Baselines3's own word on ends, times up and last observations."""
    options = {"observation": "latent", "reward": second_step_of_odd_seeds, "max_episode_steps": 3}
    singles = DummyVecEnv([lambda: gym.wrappers.RescaleAction(make(**options), -1.0, 1.0)] * N)
    expected, expected_steps = trace(singles)
    ends = [dones for _, _, dones, _ in expected_steps]
    assert np.any(ends) and not np.all(ends)
    for mode in MODES:
        env = SB3VecEnv(make_vec(autoreset_mode=mode, **options))
        seen, steps = trace(env)
        for one, other in zip(expected, seen, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)
        for one, other in zip(expected_steps, steps, strict=True):
            np.testing.assert_allclose(one[1], other[1], atol=1e-5)
            assert other[1].dtype == np.float32 and other[2].dtype == bool
            np.testing.assert_array_equal(one[2], other[2])
            for alone, info in zip(one[3], other[3], strict=True):
                assert alone["TimeLimit.truncated"] == info["TimeLimit.truncated"]
                assert ("terminal_observation" in alone) == ("terminal_observation" in info)
                assert bool(alone["is_success"]) == bool(info["is_success"])
                np.testing.assert_allclose(alone["pose"], info["pose"], atol=1e-6)
                if "terminal_observation" in info:
                    np.testing.assert_allclose(alone["terminal_observation"], info["terminal_observation"], atol=1e-4)
        flags = [info["TimeLimit.truncated"] for step in steps for info in step[3] if "terminal_observation" in info]
        assert set(flags) == {True, False}


def test_actions_are_shares_of_physical_ranges(make_vec):
    worlds = make_vec()
    env, space = SB3VecEnv(worlds), worlds.single_action_space
    assert env.action_space == Box(-1, 1, (7,), np.float32)
    for value, bound in ((-1, space.low), (1, space.high), (0, (space.low + space.high) / 2)):
        np.testing.assert_allclose(
            rescaled(np.full((N, 7), value, np.float32), env.action_space, space)[0], bound, atol=1e-7
        )
    env.reset()
    env.step(np.ones((N, 7), np.float32))  # no rounding leads out of the bounds
    env.step(-np.ones((N, 7), np.float32))
    keys = SB3VecEnv(make_vec("Astra-SpatialVID-v0"))
    assert isinstance(keys.action_space, Discrete)
    keys.reset()
    assert keys.step(np.array([0, 1, 2]))[0].shape == (N, 32, 32, 3)


def test_infos_are_those_of_the_row(make_vec):
    env = SB3VecEnv(make_vec())
    env.seed(0)
    env.reset()
    assert {"pose", "frames", "reward_terms"} <= env.reset_infos[0].keys()
    observations, _, _, infos = env.step(np.zeros((N, 7), np.float32))
    for row, info in enumerate(infos):
        np.testing.assert_array_equal(info["frames"][-1], observations[row])
        assert info["pose"].shape == (4, 4) and np.ndim(info["reward_terms"]["brightness"]) == 0
        assert not any(name.startswith("_") for name in info)


def test_seeds_and_options_hold_for_one_reset(make_vec):
    env = SB3VecEnv(make_vec())
    env.seed(3)
    first = env.reset()
    assert (env.reset() != first).any()
    env.seed(3)
    np.testing.assert_array_equal(env.reset(), first)
    env.seed(3)
    env.set_options([{"start": 0}] * N)
    same = env.reset()
    np.testing.assert_array_equal(same[0], same[1])


def test_stable_baselines_own_wrappers_fit(make_vec):
    env = VecMonitor(VecTransposeImage(SB3VecEnv(make_vec(max_episode_steps=2, render_mode="rgb_array"))))
    assert env.reset().shape == (N, 3, 32, 32)
    for _ in range(2):
        observations, _, dones, infos = env.step(np.zeros((N, 7), np.float32))
    assert observations.shape == (N, 3, 32, 32) and dones.all()
    assert infos[0]["terminal_observation"].shape == (3, 32, 32) and infos[0]["episode"]["l"] == 2
    assert env.env_is_wrapped(gym.Wrapper) == [False] * N
    assert env.get_attr("environment") == ["Astra-RT1-v0"] * N
    assert env.has_attr("world_model") and not env.has_attr("wings")
    assert env.render().shape[2] == 3
    env.set_attr("clip_actions", True)
    assert env.get_attr("clip_actions", [0]) == [True]
    with pytest.raises(ValueError, match="set it without indices"):
        env.set_attr("clip_actions", True, [0])


@pytest.mark.parametrize(
    ("algorithm", "environment", "observation", "policy"),
    [
        ("ppo", "Astra-RT1-v0", "latent", "MlpPolicy"),
        ("sac", "Astra-NuScenes-v0", "latent", "MlpPolicy"),
        ("td3", "Astra-Sekai-v0", "latent", "MlpPolicy"),
        ("dqn", "Astra-SpatialVID-v0", "latent", "MlpPolicy"),
    ],
)
def test_algorithms_learn_from_latents(make_vec, tmp_path, algorithm, environment, observation, policy):
    env = SB3VecEnv(make_vec(environment, observation=observation, max_episode_steps=4))
    sizes = {"n_steps": 4, "batch_size": 6} if algorithm == "ppo" else {"learning_starts": 6, "buffer_size": 30}
    features = {"features_extractor_class": LatentFeatures, "features_extractor_kwargs": {"features_dim": 16, "dim": 8}}
    model = ALGORITHMS[algorithm](policy, env, policy_kwargs=features, seed=0, device="cpu", **sizes).learn(18)
    save(model, tmp_path / "policy.zip", replay=True)
    again = load(tmp_path / "policy.zip", algorithm, env)
    assert again.num_timesteps == model.num_timesteps
    if algorithm != "ppo":
        assert again.replay_buffer.size() == model.replay_buffer.size() > 0
    agent, seen = SB3Policy(again, env.env.single_action_space), env.reset()
    actions = agent.act(seen)
    assert all(env.env.single_action_space.contains(action) for action in actions)
    assert env.env.single_action_space.contains(agent.act(seen[0]))
    np.testing.assert_array_equal(actions, SB3Policy(model, env.env.single_action_space).act(seen))


def test_latents_are_noisy_while_it_learns_alone():
    torch.manual_seed(0)
    space, latents = Box(-np.inf, np.inf, (16, 4, 4), np.float32), torch.randn(2, 16, 4, 4)
    features, quiet = LatentFeatures(space, 16, 8), LatentFeatures(space, 16, 8, noise=0.0)
    assert (features.train()(latents) != features(latents)).any()
    assert torch.equal(features.eval()(latents), features(latents))
    assert torch.equal(quiet.train()(latents), quiet(latents))


def test_a_cnn_learns_from_frames(checkpoint, make_vec):
    """Frames of 32 by 32 are too small for the usual network; those of the bundled world are not."""
    env = SB3VecEnv(
        gym.make_vec("Astra-RT1-v0", num_envs=2, vectorization_mode="vector_entry_point", max_episode_steps=3)
    )
    model = ALGORITHMS["ppo"]("CnnPolicy", env, n_steps=4, batch_size=8, n_epochs=1, device="cpu").learn(8)
    mean, _ = evaluate_policy(model, VecMonitor(env), n_eval_episodes=2)
    assert np.isfinite(mean)


def test_ppo_learns_to_go_forward(make_vec):
    """The trivial task of an imagined world: the reward of half a minute's learning is far above chance."""
    options = {"observation": "latent", "reward": told_by_the_action, "max_episode_steps": 2, "num_inference_steps": 1}
    env = VecMonitor(SB3VecEnv(make_vec("Astra-Sekai-v0", num_envs=16, **options)))
    model = ALGORITHMS["ppo"](
        "MlpPolicy", env, n_steps=16, batch_size=64, n_epochs=6, gamma=0.5, learning_rate=3e-3, seed=0, device="cpu"
    )
    model.learn(1536)
    mean, _ = evaluate_policy(model, env, n_eval_episodes=16)
    assert mean / 2 > 0.8  # 0.5 is chance, 1 the most


def test_hindsight_on_goal_images(make_vec):
    worlds = make_vec(observation="latent", autoreset_mode="Disabled", max_episode_steps=3)
    goals = GoalWorlds(worlds, within=0.5)
    seen, _ = goals.reset(seed=0)
    assert seen in goals.observation_space
    again, _ = goals.reset(seed=0)
    np.testing.assert_array_equal(seen["desired_goal"], again["desired_goal"])
    assert (goals.compute_reward(seen["observation"], seen["observation"], {}) == 0).all()
    env = SB3VecEnv(goals)
    model = ALGORITHMS["sac"](
        "MultiInputPolicy",
        env,
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": 4},
        learning_starts=12,
        batch_size=8,
        buffer_size=60,
        device="cpu",
    ).learn(30)
    sample = model.replay_buffer.sample(20)
    assert (sample.rewards == 0).any() and (
        sample.rewards == -1
    ).any()  # what was reached counts, what was not does not
    with pytest.raises(ValueError, match="got 'latent' and 'NextStep'"):
        GoalWorlds(make_vec(observation="latent"))


def test_goals_change_with_the_episode_of_their_row_alone(make_vec):
    goals = GoalWorlds(make_vec(observation="latent", autoreset_mode="Disabled"))
    first, _ = goals.reset(seed=0)
    drawn = []
    for _ in range(6):
        seen, _ = goals.reset(options={"reset_mask": np.array([True, False, False])})
        np.testing.assert_array_equal(seen["desired_goal"][1:], first["desired_goal"][1:])
        drawn.append(seen["desired_goal"][0])
    assert any((goal != first["desired_goal"][0]).any() for goal in drawn)
    seen, rewards, *_ = goals.step(np.zeros((N, 7), np.float32))
    np.testing.assert_allclose(rewards, goals.compute_reward(seen["achieved_goal"], seen["desired_goal"], {}))
    np.testing.assert_allclose(rewards, goals.unwrapped.reward_function(goals.unwrapped.state).value, atol=1e-5)


def test_a_loop_as_cleanrl_writes_it(make_vec):
    """Next-step autoreset: the step that begins a row anew is left out of learning, as Gymnasium's page tells."""
    envs = gym.wrappers.vector.RecordEpisodeStatistics(make_vec(observation="latent", max_episode_steps=3))
    weights = torch.zeros(16 * 4 * 4, 7, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=1e-2)
    seen, _ = envs.reset(seed=0)
    low, high = (torch.from_numpy(bound) for bound in (envs.single_action_space.low, envs.single_action_space.high))
    over, returns, learned = np.zeros(N, bool), [], 0
    for _ in range(8):
        normal = torch.distributions.Normal(torch.from_numpy(seen).flatten(1) @ weights, 1.0)
        action = normal.sample()
        physical = low + (action.clamp(-1, 1) + 1) / 2 * (high - low)
        seen, rewards, terminations, truncations, infos = envs.step(physical.numpy())
        loss = -(normal.log_prob(action).sum(1) * torch.from_numpy(rewards))[torch.from_numpy(~over)].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learned += int((~over).sum())
        over = terminations | truncations
        if "episode" in infos:
            returns += infos["episode"]["l"][infos["_episode"]].tolist()
    assert returns == [3] * (2 * N)
    assert learned == 6 * N  # two of eight steps began the rows anew
    assert weights.abs().sum() > 0


def test_torchrl_takes_one_world(make):
    envs = pytest.importorskip("torchrl.envs")
    rollout = envs.GymWrapper(make(), device="cpu").rollout(3)
    assert rollout.batch_size[-1] == 3
    assert torch.isfinite(rollout["next", "reward"]).all()


def test_torchrl_takes_many_worlds(make_vec):
    """It resets rows itself (``autoreset_mode="Disabled"``), so that what follows a last step is what it led to."""
    envs = pytest.importorskip("torchrl.envs")
    worlds = make_vec(observation="latent", max_episode_steps=3, autoreset_mode="Disabled")
    rollout = envs.GymWrapper(worlds, device="cpu").rollout(5, break_when_any_done=False)
    assert rollout["next", "done"].squeeze(-1).int().tolist() == [[0, 0, 1, 0, 0]] * N
    after, before = rollout["next", "observation"], rollout["observation"]
    assert torch.equal(after[:, 1], before[:, 2])
    assert not torch.equal(after[:, 2], before[:, 3])
