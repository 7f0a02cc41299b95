"""What every simulator keeps to, whatever it simulates: spaces, timing, and a state that can be taken up again."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from astra_env.actions import ActionModality


def check_contract(simulator: Any, modality: ActionModality, action: np.ndarray | None = None) -> dict[str, Any]:
    """Reset and take one step; returns the step's info."""
    assert isinstance(simulator, gymnasium.Env)
    assert simulator.action_space == modality.space()
    frame, info = simulator.reset(seed=3)
    assert simulator.observation_space.contains(frame)
    assert info["frames"].shape == (1, 64, 64, 3)
    np.testing.assert_array_equal(info["frames"][-1], frame)
    action = simulator.action_space.sample() if action is None else action
    frame, reward, terminated, truncated, info = simulator.step(action)
    assert simulator.observation_space.contains(frame)
    assert info["frames"].shape == (4, 64, 64, 3)
    assert info["poses"].shape == info["commanded_poses"].shape == (4, 4, 4)
    np.testing.assert_array_equal(info["poses"][-1], info["pose"])
    np.testing.assert_array_equal(info["frames"][-1], frame)
    np.testing.assert_array_equal(simulator.render(), frame)
    assert 0 <= reward <= 1
    assert not (terminated or truncated)
    return info


def check_state(simulator: Any, action: np.ndarray, atol: float = 0.0) -> None:
    """The same action from the same state leads to the same picture and pose, though another episode came between."""
    simulator.reset(seed=1)
    simulator.step(action)
    state = simulator.get_state()
    expected = simulator.step(action)
    simulator.reset(seed=2)
    simulator.set_state(state)
    again = simulator.step(action)
    np.testing.assert_array_equal(again[0], expected[0])
    np.testing.assert_allclose(again[4]["pose"], expected[4]["pose"], rtol=0, atol=atol)
