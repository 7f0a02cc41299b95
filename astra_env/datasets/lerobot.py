"""LeRobot data sets of versions 2.1 and 3.0: tables of numbers in Parquet, cameras as videos or as pictures in them."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow
from pyarrow import parquet

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES, ActionModality
from astra_env.datasets.clip import Clip
from astra_env.datasets.columns import ActionColumns, Motion, told
from astra_env.datasets.lerobot_writer import BOOKKEEPING, POSE, SPEED, STATE, action_feature
from astra_env.datasets.reader import ClipReader, Convention, columns, finite
from astra_env.video import read_video, resize_frames, video_info

_NUMBERS = ("float", "int", "uint", "bool")


class _Episode(NamedTuple):
    """`table` is the name of the file with its rows, `video` that of its frames, if these are not in the table too.

    Of the video it has `video_length` frames from `first_frame` on; None: all.
    """

    number: int
    length: int
    table: str
    video: str = ""
    first_frame: int = 0
    video_length: int | None = None


class LeRobotDataset(ClipReader):
    """Episodes of ``meta/info.json`` and its neighbours ``data``, ``videos`` and ``meta``.

    Row t of an episode has frame t and the action taken there, so that the last row's action leads nowhere and is left
    out. The format says nothing of units and axes: `columns` does, by the names of a feature after its key, as
    ``action.x`` or ``observation.state.x``, or ``action_0`` where info.json has none. Only what `write_lerobot` writes
    explains itself.

    Args:
        root: a folder, or an address as ``hf://datasets/OWNER/NAME``, of which only `meta` and the files of the
            episodes that are asked for are fetched.
        columns: what the columns mean.
        camera: key of the frames, as ``observation.images.front``; None where there is but one.
        options: see `ClipReader`.

    Raises:
        ValueError: for another version, unknown columns or cameras, or a file that cannot be read.
    """

    convention = Convention(
        page="https://huggingface.co/docs/lerobot/lerobot-dataset-v3",
        rate="fps of meta/info.json, one row and one frame of each camera at a time",
        units="not part of the format: told by ActionColumns, or by meta/info.json as write_lerobot writes it",
        frame="not part of the format: told by ActionColumns, or by meta/info.json as write_lerobot writes it",
        order="names of the features in meta/info.json; the action of a row leads to the next row",
    )

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        columns: ActionColumns | None = None,
        camera: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self._info = _read_info(self.files.path("meta/info.json"))
        self.source = f"{self.files.root}/meta/info.json"
        self.fps = float(self._info["fps"])
        self._features: dict[str, dict[str, Any]] = self._info["features"]
        self.camera = self._choose_camera(camera)
        self.modality, self._motion, self._vectors = self._choose_columns(columns)
        old = self._info["codebase_version"] == "v2.1"
        self._tasks = self._read_tasks(old)
        self._episodes = sorted(self._episodes_v21() if old else self._episodes_v30())
        if not self._episodes:
            raise ValueError(f"{self.files.root}/meta names no episodes; record some, or fetch the whole data set.")
        self.lengths = [episode.length for episode in self._episodes]

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """By ``meta/info.json``."""
        return (root / "meta" / "info.json").is_file()

    def read(self, recording: int, start: int, stop: int) -> Clip:
        """See `ClipReader.read`; rows are counted from `start`."""
        episode = self._episodes[recording]
        path = self.files.path(episode.table)
        wanted = ["frame_index", "task_index", *self._vectors, *([] if episode.video else [self.camera])]
        chosen = [("episode_index", "==", episode.number), ("frame_index", ">=", start), ("frame_index", "<", stop)]
        table = _read_table(path, wanted, chosen)
        source = f"{path}, episode {episode.number}" + (f" from frame {start}" if start else "")
        if not np.array_equal(table["frame_index"].to_numpy(), np.arange(start, stop)):
            raise ValueError(
                f"{source} has {len(table)} rows of the frames {start} to {stop}, expected one of each, in order; "
                "convert or fetch the data set again."
            )
        numbers = [_numbers(table, key, len(names), source) for key, names in self._vectors.items()]
        names = [name for part in self._vectors.values() for name in part]
        motion = self._motion(np.concatenate(numbers, axis=1), names, self.fps, source)
        task = table["task_index"][0].as_py()
        if task not in self._tasks:
            raise ValueError(f"{source}, row 0: task_index is {task}, but the tasks in meta are {sorted(self._tasks)}.")
        return Clip(
            frames=self._frames(episode, start, stop, table, source),
            actions=motion.actions,
            modality=self.modality,
            fps=self.fps,
            poses=motion.poses,
            speeds=motion.speeds,
            text=self._tasks[task],
            source=source,
        )

    def _frames(self, episode: _Episode, start: int, stop: int, table: pyarrow.Table, source: str) -> np.ndarray:
        if not episode.video:
            frames = [_decoded(cell, f"{source}, row {row}") for row, cell in enumerate(table[self.camera].to_pylist())]
            return np.stack(frames if self.frame_size is None else [resize_frames(f, self.frame_size) for f in frames])
        path = self.files.path(episode.video)
        length = video_info(path)[0] if episode.video_length is None else episode.video_length
        if length != episode.length:
            raise ValueError(
                f"{path} has {length} frames of episode {episode.number}, expected {episode.length} as {episode.table} "
                "has rows; convert or fetch the data set again."
            )
        first = episode.first_frame
        return read_video(path, start=first + start, stop=first + stop, size=self.frame_size)

    def _choose_camera(self, camera: str | None) -> str:
        cameras = [key for key, feature in self._features.items() if feature["dtype"] in ("video", "image")]
        if camera in cameras:
            return str(camera)
        if camera is None and len(cameras) == 1:
            return cameras[0]
        raise ValueError(f"{self.source}: camera is {camera!r}, expected one of {cameras}.")

    def _choose_columns(self, given: ActionColumns | None) -> tuple[str, Callable[..., Motion], dict[str, list[str]]]:
        """The modality, what makes a `Motion` of a table, and the columns of each feature that this takes."""
        vectors = {
            key: _column_names(key, feature)
            for key, feature in self._features.items()
            if key not in BOOKKEEPING and feature["dtype"].startswith(_NUMBERS) and len(feature["shape"]) == 1
        }
        names = [name for part in vectors.values() for name in part]
        own = _own_modality(self._features.get("action", {}))
        if given is None and own is not None:
            return own.name, functools.partial(_own_motion, own), _parts(vectors, ("action", STATE))
        meaning = told(given, self.files, lambda: names)
        columns(np.empty((0, len(names))), names, meaning.names, self.source)  # names those that are missing
        wanted = [key for key, part in vectors.items() if {*part} & {*meaning.names}]
        return meaning.modality, meaning.read, _parts(vectors, wanted)

    def _episodes_v21(self) -> list[_Episode]:
        video, size = self._features[self.camera]["dtype"] == "video", self._info["chunks_size"]
        episodes = []
        for row in _read_lines(self.files.path("meta/episodes.jsonl")):
            place = {"episode_index": row["episode_index"], "episode_chunk": row["episode_index"] // size}
            table, frames = self._name("data_path", place), self._name("video_path", place) if video else ""
            episodes.append(_Episode(row["episode_index"], row["length"], table, frames))
        return episodes

    def _episodes_v30(self) -> list[_Episode]:
        video = f"videos/{self.camera}/"
        places = ["data/chunk_index", "data/file_index"]
        if self._features[self.camera]["dtype"] == "video":
            places += [video + part for part in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")]
        episodes = []
        for name in self.files.glob("meta/episodes/*/*.parquet"):
            for row in _read_table(self.files.path(name), ["episode_index", "length", *places]).to_pylist():
                table = self._name("data_path", _numbered(row, "data/"))
                episode = _Episode(int(row["episode_index"]), int(row["length"]), table)
                if len(places) > 2:
                    first, end = (round(row[video + edge] * self.fps) for edge in ("from_timestamp", "to_timestamp"))
                    frames = self._name("video_path", _numbered(row, video))
                    episode = episode._replace(video=frames, first_frame=first, video_length=end - first)
                episodes.append(episode)
        return episodes

    def _read_tasks(self, old: bool) -> dict[int, str]:
        if old:
            return {row["task_index"]: row["task"] for row in _read_lines(self.files.path("meta/tasks.jsonl"))}
        table = _read_table(self.files.path("meta/tasks.parquet"))
        text = next(name for name in table.column_names if name != "task_index")  # the index of a pandas table
        return dict(zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True))

    def _name(self, template: str, place: dict[str, int]) -> str:
        """Name of a file by a template of info.json."""
        try:
            name = self._info[template].format(video_key=self.camera, **place)
        except (KeyError, IndexError, AttributeError) as error:
            raise ValueError(f"{self.source}: {template} is no template that is known ({error}).") from error
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise ValueError(f"{self.source}: {template} leads to {name}, expected a name inside the data set.")
        return name


def _read_table(path: Path, names: list[str] | None = None, rows: list[tuple] | None = None) -> pyarrow.Table:
    """Columns of a Parquet file, of the rows that fulfil all conditions (column, comparison, value)."""
    try:
        return parquet.read_table(path, columns=names, filters=rows, partitioning=None)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} is not a whole Parquet file with the columns {names} ({reason}); fetch it again."
        ) from error


def _read_info(path: Path) -> dict[str, Any]:
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); fetch it again.") from error
    if info.get("codebase_version") not in ("v2.1", "v3.0"):
        raise ValueError(
            f"{path}: codebase_version is {info.get('codebase_version')!r}, expected 'v2.1' or 'v3.0'; convert it with "
            "the script that lerobot has for its version, such as convert_dataset_v20_to_v21.py."
        )
    missing = [key for key in ("fps", "features", "data_path", "chunks_size") if key not in info]
    if missing:
        raise ValueError(f"{path} lacks {missing}; fetch it again.")
    return info


def _read_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number} is not JSON ({error}); fetch it again.") from error
    return rows


def _column_names(key: str, feature: dict[str, Any]) -> list[str]:
    names, size = feature.get("names") or [], feature["shape"][0]
    if isinstance(names, dict):  # {"motors": [names]}, or name -> number
        groups = [part for part in names.values() if isinstance(part, list)]
        names = [name for part in groups for name in part] if groups else sorted(names, key=lambda name: names[name])
    told = [f"{key}.{name}" for name in names]
    return told if len(told) == len({*told}) == size else [f"{key}_{number}" for number in range(size)]


def _parts(vectors: dict[str, list[str]], keys: Sequence[str]) -> dict[str, list[str]]:
    return {key: vectors[key] for key in keys if key in vectors}


def _numbered(row: dict[str, Any], prefix: str) -> dict[str, int]:
    return {part: int(row[prefix + part]) for part in ("chunk_index", "file_index")}


def _numbers(table: pyarrow.Table, key: str, width: int, source: str) -> np.ndarray:
    """A feature of N rows, float64 (N, width)."""
    rows = [np.atleast_1d(np.asarray(row, dtype=np.float64)) for row in table[key].to_pylist()]
    wrong = [number for number, row in enumerate(rows) if row.shape != (width,)]
    if wrong:
        raise ValueError(f"{source}, row {wrong[0]}: {key} has shape {rows[wrong[0]].shape}, expected ({width},).")
    return np.stack(rows)


def _decoded(cell: dict[str, Any] | None, source: str) -> np.ndarray:
    """A picture (H, W, 3) of its bytes."""
    encoded = np.frombuffer((cell or {}).get("bytes") or b"", np.uint8)
    picture = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None
    if picture is None:
        raise ValueError(f"{source} is no picture that can be decoded; expected the bytes of a PNG or JPEG.")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _own_modality(action: dict[str, Any]) -> ActionModality | None:
    modality = ACTION_MODALITIES.get(action.get("modality", ""))
    ours = modality is not None and all(action.get(key) == value for key, value in action_feature(modality).items())
    return modality if ours else None


def _own_motion(modality: ActionModality, table: np.ndarray, names: Sequence[str], fps: float, source: str) -> Motion:
    """What `write_lerobot` has written; the rate does not matter."""

    def chosen(key: str, wanted: Sequence[str]) -> np.ndarray:
        values = columns(table, names, [f"{key}.{name}" for name in wanted], source)
        return finite(values, source, f"one of {list(wanted)} of {key}").astype(np.float32)

    has_poses, has_speeds = (f"{STATE}.{name}" in names for name in ("qw", SPEED))
    return Motion(
        actions=chosen("action", modality.fields)[:-1],
        poses=geometry.vector7_to_pose(chosen(STATE, POSE)).astype(np.float32) if has_poses else None,
        speeds=chosen(STATE, [SPEED])[:, 0] if has_speeds else None,
    )
