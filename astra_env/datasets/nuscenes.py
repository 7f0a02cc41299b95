"""nuScenes: drives through Boston and Singapore, at a constant rate, with the steering that led there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets.camera_tracks import vector_poses
from astra_env.datasets.clip import Clip
from astra_env.datasets.reader import ClipReader, Convention
from astra_env.kinematics import interpolate_poses
from astra_env.video import read_image, resize_frames

_MICROSECONDS = 1e-6
_SAME_TIME = 1e-3
"""Share of a frame's length by which times that mean the same may differ."""
_LONGEST_GAP = 0.5
"""Seconds without a picture for which the one before or after still shows what there was to see."""
_STANDSTILL = 0.2
"""Metres a second below which the way is too short to tell the steering from the noise of the poses."""


class NuScenesDataset(ClipReader):
    """One recording a scene: one camera's key frames and sweeps, about 12 a second, through nuscenes-devkit.

    Pictures come at uneven times and a clip has a constant rate: each frame is the nearest picture, its ego pose is
    interpolated at the frame's exact time. Speeds come from the CAN bus where can_bus/SCENE_pose.json lasts as
    long as the scene, else from the poses.

    Args:
        root: the local folder that holds v1.0-…, samples, sweeps, maps and perhaps can_bus.
        version: the folder of tables, such as "v1.0-mini"; None where there is only one.
        camera: one of the six, such as "CAM_FRONT".
        fps: frames in a second.
        frame_size: see `ClipReader`.
        num_frames: see `ClipReader`.
    """

    convention = Convention(
        page="https://www.nuscenes.org/nuscenes#data-format",
        rate="pictures at about 12 Hz and uneven times, made frames at `fps`; CAN bus at 50 Hz",
        units="metres, quaternions, microseconds, m/s",
        frame="ego-to-world, ego x forward, y left, z up at the middle of the rear axle, as here",
        order="translation x y z, rotation w x y z; steering is that of this project's car (2.7 m between the axles, "
        "the Renault Zoe has 2.59 m) on the same way",
    )

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        version: str | None = None,
        camera: str = "CAM_FRONT",
        fps: float = 12.0,
        frame_size: tuple[int, int] | None = None,
        num_frames: int | None = None,
    ) -> None:
        if "://" in str(root):
            raise ValueError(f"{root} is elsewhere, but nuScenes is read from a local folder; fetch it first.")
        if fps <= 0:
            raise ValueError(f"fps is {fps}, expected more than 0.")
        super().__init__(root, frame_size=frame_size, num_frames=num_frames)
        self.root, self.camera, self.fps = Path(root), camera, fps
        self.version = _version(self.root, version)
        self.tables = _tables(self.root, self.version)
        cameras = sorted(row["channel"] for row in self.tables.sensor if row["modality"] == "camera")
        if camera not in cameras:
            raise ValueError(f"camera is {camera!r}, expected one of {cameras}.")
        self._pictures = [self._follow(scene) for scene in self.tables.scene]
        self.lengths = [int(_times(rows)[-1] * fps + _SAME_TIME) + 1 for rows in self._pictures]

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """See `ClipReader.recognises`."""
        return any(True for _ in root.glob("v1.0-*/sample_data.json"))

    def camera_pose(self, recording: int) -> np.ndarray:
        """Pose (4, 4) of the camera, x right, y down, z forward, in the ego frame."""
        picture = self._pictures[recording][0]
        row = self._row("calibrated_sensor", picture["calibrated_sensor_token"], picture["filename"])
        values = np.array([[*row["translation"], *row["rotation"]]])
        return vector_poses(values, f"{self._table('calibrated_sensor')}, {row['token']}", scalar_first=True)[0]

    def read(self, recording: int, start: int, stop: int) -> Clip:
        """See `ClipReader.read`."""
        scene, rows = self.tables.scene[recording], self._pictures[recording]
        self._check_times(scene["name"], rows)
        times, wanted = _times(rows), np.arange(self.lengths[recording]) / self.fps
        poses = interpolate_poses(self._ego_poses(scene, rows), times, np.minimum(wanted, times[-1]))
        # speeds are those of the whole recording, so that they do not depend on where a window begins
        speeds = self._speeds(scene["name"], rows, wanted, poses)[start:stop]
        poses, wanted = poses[start:stop], wanted[start:stop]
        actions = ACTION_MODALITIES["vehicle"].from_poses(poses, speed=speeds, rate_hz=self.fps)
        actions[np.abs(speeds[:-1] + speeds[1:]) / 2 < _STANDSTILL, 0] = 0.0
        nearest = np.abs(times - wanted[:, None]).argmin(axis=1)
        return Clip(
            frames=np.stack([self._picture(rows[index]) for index in nearest]),
            actions=actions,
            modality="vehicle",
            fps=self.fps,
            poses=poses.astype(np.float32),
            speeds=speeds.astype(np.float32),
            text=scene["description"],
            source=f"{self.root / self.version}, {scene['name']}",
        )

    def _follow(self, scene: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows of sample_data of a scene and the camera, in order of time."""
        sample = self._row("sample", scene["first_sample_token"], scene["name"])
        if self.camera not in sample["data"]:
            raise ValueError(
                f"{self._table('sample_data')} has no row of {self.camera} at the start of {scene['name']}."
            )
        token, rows = sample["data"][self.camera], []
        while token:
            rows.append(self._row("sample_data", token, scene["name"]))
            token = rows[-1]["next"]
        return rows

    def _check_times(self, scene: str, rows: list[dict[str, Any]]) -> None:
        """ValueError where the times of pictures do not increase, or leave a gap."""
        steps = np.diff(_times(rows))
        bad = (steps <= 0) | (steps > _LONGEST_GAP)
        if len(rows) < 2 or bad.any():
            row, came = (int(bad.argmax()), f"{steps[bad.argmax()]:g} s") if len(steps) else (0, "nothing")
            raise ValueError(
                f"{self._table('sample_data')}, {scene}, after {rows[row]['token']}: the next picture of "
                f"{self.camera} was expected within {_LONGEST_GAP} s, but comes after {came}; leave out the scene."
            )

    def _ego_poses(self, scene: dict[str, Any], rows: list[dict[str, Any]]) -> np.ndarray:
        egos = [self._row("ego_pose", row["ego_pose_token"], row["filename"]) for row in rows]
        values = np.array([[*ego["translation"], *ego["rotation"]] for ego in egos])
        return vector_poses(values, f"{self._table('ego_pose')}, {scene['name']}", scalar_first=True)

    def _speeds(self, scene: str, rows: list[dict[str, Any]], wanted: np.ndarray, poses: np.ndarray) -> np.ndarray:
        """Forward speed (T,) in m/s at wanted times (T,): of the CAN bus, or of the poses (T, 4, 4)."""
        if self.files.exists(f"can_bus/{scene}_pose.json"):
            seconds, speeds = _can_bus(self.root, scene, rows[0]["timestamp"])
            if len(seconds) and seconds[0] < _LONGEST_GAP and seconds[-1] > wanted[-1] - _LONGEST_GAP:
                return np.interp(wanted, seconds, speeds)
        velocity = np.gradient(poses[:, :3, 3], 1 / self.fps, axis=0)
        return (velocity * poses[:, :3, 0]).sum(axis=-1)

    def _picture(self, row: dict[str, Any]) -> np.ndarray:
        picture = read_image(self.root / row["filename"])
        return picture if self.frame_size is None else resize_frames(picture, self.frame_size)

    def _row(self, table: str, token: str, owner: str) -> dict[str, Any]:
        try:
            return self.tables.get(table, token)
        except KeyError:
            raise ValueError(
                f"{self._table(table)} has no row {token!r}, which {owner} names; extract the metadata again."
            ) from None

    def _table(self, name: str) -> Path:
        return self.root / self.version / f"{name}.json"


def _version(root: Path, version: str | None) -> str:
    """The version that was asked for, or the only one in the folder."""
    present = sorted(path.parent.name for path in root.glob("*/sample_data.json"))
    if version is None and len(present) == 1:
        return present[0]
    if version not in present:
        raise ValueError(f"version is {version!r}, expected one of {present}: the folders of tables in {root}.")
    return version


def _tables(root: Path, version: str) -> Any:
    """The tables of nuscenes-devkit; ValueError where they are not whole."""
    try:
        from nuscenes.nuscenes import NuScenes
    except ImportError as error:
        raise ImportError(f"nuScenes is read with nuscenes-devkit ({error}); install it with make datasets.") from error
    try:
        return NuScenes(version=version, dataroot=str(root), verbose=False)
    except (AssertionError, OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{root / version} does not hold whole tables ({error!r}); extract all metadata again."
        ) from error


def _can_bus(root: Path, scene: str, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds (N,) after the time of the first picture, in order, and the speeds (N,) in m/s that the car told then."""
    from nuscenes.can_bus.can_bus_api import NuScenesCanBus

    try:
        messages = NuScenesCanBus(dataroot=str(root)).get_messages(scene, "pose")
        told = np.array(sorted((row["utime"] - first, row["vel"][0]) for row in messages)).reshape(-1, 2)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{root}/can_bus/{scene}_pose.json is not whole ({error!r}); extract it again.") from error
    return told[:, 0] * _MICROSECONDS, told[:, 1]


def _times(rows: list[dict[str, Any]]) -> np.ndarray:
    """Seconds (N,) since the first row."""
    return np.array([row["timestamp"] - rows[0]["timestamp"] for row in rows]) * _MICROSECONDS
