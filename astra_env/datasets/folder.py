"""Videos, or folders of pictures, each with a table of what moves: for recordings in no format at all."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import av
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from astra_env.datasets.clip import Clip
from astra_env.datasets.columns import ActionColumns, Timing, told
from astra_env.datasets.reader import ClipReader, Convention
from astra_env.video import read_image, read_video, resize_frames, video_info

VIDEOS = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".gif")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
TABLES = (".csv", ".parquet")
SPLITS = ("train", "heldout")
_TIMES, _TEXTS = ("time", "timestamp"), ("text", "task")
_JITTER = 0.25  # of a frame's duration; containers round the times of frames


class _Episode(NamedTuple):
    name: str
    """Of its video, or of the folder of its pictures."""
    pictures: tuple[str, ...]
    """In their order; none for a video."""
    table: str
    text: str | None


class FolderDataset(ClipReader):
    """NAME.mp4 beside NAME.csv or NAME.parquet, or NAME/000.png … with a table in NAME or beside it.

    They lie in the root, or in train/ and heldout/ below it. A table has one row a frame, or a column of times. What
    there is to tell lies in NAME.txt, or in a column "text" or "task".

    Args:
        root: a folder, or the address of one.
        columns: what the columns of the tables mean; None if `columns.json` in the root tells the fields.
        split: "train" or "heldout"; None for all.
        time: column of the seconds since the first frame, for rows at other times than the frames; None takes "time" or
            "timestamp" where there are more or fewer rows than frames.
        fps: frames in a second, for pictures, and in place of what videos say.
        options: those of `ClipReader`.
    """

    convention = Convention(
        page="https://arrow.apache.org/docs/python/csv.html",
        rate="that of the video, or as told",
        units="as ActionColumns tells",
        frame="as ActionColumns tells",
        order="row k belongs to frame k, or to its time; a motion or command in row k leads to the next row",
    )

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        columns: ActionColumns | None = None,
        split: str | None = None,
        time: str | None = None,
        fps: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        if split not in (None, *SPLITS):
            raise ValueError(f"split is {split!r}, expected one of {SPLITS} or None.")
        if fps is not None and fps <= 0:
            raise ValueError(f"fps is {fps:g}, expected frames in a second.")
        self.time, self.fps = time, fps
        bases = [f"{split}/"] if split else ["", *(f"{name}/" for name in SPLITS)]
        self._episodes = [episode for base in bases for episode in self._find(base)]
        if not self._episodes:
            where = f"{root}/{split}" if split else root
            raise FileNotFoundError(
                f"There is no video ({', '.join(VIDEOS)}) and no folder of pictures ({', '.join(PICTURES)}) in {where}."
            )
        if fps is None and any(episode.pictures for episode in self._episodes):
            raise ValueError(f"{root} holds folders of pictures, which do not say their rate; tell fps.")
        self.columns = told(columns, self.files, lambda: self._table(self._episodes[0]).column_names)
        self.lengths = [len(e.pictures) or video_info(self.files.path(e.name))[0] for e in self._episodes]
        self._rates: dict[str, float] = {}

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """See `ClipReader.recognises`: a table beside a video of its name or in a folder of pictures."""
        bases = (root, *(root / name for name in SPLITS))
        tables = [path for base in bases for path in base.glob("*") if path.suffix in TABLES]
        if any(table.with_suffix(suffix).is_file() for table in tables for suffix in VIDEOS):
            return True
        inside = [path for base in bases for path in base.glob("*/*") if path.suffix in TABLES]
        folders = {table.parent for table in inside} | {table.with_suffix("") for table in tables}
        return any(path.suffix in PICTURES for folder in folders for path in folder.glob("*"))

    def read(self, recording: int, start: int, stop: int) -> Clip:
        """See `ClipReader.read`."""
        episode, length = self._episodes[recording], self.lengths[recording]
        table, fps = self._table(episode), self._rate(episode)
        source, time = str(self.files.path(episode.table)), self._time(episode, table, length)
        numbers = _numbers(table, self.columns.names if time is None else (*self.columns.names, time), source)
        timing = None
        if time is not None:
            timing = Timing(numbers[:, table.column_names.index(time)], np.arange(length) / fps)
        elif len(numbers) < length:  # the last frame has no way on
            numbers = np.concatenate([numbers, np.full((1, numbers.shape[1]), np.nan)])
        motion = self.columns.read(numbers, table.column_names, fps, source, timing).cut(start, stop)
        return Clip(
            frames=self._frames(episode, start, stop),
            actions=motion.actions,
            modality=self.columns.modality,
            fps=fps,
            poses=motion.poses,
            speeds=motion.speeds,
            text=self._text(episode, table),
            source=source,
        )

    def _find(self, base: str) -> list[_Episode]:
        """Episodes right below a folder, by their names."""
        flat = self.files.glob(f"{base}*")
        folders: dict[str, list[str]] = {}
        for name in self.files.glob(f"{base}*/*"):
            folders.setdefault(str(PurePosixPath(name).parent), []).append(name)
        episodes = [self._episode(name, (), flat) for name in flat if _suffix(name) in VIDEOS]
        for folder, names in folders.items():
            pictures = [name for name in names if _suffix(name) in PICTURES]
            if pictures:
                episodes.append(self._episode(folder, _in_order(pictures, self.files.root), [*flat, *names]))
        return episodes

    def _episode(self, name: str, pictures: tuple[str, ...], names: Sequence[str]) -> _Episode:
        stem = name if pictures else str(PurePosixPath(name).with_suffix(""))
        beside = [other for other in names if other in {f"{stem}{suffix}" for suffix in (*TABLES, ".txt")}]
        inside = [other for other in names if pictures and other.startswith(f"{name}/")]
        tables = [other for other in (*beside, *inside) if _suffix(other) in TABLES]
        if len(tables) != 1:
            raise ValueError(
                f"{self.files.root}/{name} has {tables or 'no table'}, expected one: {stem}.csv or {stem}.parquet."
            )
        texts = [other for other in (*beside, *inside) if _suffix(other) == ".txt"]
        return _Episode(name, pictures, tables[0], texts[0] if texts else None)

    def _table(self, episode: _Episode) -> Any:
        """The table of an episode as Arrow reads it."""
        path = self.files.path(episode.table)
        return _read_csv(path) if path.suffix.lower() == ".csv" else _read_parquet(path)

    def _time(self, episode: _Episode, table: Any, length: int) -> str | None:
        """The column of times; None where there is one row a frame, or one a step."""
        names, rows = table.column_names, table.num_rows
        one_a_frame = rows == length or (rows == length - 1 and self.columns.meaning != "poses")
        if self.time in names or (self.time is None and one_a_frame):
            return self.time
        known = [name for name in _TIMES if name in names]
        if self.time is None and known:
            return known[0]
        raise ValueError(
            f"{self.files.root}/{episode.table} has {rows} rows, {episode.name} {length} frames: expected one row a "
            f"frame, or a column {self.time or 'told as time'} of the seconds since the first frame; it has {names}."
        )

    def _text(self, episode: _Episode, table: Any) -> str:
        if episode.text is not None:
            return self.files.path(episode.text).read_text(encoding="utf-8").strip()
        for name in _TEXTS:
            if name in table.column_names and pa.types.is_string(table[name].type):
                return str(table[name][0].as_py() or "")
        return ""

    def _rate(self, episode: _Episode) -> float:
        if self.fps is not None:
            return self.fps
        if episode.name not in self._rates:
            self._rates[episode.name] = _constant_rate(self.files.path(episode.name))
        return self._rates[episode.name]

    def _frames(self, episode: _Episode, start: int, stop: int) -> np.ndarray:
        """uint8 (T, H, W, 3)."""
        if not episode.pictures:
            return read_video(self.files.path(episode.name), start=start, stop=stop, size=self.frame_size)
        frames = []
        for name in episode.pictures[start:stop]:
            picture = read_image(self.files.path(name))
            frames.append(picture if self.frame_size is None else resize_frames(picture, self.frame_size))
            if frames[-1].shape != frames[0].shape:
                raise ValueError(
                    f"{self.files.root}/{name} has the size {frames[-1].shape[:2]}, those before it "
                    f"{frames[0].shape[:2]}; tell frame_size."
                )
        return np.stack(frames)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _in_order(pictures: Sequence[str], root: str) -> tuple[str, ...]:
    """Pictures by the last number in their names; ValueError where one is missing or has no number."""
    numbers = {}
    for name in pictures:
        found = re.findall(r"\d+", PurePosixPath(name).stem)
        if not found or int(found[-1]) in numbers:
            raise ValueError(f"{root}/{name} has no number of its own, expected pictures such as 000.png, 001.png.")
        numbers[int(found[-1])] = name
    order = sorted(numbers)
    for before, after in itertools.pairwise(order):
        if after != before + 1:
            raise ValueError(
                f"{root}/{numbers[before]} is followed by {numbers[after]}; number the pictures one by one."
            )
    return tuple(numbers[number] for number in order)


def _constant_rate(path: Path) -> float:
    """Frames a second of a video; ValueError where they do not last equally long."""
    fps = video_info(path)[1]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stamps = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None and packet.size)
        seconds = np.array(stamps) * float(stream.time_base or 0)
    off = np.abs(seconds - seconds[:1] - np.arange(len(seconds)) / (fps or 1.0)) * fps
    if fps <= 0 or (off > _JITTER).any():
        raise ValueError(
            f"{path}: its frames do not come at a constant rate (about {fps:g} a second); convert it with "
            "ffmpeg -fps_mode cfr, or tell fps if they do."
        )
    return fps


def _read_csv(path: Path) -> Any:
    torn: list[Any] = []

    def refuse(row: Any) -> str:
        torn.append(row)
        return "skip"

    try:
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(use_threads=False),  # which counts the rows
            parse_options=pyarrow.csv.ParseOptions(invalid_row_handler=refuse),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a table of commas ({error}).") from error
    if torn:
        row = torn[0]
        raise ValueError(
            f"{path}, row {row.number - 2}: it has {row.actual_columns} cells, expected {row.expected_columns}: "
            f"{row.text!r}; mend or drop the row."
        )
    return table


def _read_parquet(path: Path) -> Any:
    try:
        return pyarrow.parquet.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet ({error}); write or fetch it again.") from error


def _numbers(table: Any, wanted: Sequence[str], source: str) -> np.ndarray:
    """float64 (rows, columns) in which the wanted columns are filled; ValueError names a row that holds no number."""
    numbers = np.full((table.num_rows, table.num_columns), np.nan)
    for index, name in enumerate(table.column_names):
        for row, cell in enumerate(table[name].to_pylist() if name in wanted else ()):
            try:
                numbers[row, index] = np.nan if cell is None else float(cell)
            except (TypeError, ValueError) as error:
                message = f"{source}, row {row}: {name} is {cell!r}, expected a number; mend or drop the row."
                raise ValueError(message) from error
    return numbers
