"""What readers of camera tracks share: arrays and poses that are checked, and a clip of a video along its track."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.lib import format as npy_format

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets.clip import Clip
from astra_env.datasets.reader import finite
from astra_env.video import read_video, video_info

_ROTATION_TOLERANCE = 1e-3
"""How far rotations may be from orthonormal ones, and quaternions from unit length; float32 rounds by 1e-6."""


def load_array(path: Path, name: str | None = None) -> np.ndarray:
    """The array of an npy file, or one of an npz file by its name; ValueError where it is torn or missing."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if name is None:
            return np.asarray(loaded)
        with loaded as arrays:
            return np.asarray(arrays[name])
    except (ValueError, EOFError, OSError, KeyError, BadZipFile) as error:
        raise _unreadable(path, name, error) from error


def array_shape(path: Path, name: str) -> tuple[int, ...]:
    """Shape of an array of an npz file, from its header; ValueError as `load_array`."""
    try:
        with ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            first = npy_format.read_magic(file) == (1, 0)
            header = npy_format.read_array_header_1_0(file) if first else npy_format.read_array_header_2_0(file)
            return header[0]
    except (ValueError, EOFError, OSError, KeyError, BadZipFile) as error:
        raise _unreadable(path, name, error) from error


def _unreadable(path: Path, name: str | None, error: Exception) -> ValueError:
    what = "an array" if name is None else f"the array {name!r}"
    return ValueError(f"{path}: {what} of numbers was expected, but cannot be read ({error}); fetch the file again.")


def matrix_poses(matrices: np.ndarray, source: str) -> np.ndarray:
    """Poses float64 (N, 4, 4) of matrices (N, 4, 4), or ValueError with the first row that is no rigid motion."""
    if matrices.ndim != 3 or matrices.shape[1:] != (4, 4):
        raise ValueError(f"{source}: poses have shape {matrices.shape}, expected (frames, 4, 4).")
    poses = finite(matrices, source, "the pose")
    rotation = poses[:, :3, :3]
    errors = np.abs(rotation @ np.swapaxes(rotation, -1, -2) - np.eye(3)).max(axis=(-1, -2))
    bad = (errors > _ROTATION_TOLERANCE) | (np.linalg.det(rotation) < 0) | (poses[:, 3] != [0, 0, 0, 1]).any(axis=-1)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"{source}, row {row}: {matrices[row].tolist()} is no pose [R t; 0 0 0 1]; mend or drop the row."
        )
    return poses


def vector_poses(rows: np.ndarray, source: str, *, scalar_first: bool = False) -> np.ndarray:
    """Poses float64 (N, 4, 4) of translations and unit quaternions (N, 7), x y z w or, scalar first, w x y z."""
    if rows.ndim != 2 or rows.shape[1] != 7:
        raise ValueError(f"{source}: poses have shape {rows.shape}, expected (rows, 7): a translation, a quaternion.")
    rows = finite(rows, source, "the pose")
    lengths = np.linalg.norm(rows[:, 3:], axis=1)
    bad = np.abs(lengths - 1) > _ROTATION_TOLERANCE
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"{source}, row {row}: the quaternion has length {lengths[row]:g}, expected 1; drop the row.")
    return geometry.vector7_to_pose(rows, scalar_first=scalar_first)


def track_clip(
    video: Path, poses: np.ndarray, first: int = 0, *, size: tuple[int, int] | None = None, text: str = ""
) -> Clip:
    """Frames of a video from `first` on with the camera's pose (T, 4, 4) of each, and the motions between them."""
    fps = video_info(video)[1]
    return Clip(
        frames=read_video(video, start=first, stop=first + len(poses), size=size),
        actions=ACTION_MODALITIES["camera"].from_poses(poses, rate_hz=fps),
        modality="camera",
        fps=fps,
        poses=poses.astype(np.float32),
        text=text,
        source=str(video),
    )


def by_stem(names: Sequence[str]) -> dict[str, str]:
    """File names by what stands between their last slash and their last dot."""
    return {Path(name).stem: name for name in names}
