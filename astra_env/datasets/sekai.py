"""Sekai: walks and drone flights, recorded or from a game, with the camera's pose at every frame."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np

from astra_env.datasets.camera_tracks import array_shape, by_stem, load_array, matrix_poses, track_clip
from astra_env.datasets.clip import Clip
from astra_env.datasets.reader import ClipReader, Convention
from astra_env.video import video_info

_COLUMNS = ("videoFile", "caption")


class SekaiDataset(ClipReader):
    """Clips NAME.mp4 with a track NAME.npz anywhere below the root, and captions from ``sekai-*.csv``.

    The release has tracks of some clips and videos of others (those of YouTube are cut by its own tools): the
    recordings are the clips that have both.

    Args:
        root: a folder, or the address of one.
        scale: metres for one unit of the tracks, which have none of their own.
        options: those of `ClipReader`.
    """

    convention = Convention(
        page="https://github.com/Lixsp11/sekai-codebase",
        rate="30 frames a second, one pose a frame",
        units="lengths in a unit of its own for each clip, so that no coordinate exceeds 1; `scale` makes metres",
        frame="camera-to-world, cameras x right, y down, z forward; any world",
        order="extrinsic (frames, 4, 4) of [R t; 0 0 0 1], row k that of frame k; actions are made from the poses",
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
        videos, tracks = by_stem(self.files.glob("**/*.mp4")), by_stem(self.files.glob("**/*.npz"))
        self._clips = [(videos[name], tracks[name]) for name in sorted(videos.keys() & tracks.keys())]
        if not self._clips:
            raise FileNotFoundError(
                f"{root} holds {len(videos)} videos and {len(tracks)} tracks, but no NAME.mp4 with a NAME.npz; "
                "extract the archives of the tracks, and for Sekai-Real cut the clips from the videos."
            )
        self.lengths = [array_shape(self.files.path(track), "extrinsic")[0] for _, track in self._clips]
        self._captions = self._read_captions()

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """See `ClipReader.recognises`."""
        return root.name.startswith("sekai-") or any(
            True for at in ("sekai-*", "train/sekai-*.csv") for _ in root.glob(at)
        )

    def read(self, recording: int, start: int, stop: int) -> Clip:
        """See `ClipReader.read`."""
        video, track = (self.files.path(name) for name in self._clips[recording])
        poses = camera_poses(load_array(track, "extrinsic"), str(track), self.scale)
        count = video_info(video)[0]
        if count != len(poses):
            raise ValueError(
                f"{track} holds {len(poses)} poses, but {video} {count} frames; fetch or cut the clip again."
            )
        return track_clip(
            video, poses[start:stop], start, size=self.frame_size, text=self._captions.get(video.stem, "")
        )

    def _read_captions(self) -> dict[str, str]:
        captions = {}
        for name in self.files.glob("**/sekai-*.csv"):
            with self.files.path(name).open(newline="", encoding="utf-8") as file:
                table = csv.DictReader(file)
                if not set(_COLUMNS) <= set(table.fieldnames or ()):
                    raise ValueError(f"{name} has the columns {table.fieldnames}, expected {_COLUMNS} among them.")
                captions.update({Path(row["videoFile"]).stem: row["caption"] for row in table})
        return captions


def camera_poses(extrinsic: np.ndarray, source: str, scale: float = 1.0) -> np.ndarray:
    """Camera-to-world poses float64 (N, 4, 4) in metres of a published track (N, 4, 4); ValueError for a broken one."""
    poses = matrix_poses(extrinsic, source)
    poses[:, :3, 3] *= scale
    return poses
