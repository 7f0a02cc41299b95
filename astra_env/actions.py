"""What an action vector means: fields, units, bounds and how it moves a pose, one table row for each modality."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import ArrayLike

from astra_env.kinematics import BicycleMotion, Kinematics, RigidMotion, interpolate_poses

_SAME_TIME = 1e-6
"""Share of an action's length by which times that mean the same may differ."""


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
    mouse: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    """Direction of the mouse, "right" or "down" -> (field, its change for one pixel, in the field's unit)."""

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
        """Share actions (..., A) out over ``n`` shorter ones (..., n, A): the same way at n times the rate.

        Motions are divided; a car's steering and acceleration and the absolute values are held.
        """
        whole, moving = np.asarray(actions, dtype=np.float64), self.kinematics.num_fields
        held = np.repeat(whole[..., None, moving:], n, axis=-2)
        return np.concatenate([self.kinematics.divide(whole[..., :moving], n), held], axis=-1).astype(np.float32)

    def combine(self, actions: ArrayLike) -> np.ndarray:
        """One action (..., A) of parts (..., n, A), with the last absolute values: the inverse of `split`."""
        parts, moving = np.asarray(actions, dtype=np.float64), self.kinematics.num_fields
        joined = self.kinematics.join(parts[..., :moving])
        return np.concatenate([joined, parts[..., -1, moving:]], axis=-1).astype(np.float32)

    def integrate(
        self, pose: ArrayLike, actions: ArrayLike, *, speed: float = 0.0, rate_hz: float | None = None
    ) -> np.ndarray:
        """Poses (T + 1, 4, 4) that actions (T, A) lead through from ``pose`` (4, 4); a car begins at speed, in m/s.

        ``rate_hz`` replaces the modality's own rate, for actions that `split` has shortened.
        """
        start, moves = np.asarray(pose, dtype=np.float64), np.asarray(actions, dtype=np.float64)
        return self.kinematics.integrate(start, moves, 1 / (rate_hz or self.rate_hz), speed)

    def to_pose(self, action: ArrayLike, *, speed: float = 0.0) -> np.ndarray:
        """Pose (4, 4) after one action (A,), seen from the pose before it."""
        return self.integrate(np.eye(4), np.asarray(action)[None], speed=speed)[1]

    def from_poses(
        self,
        poses: ArrayLike,
        absolute: ArrayLike = (),
        *,
        speed: ArrayLike | None = None,
        rate_hz: float | None = None,
    ) -> np.ndarray:
        """Actions (T - 1, A) that lead through ``poses`` (T, 4, 4), with the ``absolute`` fields (T,) or (T, n).

        ``actions[t]`` leads from pose t to pose t + 1 and holds the absolute values of frame t + 1. They may leave the
        bounds, where the poses were not made by this modality. ``speed`` is a car's in m/s: at the first pose, for
        poses that are exact, or at each one (T,); without it, it is estimated. ``rate_hz`` is the rate of the poses,
        where it is not the modality's own.
        """
        exact = np.asarray(poses, dtype=np.float64)
        moves = self.kinematics.recover(exact, 1 / (rate_hz or self.rate_hz), speed)
        values = np.asarray(absolute, dtype=np.float64).reshape(len(moves) + 1, len(self.absolute))
        return np.concatenate([moves, values[1:]], axis=-1).astype(np.float32)

    def from_timed_poses(
        self,
        poses: ArrayLike,
        times: ArrayLike,
        absolute: ArrayLike = (),
        *,
        speed: ArrayLike | None = None,
        rate_hz: float | None = None,
    ) -> np.ndarray:
        """Actions (N, A) at the modality's rate, or at ``rate_hz``, from ``poses`` (T, 4, 4) at ``times`` (T,), in s.

        Action k leads from ``times[0] + k / rate`` to ``times[0] + (k + 1) / rate``. Poses in between are interpolated,
        an absolute field has the value last given. The rest is as in `from_poses`; ValueError where the poses last
        shorter than one action.
        """
        seconds, rate = np.asarray(times, dtype=np.float64), rate_hz or self.rate_hz
        duration = float(seconds[-1] - seconds[0]) if len(seconds) else 0.0
        count = int(duration * rate + _SAME_TIME)
        if count < 1:
            raise ValueError(
                f"The poses last {duration:g} s, expected at least {1 / rate:g} s: one {self.name} action."
            )
        wanted = np.minimum(seconds[0] + np.arange(count + 1) / rate, seconds[-1])
        values = np.asarray(absolute, dtype=np.float64).reshape(len(seconds), len(self.absolute))
        latest = np.searchsorted(seconds, wanted + _SAME_TIME / rate, side="right") - 1
        if speed is not None and np.ndim(speed):
            speed = np.interp(wanted, seconds, np.asarray(speed, dtype=np.float64))
        return self.from_poses(interpolate_poses(poses, seconds, wanted), values[latest], speed=speed, rate_hz=rate)

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

    def from_mouse(self, right: float, down: float) -> np.ndarray:
        """The action (A,) of a mouse that has moved so many pixels in one step, within the bounds."""
        action = np.zeros(self.action_dim, np.float32)
        for direction, pixels in (("right", right), ("down", down)):
            if direction in self.mouse:
                name, change = self.mouse[direction]
                action[self.fields.index(name)] += change * pixels
        return self.validate(action, clip=True)

    def discrete(self, choices: Iterable[Iterable[str]]) -> np.ndarray:
        """Table (N, A) of a discrete action space: one row for each set of keys, such as ``DISCRETE_ACTIONS``."""
        return np.stack([self.from_keys(keys) for keys in choices])


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
        mouse={"right": ("dy", -0.0005), "down": ("dx", -0.0005)},
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
        mouse={"right": ("dyaw", 0.002), "down": ("dpitch", -0.002)},
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
        mouse={"right": ("steering", -0.006)},
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
