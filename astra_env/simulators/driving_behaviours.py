"""How recorded cars are driven: along the lane, at random, braking, turning, off the road, and mixtures of these.

Every behaviour is a function from the simulator's last ``info`` to an action (steering, acceleration).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from astra_env.actions import ACTION_MODALITIES
from astra_env.kinematics import BicycleMotion
from astra_env.simulators.behaviours import Behaviour, interrupted

BEHAVIOURS: dict[str, float] = {
    "follow": 0.26,
    "mixed": 0.22,
    "random": 0.15,
    "brake": 0.10,
    "turn": 0.10,
    "leave": 0.10,
    "ram": 0.07,
}
"""Name -> share of episodes."""

_MODALITY = ACTION_MODALITIES["vehicle"]
_LOW, _HIGH = np.array(_MODALITY.low), np.array(_MODALITY.high)
_WHEELBASE = BicycleMotion().wheelbase
_COMFORT = 6.0
"""Sideways acceleration in m/s^2 that drivers stay within, so that the tyres hold."""
_EASY = 3.0
"""Sideways acceleration in m/s^2 that they choose their speed for in bends."""
_STEP = 1 / _MODALITY.rate_hz
_CRUISE = 12.0
"""Speed in m/s from which the task's reward is full."""


def follow_behaviour(rng: np.random.Generator) -> Behaviour:
    """Keep the lane, at times another place across the road, at a speed that changes, behind slower cars.

    On arrival it stops: there the road of the map ends.
    """
    cruise, offset = rng.uniform(5.0, 14.0), rng.normal(0, 0.3)
    noise = rng.uniform(0, 0.03)

    def act(info: dict[str, Any]) -> np.ndarray:
        nonlocal cruise, offset
        if rng.random() < 0.04:
            cruise = rng.uniform(2.0, 16.0)
        if rng.random() < 0.03:
            offset = rng.choice([-3.5, 0.0, 3.5]) + rng.normal(0, 0.3)
        steering = steer_along(info["route"], info["speed"], offset) + noise * rng.normal()
        wanted = 0.0 if info["success"] else min(cruise, bend_speed(steering))
        return _bounded(steering, car_following(info, wanted) + 10 * noise * rng.normal())

    return act


def lane_behaviour(info: dict[str, Any]) -> np.ndarray:
    """Keep the middle of the lane, at the speed that earns most, behind slower cars; nothing is drawn."""
    steering = steer_along(info["route"], info["speed"])
    return _bounded(steering, car_following(info, min(_CRUISE, bend_speed(steering))))


def bend_speed(steering: float) -> float:
    """Speed (m/s) that is easy in the bend of a steering angle (rad)."""
    return float(np.sqrt(_EASY / max(abs(np.tan(steering)) / _WHEELBASE, 1e-3)))


def steer_along(route: np.ndarray, speed: float, offset: float = 0.0) -> float:
    """Steering (rad) of the arc through a point of ``route`` (R, 2) about a second ahead, ``offset`` m to its left."""
    reach = np.clip(1.0 * abs(speed), 6.0, 20.0)
    distances = np.linalg.norm(route, axis=1)
    x, y = (np.interp(reach, distances, route[:, axis]) for axis in (0, 1))
    curvature = 2 * (y + offset) / (x**2 + (y + offset) ** 2)
    return float(np.arctan(_WHEELBASE * curvature))


def car_following(info: dict[str, Any], wanted: float) -> float:
    """Acceleration (m/s^2) towards a wanted speed that keeps a gap to the car ahead: the intelligent driver model."""
    speed, gap = info["speed"], max(info["gap"], 0.5)
    free = np.clip((wanted - speed) / (2 * _STEP), -4.0, 2.5)
    if np.isinf(gap):
        return float(free)
    desired = 3.0 + max(0.0, 1.2 * speed + speed * (speed - info["gap_speed"]) / (2 * np.sqrt(2.5 * 3.0)))
    return float(min(free, 2.5 * (1 - (desired / gap) ** 2)))


def random_behaviour(rng: np.random.Generator) -> Behaviour:
    """A smooth random walk of both fields, broken by stretches that hold one of them at a bound or at zero."""
    walk, hold, held = rng.normal(size=2), 0, np.zeros(2)
    agility = rng.uniform(0.15, 0.5)

    def act(info: dict[str, Any]) -> np.ndarray:
        nonlocal walk, hold, held
        walk = (1 - agility) * walk + np.sqrt(agility) * rng.normal(size=2)
        if hold == 0 and rng.random() < 0.15:
            hold, held = int(rng.integers(3, 8)), np.zeros(2)
            held[rng.integers(2)] = rng.choice([-1.0, 1.0]) * rng.choice([1.0, rng.uniform(0.2, 1.0)])
        hold = max(hold - 1, 0)
        share = held if hold else np.clip(0.7 * walk, -1, 1)
        limit = steering_limit(info["speed"])
        return _bounded(limit * share[0], share[1] * (_HIGH[1] if share[1] > 0 else -_LOW[1]))

    return act


def brake_behaviour(rng: np.random.Generator) -> Behaviour:
    """Follow the lane, brake hard to a stop, stand or back up, and pull away again."""
    follow, phase = follow_behaviour(rng), "drive"
    count = int(rng.integers(0, 8))

    def act(info: dict[str, Any]) -> np.ndarray:
        nonlocal phase, count
        count -= 1
        action = follow(info)
        if phase == "drive" and count < 0 and info["speed"] > 3:
            phase = "brake"
        elif phase == "brake" and info["speed"] < 0.3:
            phase, count = str(rng.choice(["stand", "back"])), int(rng.integers(2, 10))
        elif phase in ("stand", "back") and count < 0:
            phase, count = "drive", int(rng.integers(8, 16))
        if phase == "brake":
            return _bounded(action[0], max(-info["speed"] / _STEP, -rng.uniform(4.0, 6.0)))
        if phase == "stand":
            return _bounded(0.0, -info["speed"] / _STEP)
        if phase == "back":
            return _bounded(rng.normal(0, 0.1), (-3.0 - info["speed"]) / (2 * _STEP))
        return action if info["speed"] > 4 else _bounded(action[0], 3.0)

    return act


def turn_behaviour(rng: np.random.Generator) -> Behaviour:
    """Slow circles and zigzags with the wheels far over, forwards and backwards."""
    count, steering, wanted = 0, 0.0, 3.0

    def act(info: dict[str, Any]) -> np.ndarray:
        nonlocal count, steering, wanted
        if count == 0:
            count = int(rng.integers(4, 16))
            steering = rng.choice([-1, 1]) * rng.uniform(0.25, _HIGH[0])
            wanted = rng.uniform(2.0, 6.0) if rng.random() < 0.7 else -rng.uniform(1.5, 4.0)
        count -= 1
        return _bounded(steering, (wanted - info["speed"]) / (2 * _STEP))

    return act


def leave_behaviour(rng: np.random.Generator) -> Behaviour:
    """Follow the lane, drive off the road to one side, and after a while come back."""
    follow, count = follow_behaviour(rng), int(rng.integers(1, 8))
    away, side = False, float(rng.choice([-1, 1]))

    def act(info: dict[str, Any]) -> np.ndarray:
        nonlocal count, away, side
        count -= 1
        if count < 0:
            away, count = not away, int(rng.integers(8, 20))
            side = float(rng.choice([-1, 1]))
        action = follow(info)
        if away:
            edge = steer_along(info["route"], info["speed"], side * 30.0)
            return _bounded(float(np.clip(edge, *steering_limit(info["speed"]) * np.array([-1, 1]))), action[1])
        return action

    return act


def ram_behaviour(rng: np.random.Generator) -> Behaviour:
    """Follow the lane fast, as if nobody else were on it, and into whoever is; then back off and go on."""
    follow, wanted, backing = follow_behaviour(rng), rng.uniform(12.0, 18.0), 0

    def act(info: dict[str, Any]) -> np.ndarray:
        nonlocal backing
        if info["crashed"] and backing == 0:
            backing = int(rng.integers(4, 10))
        backing = max(backing - 1, 0)
        steering = follow(info | {"gap": np.inf, "gap_speed": 0.0})[0]
        return _bounded(steering, ((-3.0 if backing else wanted) - info["speed"]) / _STEP)

    return act


def mixed_behaviour(rng: np.random.Generator) -> Behaviour:
    """Lane keeping that bursts of another behaviour interrupt."""
    follow, other = follow_behaviour(rng), rng.choice(["random", "random", "brake", "turn"])
    return interrupted(follow, _MAKERS[str(other)](rng), rng, (3, 8))


def steering_limit(speed: float) -> float:
    """Largest steering (rad) that the tyres follow at a speed, within the modality's bounds."""
    return float(min(_HIGH[0], np.arctan(_COMFORT * _WHEELBASE / max(speed**2, 1e-6))))


def make_behaviour(name: str, rng: np.random.Generator) -> Behaviour:
    """Behaviour by one of the names in ``BEHAVIOURS``."""
    return _MAKERS[name](rng)


def _bounded(steering: float, acceleration: float) -> np.ndarray:
    return np.clip(np.array([steering, acceleration]), _LOW, _HIGH)


_MAKERS: dict[str, Callable[[np.random.Generator], Behaviour]] = {
    "follow": follow_behaviour,
    "mixed": mixed_behaviour,
    "random": random_behaviour,
    "brake": brake_behaviour,
    "turn": turn_behaviour,
    "leave": leave_behaviour,
    "ram": ram_behaviour,
}
