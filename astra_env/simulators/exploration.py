"""A camera that flies through furnished rooms, as a small drone would, with exact poses; the goal is a red ball.

One action is held 0.2 s and shows four frames. All six fields act, exactly as the ``camera`` modality integrates them,
within heights of 0.3 to 2.0 m, looking up and down by 0.5 and leaning by 0.3 rad. Walls and furniture stop the camera
or let it slide along: then the measured pose differs from the commanded one.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.envs import GOAL_ANGLE, GOAL_DISTANCE
from astra_env.simulators import CHUNK_FRAMES, FPS, FRAME_SIZE, exploration_behaviours
from astra_env.simulators.exploration_rooms import Rooms, camera_angles, camera_pose
from astra_env.simulators.recording import Recording

MAX_PITCH, MAX_ROLL = 0.5, 0.3
"""How far the camera looks up and down and leans, radians."""
TEXT = "fly to the red ball"

_FALLOFF = 0.4


class ExplorationSimulator(gymnasium.Env):
    """Gymnasium environment over rooms that each seed furnishes anew.

    Observation: the last frame, uint8 (64, 64, 3). ``info``: ``frames`` uint8 (4, 64, 64, 3) (one frame at reset),
    ``pose`` and ``commanded_pose`` (4, 4), camera to world, the camera's axes x right, y down, z forward and the
    world's z up; ``goal`` (3,) and ``objects`` (K, 3) positions in the world; ``success``; and ``poses`` and
    ``commanded_poses`` with one row for each frame.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012

    def __init__(self, render_mode: str | None = "rgb_array") -> None:
        self.render_mode = render_mode
        self.modality = ACTION_MODALITIES["camera"]
        self.action_space = self.modality.space()
        self.observation_space = gymnasium.spaces.Box(0, 255, (FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
        self._rooms = Rooms()
        self._pose, self._goal, self._objects = np.eye(4), np.zeros(3), np.zeros((0, 3))
        self._frame = np.zeros((FRAME_SIZE, FRAME_SIZE, 3), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Furnish rooms and put the camera into them; everything follows from ``seed``."""
        super().reset(seed=seed)
        scene = self._rooms.furnish(self.np_random)
        self._pose, self._goal, self._objects = scene.start, scene.goal, scene.objects
        return self._look()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold one action (6,) for 0.2 s; the reward is in [0, 1] and an episode never ends by itself."""
        commanded = glide(self._pose, self.modality.validate(action), CHUNK_FRAMES)
        poses, frames = [], []
        for before, after in zip([self._pose, *commanded[:-1]], commanded, strict=True):
            place = self._rooms.slide(self._pose[:3, 3], after[:3, 3] - before[:3, 3])
            self._pose = geometry.make_pose(upright(after)[:3, :3], place)
            poses.append(self._pose)
            frames.append(self._rooms.draw(self._pose))
        self._frame = frames[-1]
        return self._frame, self.reward(), False, False, self._info(poses, list(commanded), frames)

    def render(self) -> np.ndarray:
        """The last frame, uint8 (64, 64, 3)."""
        return self._frame

    def close(self) -> None:
        """Free the graphics context."""
        self._rooms.close()

    def get_state(self) -> dict[str, np.ndarray]:
        """All that the simulation needs to continue from here, as arrays."""
        own = {"pose": self._pose.copy(), "goal": self._goal.copy(), "objects": self._objects.copy()}
        return self._rooms.get_state() | own

    def set_state(self, state: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, Any]]:
        """Continue from a state; returns what ``reset`` returns."""
        self._rooms.set_state(state)
        self._pose, self._goal, self._objects = (np.array(state[name]) for name in ("pose", "goal", "objects"))
        return self._look()

    def reward(self) -> float:
        """1 at the goal, else less the farther the goal is in a straight line."""
        distance = float(np.linalg.norm(self._goal - self._pose[:3, 3]))
        return 1.0 if self._reached() else float(1 - np.tanh(_FALLOFF * distance))

    def _reached(self) -> bool:
        way = self._goal - self._pose[:3, 3]
        distance = float(np.linalg.norm(way))
        return distance < GOAL_DISTANCE and float(way @ self._pose[:3, 2]) > distance * np.cos(GOAL_ANGLE)

    def _look(self) -> tuple[np.ndarray, dict[str, Any]]:
        self._frame = self._rooms.draw(self._pose)
        return self._frame, self._info([self._pose], [self._pose], [self._frame])

    def _info(self, poses: list[np.ndarray], commanded: list[np.ndarray], frames: list[np.ndarray]) -> dict[str, Any]:
        return {
            "frames": np.stack(frames),
            "pose": poses[-1].copy(),
            "commanded_pose": commanded[-1].copy(),
            "goal": self._goal.copy(),
            "objects": self._objects.copy(),
            "success": self._reached(),
            "poses": np.stack(poses),
            "commanded_poses": np.stack(commanded),
        }


def glide(pose: np.ndarray, action: np.ndarray, count: int) -> np.ndarray:
    """Poses (count, 4, 4) on the way that a camera ``action`` (6,) leads from ``pose``: straight, turning evenly."""
    move = ACTION_MODALITIES["camera"].to_pose(action)
    shares = np.arange(1, count + 1)[:, None] / count
    turns = geometry.axis_angle_to_matrix(shares * geometry.matrix_to_axis_angle(move[:3, :3]))
    return geometry.compose(pose, geometry.make_pose(turns, shares * move[:3, 3]))


def upright(pose: np.ndarray) -> np.ndarray:
    """Bring the pitch and roll of a camera pose (4, 4) within their limits; a pose within them stays as it is."""
    yaw, pitch, roll = camera_angles(pose)
    if abs(pitch) <= MAX_PITCH and abs(roll) <= MAX_ROLL:
        return pose
    pitch, roll = np.clip(pitch, -MAX_PITCH, MAX_PITCH), np.clip(roll, -MAX_ROLL, MAX_ROLL)
    return camera_pose(pose[:3, 3], yaw, pitch, roll)


RECORDING = Recording(
    make=lambda variant: ExplorationSimulator(),
    variants={"rooms": 1.0},
    behaviours=exploration_behaviours.BEHAVIOURS,
    make_behaviour=lambda name, rng, info: exploration_behaviours.make_behaviour(name, rng),
    text=TEXT,
    packages=("mujoco", "numpy"),
    moments={"goal": "goal"},
)
"""How `astra-env collect camera` records."""
