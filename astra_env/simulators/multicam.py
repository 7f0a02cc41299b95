"""A camera that moves around a robot arm at work, with exact poses; the task is to follow a path of camera poses.

One action is held 0.2 s and shows four frames, while the arm of the robot simulator goes on by itself. All six fields
act, exactly as the ``camera`` modality integrates them, within a shell around the table that keeps the arm in the
picture; at its bounds the measured pose differs from the commanded one. World axes: x from the arm's base to the table,
z up, metres.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.simulators import CHUNK_FRAMES, FPS, FRAME_SIZE, robot_behaviours
from astra_env.simulators.behaviours import Behaviour
from astra_env.simulators.drawing import mujoco
from astra_env.simulators.exploration import glide
from astra_env.simulators.multicam_behaviours import BEHAVIOURS, make_behaviour, on_shell, random_path
from astra_env.simulators.recording import Recording
from astra_env.simulators.robot import RobotSimulator

FIELD_OF_VIEW = 42.0
"""Vertically, in degrees."""
ON_PATH = (0.05, 0.1)
"""Metres and radians from the wanted pose within which the camera counts as on the path."""
SUBJECTS: dict[str, float] = {"scripted": 0.7, "mixed": 0.2, "random": 0.1}
"""What the arm does -> how often; see the behaviours of `astra_env.simulators.robot_behaviours`."""
TEXT = "follow the camera path around the robot arm"

_SEEN = ("pose", "objects")
"""What the arm's behaviours look at."""
_MODALITY = ACTION_MODALITIES["camera"]


class MultiCamSimulator(gymnasium.Env):
    """Gymnasium environment over a camera around the arm of ``task`` "lift" or "stack".

    Observation: the last frame, uint8 (64, 64, 3). ``info``: ``frames`` uint8 (4, 64, 64, 3) (one frame at reset),
    ``pose`` and ``commanded_pose`` (4, 4), camera to world, the camera's axes x right, y down, z forward; ``path``
    (T + 1, 4, 4), ``path_pose`` (4, 4) that the camera should have now and ``next_pose`` after the next action;
    ``success`` whether it is on the path; and ``poses`` and ``commanded_poses`` with one row for each frame.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012

    def __init__(self, task: str = "stack", render_mode: str | None = "rgb_array") -> None:
        self.render_mode = render_mode
        self.modality = _MODALITY
        self.action_space = _MODALITY.space()
        self.observation_space = gymnasium.spaces.Box(0, 255, (FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
        self._subject = _FilmedRobot(task)
        self._subject_info: dict[str, Any] = {}
        self._behaviour: Behaviour = robot_behaviours.random_behaviour(np.random.default_rng(0))
        self._subject_seed, self._subject_name = 0, ""
        self._seen: list[dict[str, np.ndarray]] = []
        self._pose, self._path, self._count = np.eye(4), np.eye(4)[None], 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Set the arm to work and the camera to the beginning of a path; everything follows from ``seed``.

        ``options["path"]`` (T + 1, 4, 4) replaces the random path; ValueError where it leaves the shell.
        """
        super().reset(seed=seed)
        path = random_path(self.np_random)
        self._path = path if not options or "path" not in options else _checked_path(options["path"])
        self._pose, self._count = self._path[0], 0
        self._subject_seed = int(self.np_random.integers(2**31))
        self._subject_name = str(self.np_random.choice(list(SUBJECTS), p=list(SUBJECTS.values())))
        self._subject.film(self._path[:1])
        frame, self._subject_info = self._subject.reset(seed=self._subject_seed)
        self._set_to_work([])
        return frame, self._info(self._path[:1], self._path[:1])

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold one action (6,) for 0.2 s; the reward is in [0, 1] and an episode never ends by itself."""
        commanded = glide(self._pose, self.modality.validate(action), CHUNK_FRAMES)
        poses = np.stack([on_shell(pose) for pose in commanded])
        self._pose, self._count = poses[-1], self._count + 1
        self._subject.film(poses)
        self._seen.append({name: self._subject_info[name] for name in _SEEN})
        move = self._subject.modality.validate(self._behaviour(self._subject_info), clip=True)
        frame, *_, self._subject_info = self._subject.step(move)
        return frame, self.reward(), False, False, self._info(poses, commanded)

    def render(self) -> np.ndarray:
        """The last frame, uint8 (64, 64, 3)."""
        return self._subject.render()

    def close(self) -> None:
        """Free the graphics context."""
        self._subject.close()

    def get_state(self) -> dict[str, np.ndarray]:
        """All that the simulation needs to continue from here, as arrays."""
        own = {"pose": self._pose.copy(), "path": self._path.copy(), "count": np.array(self._count)}
        subject = {"subject_seed": np.array(self._subject_seed), "subject_name": np.array(self._subject_name)}
        seen = {f"seen_{name}": np.array([info[name] for info in self._seen]) for name in _SEEN}
        return self._subject.get_state() | own | subject | seen

    def set_state(self, state: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, Any]]:
        """Continue from a state of the same task; returns what ``reset`` returns."""
        self._pose, self._path, self._count = np.array(state["pose"]), np.array(state["path"]), int(state["count"])
        self._subject_seed, self._subject_name = int(state["subject_seed"]), str(state["subject_name"])
        self._subject.film(self._pose[None])
        frame, self._subject_info = self._subject.set_state(state)
        rows = zip(*(state[f"seen_{name}"] for name in _SEEN), strict=True)
        self._set_to_work([dict(zip(_SEEN, row, strict=True)) for row in rows])
        return frame, self._info(self._pose[None], self._pose[None])

    def _set_to_work(self, seen: list[dict[str, np.ndarray]]) -> None:
        """Begin the arm's behaviour and bring it to where it is after having seen so many infos."""
        rng = np.random.default_rng([self._subject_seed, 1])
        count = len(self._subject_info["objects"])
        self._behaviour, self._seen = robot_behaviours.make_behaviour(self._subject_name, rng, count), seen
        for info in seen:
            self._behaviour(info)

    def reward(self) -> float:
        """1 on the path, less the farther the camera is from it: half a radian counts as much as 0.25 m."""
        distance, angle = self._error()
        return float(1 - np.tanh(3 * (distance + 0.5 * angle)))

    def _error(self) -> tuple[float, float]:
        step = geometry.relative(self._path_pose(), self._pose)
        return float(np.linalg.norm(step[:3, 3])), float(np.linalg.norm(geometry.matrix_to_axis_angle(step[:3, :3])))

    def _path_pose(self, ahead: int = 0) -> np.ndarray:
        return self._path[min(self._count + ahead, len(self._path) - 1)]

    def _info(self, poses: np.ndarray, commanded: np.ndarray) -> dict[str, Any]:
        distance, angle = self._error()
        return {
            "frames": self._subject_info["frames"],
            "pose": poses[-1].copy(),
            "commanded_pose": commanded[-1].copy(),
            "path": self._path.copy(),
            "path_pose": self._path_pose().copy(),
            "next_pose": self._path_pose(1).copy(),
            "success": distance < ON_PATH[0] and angle < ON_PATH[1],
            "poses": poses.copy(),
            "commanded_poses": commanded.copy(),
        }


class _FilmedRobot(RobotSimulator):
    """The robot simulator, seen by a camera that is told where to be for each frame."""

    def __init__(self, task: str) -> None:
        super().__init__(task)
        # one of the cameras that robosuite's scenes have anyway
        self._eye = self._model.camera("frontview").id
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, self._eye
        self._model.cam_fovy[self._eye] = FIELD_OF_VIEW
        # robosuite's tiles, which the robot simulator leaves out, show how the camera moves
        floor = self._model.geom("floor").id
        self._model.geom_matid[floor] = self._model.material("floorplane").id
        self._model.geom_rgba[floor] = (0.5, 0.5, 0.5, 1.0)
        self._shots: list[np.ndarray] = []

    def film(self, poses: np.ndarray) -> None:
        """Camera-to-world poses (F, 4, 4) of the next frames."""
        self._shots = list(poses)

    def _draw(self) -> np.ndarray:
        pose = self._shots.pop(0)
        self._data.cam_xpos[self._eye] = pose[:3, 3]
        self._data.cam_xmat[self._eye] = (pose[:3, :3] * (1, -1, -1)).ravel()
        return super()._draw()


def _checked_path(path: np.ndarray) -> np.ndarray:
    path = np.asarray(path, dtype=np.float64)
    if path.ndim != 3 or path.shape[1:] != (4, 4) or len(path) == 0:
        raise ValueError(f"path has shape {path.shape}, expected (T + 1, 4, 4) camera poses.")
    outside = [index for index, pose in enumerate(path) if np.abs(on_shell(pose) - pose).max() > 1e-6]
    if outside:
        raise ValueError(
            f"path leaves the shell around the table at poses {outside}; `on_shell` brings a pose into it."
        )
    return path


RECORDING = Recording(
    make=MultiCamSimulator,
    variants={"lift": 2 / 3, "stack": 1 / 3},
    behaviours=BEHAVIOURS,
    make_behaviour=lambda name, rng, info: make_behaviour(name, rng),
    text=TEXT,
    packages=("robosuite", "mujoco", "numpy"),
)
"""How `astra-env collect multicam` records."""
