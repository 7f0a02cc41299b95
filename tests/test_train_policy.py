"""Learning runs: what they write, how they go on, what they refuse; success is worth what it would go on to earn."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import VecMonitor
from tiny import random_actions, random_frames

from astra_env.actions import ACTION_MODALITIES
from astra_env.envs import ENVIRONMENTS
from astra_env.envs.reward_kit import LearnedReward
from astra_env.envs.rewards import Reward
from astra_env.envs.start_states import StartStates
from astra_env.models.reward_model import RewardModel
from policies import train, worlds
from policies.agents import load_policy, policy_observation
from policies.sb3 import ALGORITHMS, SB3VecEnv, load
from policies.train import RECIPES, KeptSuccess, TrainPolicyConfig, completed, make_worlds, train_policy
from policies.worlds import make_imagined


@pytest.fixture
def config(checkpoint, tmp_path, monkeypatch):
    """A run of seconds."""
    sizes = {"ppo": {"n_steps": 4, "batch_size": 8, "n_epochs": 1}}
    sizes |= {name: {"learning_starts": 4, "buffer_size": 40, "batch_size": 4, "n_steps": 3} for name in ("sac", "dqn")}
    monkeypatch.setattr(train, "HYPERPARAMETERS", sizes)
    monkeypatch.setattr(train, "LEARN_EVERY", 2)
    options = {"observation": "latent", "num_worlds": 2, "eval_episodes": 1, "world_model": checkpoint}
    short = {name: dataclasses.replace(spec, max_episode_steps=3) for name, spec in gym.registry.items()}
    monkeypatch.setattr(gym.envs.registration, "registry", short)
    return TrainPolicyConfig("Astra-RT1-v0", str(tmp_path / "run"), steps=16, eval_every=8, **options)


@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_a_run_writes_what_it_promises_and_goes_on(config, tmp_path, algorithm):
    run = tmp_path / "run"
    config = dataclasses.replace(config, algorithm=algorithm)
    assert train_policy(config) == run / "policy.zip"
    assert (run / "best.zip").is_file() and list((run / "tensorboard").rglob("events*"))
    assert (run / "policy_replay.pkl").is_file() == (algorithm == "sac")
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [8, 16]
    before = load(run / "policy.zip", algorithm)
    train_policy(dataclasses.replace(config, steps=24))
    after = load(run / "policy.zip", algorithm)
    assert before.num_timesteps == 16 and after.num_timesteps == 24
    assert len(list((run / "tensorboard").iterdir())) == 1  # one curve
    with pytest.raises(ValueError, match="has a run with seed = 0"):
        train_policy(dataclasses.replace(config, seed=1))


def test_what_a_run_goes_on_from_is_what_it_left(config, tmp_path):
    """Weights and optimiser are the checkpoint's: a run with nothing left to do changes nothing."""
    train_policy(config)
    first = (tmp_path / "run" / "policy.zip").read_bytes()
    train_policy(config)
    assert (tmp_path / "run" / "policy.zip").read_bytes() == first


def test_the_seed_decides_the_policy(config, tmp_path):
    policies = []
    for seed, name in ((0, "a"), (0, "b"), (1, "c")):
        run = dataclasses.replace(config, algorithm="ppo", seed=seed, out=str(tmp_path / name), steps=8)
        policies.append(load(train_policy(run), "ppo").policy.state_dict())
    same, other = (all((policies[0][name] == values).all() for name, values in state.items()) for state in policies[1:])
    assert same and not other


def test_keys_are_learned_too(config):
    run = dataclasses.replace(config, environment="Astra-SpatialVID-v0", steps=8)
    assert load(train_policy(run), "dqn").num_timesteps == 8


def test_what_is_solved_goes_on_to_earn(checkpoint):
    """The value of a world that is solved at once is 1, and so is that of one in which 1 is earned for ever."""

    def solved_in_the_second_step(state):
        return Reward(state.seeds * 0 + 1.0, state.num_steps >= 2, {}, (state.num_steps >= 2) & (state.seeds % 2 == 0))

    env = gym.make_vec(
        "Astra-RT1-v0",
        num_envs=6,
        vectorization_mode="vector_entry_point",
        world_model=checkpoint,
        device="cpu",
        reward=solved_in_the_second_step,
    )
    env = KeptSuccess(env, 0.9)
    env.reset(seed=0)
    action = np.zeros((6, 7), np.float32)
    np.testing.assert_allclose(env.step(action)[1], 0.1, atol=1e-9)
    _, rewards, terminations, _, told = env.step(action)
    assert terminations.all() and set(told["success"]) == {True, False}
    np.testing.assert_allclose(rewards, np.where(told["success"], 1.0, 0.1), atol=1e-9)
    VecMonitor(SB3VecEnv(env)).reset()


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_id_has_a_recipe_that_fits_its_actions(environment):
    found = completed(TrainPolicyConfig(environment, "nowhere"))
    assert found.algorithm == RECIPES[environment].algorithm in ALGORITHMS
    assert (found.algorithm == "dqn") == ENVIRONMENTS[environment].discrete
    assert 0 < found.gamma < 1
    assert completed(found) == found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "dqn"}, "'ppo', 'sac' or 'td3', which act continuously"),
        ({"environment": "Astra-SpatialVID-v0", "algorithm": "sac"}, "'dqn' or 'ppo', which choose keys"),
        ({"algorithm": "magic"}, "expected one of"),
        ({"environment": "CartPole-v1"}, "expected one of"),
        ({"observation": "chunk"}, "expected 'latent' or 'frame'"),
        ({"where": "somewhere"}, "expected 'imagination' or 'simulator'"),
        ({"episode_steps": 0}, "num_worlds is 16 and episode_steps 0, expected at least 1 each"),
        ({"environment": "Astra-NuScenes-v0", "where": "simulator"}, "num_worlds is 16, expected 1"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        completed(dataclasses.replace(TrainPolicyConfig("Astra-RT1-v0", "nowhere"), **changes))


# Where and what a run learns


def test_imagined_episodes_are_as_long_as_told_and_begin_where_told(config, tmp_path):
    """The clips are the run's; evaluations begin from the bundled ones, which it has not seen."""
    frames = np.full((1, 9, 32, 32, 3), 77, np.uint8)
    StartStates(frames, random_actions(1, 2).numpy()).save(tmp_path / "starts.npz")
    config = completed(dataclasses.replace(config, start_states=str(tmp_path / "starts.npz"), episode_steps=2))
    env = make_worlds(config)
    first = env.reset()
    np.testing.assert_array_equal(first[0], first[1])  # there is one clip
    action = np.zeros((2, 7), np.float32)
    assert not env.step(action)[2].any()
    fresh, _, dones, infos = env.step(action)
    assert dones.all() and all(info["TimeLimit.truncated"] for info in infos)
    np.testing.assert_array_equal(fresh, first)
    env.close()
    train_policy(dataclasses.replace(config, algorithm="ppo", steps=8))
    line = json.loads((tmp_path / "run" / "evaluations.jsonl").read_text())
    assert line["lengths"] == [3]  # of the id, as the fixture has it
    with pytest.raises(ValueError, match=r"has a run with start_states = .*starts.npz"):
        train_policy(dataclasses.replace(config, algorithm="ppo", start_states="bundled"))


def test_a_reward_of_heads_is_learned_from(config, tmp_path):
    for index in range(2):
        torch.manual_seed(index)
        folder = tmp_path / "heads" / (f"head_{index}" if index else "")
        folder.mkdir()
        RewardModel(dim=8, latent_size=4).save(folder)
    config = completed(dataclasses.replace(config, reward=str(tmp_path / "heads"), pessimism=2.0))
    env = make_worlds(config)
    env.reset()
    judge = env.get_attr("reward_function")[0]
    assert isinstance(judge, LearnedReward) and len(judge.heads) == 2 and judge.pessimism == 2
    rewards = env.step(np.zeros((2, 7), np.float32))[1]
    expected = judge(env.get_attr("state")[0])
    assert not expected.done.any()
    np.testing.assert_allclose(rewards, (1 - config.gamma) * expected.value, atol=1e-6)


def test_the_models_of_the_task_tell_the_reward_with_pessimism(config):
    env = make_worlds(completed(dataclasses.replace(config, reward="task", pessimism=3.0)))
    assert env.get_attr("reward_function")[0].pessimism == 3


def test_every_evaluation_leaves_a_policy_that_is_known_by_its_file(config, tmp_path, checkpoint):
    train_policy(dataclasses.replace(config, algorithm="ppo"))
    files = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [file.name for file in files] == ["16.zip", "8.zip"]
    assert [load(file, "ppo").num_timesteps for file in files] == [16, 8]
    assert policy_observation(str(files[0])) == "latent"
    world = make_imagined("Astra-RT1-v0", world_model=checkpoint, observation="latent", device="cpu")
    policy = load_policy(str(files[1]), "Astra-RT1-v0", world)  # the run says what algorithm it is
    assert world.action_space.contains(policy.act(world.reset(seed=0)[0]))


def test_few_worlds_learn_as_often_a_step_as_many(config, monkeypatch):
    monkeypatch.setattr(train, "LEARN_EVERY", 8)
    updates = []
    for num_worlds in (1, 4):
        run = completed(dataclasses.replace(config, algorithm="sac", num_worlds=num_worlds))
        model = train._model(run, make_worlds(run), Path(config.out))
        model.learning_starts, model.gradient_steps = 0, 2
        model.learn(32)
        updates.append(model._n_updates)
    assert updates == [2 * 32 // 8] * 2


def test_what_is_replayed_goes_on_in_as_many_worlds(config):
    train_policy(config)
    with pytest.raises(ValueError, match="has a run with num_worlds = 2"):
        train_policy(dataclasses.replace(config, num_worlds=3, steps=24))


def test_others_go_on_in_any_number_of_worlds(config):
    train_policy(dataclasses.replace(config, algorithm="ppo"))
    after = train_policy(dataclasses.replace(config, algorithm="ppo", num_worlds=3, steps=28))
    assert load(after, "ppo").num_timesteps == 28


class Rooms(gym.Env):
    """A simulator that tells of a number of things that its seed draws; odd episodes are solved in the second step."""

    def __init__(self) -> None:
        self.action_space = ACTION_MODALITIES["end_effector"].space()
        self.observation_space = gym.spaces.Box(0, 255, (32, 32, 3), np.uint8)
        self.frames = random_frames(1, 64)[0].numpy()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.number, self.count = int(self.np_random.integers(64)), 0
        return self._see(1)

    def step(self, action):
        assert self.action_space.contains(action)
        self.count += 1
        observation, info = self._see(4)
        return observation, 0.25, False, False, info

    def _see(self, num):
        frames = np.repeat(self.frames[self.number][None], num, 0)
        solved = np.bool_(self.count >= 2 and self.number % 2)
        return frames[-1], {"frames": frames, "success": solved, "objects": np.zeros((self.number, 3))}


@pytest.mark.parametrize("observation", ["latent", "frame"])
def test_simulators_are_worlds_as_imagined_ones_are(config, monkeypatch, observation):
    monkeypatch.setattr(worlds, "make_simulator", lambda environment: Rooms())
    options = {"where": "simulator", "num_worlds": 6, "episode_steps": 3, "observation": observation}
    config = completed(dataclasses.replace(config, **options))
    env, gamma = make_worlds(config), config.gamma
    assert env.observation_space.shape == ((16, 4, 4) if observation == "latent" else (32, 32, 3))
    env.seed(0)
    first = env.reset()
    action = np.zeros((6, 7), np.float32)
    _, rewards, dones, _ = env.step(action)
    np.testing.assert_allclose(rewards, (1 - gamma) * 0.25, atol=1e-7)
    fresh, rewards, solved, infos = env.step(action)
    assert not dones.any() and solved.any() and not solved.all()
    # what is solved goes on to earn, and only those rows begin anew
    np.testing.assert_allclose(rewards, (1 - gamma) * 0.25 + gamma * solved, atol=1e-6)
    assert [info["is_success"] for info in infos] == solved.tolist()
    assert ["terminal_observation" in info for info in infos] == solved.tolist()
    assert not any(info["TimeLimit.truncated"] for info in infos)
    changed = np.array([(after != info["terminal_observation"]).any() for after, info in zip(fresh[solved],
                        [info for info in infos if "terminal_observation" in info], strict=True)])  # fmt: skip
    assert changed.all() and first.shape == fresh.shape
    _, _, over, infos = env.step(action)
    assert (over == ~solved).all()  # their time is up, that of the others has just begun
    assert [info["TimeLimit.truncated"] for info in infos] == over.tolist()


def test_a_run_in_the_simulator_is_evaluated_in_imagination(config, monkeypatch, tmp_path):
    monkeypatch.setattr(worlds, "make_simulator", lambda environment: Rooms())
    run = dataclasses.replace(config, algorithm="ppo", where="simulator", episode_steps=2)
    train_policy(run)
    lines = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [8, 16] and lines[0]["lengths"] == [3]
    assert (tmp_path / "run" / "best.zip").is_file()
    train_policy(dataclasses.replace(run, steps=24))
    assert load(tmp_path / "run" / "policy.zip", "ppo").num_timesteps == 24
    with pytest.raises(ValueError, match="has a run with where = 'simulator'"):
        train_policy(dataclasses.replace(run, where="imagination"))


@pytest.mark.simulator
def test_real_simulators_of_different_rooms_fit_into_one(config):
    pytest.importorskip("mujoco")
    options = {"environment": "Astra-Sekai-v0", "where": "simulator", "num_worlds": 4, "observation": "frame"}
    env = make_worlds(completed(dataclasses.replace(config, episode_steps=2, **options)))
    env.seed(0)
    env.reset()
    for _ in range(2):
        _, rewards, dones, infos = env.step(np.zeros((4, 6), np.float32))
    assert dones.all() and (rewards > 0).all() and {"is_success", "terminal_observation"} <= infos[0].keys()
    env.close()
