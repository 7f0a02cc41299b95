"""How the numbers of a physical action reach the network: one table row for each encoding."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from astra_env.actions import ActionModality
from astra_env.kinematics import BicycleMotion, RigidMotion

LONGEST_ARC, WIDEST_TURN = 4.0, 0.25
"""Metres and radians of one action that reach the network as 1: a car at 20 m/s, and one that turns on the spot."""


def bounds(actions: Tensor, modality: ActionModality, speeds: Tensor) -> Tensor:
    """Physical actions (..., n, A) -> (..., n, A) in [-1, 1] between the modality's bounds."""
    low, high = (
        torch.as_tensor(limit, dtype=actions.dtype, device=actions.device) for limit in (modality.low, modality.high)
    )
    return (2 * actions - low - high) / (high - low).clamp(min=1e-6)


def from_bounds(encoded: Tensor, modality: ActionModality) -> Tensor:
    """Physical actions (..., A) of what `bounds` made of them (..., >= A)."""
    low, high = (encoded.new_tensor(limit) for limit in (modality.low, modality.high))
    return low + (encoded[..., : modality.action_dim] + 1) / 2 * (high - low)


def matrix(actions: Tensor, modality: ActionModality, speeds: Tensor) -> Tensor:
    """Motions dx dy dz droll dpitch dyaw (..., n, >= 6) of a pose in its own axes -> (..., n, 12).

    The 3 x 4 matrix, row by row, that takes points from the axes before the motion to those after it, as the released
    weights read Sekai: a camera that moves forward gives a negative z.
    """
    motion = modality.kinematics
    if not isinstance(motion, RigidMotion):
        raise ValueError(f"{modality.name} actions are no rigid motion, so they have no 3 x 4 matrix of their own.")
    turn = actions[..., 3:6][..., sorted(range(3), key=motion.turn_axes.__getitem__)]
    rotation = rpy_to_matrix(turn).transpose(-1, -2)
    translation = -(rotation @ actions[..., :3, None])
    return torch.cat([rotation, translation], dim=-1).flatten(-2)


def arc(actions: Tensor, modality: ActionModality, speeds: Tensor) -> Tensor:
    """Steering and acceleration of a car (..., n, 2) -> (..., n, 4): the same by `bounds`, and the relative pose.

    That is the arc which the car drives from its speed: its length and the turn. An acceleration alone changes the
    next pictures by too little to be learned from them.
    """
    motion = modality.kinematics
    if not isinstance(motion, BicycleMotion):
        raise ValueError(f"{modality.name} actions are not those of a car, so they drive no arc.")
    length, turn, _ = drive(motion, actions, speeds, 1 / modality.rate_hz)
    relative = torch.stack([length / LONGEST_ARC, turn / WIDEST_TURN], dim=-1)
    return torch.cat([bounds(actions, modality, speeds), relative], dim=-1)


def drive(motion: BicycleMotion, actions: Tensor, speeds: Tensor, dt: float) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths in metres and turns in radians (..., n) of the arcs of actions (..., n, 2), and the speeds after them."""
    steering, acceleration = actions[..., 0], actions[..., 1]
    after = speeds[..., None] + dt * acceleration.cumsum(-1)
    length = (after - acceleration * dt / 2) * dt
    return length, length * steering.tan() / motion.wheelbase, after


def rpy_to_matrix(rpy: Tensor) -> Tensor:
    """Roll, pitch, yaw (..., 3) in radians, applied in that order about fixed axes -> rotations (..., 3, 3)."""
    (cr, cp, cy), (sr, sp, sy) = rpy.cos().unbind(-1), rpy.sin().unbind(-1)
    rows = (
        (cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr),
        (sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr),
        (-sp, cp * sr, cp * cr),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def usual_encoding(modality: ActionModality) -> str:
    """The encoding that a world with fresh weights takes for a modality."""
    return "arc" if isinstance(modality.kinematics, BicycleMotion) else "bounds"


def encoded_width(encoding: str, modality: ActionModality) -> int:
    """How many numbers the network reads of one action."""
    return ACTION_ENCODINGS[encoding](torch.zeros(1, modality.action_dim), modality, torch.zeros(())).shape[-1]


ACTION_ENCODINGS: Mapping[str, Callable[[Tensor, ActionModality, Tensor], Tensor]] = {
    "bounds": bounds,
    "matrix": matrix,
    "arc": arc,
}
"""Name -> what the network reads of n physical actions in a row (..., n, A), at a speed (...) in m/s before them."""
