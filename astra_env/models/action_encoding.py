"""How the numbers of a physical action reach the network: one table row for each encoding."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from astra_env.actions import ActionModality
from astra_env.kinematics import RigidMotion


def bounds(actions: Tensor, modality: ActionModality) -> Tensor:
    """Physical actions (..., A) -> (..., A) in [-1, 1] between the modality's bounds."""
    low, high = (
        torch.as_tensor(limit, dtype=actions.dtype, device=actions.device) for limit in (modality.low, modality.high)
    )
    return (2 * actions - low - high) / (high - low).clamp(min=1e-6)


def matrix(actions: Tensor, modality: ActionModality) -> Tensor:
    """Motions dx dy dz droll dpitch dyaw (..., >= 6) of a pose in its own axes -> (..., 12).

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


def rpy_to_matrix(rpy: Tensor) -> Tensor:
    """Roll, pitch, yaw (..., 3) in radians, applied in that order about fixed axes -> rotations (..., 3, 3)."""
    (cr, cp, cy), (sr, sp, sy) = rpy.cos().unbind(-1), rpy.sin().unbind(-1)
    rows = (
        (cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr),
        (sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr),
        (-sp, cp * sr, cp * cr),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


ACTION_ENCODINGS: Mapping[str, Callable[[Tensor, ActionModality], Tensor]] = {"bounds": bounds, "matrix": matrix}
