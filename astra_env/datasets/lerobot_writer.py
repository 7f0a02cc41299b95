"""Clips as a LeRobot data set of version 3.0, with the units and axes that the format itself does not ask for."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES, ActionModality
from astra_env.datasets.clip import Clip
from astra_env.video import write_video
from astra_env.writing import write_json

CAMERA = "observation.images.main"
STATE = "observation.state"
POSE = ("x", "y", "z", "qx", "qy", "qz", "qw")
SPEED = "speed"
BOOKKEEPING = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
"""Features that every data set has, of one number each -> their type."""
_CHUNK = 1000
"""Most files in a folder."""
_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_DATA, _VIDEO = f"data/{_FILE}.parquet", f"videos/{{video_key}}/{_FILE}.mp4"
_UNITS = dict.fromkeys(POSE, "1") | dict.fromkeys(POSE[:3], "m") | {SPEED: "m/s"}


def write_lerobot(path: str | os.PathLike[str], clips: Iterable[Clip], *, robot_type: str = "astra") -> None:
    """Write clips, one an episode, as a folder that lerobot and `LeRobotDataset` read: the whole of it or nothing.

    Row t has frame t, ``action`` t and as ``observation.state`` the pose (position, quaternion x y z w) and speed of
    frame t, where the clips have them. No action follows the last frame: its row stands still and holds the absolute
    fields. Names, units and axes of the actions are told in ``meta/info.json``.

    Args:
        path: a new folder.
        clips: of one modality, rate and frame size; taken one at a time.
        robot_type: what recorded them, for info.json.

    Raises:
        ValueError: when the folder exists, there are no clips, or one does not fit to the first, naming its source.
    """
    path = Path(path)
    if path.exists():
        raise ValueError(f"{path} is there already; give the name of a new folder.")
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        _write(unfinished, clips, robot_type)
        os.replace(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def action_feature(modality: ActionModality) -> dict[str, Any]:
    """How info.json tells that the feature "action" holds actions of a modality."""
    return {
        "dtype": "float32",
        "shape": [modality.action_dim],
        "names": list(modality.fields),
        "modality": modality.name,
        "units": list(modality.units),
        "frame": modality.frame,
    }


def _write(root: Path, clips: Iterable[Clip], robot_type: str) -> None:
    first: Clip | None = None
    tasks: dict[str, int] = {}
    tables: list[dict[str, np.ndarray]] = []
    pictures: list[np.ndarray] = []
    episodes: list[dict[str, Any]] = []
    for number, clip in enumerate(clips):
        first = first or clip
        _check(clip, first)
        first_row = episodes[-1]["dataset_to_index"] if episodes else 0
        tables.append(_rows(clip, number, first_row, tasks.setdefault(clip.text, len(tasks))))
        pictures.append(_histogram(clip.frames))
        episodes.append(_episode(clip, number, first_row, _statistics(tables[-1:], pictures[-1:])))
        path = root / _VIDEO.format(video_key=CAMERA, **_place(number))
        write_video(path, clip.frames, clip.fps, key_every=2)  # as lerobot does, whose loader reads from anywhere
    if first is None:
        raise ValueError("There are no clips to write; give at least one.")
    _write_data(root / _DATA.format(**_place(0)), tables)
    _write_tables(root / "meta", episodes, tasks)
    num_frames = episodes[-1]["dataset_to_index"]
    totals = {"total_episodes": len(episodes), "total_frames": num_frames, "total_tasks": len(tasks)}
    write_json(root / "meta/info.json", _info(first, robot_type) | totals | {"splits": {"train": f"0:{len(episodes)}"}})
    write_json(root / "meta/stats.json", _statistics(tables, pictures))


def _place(number: int) -> dict[str, int]:
    """Where the file of a number is."""
    return {"chunk_index": number // _CHUNK, "file_index": number % _CHUNK}


def _episode(clip: Clip, number: int, first_row: int, statistics: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What meta tells of an episode: a video of its own, and rows in the one file of all."""
    return {
        "episode_index": number,
        "tasks": [clip.text],
        "length": len(clip.frames),
        "dataset_from_index": first_row,
        "dataset_to_index": first_row + len(clip.frames),
        **{f"data/{key}": value for key, value in _place(0).items()},
        **{f"meta/episodes/{key}": value for key, value in _place(0).items()},
        **{f"videos/{CAMERA}/{key}": value for key, value in _place(number).items()},
        f"videos/{CAMERA}/from_timestamp": 0.0,
        f"videos/{CAMERA}/to_timestamp": len(clip.frames) / clip.fps,
        **{f"stats/{key}/{name}": value for key, of in statistics.items() for name, value in of.items()},
    }


def _check(clip: Clip, first: Clip) -> None:
    height, width = clip.frames.shape[1:3]
    if len(clip.frames) < 2 or height % 2 or width % 2 or clip.fps != int(clip.fps):
        raise ValueError(
            f"{clip.source} has {len(clip.frames)} frames of {height} x {width} at {clip.fps:g} Hz, expected two or "
            "more, of even height and width, at a whole number a second; read it at another frame_size or rate."
        )
    kind, expected = (
        f"{c.modality} at {c.fps:g} Hz, {c.frames.shape[1]} x {c.frames.shape[2]}, "
        f"{'with' if c.poses is not None else 'without'} poses, {'with' if c.speeds is not None else 'without'} speeds"
        for c in (clip, first)
    )
    if kind != expected:
        raise ValueError(f"{clip.source} is {kind}, expected {expected} as {first.source}; write each kind by itself.")


def _rows(clip: Clip, episode: int, first_row: int, task: int) -> dict[str, np.ndarray]:
    """Features of a clip's frames, each (T, D)."""
    modality, length = ACTION_MODALITIES[clip.modality], len(clip.frames)
    rest = clip.actions[-1:].copy()
    rest[:, : modality.kinematics.num_fields] = 0
    rows = {"action": np.concatenate([clip.actions, rest])}
    state = [] if clip.poses is None else [geometry.pose_to_vector7(clip.poses)]
    state += [] if clip.speeds is None else [clip.speeds[:, None]]
    if state:
        rows[STATE] = np.concatenate(state, axis=1)
    rows = {key: values.astype(np.float32) for key, values in rows.items()}
    frame = np.arange(length)
    numbers = (frame / clip.fps, frame, np.full(length, episode), first_row + frame, np.full(length, task))
    for (key, kind), values in zip(BOOKKEEPING.items(), numbers, strict=True):
        rows[key] = values.astype(kind)[:, None]
    return rows


def _histogram(frames: np.ndarray) -> np.ndarray:
    """How often each colour has each value, (3, 256)."""
    return np.stack([np.bincount(frames[..., channel].ravel(), minlength=256) for channel in range(3)])


def _statistics(tables: list[dict[str, np.ndarray]], pictures: list[np.ndarray]) -> dict[str, dict[str, Any]]:
    """Of each feature over all rows, and of the colours over all pixels, in [0, 1] and of shape (3, 1, 1)."""
    statistics: dict[str, dict[str, Any]] = {}
    for key in tables[0]:
        values = np.concatenate([table[key] for table in tables]).astype(np.float64)
        parts = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
        statistics[key] = {name: part.tolist() for name, part in parts.items()} | {"count": [len(values)]}
    counts, levels = np.sum(pictures, axis=0), np.arange(256) / 255
    mean = counts @ levels / counts.sum(1)
    parts = {
        "min": levels[(counts > 0).argmax(1)],
        "max": levels[255 - (counts[:, ::-1] > 0).argmax(1)],
        "mean": mean,
        "std": np.sqrt((counts * (levels - mean[:, None]) ** 2).sum(1) / counts.sum(1)),
    }
    frames = {"count": [sum(len(table["index"]) for table in tables)]}
    statistics[CAMERA] = {name: part.reshape(3, 1, 1).tolist() for name, part in parts.items()} | frames
    return statistics


def _info(clip: Clip, robot_type: str) -> dict[str, Any]:
    """What info.json says of all clips like this one."""
    height, width = clip.frames.shape[1:3]
    video = {"video.height": height, "video.width": width, "video.codec": "h264", "video.pix_fmt": "yuv420p"}
    video |= {"video.is_depth_map": False, "video.fps": int(clip.fps), "video.channels": 3, "has_audio": False}
    features: dict[str, Any] = {"action": action_feature(ACTION_MODALITIES[clip.modality])}
    state = [*(() if clip.poses is None else POSE), *(() if clip.speeds is None else (SPEED,))]
    if state:
        units = [_UNITS[name] for name in state]
        features[STATE] = {"dtype": "float32", "shape": [len(state)], "names": state, "units": units}
    shape, names = [height, width, 3], ["height", "width", "channels"]
    features[CAMERA] = {"dtype": "video", "shape": shape, "names": names, "info": video}
    features |= {key: {"dtype": kind, "shape": [1], "names": None} for key, kind in BOOKKEEPING.items()}
    sizes = {"chunks_size": _CHUNK, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200}
    paths = {"data_path": _DATA, "video_path": _VIDEO}
    return {
        "codebase_version": "v3.0",
        "robot_type": robot_type,
        "fps": int(clip.fps),
        **sizes,
        **paths,
        "features": features,
    }


def _write_data(path: Path, tables: list[dict[str, np.ndarray]]) -> None:
    """One file, in which each episode is a group of rows that can be read alone."""

    def arrow(values: np.ndarray) -> pyarrow.Array:
        flat = pyarrow.array(values.ravel())
        return flat if values.shape[1] == 1 else pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1])

    path.parent.mkdir(parents=True)
    groups = [pyarrow.table({key: arrow(values) for key, values in table.items()}) for table in tables]
    with parquet.ParquetWriter(path, groups[0].schema) as writer:
        for group in groups:
            writer.write_table(group)


def _write_tables(meta: Path, episodes: list[dict[str, Any]], tasks: dict[str, int]) -> None:
    file = meta / f"episodes/{_FILE.format(**_place(0))}.parquet"
    file.parent.mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(episodes), file)
    table = pyarrow.table({"task_index": list(tasks.values()), "task": pyarrow.array(list(tasks), pyarrow.string())})
    # lerobot looks tasks up by their texts, which pandas is told to take as the names of the rows
    kinds = (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    described = [{"name": n, "field_name": n, "pandas_type": p, "numpy_type": d, "metadata": None} for n, p, d in kinds]
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": described}
    parquet.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), meta / "tasks.parquet")
