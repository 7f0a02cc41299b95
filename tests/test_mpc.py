from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from tiny import save_checkpoint

import astra_env  # noqa: F401  registers the ids
from policies.mpc import MPCPolicy

BUDGET = {"horizon": 2, "num_samples": 12, "num_iterations": 2, "num_elites": 4}


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    return gymnasium.make(
        "Astra-RT1-v0", world_model=str(save_checkpoint(tmp_path_factory.mktemp("world"))), device="cpu"
    )


def test_an_action_is_legal_and_planning_leaves_the_world_as_it_is(env):
    observation, _ = env.reset(seed=0)
    before = env.unwrapped.save_state()
    action = MPCPolicy(env, **BUDGET).reset(seed=0).act(observation)
    assert action.dtype == np.float32
    assert env.action_space.contains(action)
    assert env.unwrapped.save_state() is before
    env.step(action)


def test_the_seed_decides_the_action(env):
    observation, _ = env.reset(seed=0)
    policy = MPCPolicy(env, **BUDGET)
    first, again, other = (policy.reset(seed=seed).act(observation) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_plan_beats_what_is_imagined_without_planning(env, monkeypatch):
    """With an objective that grows along one direction of the latents, the plan goes further than its first guesses."""
    observation, _ = env.reset(seed=0)
    direction = torch.randn(env.unwrapped.save_state().newest.shape[1:], generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(env.unwrapped, "objective", lambda state: (state.newest * direction).mean((1, 2, 3)))
    policy = MPCPolicy(env, horizon=2, num_samples=32, num_iterations=4, num_elites=6).reset(seed=0)
    policy.act(observation)
    best, mean = policy.plan.history.unbind(1)
    assert policy.plan.value > mean[0]
    assert mean[-1] > mean[0]
    assert policy.plan.value == best.max()


def test_discrete_actions_are_refused():
    with pytest.raises(ValueError, match="expected a Box action space, got Discrete"):
        MPCPolicy(gymnasium.make("CartPole-v1"))
