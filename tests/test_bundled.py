"""The bundled world knows every environment, and its pictures obey."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

import astra_env  # noqa: F401  registers the ids
from astra_env.actions import ACTION_MODALITIES
from astra_env.envs import ENVIRONMENTS

HELD = {"end_effector": "w", "vehicle": "a", "camera": "left"}
"""A key of each modality whose opposite must show another picture."""


def _imagine(env: gym.Env, action: np.ndarray, steps: int = 4) -> np.ndarray:
    env.reset(seed=3, options={"start": 0})
    for _ in range(steps):
        observation, reward, *_, info = env.step(action)
        assert np.isfinite(reward) and env.observation_space.contains(observation)
    return info["frames"].astype(np.float32)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_environment_begins_and_goes_on(name):
    env = gym.make(name, device="cpu")
    first, _ = env.reset(seed=0)
    env.action_space.seed(0)
    later = [env.step(env.action_space.sample())[0] for _ in range(3)]
    assert first.std() > 10 and all(np.abs(frame.astype(float)).std() > 5 for frame in later)
    assert not np.array_equal(later[0], later[2])


@pytest.mark.parametrize("name", [name for name, spec in ENVIRONMENTS.items() if not spec.discrete])
def test_opposite_actions_show_other_pictures(name):
    env = gym.make(name, device="cpu")
    modality = ACTION_MODALITIES[ENVIRONMENTS[name].modality]
    action = 0.6 * modality.from_keys((HELD[modality.name],))
    one, other, again = (_imagine(env, chosen) for chosen in (action, -action, action))
    assert np.array_equal(one, again), "the same seed and actions give the same bytes"
    assert np.abs(one - other).mean() > 3, "grey levels"
