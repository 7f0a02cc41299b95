"""Action rows exactly as the reference implementation (EternalEvan/Astra, 3fb82e19) makes them, its quirks included.

The released weights read one row a latent frame. A camera row is the motion from frame k to frame k + 1 as the 3x4
matrix [R|t], row-major; a vehicle row is a translation (m) and a quaternion w x y z. A mask column follows: 1 for
history, 0 for frames to generate. Rows are float32; the released weights saw them rounded to bfloat16
(``round_to_bfloat16``). What differs from the conventions of ``astra_env.actions`` is said where it happens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from astra_env import geometry

FRAMES_PER_LATENT = 4
FORWARD_STEP = 0.03  # metres a latent frame
YAW_STEP = 0.03  # radians a latent frame, positive to the left
CURVE_DRIFT = -0.01  # metres sideways as the S curve changes direction
# Forward step and yaw of the first and the second half of the new frames.
PRESET_CAMERAS = {
    1: ((FORWARD_STEP, 0.0), (FORWARD_STEP, 0.0)),
    2: ((0.0, YAW_STEP), (0.0, YAW_STEP)),
    3: ((0.0, -YAW_STEP), (0.0, -YAW_STEP)),
    4: ((FORWARD_STEP, YAW_STEP), (FORWARD_STEP, YAW_STEP)),
    5: ((FORWARD_STEP, -YAW_STEP), (FORWARD_STEP, -YAW_STEP)),
    6: ((FORWARD_STEP, YAW_STEP), (FORWARD_STEP, -YAW_STEP)),
    7: ((0.0, YAW_STEP), (0.0, -YAW_STEP)),
}
S_CURVE = 6
LIT_TRANSLATION = 0.01  # metres
LIT_ROTATION = 0.005  # radians


def round_to_bfloat16(values: ArrayLike) -> np.ndarray:
    """Values as float32 after a round trip through bfloat16."""
    return torch.as_tensor(np.asarray(values)).bfloat16().float().numpy()


def table_length(num_history: int, num_new: int) -> int:
    """Rows of the table that inference prepares: at least the window of 20 latents and the new ones, at least 30."""
    return max(num_history + num_new, 20 + num_new, 30)


def with_mask(rows: np.ndarray, num_history: int) -> np.ndarray:
    """Rows (N, A) with the mask column (N, A + 1): 1 in the first num_history rows."""
    mask = np.arange(len(rows)) < num_history
    return np.concatenate([rows, mask[:, None]], axis=1).astype(np.float32)


# Cameras with one 4x4 extrinsic a video frame: Sekai and Open X-Embodiment.


def relative_pose(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """second @ inverse(first) of world-to-camera matrices (..., 4, 4), in the precision of the input."""
    return np.asarray(second) @ np.linalg.inv(np.asarray(first))


def sekai_rows(extrinsics: ArrayLike, start: int, stop: int) -> np.ndarray:
    """Training rows (stop - start, 12) of latent frames start..stop-1; only every 4th extrinsic (F, 4, 4) is read."""
    extrinsics = np.asarray(extrinsics)
    if stop > _num_motions(extrinsics):
        raise ValueError(
            f"{len(extrinsics)} extrinsics give {_num_motions(extrinsics)} motions of latent frames, expected {stop}: "
            "the pose 4 frames after the last latent frame is needed."
        )
    poses = extrinsics[FRAMES_PER_LATENT * np.arange(start, stop + 1)]
    return relative_pose(poses[:-1], poses[1:])[:, :3].reshape(-1, 12).astype(np.float32)


def openx_rows(extrinsics: ArrayLike, start: int, stop: int) -> np.ndarray:
    """Training rows as Sekai's, without those that have no successor: fewer than stop - start near a clip's end."""
    extrinsics = np.asarray(extrinsics)
    stop = min(stop, _num_motions(extrinsics))
    if stop <= start:
        raise ValueError(f"{len(extrinsics)} extrinsics hold no motion from latent frame {start} on; skip this sample.")
    return sekai_rows(extrinsics, start, stop)


def camera_inference_rows(extrinsics: ArrayLike, num_history: int, num_new: int) -> np.ndarray:
    """Inference rows (N, 13) of Sekai and OpenX from real poses: all zeros, not the identity, past the last pose."""
    rows = np.zeros((table_length(num_history, num_new), 12), dtype=np.float32)
    known = min(len(rows), _num_motions(np.asarray(extrinsics)))
    rows[:known] = sekai_rows(extrinsics, 0, known)
    return with_mask(rows, num_history)


def openx_synthetic_rows(num_history: int, num_new: int) -> np.ndarray:
    """Inference rows (N, 13) of OpenX without poses: the same small motion of an arm in every row."""
    pose = geometry.make_pose(geometry.rpy_to_matrix([0.02, 0.01, 0.015]), [0.0015, 0.0009, -0.003])
    rows = np.tile(pose[:3].reshape(1, 12), (table_length(num_history, num_new), 1))
    return with_mask(rows, num_history)


def _num_motions(extrinsics: np.ndarray) -> int:
    """Latent frames that have a pose of their own and one 4 video frames later."""
    return max(len(extrinsics) - 1, 0) // FRAMES_PER_LATENT


# SpatialVID: world-to-camera poses tx ty tz qx qy qz qw, one a latent frame (about 5 Hz).


def spatialvid_relative_pose(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """[R2 R1^T | R1^T (t2 - t1)] (..., 3, 4) of two poses (..., 7).

    The rotation is that of world-to-camera poses, the translation is not (t2 - R2 R1^T t1 would be): it changes when
    the world is turned.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    inverse = np.swapaxes(geometry.quaternion_to_matrix(first[..., 3:]), -1, -2)
    rotation = geometry.quaternion_to_matrix(second[..., 3:]) @ inverse
    translation = inverse @ (second[..., :3] - first[..., :3])[..., None]
    return np.concatenate([rotation, translation], axis=-1)


def spatialvid_rows(poses: ArrayLike, start: int, stop: int) -> np.ndarray:
    """Training rows (stop - start, 12) from poses (P, 7); a frame without a successor gets zeros, not the identity.

    The released weights were trained on poses that had been stored in bfloat16.
    """
    poses = np.asarray(poses)
    rows = np.zeros((stop - start, 12), dtype=np.float32)
    known = poses[start : min(stop, len(poses) - 1) + 1]
    if len(known) > 1:
        rows[: len(known) - 1] = spatialvid_relative_pose(known[:-1], known[1:]).reshape(-1, 12)
    return rows


def spatialvid_pose_count(num_frames: int, fps: float) -> int:
    """Poses that the annotations of a video hold: one every int(fps / 5) frames."""
    if fps < 5:
        raise ValueError(f"fps is {fps:g}, expected 5 or more: annotations have one pose every int(fps / 5) frames.")
    return math.ceil(num_frames / int(fps / 5))


def spatialvid_frames(num_frames: int, num_poses: int) -> np.ndarray:
    """Video frames (4 P + 4,) that are encoded, evenly spread: they become P + 1 latents."""
    count = FRAMES_PER_LATENT * (num_poses + 1)
    return np.floor(np.linspace(0, num_frames - 1, count)).astype(np.int64)


# nuScenes: ego poses of key frames (2 Hz).


@dataclass(frozen=True)
class KeyFrames:
    """Annotated ego poses of a scene."""

    indices: np.ndarray
    """Video frame of each key frame, int (K,)."""
    translations: np.ndarray
    """World axes, metres (K, 3)."""
    rotations: np.ndarray
    """Quaternions w x y z (K, 4)."""

    def within(self, start: int, stop: int) -> list[int]:
        """Positions of the key frames that lie in latent frames start..stop-1."""
        latent_frames = [int(index) // FRAMES_PER_LATENT for index in self.indices]
        return [latent_frames.index(frame) for frame in latent_frames if start <= frame < stop]


def relative_rotation(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """conjugate(first) * second for quaternions w x y z (..., 4), float32."""
    first, second = np.asarray(first, dtype=np.float32), np.asarray(second, dtype=np.float32)
    w1, v1, w2, v2 = first[..., :1], -first[..., 1:], second[..., :1], second[..., 1:]
    scalar = w1 * w2 - (v1 * v2).sum(-1, keepdims=True)
    return np.concatenate([scalar, w1 * v2 + w2 * v1 + np.cross(v1, v2)], axis=-1)


def nuscenes_rows(key_frames: KeyFrames, start: int, num_history: int, num_target: int = 8) -> np.ndarray:
    """Training rows (num_history + num_target, 7) relative to the last key frame of the history.

    The translation stays in world axes. A latent frame takes the pose of a key frame of its own half (history or
    target), spread evenly; a target without key frames gets the identity.
    """
    middle = start + num_history
    history, target = key_frames.within(start, middle), key_frames.within(middle, middle + num_target)
    if not history:
        raise ValueError(f"Latent frames {start} to {middle - 1} hold no key frame to refer to; skip this sample.")
    rows = np.tile(np.array([0, 0, 0, 1, 0, 0, 0], dtype=np.float32), (num_history + num_target, 1))
    picked = _spread(history, num_history) + _spread(target, num_target)
    translations = key_frames.translations[picked] - key_frames.translations[history[-1]]
    rotations = relative_rotation(key_frames.rotations[history[-1]], key_frames.rotations[picked])
    rows[: len(picked)] = np.concatenate([translations, rotations], axis=1)
    return rows


def nuscenes_inference_rows(key_frames: KeyFrames, num_history: int, num_new: int) -> np.ndarray:
    """Inference rows (N, 8), which differ from training: translation since key frame 0, absolute rotation.

    Row i is key frame i, at 2 Hz as if one a latent frame; no rotation past the last one; all zeros without any.
    """
    rows = np.zeros((table_length(0, num_new), 7), dtype=np.float32)
    known = min(len(rows), len(key_frames.indices))
    if known:
        rows[:, 3] = 1
        rows[:known, :3] = (key_frames.translations - key_frames.translations[0])[:known]
        rows[:known, 3:] = key_frames.rotations[:known]
    return with_mask(rows, num_history)


def nuscenes_synthetic_rows(num_history: int, num_new: int) -> np.ndarray:
    """Inference rows (N, 8) without poses: an arc of radius 15 m to the left, 0.04 rad a latent frame.

    The arc lies in the plane of x and z, while the heading turns about z.
    """
    angle = 0.04 * np.arange(table_length(0, num_new))
    half_heading, zero = (angle + np.pi / 2) / 2, np.zeros_like(angle)
    position = (15 * np.sin(angle), zero, 15 * (1 - np.cos(angle)))
    rows = np.stack([*position, np.cos(half_heading), zero, zero, np.sin(half_heading)], axis=1)
    return with_mask(rows, num_history)


def _spread(positions: list[int], count: int) -> list[int]:
    """The positions spread over count latent frames, the last one only at the very end; none of none."""
    if not positions:
        return []
    steps = max(count - 1, 1)
    return [positions[int(i / steps * (len(positions) - 1))] for i in range(count)]


# The seven camera commands that inference offers, and the keys that it draws for a row.


def preset_camera_rows(cam_type: int, num_history: int, num_new: int) -> np.ndarray:
    """Inference rows (N, 13) of a preset motion, as world-to-camera: forward is -z.

    1 forward, 2 and 3 turn left and right, 4 and 5 forward with a turn, 6 S curve, 7 left then right. History rows and
    rows past the new frames are the identity. The mask column reaches one row into the new frames;
    ``inference_window`` writes it anew.
    """
    if cam_type not in PRESET_CAMERAS:
        raise ValueError(f"cam_type is {cam_type!r}, expected one of {list(PRESET_CAMERAS)}.")
    half = num_new // 2
    poses = np.tile(np.eye(4), (table_length(num_history, num_new), 1, 1))
    first = poses[num_history : num_history + half]
    second = poses[num_history + half : num_history + num_new]
    for part, (step, yaw) in zip((first, second), PRESET_CAMERAS[cam_type], strict=True):
        part[:] = geometry.make_pose(geometry.axis_angle_to_matrix([0, yaw, 0]), [0, 0, -step])
    if cam_type == S_CURVE:
        second[: (num_new - half) // 3, 0, 3] = CURVE_DRIFT
    return with_mask(poses[:, :3].reshape(-1, 12), num_history + 1)


def lit_keys(row: ArrayLike) -> tuple[str, ...]:
    """Keys that the overlay lights for a camera row (12 or 13 numbers).

    A and D are named for the sign of tx, which a world-to-camera row has the other way round.
    """
    row = np.asarray(row)
    tx, tz = row[3], row[11]
    yaw, pitch = np.arctan2(row[2], row[0]), np.arctan2(-row[6], row[10])
    states = {
        "move_forward": tz < -LIT_TRANSLATION,
        "move_backward": tz > LIT_TRANSLATION,
        "move_left": tx < -LIT_TRANSLATION,
        "move_right": tx > LIT_TRANSLATION,
        "turn_up": pitch < -LIT_ROTATION,
        "turn_down": pitch > LIT_ROTATION,
        "turn_left": yaw > LIT_ROTATION,
        "turn_right": yaw < -LIT_ROTATION,
    }
    return tuple(key for key, lit in states.items() if lit)
