"""How a camera flies about to record exploration: at random, along one axis, to things, along walls, looking around.

A behaviour maps the last ``info`` of a simulator to a ``camera`` action (6,), which may leave the bounds and is to be
clipped; it keeps its own progress.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from astra_env.actions import ACTION_MODALITIES
from astra_env.simulators.behaviours import Behaviour
from astra_env.simulators.exploration_rooms import camera_angles

BEHAVIOURS: dict[str, float] = {"random": 0.3, "axes": 0.35, "visit": 0.15, "walls": 0.1, "look": 0.1}
"""Name -> share of the episodes."""

_HIGH = np.array(ACTION_MODALITIES["camera"].high)


def blocked(info: dict[str, Any]) -> bool:
    """Whether the last action was not carried out in full, because of a wall, furniture or a limit."""
    return bool(np.abs(info["pose"] - info["commanded_pose"]).max() > 0.01)


def levelling(info: dict[str, Any]) -> np.ndarray:
    """The action (6,) that brings a camera level and nothing else."""
    _, pitch, roll = camera_angles(info["pose"])
    return np.array([0.0, 0.0, 0.0, -roll, -pitch, 0.0])


def random_behaviour(rng: np.random.Generator, settling: Behaviour = levelling, reach: float = 1.0) -> Behaviour:
    """A smooth random walk over all axes, drawn to where ``settling`` leads, that turns back where it is blocked.

    ``reach`` scales the walk, for places where there is little room.
    """
    walk, agility, drift = np.zeros(6), rng.uniform(0.15, 0.5), rng.uniform(0.5, 0.9)

    def act(info: dict[str, Any]) -> np.ndarray:
        nonlocal walk
        if blocked(info):
            walk[:3] *= -0.7
        walk = (1 - agility) * walk + drift * np.sqrt(agility) * rng.normal(size=6)
        return np.clip(walk, -1, 1) * reach * _HIGH + 0.35 * settling(info)

    return act


def axes_behaviour(rng: np.random.Generator, reach: float = 1.0) -> Behaviour:
    """Hold one axis in one direction for some steps, then back: all twelve directions in turn, in random order.

    ``reach`` scales the motion, for places where there is little room.
    """
    stretches: list[tuple[int, float, int]] = []
    axis, amount, left = 0, 0.0, 0

    def act(info: dict[str, Any]) -> np.ndarray:
        nonlocal axis, amount, left
        if left == 0 or blocked(info):
            if not stretches:
                stretches.extend(_axis_stretches(rng))
            axis, amount, left = stretches.pop()
        left -= 1
        action = np.zeros(6)
        action[axis] = reach * amount * _HIGH[axis]
        return action

    return act


def visit_behaviour(rng: np.random.Generator, goal: bool | None = None) -> Behaviour:
    """Turn to a thing, fly to it, then to the next; ``goal`` says whether to the goal alone, and is chosen if None."""
    goal = bool(rng.random() < 0.5) if goal is None else goal
    target, around, sign = np.zeros(3), 0, 1.0
    wanted, pace = False, rng.uniform(0.5, 1.0)

    def act(info: dict[str, Any]) -> np.ndarray:
        nonlocal target, around, sign, wanted
        pose = info["pose"]
        if goal:
            target = info["goal"]
        elif not wanted or np.linalg.norm((target - pose[:3, 3])[:2]) < 0.8:
            target, wanted = info["objects"][rng.integers(len(info["objects"]))], True
        if around == 0 and blocked(info):
            around, sign, wanted = int(rng.integers(3, 7)), rng.choice([-1.0, 1.0]), False
        around = max(around - 1, 0)
        right, down, ahead = pose[:3, :3].T @ (target - pose[:3, 3])
        bearing, rise = np.arctan2(right, ahead), np.arctan2(-down, np.hypot(right, ahead))
        action = 0.5 * levelling(info)
        action[4:] = rise, bearing
        straight = max(np.cos(bearing), 0.0) ** 2
        distance = np.linalg.norm(target - pose[:3, 3])
        action[:3] = 0, 0.3 * straight * down, straight * min(pace * _HIGH[2], max(distance - 0.55, -0.1))
        if around:
            action[0], action[2] = sign * _HIGH[0], 0.5 * action[2]
        return action

    return act


def walls_behaviour(rng: np.random.Generator) -> Behaviour:
    """Go ahead, back or sideways until something is in the way, then turn aside, and go on."""
    axis = int(rng.choice(3, p=[0.2, 0.1, 0.7]))
    way = 1.0 if rng.random() < (0.4 if axis == 2 else 0.5) else -1.0
    side, turning = rng.choice([-1.0, 1.0]), 0
    pace, rate = rng.uniform(0.5, 1.0), rng.uniform(0.5, 1.0)

    def act(info: dict[str, Any]) -> np.ndarray:
        nonlocal turning, side
        if turning == 0 and blocked(info):
            turning, side = int(rng.integers(3, 8)), side * rng.choice([1.0, -1.0], p=[0.7, 0.3])
        action = 0.5 * levelling(info)
        if turning:
            turning -= 1
            action[5] = side * rate * _HIGH[5]
        else:
            action[axis], action[5] = way * pace * _HIGH[axis], 0.02 * rng.normal()
        return action

    return act


def look_behaviour(rng: np.random.Generator) -> Behaviour:
    """Turn on the spot, looking up and down, with a step aside now and then."""
    rate, swing, phase = rng.uniform(0.4, 1.0), rng.uniform(0.0, 0.3), rng.uniform(0, 2 * np.pi)
    side, step, count = rng.choice([-1.0, 1.0]), np.zeros(3), 0

    def act(info: dict[str, Any]) -> np.ndarray:
        nonlocal side, step, count
        count += 1
        if rng.random() < 0.08:
            side = -side
        step = rng.uniform(-1, 1, 3) * _HIGH[:3] if rng.random() < 0.2 else 0.5 * step
        _, pitch, _ = camera_angles(info["pose"])
        action = 0.5 * levelling(info)
        action[:3] += step
        action[4:] = 0.6 * (swing * np.sin(0.5 * count + phase) - pitch), side * rate * _HIGH[5]
        return action

    return act


_MAKERS: dict[str, Callable[[np.random.Generator], Behaviour]] = {
    "random": random_behaviour,
    "axes": axes_behaviour,
    "visit": visit_behaviour,
    "walls": walls_behaviour,
    "look": look_behaviour,
}


def make_behaviour(name: str, rng: np.random.Generator) -> Behaviour:
    """Behaviour by one of the names in ``BEHAVIOURS``."""
    return _MAKERS[name](rng)


def _axis_stretches(rng: np.random.Generator) -> list[tuple[int, float, int]]:
    """Axis, signed share of its bound and number of steps: each of the twelve directions once."""
    stretches = []
    for axis in rng.permutation(6):
        share, count, sign = rng.choice([1.0, rng.uniform(0.4, 1.0)]), int(rng.integers(2, 5)), rng.choice([-1.0, 1.0])
        stretches += [(int(axis), way * share, count) for way in (sign, -sign)]
    return stretches
