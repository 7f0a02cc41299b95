"""Real simulators with the spaces and timing of the imagined environments: they collect data and verify policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

import gymnasium
import numpy as np

from astra_env.actions import ACTION_MODALITIES, DISCRETE_ACTIONS
from astra_env.envs import ENVIRONMENTS, REACHED, SURE

FRAME_SIZE = 64
"""Height and width of every simulator's frames."""
CHUNK_FRAMES = 4
FPS = 20

SIMULATORS: dict[str, str] = {
    "Astra-RT1-v0": "astra_env.simulators.robot:RobotSimulator",
    "Astra-RT1-Reach-v0": "astra_env.simulators.robot:RobotSimulator",
    "Astra-NuScenes-v0": "astra_env.simulators.driving:DrivingSimulator",
    "Astra-Sekai-v0": "astra_env.simulators.exploration:ExplorationSimulator",
    "Astra-SpatialVID-v0": "astra_env.simulators.exploration:ExplorationSimulator",
    "Astra-MultiCam-v0": "astra_env.simulators.multicam:MultiCamSimulator",
}


def reach(told: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Reward 1 - tanh(8 d) at d metres from the gripper to the first cube, and whether they are within ``REACHED``.

    ``told`` has the poses (..., 4, 4) and the objects (..., K, 3) of a simulator's ``info``, or of many moments.
    """
    distance = np.linalg.norm(told["pose"][..., :3, 3] - told["objects"][..., 0, :], axis=-1)
    return 1 - np.tanh(8 * distance), distance < REACHED


Task = Callable[[Mapping[str, Any]], tuple[np.ndarray, np.ndarray]]
TASKS: dict[str, Task] = {"Astra-RT1-Reach-v0": reach}
"""Id -> reward and success of what ``info`` tells, where they are not those of the simulator itself."""


@dataclass(frozen=True)
class Target:
    """What a task is about, as points in metres from what acts, of a recording's moments."""

    arrays: tuple[str, ...]
    """Recorded arrays that tell it."""
    near: float
    """Metres within which a point counts as found."""
    offsets: Callable[[Mapping[str, np.ndarray]], np.ndarray]
    """From those arrays, of T moments, to points (T, P, 2 or 3).

    Of vehicles those of the way ahead, as they see them. Of cameras the target, as they see it. Of end effectors two,
    along the axes of the poses: from it to the target, and itself from the poses' origin, because where actions meet a
    resistance only pictures tell.
    """
    hides: bool = False
    """Whether it may be out of sight, so that a model is to tell how sure it is."""


def _cube_and_gripper(told: Mapping[str, np.ndarray]) -> np.ndarray:
    gripper = told["measured_poses"][:, :3, 3]
    return np.stack([told["objects"][:, 0] - gripper, gripper], axis=1)


def _ball(told: Mapping[str, np.ndarray]) -> np.ndarray:
    poses = told["measured_poses"]
    return np.einsum("tji,tj->ti", poses[:, :3, :3], told["goal"] - poses[:, :3, 3])[:, None]


_CUBE = Target(("measured_poses", "objects"), REACHED, _cube_and_gripper)
TARGETS: dict[str, Target] = {
    "Astra-RT1-v0": _CUBE,
    "Astra-RT1-Reach-v0": _CUBE,
    "Astra-NuScenes-v0": Target(("route",), 0.5, lambda told: told["route"]),
    "Astra-Sekai-v0": Target(("measured_poses", "goal"), SURE, _ball, hides=True),
}
"""Id -> what a model that was learned from recordings tells the place of, to be remembered in dreams."""


class Judged(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A simulator under another task."""

    def __init__(self, simulator: gymnasium.Env[Any, Any], task: Task) -> None:
        super().__init__(simulator)
        self._task = task

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the simulator's, with this task's success."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, {**info, "success": bool(self._task(info)[1])}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the simulator's, with this task's reward and success."""
        observation, _, terminated, truncated, info = self.env.step(action)
        reward, success = self._task(info)
        return observation, float(reward), terminated, truncated, {**info, "success": bool(success)}


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
    if env_id in TASKS:
        simulator = Judged(simulator, TASKS[env_id])
    return KeyActions(simulator, spec.modality) if spec.discrete else simulator
