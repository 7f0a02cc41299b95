"""What columns of numbers mean as actions: what the owner of unknown data must tell, since it cannot be guessed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets.files import Files
from astra_env.datasets.reader import Untold, columns, finite
from astra_env.flags import flag
from astra_env.kinematics import RigidMotion, interpolate_poses

LENGTHS = {"m": 1.0, "cm": 0.01, "mm": 0.001}
ANGLES = {"rad": 1.0, "deg": np.pi / 180}
MEANINGS = ("poses", "deltas", "velocities", "controls")
GRIPPERS = ("measured", "commanded")
ROTATIONS: Mapping[str, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {
    "none": (0, lambda r: np.broadcast_to(np.eye(3), (len(r), 3, 3))),
    "yaw": (1, lambda r: geometry.rpy_to_matrix(np.pad(r, ((0, 0), (2, 0))))),
    "rpy": (3, geometry.rpy_to_matrix),
    "axis_angle": (3, geometry.axis_angle_to_matrix),
    "quaternion_xyzw": (4, geometry.quaternion_to_matrix),
    "quaternion_wxyz": (4, lambda r: geometry.quaternion_to_matrix(np.roll(r, -1, axis=-1))),
    "matrix": (9, lambda r: r.reshape(-1, 3, 3)),
}
"""Kind of rotation -> number of its columns, and what makes matrices (N, 3, 3) of them. Yaw turns about z; roll, pitch
and yaw turn about the fixed x, then y, then z; a matrix comes row by row."""
AXES = {
    "own": np.eye(4),
    "opengl": np.diag([1.0, -1.0, -1.0, 1.0]),
    "forward_left_up": np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]]),
}
"""Axes of what moves -> our axes in them. "own" are the modality's. A camera's may be OpenGL's (x right, y up, z
backward), or those of the body that carries it (x forward, y left, z up)."""
_ANGULAR = ("yaw", "rpy", "axis_angle")
_CROOKED = 0.05  # how far rounded numbers may be from those of a rotation
_SAME_TIME = 1e-6


class Motion(NamedTuple):
    """What columns say of N frames."""

    actions: np.ndarray
    """float32 (N - 1, A) at the frame rate."""
    poses: np.ndarray | None
    """float32 (N, 4, 4), where they were measured."""
    speeds: np.ndarray | None
    """float32 (N,) in m/s, where they were measured."""

    def cut(self, start: int, stop: int) -> Motion:
        """The motion of frames `start` to `stop`."""
        poses, speeds = (None if values is None else values[start:stop] for values in (self.poses, self.speeds))
        return Motion(self.actions[start : stop - 1], poses, speeds)


class Timing(NamedTuple):
    """When rows were written that are not one a frame, in seconds since the first frame."""

    rows: np.ndarray
    """(N,), increasing."""
    frames: np.ndarray
    """(T,); the rows cover them, half a frame more or less."""


@dataclass(frozen=True)
class ActionColumns:
    """Which columns move what, in which units and axes. ValueError where the parts do not fit together."""

    modality: str = flag("end_effector", f"kind of action: {', '.join(ACTION_MODALITIES)}")
    meaning: str = flag(
        "poses",
        "'poses': where it is at each frame; 'deltas': how far it goes until the next frame; 'velocities': the same "
        "for a second; 'controls': a vehicle's steering and acceleration",
    )
    translation: tuple[str, ...] = flag(("x", "y", "z"), "columns of x y z, or of x y on a plane")
    rotation: tuple[str, ...] = flag((), "columns of the rotation")
    rotation_kind: str = flag("none", f"what the rotation's columns are: {', '.join(ROTATIONS)}")
    length_unit: str = flag("m", f"of the translation: {', '.join(LENGTHS)}")
    angle_unit: str = flag("rad", f"of rotation and steering: {', '.join(ANGLES)}")
    axes: str = flag("own", f"axes of a camera that moves: {', '.join(AXES)}; 'own' are x right, y down, z forward")
    inverse: bool = flag(False, "poses are of the world in what moves (world-to-camera)")
    tool_frame: bool = flag(False, "deltas and velocities are in the moving frame, not in the fixed one")
    gripper: str | None = flag(None, "column of the gripper")
    gripper_open: float = flag(0.0, "the gripper's value when it is open")
    gripper_closed: float = flag(1.0, "the gripper's value when it is closed")
    gripper_meaning: str | None = flag(
        None, "'measured' at its frame or 'commanded' until the next one; if not told, measured only beside poses"
    )
    controls: tuple[str, ...] = flag(("steering", "acceleration"), "columns of a vehicle's controls, in m/s^2 the last")
    steering_ratio: float = flag(1.0, "steering for one of the wheels; negative where the steering grows to the right")
    speed: str | None = flag(None, "column of a vehicle's speed, in m/s")

    def __post_init__(self) -> None:
        tables = (
            ("modality", ACTION_MODALITIES),
            ("meaning", MEANINGS),
            ("rotation_kind", ROTATIONS),
            ("length_unit", LENGTHS),
            ("angle_unit", ANGLES),
            ("axes", AXES),
            ("gripper_meaning", (None, *GRIPPERS)),
        )
        for name, known in tables:
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {list(known)}.")
        wanted = ROTATIONS[self.rotation_kind][0]
        if len(self.rotation) != wanted or len(self.translation) not in (2, 3):
            raise ValueError(
                f"translation has {len(self.translation)} columns and rotation {len(self.rotation)}, expected 2 or 3, "
                f"and {wanted} for the rotation kind {self.rotation_kind!r}."
            )
        for wrong, sentence in self._contradictions():
            if wrong:
                raise ValueError(sentence)

    def _contradictions(self) -> list[tuple[bool, str]]:
        """What does not fit together, and what to tell instead."""
        modality, moved = ACTION_MODALITIES[self.modality], self.meaning in ("deltas", "velocities")
        moving = modality.kinematics != RigidMotion()  # whose frame stands still
        return [
            (
                self.gripper is not None and self.gripper_open == self.gripper_closed,
                f"gripper_open and gripper_closed are both {self.gripper_open:g}, expected two values.",
            ),
            (
                (self.gripper is not None) != bool(modality.absolute),
                f"gripper is {self.gripper!r}, but {self.modality} actions have the absolute fields "
                f"{modality.absolute}; name the gripper's column for a robot, and only there.",
            ),
            (
                self.modality != "vehicle" and (self.meaning == "controls" or self.speed is not None),
                f"meaning is {self.meaning!r} and speed {self.speed!r}, but controls and a speed are those of "
                f"vehicles, not of {self.modality} actions.",
            ),
            (
                self.meaning == "controls" and (len(self.controls) != 2 or self.steering_ratio == 0),
                f"controls are {self.controls} with steering_ratio {self.steering_ratio:g}, expected two columns, "
                "steering and acceleration, and a ratio other than 0.",
            ),
            (
                self.modality == "vehicle" and self.meaning != "controls" and self.rotation_kind == "none",
                "A vehicle's steering follows from how it turns: tell its rotation, such as a yaw.",
            ),
            (
                self.axes != "own" and self.modality != "camera",
                f"axes are {self.axes!r}, which cameras have; {self.modality} actions need {modality.frame}.",
            ),
            (self.inverse and self.meaning != "poses", f"inverse is for poses, but the columns are {self.meaning}."),
            (
                moved and self.tool_frame != moving,
                f"{self.modality} actions are in the {'moving' if moving else 'fixed'} frame ({modality.frame}), and "
                f"{self.meaning} in the {'fixed' if moving else 'moving'} one cannot be turned into them without the "
                f"orientation: tell the columns of poses, or tool_frame={moving} if that is the frame they are in.",
            ),
            (
                self.meaning == "velocities" and self.rotation_kind not in ("none", *_ANGULAR),
                f"Velocities turn by {self.rotation_kind!r}, expected one of {('none', *_ANGULAR)}.",
            ),
        ]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that are read."""
        motion = self.controls if self.meaning == "controls" else (*self.translation, *self.rotation)
        return (*motion, *(name for name in (self.gripper, self.speed) if name is not None))

    def read(
        self, table: np.ndarray, names: Sequence[str], fps: float, source: str, timing: Timing | None = None
    ) -> Motion:
        """Actions, poses and speeds of a table (N, len(names)): one row a frame at a constant rate, or at told times.

        What the last row says of the way on is not used. ValueError names the source, and the columns that are missing
        or the row that is not right.
        """
        if len(table) < 2:
            raise ValueError(f"{source} has {len(table)} rows, expected at least 2.")
        if timing is not None:
            _check(timing, source)
        onward = np.concatenate([table[:-1], table[-2:-1]])
        modality, is_command = ACTION_MODALITIES[self.modality], self.meaning != "poses"

        def chosen(wanted: Sequence[str], rows: np.ndarray) -> np.ndarray:
            return finite(columns(rows, names, wanted, source), source, f"one of {list(wanted)}")

        speeds = None if self.speed is None else chosen([self.speed], table)[:, 0]
        poses, held = None, np.zeros((len(table), 0))
        if self.meaning == "controls":
            held = chosen(self.controls, onward) * [ANGLES[self.angle_unit] / self.steering_ratio, 1.0]
        else:
            motion = chosen((*self.translation, *self.rotation), onward if is_command else table)
            poses = self._path(motion, source, 1 / fps if timing is None else np.diff(timing.rows)[:, None])
        if self.gripper is not None:
            is_command = is_command if self.gripper_meaning is None else self.gripper_meaning == "commanded"
            value = chosen([self.gripper], onward if is_command else table)
            held = np.clip((value - self.gripper_open) / (self.gripper_closed - self.gripper_open), 0, 1) + 0.0
        if timing is not None:
            poses, held, speeds = _at_frames(timing, poses, held, speeds)
        if poses is None:
            actions = held[:-1].astype(np.float32)
        else:
            # a command leads to the next frame, where a measurement of what it does belongs
            absolute = np.concatenate([held[:1], held[:-1]]) if is_command else held
            actions = modality.from_poses(poses, absolute, speed=speeds, rate_hz=fps)
        measured = poses.astype(np.float32) if poses is not None and self.meaning == "poses" else None
        return Motion(actions, measured, None if speeds is None else speeds.astype(np.float32))

    def _path(self, motion: np.ndarray, source: str, seconds: float | np.ndarray) -> np.ndarray:
        """Poses (N, 4, 4) in metres, radians and our axes; from the origin on where only motions are told."""
        ours = AXES[self.axes]
        if self.meaning == "poses":
            poses = self._steps(motion, source)
            return (geometry.inverse(poses) if self.inverse else poses) @ ours
        steps = self._steps(motion[:-1] * (seconds if self.meaning == "velocities" else 1.0), source)
        path = [np.eye(4)]
        for step in np.linalg.inv(ours) @ steps @ ours:
            here = path[-1]
            if self.tool_frame:
                path.append(here @ step)
            else:
                path.append(geometry.make_pose(step[:3, :3] @ here[:3, :3], here[:3, 3] + step[:3, 3]))
        return np.stack(path)

    def _steps(self, motion: np.ndarray, source: str) -> np.ndarray:
        """Poses (N, 4, 4) in metres and radians, in the axes of the data."""
        places, turns = np.split(motion, [len(self.translation)], axis=-1)
        metres = LENGTHS[self.length_unit] * np.pad(places, ((0, 0), (0, 3 - places.shape[1])))
        angles = ANGLES[self.angle_unit] * turns if self.rotation_kind in _ANGULAR else turns
        size = np.linalg.norm(turns, axis=-1) / np.sqrt(3 if self.rotation_kind == "matrix" else 1)
        whole = self.rotation_kind in ("none", *_ANGULAR) or np.abs(size - 1) < _CROOKED
        rotation = ROTATIONS[self.rotation_kind][1](np.where(np.atleast_1d(whole)[:, None], angles, 1.0))
        straight = np.abs(rotation @ np.swapaxes(rotation, -1, -2) - np.eye(3)).max(axis=(-1, -2)) < _CROOKED
        bad = ~(whole & straight & (np.linalg.det(rotation) > 0))
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(
                f"{source}, row {row}: {list(self.rotation)} are {turns[row].round(3).tolist()}, which is no rotation "
                f"of the kind {self.rotation_kind!r}; tell its columns and kind, or drop the row."
            )
        return geometry.make_pose(rotation, metres)


def _check(timing: Timing, source: str) -> None:
    """ValueError where the times of rows do not increase or do not cover the frames."""
    rows, frames = finite(timing.rows, source, "the time"), timing.frames
    late = np.diff(rows) <= 0
    if late.any():
        row = int(late.argmax()) + 1
        raise ValueError(f"{source}, row {row}: its time {rows[row]:g} is not after {rows[row - 1]:g}; sort the rows.")
    slack = 0.5 * (frames[1] - frames[0])
    covered = rows[0] <= frames[0] + slack and rows[-1] >= frames[-1] - slack
    if not covered or rows[-1] - rows[0] > 100 * (frames[-1] - frames[0]):
        raise ValueError(
            f"{source}: its times go from {rows[0]:g} to {rows[-1]:g}, the frames from {frames[0]:g} to {frames[-1]:g} "
            "s; expected seconds since the first frame, with rows for all frames."
        )


def _at_frames(
    timing: Timing, poses: np.ndarray | None, held: np.ndarray, speeds: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None]:
    """Poses, held values and speeds of rows brought to the times of frames: in between, or the last that was told."""
    wanted = np.clip(timing.frames, timing.rows[0], timing.rows[-1])
    latest = np.searchsorted(timing.rows, wanted + _SAME_TIME, side="right") - 1
    return (
        None if poses is None else interpolate_poses(poses, timing.rows, wanted),
        held[latest],
        None if speeds is None else np.interp(wanted, timing.rows, speeds),
    )


def told(given: ActionColumns | None, files: Files, names: Callable[[], Sequence[str]]) -> ActionColumns:
    """The columns that were given, or that the fields in `columns.json` beside the data tell.

    `Untold`, with the names that there are, when nobody tells them; ValueError when the file is not right.
    """
    if given is not None:
        return given
    if not files.exists("columns.json"):
        raise Untold(
            f"{files.root}: what its columns mean cannot be guessed; tell columns=ActionColumns(...), or write its "
            f"fields to columns.json there; the columns are {list(names())}."
        )
    path = files.path("columns.json")
    known = [field.name for field in dataclasses.fields(ActionColumns)]
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise ValueError(f"it tells {unknown}, expected fields of ActionColumns: {known}.")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        return ActionColumns(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} does not tell what the columns mean: {error}") from error
