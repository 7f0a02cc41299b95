"""Rigid motions as numpy arrays: rotations (..., 3, 3), poses (..., 4, 4), quaternions x y z w; metres, radians."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

_SMALL_ANGLE = 1e-8


def make_pose(rotation: ArrayLike, translation: ArrayLike) -> np.ndarray:
    """Put a rotation (..., 3, 3) and a translation (..., 3) together as a pose (..., 4, 4)."""
    rotation, translation = np.asarray(rotation, dtype=np.float64), np.asarray(translation, dtype=np.float64)
    batch = np.broadcast_shapes(rotation.shape[:-2], translation.shape[:-1])
    pose = np.zeros((*batch, 4, 4))
    pose[..., :3, :3], pose[..., :3, 3], pose[..., 3, 3] = rotation, translation, 1.0
    return pose


def compose(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """Pose of C in A from the pose of B in A (``first``) and the pose of C in B (``second``)."""
    return np.asarray(first, dtype=np.float64) @ np.asarray(second, dtype=np.float64)


def inverse(pose: ArrayLike) -> np.ndarray:
    """Pose of A in B from the pose of B in A, by transposing the rotation."""
    pose = np.asarray(pose, dtype=np.float64)
    transposed = np.swapaxes(pose[..., :3, :3], -1, -2)
    return make_pose(transposed, -(transposed @ pose[..., :3, 3:])[..., 0])


def relative(start: ArrayLike, end: ArrayLike) -> np.ndarray:
    """Pose of ``end`` seen from ``start``: ``compose(start, relative(start, end)) == end``."""
    return compose(inverse(start), end)


def rpy_to_matrix(rpy: ArrayLike) -> np.ndarray:
    """Rotation (..., 3, 3) that rolls about x, then pitches about y, then yaws about z, all fixed axes."""
    rpy = np.asarray(rpy, dtype=np.float64)
    (cr, cp, cy), (sr, sp, sy) = np.moveaxis(np.cos(rpy), -1, 0), np.moveaxis(np.sin(rpy), -1, 0)
    rows = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_to_rpy(rotation: ArrayLike) -> np.ndarray:
    """Roll, pitch, yaw (..., 3) of a rotation; pitch lies in [-pi/2, pi/2]."""
    rotation = np.asarray(rotation, dtype=np.float64)
    roll = np.arctan2(rotation[..., 2, 1], rotation[..., 2, 2])
    pitch = np.arctan2(-rotation[..., 2, 0], np.hypot(rotation[..., 2, 1], rotation[..., 2, 2]))
    yaw = np.arctan2(rotation[..., 1, 0], rotation[..., 0, 0])
    return np.stack([roll, pitch, yaw], axis=-1)


def axis_angle_to_matrix(vector: ArrayLike) -> np.ndarray:
    """Exponential map: rotation (..., 3, 3) about ``vector`` (..., 3) by its length in radians."""
    vector = np.asarray(vector, dtype=np.float64)
    angle = np.linalg.norm(vector, axis=-1, keepdims=True)
    half = 0.5 * angle
    # sin(angle / 2) / angle tends to 1/2, which the threshold keeps finite
    scale = np.where(angle < _SMALL_ANGLE, 0.5, np.sin(half) / np.maximum(angle, _SMALL_ANGLE))
    return quaternion_to_matrix(np.concatenate([vector * scale, np.cos(half)], axis=-1))


def matrix_to_axis_angle(rotation: ArrayLike) -> np.ndarray:
    """Logarithm map: axis times angle (..., 3), the angle in [0, pi]."""
    quaternion = matrix_to_quaternion(rotation)
    sine = np.linalg.norm(quaternion[..., :3], axis=-1, keepdims=True)
    angle = 2.0 * np.arctan2(sine, quaternion[..., 3:])
    scale = np.where(sine < _SMALL_ANGLE, 2.0, angle / np.maximum(sine, _SMALL_ANGLE))
    return quaternion[..., :3] * scale


def quaternion_to_matrix(quaternion: ArrayLike) -> np.ndarray:
    """Rotation (..., 3, 3) of a quaternion (..., 4) in x y z w order, which is normalised first."""
    unit = np.asarray(quaternion, dtype=np.float64)
    unit = unit / np.linalg.norm(unit, axis=-1, keepdims=True)
    x, y, z, w = np.moveaxis(unit, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_to_quaternion(rotation: ArrayLike) -> np.ndarray:
    """Unit quaternion (..., 4) in x y z w order with w >= 0."""
    r = np.asarray(rotation, dtype=np.float64)
    xx, yy, zz = r[..., 0, 0], r[..., 1, 1], r[..., 2, 2]
    # each row is one component times the whole quaternion; the longest row is the accurate one
    x, y, z = r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]
    xy, xz, yz = r[..., 0, 1] + r[..., 1, 0], r[..., 0, 2] + r[..., 2, 0], r[..., 1, 2] + r[..., 2, 1]
    rows = np.stack(
        [
            np.stack([1 + xx - yy - zz, xy, xz, x], axis=-1),
            np.stack([xy, 1 - xx + yy - zz, yz, y], axis=-1),
            np.stack([xz, yz, 1 - xx - yy + zz, z], axis=-1),
            np.stack([x, y, z, 1 + xx + yy + zz], axis=-1),
        ],
        axis=-2,
    )
    lengths = np.linalg.norm(rows, axis=-1)
    best = np.take_along_axis(rows, lengths.argmax(axis=-1)[..., None, None], axis=-2)[..., 0, :]
    best = best / np.linalg.norm(best, axis=-1, keepdims=True)
    return np.where(best[..., 3:] < 0, -best, best)


def pose_to_vector7(pose: ArrayLike, *, scalar_first: bool = False) -> np.ndarray:
    """Translation and unit quaternion (..., 7) of a pose, w >= 0: x y z w, as SpatialVID publishes it.

    ``scalar_first`` gives the quaternion as w x y z, as nuScenes publishes it.
    """
    pose = np.asarray(pose, dtype=np.float64)
    quaternion = matrix_to_quaternion(pose[..., :3, :3])
    return np.concatenate([pose[..., :3, 3], np.roll(quaternion, 1, axis=-1) if scalar_first else quaternion], axis=-1)


def vector7_to_pose(vector: ArrayLike, *, scalar_first: bool = False) -> np.ndarray:
    """Pose (..., 4, 4) of a translation and a quaternion (..., 7) of any sign and length; see `pose_to_vector7`."""
    vector = _checked(vector, 7)
    quaternion = np.roll(vector[..., 3:], -1, axis=-1) if scalar_first else vector[..., 3:]
    return make_pose(quaternion_to_matrix(quaternion), vector[..., :3])


def pose_to_vector12(pose: ArrayLike) -> np.ndarray:
    """The upper three rows of a pose one after another (..., 12): the matrix [R|t], row-major."""
    rows = np.asarray(pose, dtype=np.float64)[..., :3, :]
    return rows.reshape(*rows.shape[:-2], 12)


def vector12_to_pose(vector: ArrayLike) -> np.ndarray:
    """Pose (..., 4, 4) of the matrix [R|t], row-major (..., 12); the rotation is taken as it is."""
    vector = _checked(vector, 12)
    rows = vector.reshape(*vector.shape[:-1], 3, 4)
    return make_pose(rows[..., :3], rows[..., 3])


def _checked(vector: ArrayLike, size: int) -> np.ndarray:
    array = np.asarray(vector, dtype=np.float64)
    if array.ndim < 1 or array.shape[-1] != size:
        raise ValueError(f"A pose vector has shape {array.shape}, expected (..., {size}).")
    return array
