"""Where a camera around the robot arm may be, how it is moved there to record it, and the paths that it is to follow.

Behaviours are as in `exploration_behaviours`: from the last ``info`` to a ``camera`` action (6,) that is to be clipped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.simulators.behaviours import Behaviour
from astra_env.simulators.exploration_behaviours import axes_behaviour, blocked, random_behaviour
from astra_env.simulators.exploration_rooms import camera_angles, camera_pose

CENTRE = np.array([0.0, 0.0, 0.9])
"""The middle of the arm's workspace, just above the table."""
SHELL_LOW, SHELL_HIGH = np.array([0.8, -2.0, 0.1]), np.array([1.35, 2.0, 1.1])
"""Distance from the centre (m), azimuth from the world's x and elevation (rad) that the camera may have."""
MAX_AIM, MAX_ROLL = 0.28, 0.3
"""How far the camera may look past the centre, and lean, radians."""
PATH_STEPS = 24
BEHAVIOURS: dict[str, float] = {"random": 0.25, "axes": 0.3, "orbit": 0.2, "zoom": 0.1, "pan": 0.15}
"""How the camera moves -> share of the episodes."""

_MODALITY = ACTION_MODALITIES["camera"]
_HIGH = np.array(_MODALITY.high)


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
