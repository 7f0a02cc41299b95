"""Where physical actions lead: what `ActionModality.integrate` says of one pose, in torch for batches and gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from astra_env.actions import ACTION_MODALITIES, ActionModality
from astra_env.kinematics import BicycleMotion, RigidMotion
from astra_env.models.action_encoding import drive, rpy_to_matrix

PoseAndSpeed = tuple[Tensor, Tensor]


def start_motion(batch_size: int, speeds: Sequence[float] | Tensor | None, device: torch.device) -> PoseAndSpeed:
    """Identity poses float64 (B, 4, 4), and speeds float64 (B,) in m/s: the given ones, else zeros."""
    given = torch.as_tensor([0.0] * batch_size if speeds is None else speeds, dtype=torch.float64, device=device)
    if given.shape != (batch_size,) or not given.isfinite().all():
        raise ValueError(f"speeds are {speeds}, expected a finite number in m/s for each of {batch_size} worlds.")
    return torch.eye(4, dtype=torch.float64, device=device).repeat(batch_size, 1, 1), given


def move(
    poses: Tensor,
    speeds: Tensor,
    actions: Tensor,
    modality: Sequence[str],
    modalities: Mapping[str, ActionModality] = ACTION_MODALITIES,
) -> PoseAndSpeed:
    """Poses (B, 4, 4) and speeds (B,), in m/s, after actions (B, n, A) in physical units, one modality's name a row."""
    moved, after = poses.clone(), speeds.clone()
    if not actions.shape[1]:
        return moved, after
    for name in dict.fromkeys(modality):
        rows, entry = [row for row, other in enumerate(modality) if other == name], modalities[name]
        moving = MOTIONS[type(entry.kinematics)]
        start = poses[rows], speeds[rows]
        moved[rows], after[rows] = moving(entry.kinematics, *start, actions[rows].to(poses), 1 / entry.rate_hz)
    return moved, after


def _rigid(motion: RigidMotion, poses: Tensor, speeds: Tensor, actions: Tensor, dt: float) -> PoseAndSpeed:
    """See `RigidMotion.integrate`."""
    turns = rpy_to_matrix(actions[..., 3:6][..., sorted(range(3), key=motion.turn_axes.__getitem__)])
    if motion.moving:
        return _chained(poses, turns, actions[..., :3]), speeds
    rotation = poses[:, :3, :3]
    for turn in turns.unbind(1):
        rotation = turn @ rotation
    return _pose(rotation, poses[:, :3, 3] + actions[..., :3].sum(1)), speeds


def _bicycle(motion: BicycleMotion, poses: Tensor, speeds: Tensor, actions: Tensor, dt: float) -> PoseAndSpeed:
    """See `BicycleMotion.integrate`."""
    distance, yaw, after = drive(motion, actions, speeds, dt)
    chord, level = distance * torch.sinc(yaw / 2 / torch.pi), torch.zeros_like(yaw)
    ways = torch.stack([chord * (yaw / 2).cos(), chord * (yaw / 2).sin(), level], dim=-1)
    return _chained(poses, rpy_to_matrix(torch.stack([level, level, yaw], dim=-1)), ways), after[:, -1]


def _chained(poses: Tensor, turns: Tensor, ways: Tensor) -> Tensor:
    """Poses after n motions, each seen from where the one before ended: turns (B, n, 3, 3) and ways (B, n, 3)."""
    rotation, place = poses[:, :3, :3], poses[:, :3, 3]
    for turn, way in zip(turns.unbind(1), ways.unbind(1), strict=True):
        rotation, place = rotation @ turn, place + (rotation @ way[..., None])[..., 0]
    return _pose(rotation, place)


def _pose(rotation: Tensor, place: Tensor) -> Tensor:
    """(B, 3, 3) and (B, 3) -> (B, 4, 4)."""
    last = rotation.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(rotation), 1, 4)
    return torch.cat([torch.cat([rotation, place[..., None]], dim=-1), last], dim=-2)


MOTIONS: Mapping[type, Callable[[Any, Tensor, Tensor, Tensor, float], PoseAndSpeed]] = {
    RigidMotion: _rigid,
    BicycleMotion: _bicycle,
}
"""Kinematics of `astra_env.kinematics` -> what its actions (B, n, A), of dt seconds each, do to poses and speeds."""
