"""What all readers share: conventions that are stated, windows of long recordings, files on a disk or elsewhere."""

from __future__ import annotations

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from astra_env.datasets.clip import Clip
from astra_env.datasets.files import Files


class Untold(ValueError):
    """Nobody has told what the columns of a data set mean; the message lists them."""


@dataclass(frozen=True)
class Convention:
    """What the numbers of a format mean as they are published; a reader converts them to those of `Clip`."""

    page: str
    """Where the format is described."""
    rate: str
    """Frames and actions in a second."""
    units: str
    """Of each field."""
    frame: str
    """Axes that motions and poses are expressed in, and which pose of what in what."""
    order: str
    """Order of the fields, and which of two frames an action belongs to."""


class ClipReader(ABC):
    """Recordings of one format: `len`, and integer indices that give a `Clip`.

    A subclass tells its `convention`, sets `lengths` in its constructor, and reads any part of a recording.

    Args:
        root: a folder, or the address of one that fsspec opens, such as ``hf://datasets/…`` or ``s3://…``.
        frame_size: height and width that frames are cropped and resized to as they are read; None leaves them.
        num_frames: recordings come in windows of so many frames, the rest left out; None gives them whole.
        cache_gb: space on the disk for files of a remote root; those used longest ago make room.
    """

    convention: ClassVar[Convention]
    lengths: Sequence[int]
    """Frames of each recording."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        frame_size: tuple[int, int] | None = None,
        num_frames: int | None = None,
        cache_gb: float = 20.0,
    ) -> None:
        if num_frames is not None and num_frames < 2:
            raise ValueError(f"num_frames is {num_frames}, expected at least 2: an action lies between two frames.")
        self.files = Files(root, cache_gb)
        self.frame_size, self.num_frames = frame_size, num_frames

    @classmethod
    @abstractmethod
    def recognises(cls, root: Path) -> bool:
        """Whether a local folder looks like this format, by the names in it."""

    @abstractmethod
    def read(self, recording: int, start: int, stop: int) -> Clip:
        """Frames `start` to `stop` of a recording with the actions between them.

        Raises:
            ValueError: naming file and row, where something is missing, torn or of another version.
        """

    @functools.cached_property
    def windows(self) -> list[tuple[int, int, int]]:
        """Recording, first frame and end of each clip."""
        if self.num_frames is None:
            return [(recording, 0, length) for recording, length in enumerate(self.lengths)]
        return [
            (recording, start, start + self.num_frames)
            for recording, length in enumerate(self.lengths)
            for start in range(0, length - self.num_frames + 1, self.num_frames - 1)
        ]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Clip:
        """One clip."""
        return self.read(*self.windows[index])


def columns(rows: np.ndarray, names: Sequence[str], wanted: Sequence[str], source: str) -> np.ndarray:
    """The wanted columns of a table (N, len(names)) in their order; ValueError names those that it lacks."""
    missing = [name for name in wanted if name not in names]
    if missing:
        raise ValueError(f"{source}: columns {missing} are missing; it has {list(names)}.")
    return rows[:, [list(names).index(name) for name in wanted]]


def finite(values: np.ndarray, source: str, what: str) -> np.ndarray:
    """The values (N, ...) as float64; ValueError names the first row that holds something else than finite numbers."""
    values = np.asarray(values, dtype=np.float64)
    bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if bad.any():
        raise ValueError(f"{source}, row {int(bad.argmax())}: {what} is not a finite number; mend or drop the row.")
    return values
