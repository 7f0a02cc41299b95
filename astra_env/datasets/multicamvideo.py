"""MultiCamVideo: ten cameras move around an animated character in scenes of the Unreal Engine."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from astra_env import geometry
from astra_env.datasets.camera_tracks import matrix_poses, track_clip
from astra_env.datasets.clip import Clip
from astra_env.datasets.reader import ClipReader, Convention

_NUM_FRAMES = 81
_SCENES = ("scene*", "*/scene*", "*/*/scene*")
_METRES = 0.01
# Right, down and forward in terms of Unreal's axes: forward, right and up. These are left-handed, so that a camera's
# axes alone would give a mirror image; the world's change along with them.
_AXES = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])


class MultiCamVideoDataset(ClipReader):
    """Videos SCENE/videos/camNN.mp4 with SCENE/cameras/camera_extrinsics.json, up to two folders below the root."""

    convention = Convention(
        page="https://huggingface.co/datasets/KwaiVGI/MultiCamVideo-Dataset",
        rate="81 frames at the rate of the video, one pose a frame",
        units="centimetres",
        frame="camera-to-world in Unreal's left-handed axes: x forward, y right, z up, of cameras and of the world",
        order="frameK: camNN: the rows x, y, z and origin of the camera, as text; actions are made from the poses",
    )

    def __init__(
        self,
        root: str | os.PathLike[str],
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self._videos = [name for scene in _SCENES for name in self.files.glob(f"{scene}/videos/cam*.mp4")]
        if not self._videos:
            raise FileNotFoundError(
                f"{root} holds no sceneN/videos/camNN.mp4; give the folder of the data set, or its train."
            )
        # the release has this many frames in every video, and opening 136,000 of them to count would take long
        self.lengths = [_NUM_FRAMES] * len(self._videos)

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """See `ClipReader.recognises`."""
        return any(True for scene in _SCENES for _ in root.glob(f"{scene}/cameras/camera_extrinsics.json"))

    def read(self, recording: int, start: int, stop: int) -> Clip:
        """See `ClipReader.read`."""
        name = self._videos[recording]
        cameras = f"{name.rsplit('/', 2)[0]}/cameras/camera_extrinsics.json"
        try:
            table = json.loads(self.files.path(cameras).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{cameras} is not whole JSON ({error}); extract it again.") from error
        camera = Path(name).stem
        rows = np.stack([_matrix(table, f"frame{index}", camera, cameras) for index in range(start, stop)])
        poses = camera_poses(rows, f"{cameras}, {camera} from frame{start} on")
        return track_clip(self.files.path(name), poses, start, size=self.frame_size)


def camera_poses(rows: np.ndarray, source: str) -> np.ndarray:
    """Camera-to-world poses float64 (N, 4, 4), x right, y down, z forward, in metres, of published ones (N, 4, 4)."""
    unreal = matrix_poses(np.swapaxes(rows, -1, -2), source)
    rotation = _AXES @ unreal[:, :3, :3] @ _AXES.T
    return geometry.make_pose(rotation, unreal[:, :3, 3] @ _AXES.T * _METRES)


def _matrix(table: dict[str, dict[str, str]], frame: str, camera: str, path: str) -> np.ndarray:
    """The matrix (4, 4) of ``[a b c d] [e f g h] [i j k l] [m n o p]``."""
    try:
        numbers: Sequence[str] = table[frame][camera].replace("[", " ").replace("]", " ").split()
        return np.array(numbers, dtype=np.float64).reshape(4, 4)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path}, {frame}, {camera}: a text of 4 x 4 numbers was expected ({error!r}); extract the file again."
        ) from error
