"""Clips at any rate -> episodes at the modality's rate, with the picture sizes and arrays of our own recordings."""

from __future__ import annotations

import numpy as np

from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets.clip import Clip
from astra_env.kinematics import interpolate_poses

CHUNK_FRAMES = 4
"""Frames that an action is held for in the files, as the autoencoder compresses time."""


def path_of(clip: Clip) -> np.ndarray:
    """Poses (T, 4, 4) that a clip's actions lead through, from its first measured pose or from the origin.

    Raises:
        ValueError: for a vehicle whose speed is not known: its actions alone do not tell where it goes.
    """
    modality, start = ACTION_MODALITIES[clip.modality], np.eye(4) if clip.poses is None else clip.poses[0]
    if clip.modality != "vehicle":
        return modality.integrate(start, clip.actions, rate_hz=clip.fps)
    if clip.poses is not None:
        return clip.poses.astype(np.float64)
    if clip.speeds is None:
        raise ValueError(f"{clip.source}: a vehicle's actions come without speed or poses; give a column with either.")
    return modality.integrate(start, clip.actions, speed=float(clip.speeds[0]), rate_hz=clip.fps)


def speeds_of(clip: Clip, path: np.ndarray) -> np.ndarray:
    """Speed (T,) in m/s at each frame, forward positive: as measured, else from the path."""
    if clip.speeds is not None:
        return clip.speeds.astype(np.float64)
    steps = path[1:, :3, 3] - path[:-1, :3, 3]
    forward = np.sign((steps * path[:-1, :3, 0]).sum(axis=-1))
    means = forward * np.linalg.norm(steps, axis=-1) * clip.fps
    ends = np.concatenate([means[:1], means, means[-1:]])
    return (ends[:-1] + ends[1:]) / 2


def frames_needed(num_chunks: int, modality: str, fps: float) -> int:
    """Frames of a clip at `fps` that so many chunks at the modality's rate cover."""
    return int(np.ceil(num_chunks / ACTION_MODALITIES[modality].rate_hz * fps - 1e-6)) + 1


def to_episode(clip: Clip) -> dict[str, np.ndarray]:
    """Arrays of one episode: what of the clip fills whole chunks, without reward.

    The motion is interpolated on SE(3); of the pictures the nearest in time is taken, so that a clip of few frames a
    second shows some of them several times.

    Returns:
        frames (4 N + 1, H, W, 3) uint8, actions (N, A), measured_poses (4 N + 1, 4, 4), reward (N + 1,), success
        (N + 1,) and of a vehicle speed (4 N + 1,).
    """
    modality = ACTION_MODALITIES[clip.modality]
    times, path = np.arange(len(clip.frames)) / clip.fps, path_of(clip)
    moving = modality.kinematics.num_fields
    held = np.concatenate([clip.actions[:1], clip.actions])[:, moving:]  # a value is that of the frame it leads to
    speeds = speeds_of(clip, path) if clip.modality == "vehicle" else None
    actions = modality.from_timed_poses(path, times, held, speed=speeds)
    wanted = np.arange(CHUNK_FRAMES * len(actions) + 1) / (CHUNK_FRAMES * modality.rate_hz)
    wanted = np.minimum(wanted, times[-1])
    measured = path if clip.poses is None else clip.poses
    arrays = {
        "frames": clip.frames[np.rint(wanted * clip.fps).astype(int)],
        "actions": actions,
        "measured_poses": interpolate_poses(measured, times, wanted).astype(np.float32),
        "reward": np.zeros(len(actions) + 1, np.float32),
        "success": np.zeros(len(actions) + 1, bool),
    }
    if speeds is not None:
        arrays["speed"] = np.interp(wanted, times, speeds).astype(np.float32)
    return arrays
