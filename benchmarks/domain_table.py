"""What is measured in each domain: one row with its motion, the actions that are held, and the rare cases."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.kinematics import BicycleMotion
from benchmarks.imagination import Bench
from benchmarks.motion_estimator import Motion, motion_report, trained_motion_estimator
from benchmarks.motion_following import MotionFollower, Probe, Start
from benchmarks.pose_estimator import estimator_report, trained_pose_estimator
from benchmarks.robot_following import RobotFollower, load_workspace

HOLD, SHARE = 5, 0.8
"""Car: actions are held for so many steps, at this share of their bounds."""
CAMERA_HOLD, CAMERA_SHARE = 3, 0.6
"""Camera: shorter and slower, since views turn into limits and walls within a second."""
CAMERA_ROOM = 0.25
"""Metres or radians that a camera has in the direction of a held action."""
SIDEWAYS = 4.0
"""Sideways acceleration in m/s^2 up to which the car is steered, so that its tyres hold."""
REPORT_EPISODES = 60


class Follower(Protocol):
    """Tells whether imagined worlds do what they are told."""

    @property
    def names(self) -> tuple[str, ...]:
        """The actions that it holds."""

    def follow(self, bench: Bench, name: str, count: int, **sampling: Any) -> dict[str, Any]:
        """Hold an action from up to count starts: num_starts, right_way, half_way, mean and ideal displacement."""


@dataclass(frozen=True)
class EstimatorSizes:
    """How long estimators are trained, and on how many episodes."""

    motion_steps: int = 1500
    motion_episodes: int = 300
    pose_steps: int = 3000
    pose_episodes: int = 600


@dataclass(frozen=True)
class Domain:
    """One kind of world."""

    keys: tuple[str, ...]
    """Keys whose actions show what becomes of a picture of another kind."""
    motion: Motion | None = None
    """What is estimated from pairs of frames; None where the pose of the gripper is, from single ones."""
    probes: Mapping[str, Probe] = field(default_factory=dict)
    """Actions that are held, where motion is estimated."""
    rare: Mapping[str, Probe] = field(default_factory=dict)
    """The same in situations that are rare in the recordings."""
    round_trips: tuple[str, ...] = ()
    """Fields of the action that lead there and, with the other sign, back."""


def make_follower(
    data: str | os.PathLike[str], bench: Bench, folder: Path, sizes: EstimatorSizes
) -> tuple[Follower, dict[str, Any]]:
    """What measures the motion in a domain, and its own held-out errors; estimators are kept in folder."""
    domain, autoencoder = DOMAINS[bench.heldout.name], bench.world_model.autoencoder
    frames = bench.heldout.frames[:REPORT_EPISODES]
    if domain.motion is None:
        space, count = (
            load_workspace(data, len(bench.heldout)),
            {"steps": sizes.pose_steps, "episodes": sizes.pose_episodes},
        )
        cache = folder / f"pose_estimator_{sizes.pose_steps}.safetensors"
        pose_estimator = trained_pose_estimator(data, autoencoder, cache, **count)
        trust = estimator_report(pose_estimator, frames, space.vectors[:REPORT_EPISODES], autoencoder)
        return RobotFollower(space, pose_estimator), trust
    cache = folder / f"motion_estimator_{bench.heldout.name}_{sizes.motion_steps}.safetensors"
    count = {"steps": sizes.motion_steps, "episodes": sizes.motion_episodes}
    estimator = trained_motion_estimator(data, autoencoder, cache, domain.motion, **count)
    trust = motion_report(estimator, domain.motion, frames, bench.poses[:REPORT_EPISODES], autoencoder)
    return MotionFollower(domain.probes, domain.motion, estimator.of_video), trust


# 1. Car

_CAR = ACTION_MODALITIES["vehicle"]
_STEP = 1 / _CAR.rate_hz


def speed_and_yaw_rate(poses: np.ndarray) -> np.ndarray:
    """Speed (m/s, negative in reverse) and yaw rate (rad/s, left positive) between poses (T, 4, 4): (T - 1, 2)."""
    steps = geometry.relative(poses[:-1], poses[1:])
    distance = np.linalg.norm(steps[:, :2, 3], axis=-1) * np.sign(steps[:, 0, 3])
    return np.stack([distance, geometry.matrix_to_rpy(steps[:, :3, :3])[:, 2]], axis=-1) / _STEP


def _steered(side: int, low: float, steps: int = HOLD) -> Probe:
    def plan(start: Start) -> np.ndarray | None:
        if start.speed <= low:
            return None
        held = min(SHARE * _CAR.high[0], np.arctan(SIDEWAYS * BicycleMotion().wheelbase / start.speed**2))
        return np.tile([side * held, 0.0], (steps, 1))

    return Probe(plan, lambda motions: float(motions[1:, 1].mean()), "rad/s")


def _faster(motions: np.ndarray) -> float:
    return float(motions[-1, 0] - motions[0, 0])


def _accelerated(acceleration: float, low: float, high: float, *, coasting: bool = False) -> Probe:
    def plan(start: Start) -> np.ndarray | None:
        return np.tile([0.0, acceleration], (HOLD, 1)) if low <= start.speed <= high else None

    return Probe(plan, _faster, "m/s", (lambda start: np.zeros((HOLD, 2))) if coasting else None)


def _full_stop(start: Start) -> np.ndarray | None:
    """Full braking until the car stands."""
    if start.speed < 8:
        return None
    speeds = np.maximum(start.speed + _CAR.low[1] * _STEP * np.arange(11), 0.0)
    return np.stack([np.zeros(10), np.diff(speeds) / _STEP], axis=-1)


_CAR_PROBES = {
    "steer left": _steered(1, 2.0),
    "steer right": _steered(-1, 2.0),
    "accelerate": _accelerated(SHARE * _CAR.high[1], 0.0, 12.0),
    "brake": _accelerated(SHARE * _CAR.low[1], 6.0, np.inf),
    "accelerate, not coast": _accelerated(SHARE * _CAR.high[1], 0.0, 12.0, coasting=True),
    "brake, not coast": _accelerated(SHARE * _CAR.low[1], 6.0, np.inf, coasting=True),
}
_CAR_RARE = {
    "full braking to a stop": Probe(_full_stop, _faster, "m/s"),
    "reversing from standstill": _accelerated(-2.0, -0.3, 0.3),
    "reversing, not standing": _accelerated(-2.0, -0.3, 0.3, coasting=True),
    "off the road to the left": _steered(1, 5.0, steps=10),
    "off the road to the right": _steered(-1, 5.0, steps=10),
}

# 2. Camera

_CAMERA = ACTION_MODALITIES["camera"]


def _moved(axis: int, sign: int) -> Probe:
    def plan(start: Start) -> np.ndarray | None:
        actions = start.rest(CAMERA_HOLD)
        actions[:, axis] = sign * CAMERA_SHARE * _CAMERA.high[axis]
        return actions if start.room(axis, sign) >= CAMERA_ROOM else None

    def measure(motions: np.ndarray) -> float:
        ends = _CAMERA.integrate(np.eye(4), motions[1:])[[0, -1]]
        return float(_CAMERA.from_poses(ends)[0, axis])

    return Probe(plan, measure, _CAMERA.units[axis])


_CAMERA_PROBES = {
    ("+" if sign > 0 else "-") + name: _moved(axis, sign)
    for axis, name in enumerate(_CAMERA.fields)
    for sign in (1, -1)
}

CAR_MOTION = Motion(
    ("speed", "yaw rate"),
    ("m/s", "rad/s"),
    speed_and_yaw_rate,
    distance=lambda motions: float(np.abs(motions[:, 0]).sum() * _STEP),
    reversible=False,
)
CAMERA_MOTION = Motion(
    _CAMERA.fields,
    _CAMERA.units,
    _CAMERA.from_poses,
    distance=lambda motions: float(np.linalg.norm(motions[:, :3], axis=-1).sum()),
    reversible=True,
)

_VIEW = Domain(("w", "left"), CAMERA_MOTION, _CAMERA_PROBES, round_trips=("dx", "dz", "dpitch", "dyaw"))

DOMAINS: dict[str, Domain] = {
    "robot": Domain(("w", "a"), round_trips=("dx", "dy", "dz")),
    "driving": Domain(("w", "a"), CAR_MOTION, _CAR_PROBES, rare=_CAR_RARE),
    "camera": _VIEW,
    "multicam": _VIEW,
}
"""A data set's domain -> what is measured."""
