"""The checker passes what keeps Gymnasium's contract, ours and Gymnasium's own, and names what breaks it."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from astra_env.envs import ENVIRONMENTS
from astra_env.envs.vector_env_checker import check_vector_env


def carts(mode: AutoresetMode = AutoresetMode.NEXT_STEP) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 3, autoreset_mode=mode)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_gymnasiums_own_pass(mode):
    check_vector_env(carts(mode), lambda: gym.make("CartPole-v1"))


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_ours_pass(checkpoint, environment, mode):
    options = {"world_model": checkpoint, "device": "cpu", "max_episode_steps": 4}
    vector = gym.make_vec(environment, 3, "vector_entry_point", autoreset_mode=mode, **options)
    check_vector_env(vector, lambda: gym.make(environment, **options), num_steps=5)


class Broken(SyncVectorEnv):
    """Carts that break one part of the contract."""

    def __init__(self, fault: str, mode: AutoresetMode) -> None:
        super().__init__([lambda: gym.make("CartPole-v1")] * 3, autoreset_mode=mode)
        self.fault = fault
        if fault == "metadata":
            self.metadata = {}

    def reset(self, *, seed=None, options=None):
        if self.fault == "unseeded":
            seed = None
        if self.fault == "one seed" and isinstance(seed, int):
            seed = [seed] * 3
        if self.fault == "partial" and options:
            options = None
        return super().reset(seed=seed, options=options)

    def step(self, actions):
        observations, rewards, terminations, truncations, infos = super().step(actions)
        if self.fault == "rewards":
            rewards = rewards.tolist()
        if self.fault == "mask":
            infos["colour"] = np.ones(3)
        if self.fault == "reused":
            self._kept = getattr(self, "_kept", observations)
            self._kept[:] = observations
            observations = self._kept
        if self.fault == "neighbours":
            observations = observations + observations.mean(0)
        if self.fault == "final":
            infos.pop("final_obs", None)
        if self.fault == "next reward":
            rewards = rewards + 1
        return observations, rewards, terminations, truncations, infos


@pytest.mark.parametrize(
    ("fault", "mode", "message"),
    [
        ("metadata", AutoresetMode.NEXT_STEP, "autoreset_mode"),
        ("unseeded", AutoresetMode.NEXT_STEP, "the same actions led to different results"),
        ("one seed", AutoresetMode.NEXT_STEP, r"reset\(seed=5\)"),
        ("rewards", AutoresetMode.NEXT_STEP, "rewards is"),
        ("mask", AutoresetMode.NEXT_STEP, "without the mask '_colour'"),
        ("reused", AutoresetMode.NEXT_STEP, "changed arrays"),
        ("neighbours", AutoresetMode.NEXT_STEP, "depends on"),
        ("next reward", AutoresetMode.NEXT_STEP, "expected reward 0"),
        ("final", AutoresetMode.SAME_STEP, "without telling 'final_obs'"),
        ("partial", AutoresetMode.DISABLED, "a partial reset changed row"),
    ],
)
def test_what_is_broken_is_named(fault, mode, message):
    with pytest.raises(AssertionError, match=message):
        check_vector_env(Broken(fault, mode))


def test_a_row_that_is_not_the_single_environment_is_named():
    with pytest.raises(AssertionError, match="row 2 from seed 5 does not do"):
        check_vector_env(carts(), lambda: gym.wrappers.TransformReward(gym.make("CartPole-v1"), lambda reward: -reward))
