"""Paths of poses for tasks that follow one: drawn at random around what a camera looks at, or given."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from astra_env import geometry
from astra_env.actions import ActionModality

DISTANCE, ELEVATION = 1.1, 0.6
"""Metres to the middle of the picture, and radians that the camera looks down, which random paths reckon with."""
SPANS = {
    "orbit": (0.6, 0.1, 0.04, 0.0, 0.0),
    "zoom": (0.1, 0.04, 0.14, 0.0, 0.0),
    "pan": (0.1, 0.04, 0.0, 0.14, 0.1),
}
"""Kind of path -> how far it swings: azimuth and elevation (rad), distance (m), yaw and pitch (rad)."""


def random_path(modality: ActionModality, rng: np.random.Generator, num_steps: int) -> np.ndarray:
    """Smooth path (num_steps + 1, 4, 4) of a camera, seen from its start, that actions within bounds lead through."""
    spans = np.array(list(SPANS.values())[rng.integers(len(SPANS))]) * rng.uniform(0.5, 1.0, 5)
    spans, phases = spans * rng.choice([-1.0, 1.0], 5), rng.uniform(-0.25, 0.25, 5) * np.pi
    times = np.linspace(0, rng.uniform(0.5, 1.0) * np.pi, num_steps + 1)[:, None]
    azimuth, elevation, farther, yaw, pitch = (spans * (np.sin(times + phases) - np.sin(phases))).T
    level = np.zeros_like(azimuth)
    around = geometry.rpy_to_matrix(np.stack([-ELEVATION - elevation, azimuth, level], axis=-1))
    behind = np.stack([level, level, -DISTANCE - farther], axis=-1)
    orbit = geometry.make_pose(around, (around @ behind[..., None])[..., 0])
    looking = geometry.make_pose(geometry.rpy_to_matrix(np.stack([pitch, yaw, level], axis=-1)), np.zeros(3))
    path = geometry.compose(orbit, looking)
    actions = modality.validate(modality.from_poses(path), clip=True)
    return modality.integrate(np.eye(4), actions)


def checked_path(path: ArrayLike) -> np.ndarray:
    """A path (T + 1, 4, 4) of poses in any axes as it is seen from its first pose; ValueError where it is none."""
    poses = np.asarray(path, dtype=np.float64)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or len(poses) < 2:
        raise ValueError(f"path has shape {poses.shape}, expected (T + 1, 4, 4) poses, at least two.")
    finite = np.where(np.isfinite(poses).all(axis=(1, 2), keepdims=True), poses, 0.0)
    rotation = finite[:, :3, :3]
    skew = np.abs(rotation @ np.swapaxes(rotation, 1, 2) - np.eye(3)).max(axis=(1, 2)) > 1e-3
    wrong = skew | (np.linalg.det(rotation) < 0) | (finite[:, 3] != (0, 0, 0, 1)).any(axis=1)
    if wrong.any():
        raise ValueError(f"path is no rigid pose at {np.flatnonzero(wrong)}, expected rotations and finite places.")
    return geometry.relative(poses[0], poses)
