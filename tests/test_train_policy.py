"""Learning runs: what they write, how they go on, what they refuse; success is worth what it would go on to earn."""

from __future__ import annotations

import dataclasses
import json

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecMonitor

from astra_env.envs import ENVIRONMENTS
from astra_env.envs.rewards import Reward
from policies import train
from policies.sb3 import ALGORITHMS, SB3VecEnv, load
from policies.train import RECIPES, KeptSuccess, TrainPolicyConfig, completed, train_policy


@pytest.fixture
def config(checkpoint, tmp_path, monkeypatch):
    """A run of seconds."""
    sizes = {"ppo": {"n_steps": 4, "batch_size": 8, "n_epochs": 1}}
    sizes |= {name: {"learning_starts": 4, "buffer_size": 40, "batch_size": 4, "n_steps": 3} for name in ("sac", "dqn")}
    monkeypatch.setattr(train, "HYPERPARAMETERS", sizes)
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
    ],
)
def test_what_cannot_be_carried_out_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        completed(dataclasses.replace(TrainPolicyConfig("Astra-RT1-v0", "nowhere"), **changes))
