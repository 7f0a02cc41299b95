"""Rollouts that are over, written into a recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from astra_env.kinematics import interpolate_poses
from astra_env.visualization.recording import Recording


def log_rollout(
    recording: Recording,
    views: Mapping[str, np.ndarray],
    actions: np.ndarray,
    rewards: np.ndarray | None = None,
    plans: Sequence[np.ndarray] | None = None,
    poses: np.ndarray | None = None,
) -> None:
    """Logs a whole rollout, for instance real frames beside imagined ones.

    Args:
        recording: the file to append to.
        views: uint8 frames (1 + N * n, H, W, 3) by view: the start, then n frames an action.
        actions: (N, A).
        rewards: (N,), the reward after each action.
        plans: N searches that chose the actions, each as in :meth:`Recording.log_plan`.
        poses: (N + 1, 4, 4), at the start and after each action.
    """
    num_frames = len(next(iter(views.values()))) - 1
    if len(actions) == 0 or num_frames % len(actions):
        raise ValueError(f"{num_frames + 1} frames do not fit {len(actions)} actions; expected 1 + N * n frames")
    per_action = num_frames // len(actions)
    start = {view: frames[:1] for view, frames in views.items()}
    recording.log_frames(start, None if poses is None else poses[:1])
    for index, action in enumerate(actions):
        chunk = slice(1 + index * per_action, 1 + (index + 1) * per_action)
        if plans is not None:
            recording.log_plan(plans[index])
        recording.log_action(action)
        between = None if poses is None else poses_between(poses[index], poses[index + 1], per_action)
        recording.log_frames({view: frames[chunk] for view, frames in views.items()}, between)
        if rewards is not None:
            recording.log_reward(float(rewards[index]), {})


def poses_between(before: np.ndarray, after: np.ndarray, num: int) -> np.ndarray:
    """Poses (num, 4, 4) at even times from one (4, 4) to another, which is the last of them."""
    return interpolate_poses(np.stack([before, after]), (0.0, 1.0), np.linspace(0.0, 1.0, num + 1)[1:])
