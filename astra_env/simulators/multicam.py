"""A camera that moves around a robot arm at work, with exact poses; the task is to follow a path of camera poses.

One action is held 0.2 s and shows four frames, while the arm of the robot simulator goes on by itself. All six fields
act, exactly as the ``camera`` modality integrates them, within a shell around the table that keeps the arm in the
picture; at its bounds the measured pose differs from the commanded one. World axes: x from the arm's base to the table,
z up, metres.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.simulators import CHUNK_FRAMES, FPS, FRAME_SIZE, collect
from astra_env.simulators.behaviours import Behaviour
from astra_env.simulators.drawing import mujoco
from astra_env.simulators.exploration import glide
from astra_env.simulators.exploration_behaviours import axes_behaviour, blocked, random_behaviour
from astra_env.simulators.exploration_rooms import camera_angles, camera_pose
from astra_env.simulators.robot import RobotSimulator

CENTRE = np.array([0.0, 0.0, 0.9])
"""The middle of the arm's workspace, just above the table."""
SHELL_LOW, SHELL_HIGH = np.array([0.8, -2.0, 0.1]), np.array([1.35, 2.0, 1.1])
"""Distance from the centre (m), azimuth from the world's x and elevation (rad) that the camera may have."""
MAX_AIM, MAX_ROLL = 0.28, 0.3
"""How far the camera may look past the centre, and lean, radians."""
FIELD_OF_VIEW = 42.0
"""Vertically, in degrees."""
PATH_STEPS = 24
ON_PATH = (0.05, 0.1)
"""Metres and radians from the wanted pose within which the camera counts as on the path."""
SUBJECTS: dict[str, float] = {"scripted": 0.7, "mixed": 0.2, "random": 0.1}
"""What the arm does -> how often; see the behaviours of `astra_env.simulators.collect`."""
BEHAVIOURS: dict[str, float] = {"random": 0.25, "axes": 0.3, "orbit": 0.2, "zoom": 0.1, "pan": 0.15}
"""How the camera moves -> share of the episodes."""
TEXT = "follow the camera path around the robot arm"

_MODALITY = ACTION_MODALITIES["camera"]
_HIGH = np.array(_MODALITY.high)


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
        self._behaviour: Behaviour = axes_behaviour(np.random.default_rng(0))
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
        subject_seed = int(self.np_random.integers(2**31))
        name = str(self.np_random.choice(list(SUBJECTS), p=list(SUBJECTS.values())))
        self._subject.film(self._path[:1])
        frame, self._subject_info = self._subject.reset(seed=subject_seed)
        rng = np.random.default_rng([subject_seed, 1])
        self._behaviour = collect.make_behaviour(name, rng, len(self._subject_info["objects"]))
        return frame, self._info(self._path[:1], self._path[:1])

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold one action (6,) for 0.2 s; the reward is in [0, 1] and an episode never ends by itself."""
        commanded = glide(self._pose, self.modality.validate(action), CHUNK_FRAMES)
        poses = np.stack([on_shell(pose) for pose in commanded])
        self._pose, self._count = poses[-1], self._count + 1
        self._subject.film(poses)
        move = self._subject.modality.validate(self._behaviour(self._subject_info), clip=True)
        frame, *_, self._subject_info = self._subject.step(move)
        return frame, self.reward(), False, False, self._info(poses, commanded)

    def render(self) -> np.ndarray:
        """The last frame, uint8 (64, 64, 3)."""
        return self._subject.render()

    def close(self) -> None:
        """Free the graphics context."""
        self._subject.close()

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


def shell_coordinates(position: np.ndarray) -> np.ndarray:
    """Distance from the centre, azimuth and elevation (3,) of a position (3,)."""
    x, y, z = position - CENTRE
    return np.array([np.linalg.norm([x, y, z]), np.arctan2(y, x), np.arctan2(z, np.hypot(x, y))])


def shell_pose(distance: float, azimuth: float, elevation: float) -> np.ndarray:
    """Camera pose (4, 4) at a place on the shell that looks at the centre."""
    level = np.cos(elevation)
    away = np.array([level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation)])
    return camera_pose(CENTRE + distance * away, azimuth + np.pi, -elevation)


def on_shell(pose: np.ndarray) -> np.ndarray:
    """Bring a camera pose (4, 4) into the shell and its view to the centre; a pose that is there stays as it is."""
    place, rotation = pose[:3, 3], pose[:3, :3]
    coordinates = shell_coordinates(place)
    inside = np.clip(coordinates, SHELL_LOW, SHELL_HIGH)
    if not np.array_equal(inside, coordinates):
        place = shell_pose(*inside)[:3, 3]
    aim = rotation.T @ (CENTRE - place)
    away = float(np.arctan2(np.hypot(aim[0], aim[1]), aim[2]))
    if away > MAX_AIM:
        axis = np.array([-aim[1], aim[0], 0.0]) / max(float(np.hypot(aim[0], aim[1])), 1e-9)
        rotation = rotation @ geometry.axis_angle_to_matrix(axis * (away - MAX_AIM))
    turned = geometry.make_pose(rotation, place)
    yaw, pitch, roll = camera_angles(turned)
    return (
        turned if abs(roll) <= MAX_ROLL else camera_pose(place, yaw, pitch, float(np.clip(roll, -MAX_ROLL, MAX_ROLL)))
    )


def random_path(rng: np.random.Generator, steps: int = PATH_STEPS) -> np.ndarray:
    """Poses (steps + 1, 4, 4) that one of the behaviours leads a camera through."""
    coordinates = SHELL_LOW + rng.uniform(0.2, 0.8, 3) * (SHELL_HIGH - SHELL_LOW)
    behaviour = make_behaviour(str(rng.choice(["random", "orbit", "zoom", "pan"])), rng)
    path = [shell_pose(*coordinates)]
    commanded = path[0]
    for _ in range(steps):
        action = _MODALITY.validate(behaviour({"pose": path[-1], "commanded_pose": commanded}), clip=True)
        commanded = _MODALITY.integrate(path[-1], action[None])[1]
        path.append(on_shell(commanded))
    return np.stack(path)


def aiming(info: dict[str, Any]) -> np.ndarray:
    """The action (6,) that turns the camera upright to the centre and nothing else."""
    pose = info["pose"]
    right, down, ahead = pose[:3, :3].T @ (CENTRE - pose[:3, 3])
    roll = camera_angles(pose)[2]
    return np.array([0.0, 0.0, 0.0, -roll, np.arctan2(-down, ahead), np.arctan2(right, ahead)])


def _homing(info: dict[str, Any]) -> np.ndarray:
    """Aim at the centre and keep to the middle of the shell."""
    place = info["pose"][:3, 3]
    middle = (SHELL_LOW + SHELL_HIGH) / 2
    middle[1] = shell_coordinates(place)[1]
    home = 1.5 * aiming(info)
    home[:3] = 0.5 * info["pose"][:3, :3].T @ (shell_pose(*middle)[:3, 3] - place)
    return home


def orbit_behaviour(rng: np.random.Generator) -> Behaviour:
    """Circle around the centre, sideways or over the top, the other way where the shell ends."""
    upwards, rate = rng.random() < 0.35, rng.choice([-1.0, 1.0]) * rng.uniform(0.04, 0.16)

    def act(info: dict[str, Any]) -> np.ndarray:
        nonlocal rate
        rate = -rate if blocked(info) else rate
        pose = info["pose"]
        axis = pose[:3, 0] if upwards else np.array([0.0, 0.0, 1.0])
        turn = geometry.axis_angle_to_matrix(rate * axis)
        around = geometry.make_pose(turn @ pose[:3, :3], CENTRE + turn @ (pose[:3, 3] - CENTRE))
        return _MODALITY.from_poses(np.stack([pose, around]))[0] + 0.3 * aiming(info)

    return act


def zoom_behaviour(rng: np.random.Generator) -> Behaviour:
    """Go nearer and farther, drifting a little to the side."""
    speed, drift = rng.choice([-1.0, 1.0]) * rng.uniform(0.2, 0.6), rng.uniform(-0.2, 0.2, 2)

    def act(info: dict[str, Any]) -> np.ndarray:
        nonlocal speed
        speed = -speed if blocked(info) or rng.random() < 0.08 else speed
        return np.array([*drift, speed, 0, 0, 0]) * _HIGH + 0.5 * aiming(info)

    return act


def pan_behaviour(rng: np.random.Generator) -> Behaviour:
    """Look to the sides and up and down past the centre from one place, or gliding along."""
    rates, phases = rng.uniform(0.3, 0.9, 2), rng.uniform(0, 2 * np.pi, 2)
    swings, glide_by, count = rng.uniform(0.05, 0.12, 2), rng.uniform(-0.4, 0.4, 3) * (rng.random() < 0.5), 0

    def act(info: dict[str, Any]) -> np.ndarray:
        nonlocal count, glide_by
        count += 1
        glide_by = -glide_by if blocked(info) else glide_by
        action = 0.15 * aiming(info)
        action[:3] += glide_by * _HIGH[:3]
        action[4:] += swings * np.sin(rates * count + phases)
        return action

    return act


def tracking_behaviour(info: dict[str, Any]) -> np.ndarray:
    """Follow the path."""
    return _MODALITY.from_poses(np.stack([info["pose"], info["next_pose"]]))[0]


_MAKERS: dict[str, Callable[[np.random.Generator], Behaviour]] = {
    "random": lambda rng: random_behaviour(rng, _homing, 0.7),
    "axes": lambda rng: axes_behaviour(rng, 0.6),
    "orbit": orbit_behaviour,
    "zoom": zoom_behaviour,
    "pan": pan_behaviour,
}


def make_behaviour(name: str, rng: np.random.Generator) -> Behaviour:
    """Behaviour by one of the names in ``BEHAVIOURS``."""
    return _MAKERS[name](rng)


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
