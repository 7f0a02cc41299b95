"""What an action vector means: fields, units, bounds and how it moves a pose, one table row for each modality."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import ArrayLike

from astra_env.kinematics import BicycleMotion, Kinematics, RigidMotion


@dataclass(frozen=True)
class ActionModality:
    """One kind of action: the first fields move a pose, as its kinematics says; the others are absolute commands."""

    name: str
    fields: tuple[str, ...]
    units: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    rate_hz: float
    """Actions in a second."""
    frame: str
    """The coordinate frame that motions are expressed in."""
    kinematics: Kinematics = field(default_factory=RigidMotion)
    """How the first fields move a pose."""
    absolute: tuple[str, ...] = ()
    """Fields that set a value instead of changing one."""
    keys: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    """Key name -> (field, share of its upper bound) for interactive play; an absolute field is toggled."""

    @property
    def action_dim(self) -> int:
        """Length A of an action vector."""
        return len(self.fields)

    def to_json(self) -> dict[str, Any]:
        """The convention that a checkpoint records: names, units, bounds, rate and frame."""
        return {
            "fields": list(self.fields),
            "units": list(self.units),
            "low": list(self.low),
            "high": list(self.high),
            "rate_hz": self.rate_hz,
            "frame": self.frame,
        }

    def space(self) -> gymnasium.spaces.Box:
        """The Gymnasium space of one action, float32 (A,)."""
        low, high = np.array(self.low, dtype=np.float32), np.array(self.high, dtype=np.float32)
        return gymnasium.spaces.Box(low, high, dtype=np.float32)

    def validate(self, action: ArrayLike, *, clip: bool = False) -> np.ndarray:
        """Check actions (..., A) and return them as float32; ``clip`` moves values into the bounds."""
        array = np.asarray(action)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{self.name} action has dtype {array.dtype}, expected numbers.")
        if array.ndim < 1 or array.shape[-1] != self.action_dim:
            raise ValueError(
                f"{self.name} action has shape {array.shape}, expected (..., {self.action_dim}): {self.fields}."
            )
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise ValueError(f"{self.name} action holds a value that is not finite: {array}.")
        low, high = np.array(self.low, dtype=np.float32), np.array(self.high, dtype=np.float32)
        if clip:
            return np.clip(array, low, high)
        outside = ((array < low) | (array > high)).reshape(-1, self.action_dim).any(axis=0)
        if outside.any():
            index = int(outside.argmax())
            raise ValueError(
                f"{self.name} action leaves the bounds [{low[index]:g}, {high[index]:g}] of {self.fields[index]}: "
                f"{array[..., index]}; pass clip=True to clip it."
            )
        return array

    def split(self, actions: ArrayLike, n: int) -> np.ndarray:
        """Share each action (..., A) out over ``n`` parts (..., n, A): changes divided, absolute values repeated."""
        parts = np.repeat(np.asarray(actions, dtype=np.float32)[..., None, :], n, axis=-2)
        return np.where(self._is_absolute(), parts, parts / n).astype(np.float32)

    def combine(self, actions: ArrayLike) -> np.ndarray:
        """One action (..., A) from consecutive parts (..., n, A): changes are added, the last absolute value holds."""
        parts = np.asarray(actions, dtype=np.float32)
        return np.where(self._is_absolute(), parts[..., -1, :], parts.sum(axis=-2)).astype(np.float32)

    def integrate(self, pose: ArrayLike, actions: ArrayLike, *, speed: float = 0.0) -> np.ndarray:
        """Poses (T + 1, 4, 4) that actions (T, A) lead through from ``pose`` (4, 4); a car begins at speed, in m/s."""
        start, moves = np.asarray(pose, dtype=np.float64), np.asarray(actions, dtype=np.float64)
        return self.kinematics.integrate(start, moves, 1 / self.rate_hz, speed)

    def to_pose(self, action: ArrayLike, *, speed: float = 0.0) -> np.ndarray:
        """Pose (4, 4) after one action (A,), seen from the pose before it."""
        return self.integrate(np.eye(4), np.asarray(action)[None], speed=speed)[1]

    def from_poses(self, poses: ArrayLike, absolute: ArrayLike = (), *, speed: float = 0.0) -> np.ndarray:
        """Actions (T - 1, A) that lead through ``poses`` (T, 4, 4), with the ``absolute`` fields (T,) or (T, n).

        ``actions[t]`` leads from pose t to pose t + 1 and holds the absolute values of frame t + 1. They may leave the
        bounds, where the poses were not made by this modality.
        """
        moves = self.kinematics.recover(np.asarray(poses, dtype=np.float64), 1 / self.rate_hz, speed)
        values = np.asarray(absolute, dtype=np.float64).reshape(len(moves) + 1, len(self.absolute))
        return np.concatenate([moves, values[1:]], axis=-1).astype(np.float32)

    def from_keys(self, pressed: Iterable[str]) -> np.ndarray:
        """The action (A,) of keys that are held together; opposite keys cancel, absolute fields need their key."""
        action = np.zeros(self.action_dim, np.float32)
        for key in pressed:
            if key not in self.keys:
                raise ValueError(f"{self.name} knows no key {key!r}; its keys are {sorted(self.keys)}.")
            name, share = self.keys[key]
            index = self.fields.index(name)
            action[index] += share * (self.high[index] if share > 0 else -self.low[index])
        return self.validate(action, clip=True)

    def discrete(self, choices: Iterable[Iterable[str]]) -> np.ndarray:
        """Table (N, A) of a discrete action space: one row for each set of keys, such as ``DISCRETE_ACTIONS``."""
        return np.stack([self.from_keys(keys) for keys in choices])

    def _is_absolute(self) -> np.ndarray:
        return np.array([name in self.absolute for name in self.fields])


ACTION_MODALITIES: dict[str, ActionModality] = {
    "end_effector": ActionModality(
        name="end_effector",
        fields=("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"),
        units=("m", "m", "m", "rad", "rad", "rad", "0 open .. 1 closed"),
        low=(-0.05, -0.05, -0.05, -0.25, -0.25, -0.25, 0.0),
        high=(0.05, 0.05, 0.05, 0.25, 0.25, 0.25, 1.0),
        rate_hz=5.0,
        frame="robot base: x forward, y left, z up",
        absolute=("gripper",),
        keys={
            "w": ("dx", 1.0),
            "s": ("dx", -1.0),
            "a": ("dy", 1.0),
            "d": ("dy", -1.0),
            "r": ("dz", 1.0),
            "f": ("dz", -1.0),
            "q": ("droll", -1.0),
            "e": ("droll", 1.0),
            "up": ("dpitch", 1.0),
            "down": ("dpitch", -1.0),
            "left": ("dyaw", 1.0),
            "right": ("dyaw", -1.0),
            "space": ("gripper", 1.0),
        },
    ),
    "camera": ActionModality(
        name="camera",
        fields=("dx", "dy", "dz", "droll", "dpitch", "dyaw"),
        units=("m", "m", "m", "rad", "rad", "rad"),
        low=(-0.2, -0.2, -0.2, -0.2, -0.2, -0.2),
        high=(0.2, 0.2, 0.2, 0.2, 0.2, 0.2),
        rate_hz=5.0,
        frame="camera: x right, y down, z forward",
        kinematics=RigidMotion(moving=True, turn_axes=(2, 0, 1)),
        keys={
            "w": ("dz", 1.0),
            "s": ("dz", -1.0),
            "a": ("dx", -1.0),
            "d": ("dx", 1.0),
            "r": ("dy", -1.0),
            "f": ("dy", 1.0),
            "up": ("dpitch", 1.0),
            "down": ("dpitch", -1.0),
            "left": ("dyaw", -1.0),
            "right": ("dyaw", 1.0),
            "q": ("droll", -1.0),
            "e": ("droll", 1.0),
        },
    ),
    "vehicle": ActionModality(
        name="vehicle",
        fields=("steering", "acceleration"),
        units=("rad", "m/s^2"),
        low=(-0.6, -6.0),
        high=(0.6, 3.0),
        rate_hz=5.0,
        frame="ego: x forward, y left, z up",
        kinematics=BicycleMotion(),
        keys={
            "w": ("acceleration", 1.0),
            "s": ("acceleration", -1.0),
            "a": ("steering", 1.0),
            "d": ("steering", -1.0),
        },
    ),
}

DISCRETE_ACTIONS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "camera": (
        (),
        ("w",),
        ("s",),
        ("a",),
        ("d",),
        ("w", "a"),
        ("w", "d"),
        ("left",),
        ("right",),
        ("up",),
        ("down",),
        ("w", "left"),
        ("w", "right"),
    ),
    "vehicle": ((), ("w",), ("s",), ("a",), ("d",), ("w", "a"), ("w", "d"), ("s", "a"), ("s", "d")),
}
"""Modality -> the sets of keys that a discrete action space chooses from; the first is no key at all."""
