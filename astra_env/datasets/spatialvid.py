"""SpatialVID: videos of moving cameras, with the camera's pose about five times a second."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from astra_env import geometry
from astra_env.datasets.camera_tracks import by_stem, load_array, track_clip, vector_poses
from astra_env.datasets.clip import Clip
from astra_env.datasets.reader import ClipReader, Convention
from astra_env.kinematics import interpolate_poses


class SpatialVIDDataset(ClipReader):
    """Clips videos/GROUP/ID.mp4 with annotations/GROUP/ID: poses.npy, indexes.txt, caption.json.

    Videos and annotations come in separate archives: the recordings are the clips that have both. They last from the
    first annotated frame to the last one; poses in between are interpolated. The published instructions.json says in
    words what the poses do, and is not read.

    Args:
        root: the folder that holds videos and annotations, or its address.
        scale: metres for one unit of the tracks, which have none of their own.
        options: those of `ClipReader`.
    """

    convention = Convention(
        page="https://huggingface.co/datasets/SpatialVID/SpatialVID-HQ",
        rate="frames as in the video, a pose at about every fifth of a second",
        units="lengths in a unit of its own for each clip, called metres but no such; `scale` makes metres",
        frame="world-to-camera, cameras x right, y down, z forward; inverted here",
        order="tx ty tz qx qy qz qw; indexes.txt has the frame of each row; actions are made from the poses",
    )

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        scale: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.scale = scale
        videos = by_stem(self.files.glob("videos/*/*.mp4"))
        folders = [name.rpartition("/")[0] for name in self.files.glob("annotations/*/*/poses.npy")]
        self._clips = [(videos[Path(folder).name], folder) for folder in folders if Path(folder).name in videos]
        if not self._clips:
            raise FileNotFoundError(
                f"{root} holds {len(videos)} videos and {len(folders)} tracks, but no videos/GROUP/ID.mp4 with "
                "annotations/GROUP/ID/poses.npy; extract both archives of a group here."
            )
        self._indexes = [self._read_indexes(folder) for _, folder in self._clips]
        self.lengths = [int(indexes[-1] - indexes[0]) + 1 for indexes in self._indexes]

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """See `ClipReader.recognises`."""
        return any(True for _ in root.glob("annotations/*/*/poses.npy"))

    def read(self, recording: int, start: int, stop: int) -> Clip:
        """See `ClipReader.read`."""
        (video, folder), indexes = self._clips[recording], self._indexes[recording]
        track = self.files.path(f"{folder}/poses.npy")
        poses = camera_poses(load_array(track), str(track), self.scale)
        if len(poses) != len(indexes):
            raise ValueError(f"{track} holds {len(poses)} poses, but indexes.txt beside it {len(indexes)} frames.")
        wanted = indexes[0] + np.arange(start, stop)
        return track_clip(
            self.files.path(video),
            interpolate_poses(poses, indexes, wanted),
            int(wanted[0]),
            size=self.frame_size,
            text=self._caption(folder),
        )

    def _read_indexes(self, folder: str) -> np.ndarray:
        """Frame of each pose; ValueError unless they are at least two that increase."""
        name = f"{folder}/indexes.txt"
        if not self.files.exists(name):
            raise ValueError(f"{name} is missing; make it with get_index.py of the data set.")
        try:
            rows = np.loadtxt(self.files.path(name), dtype=np.int64, ndmin=2)
        except ValueError as error:
            raise ValueError(f"{name} cannot be read ({error}); fetch the annotations again.") from error
        if rows.shape[0] < 2 or rows.shape[1] != 2 or (np.diff(rows[:, 1]) <= 0).any():
            raise ValueError(
                f"{name} has to hold two or more rows of a number and a frame that increases; drop the clip."
            )
        return rows[:, 1]

    def _caption(self, folder: str) -> str:
        name = f"{folder}/caption.json"
        try:
            return str(json.loads(self.files.path(name).read_text(encoding="utf-8"))["SceneSummary"])
        except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{name} holds no SceneSummary ({error!r}); fetch the annotations again.") from error


def camera_poses(rows: np.ndarray, source: str, scale: float = 1.0) -> np.ndarray:
    """Camera-to-world poses float64 (N, 4, 4) in metres of a published track (N, 7); ValueError for a broken one."""
    poses = geometry.inverse(vector_poses(rows, source))
    poses[:, :3, 3] *= scale
    return poses
