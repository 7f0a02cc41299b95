"""Real simulators with the spaces and timing of the imagined environments: they collect data and verify policies."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

import gymnasium
import numpy as np

from astra_env.actions import ACTION_MODALITIES, DISCRETE_ACTIONS
from astra_env.envs import ENVIRONMENTS

FRAME_SIZE = 64
"""Height and width of every simulator's frames."""
CHUNK_FRAMES = 4
FPS = 20

SIMULATORS: dict[str, str] = {
    "Astra-RT1-v0": "astra_env.simulators.robot:RobotSimulator",
    "Astra-NuScenes-v0": "astra_env.simulators.driving:DrivingSimulator",
    "Astra-Sekai-v0": "astra_env.simulators.exploration:ExplorationSimulator",
    "Astra-SpatialVID-v0": "astra_env.simulators.exploration:ExplorationSimulator",
    "Astra-MultiCam-v0": "astra_env.simulators.multicam:MultiCamSimulator",
}


class KeyActions(gymnasium.ActionWrapper[Any, Any, Any]):
    """A simulator whose actions are numbers of the sets of keys that ``DISCRETE_ACTIONS`` lists for a modality."""

    def __init__(self, simulator: gymnasium.Env[Any, Any], modality: str) -> None:
        super().__init__(simulator)
        self._choices = ACTION_MODALITIES[modality].discrete(DISCRETE_ACTIONS[modality])
        self.action_space = gymnasium.spaces.Discrete(len(self._choices))

    def action(self, action: int) -> np.ndarray:
        """The action (A,) in physical units; ValueError for a number that stands for none."""
        if not self.action_space.contains(action):
            raise ValueError(f"The action is {action!r}, expected a whole number from 0 to {len(self._choices) - 1}.")
        return self._choices[action]


def make_simulator(env_id: str, **options: object) -> gymnasium.Env:
    """Make the real counterpart of an environment id: same spaces and chunk timing; ``options`` go to its class."""
    if env_id not in SIMULATORS:
        raise ValueError(f"There is no simulator for {env_id!r}; there are simulators for {sorted(SIMULATORS)}.")
    simulator, spec = resolve_name(SIMULATORS[env_id])(**options), ENVIRONMENTS[env_id]
    return KeyActions(simulator, spec.modality) if spec.discrete else simulator
