"""Our own recordings: one npz an episode, as `astra-env collect` writes them."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets.clip import Clip
from astra_env.datasets.reader import ClipReader, Convention
from astra_env.video import resize_frames

SPLITS = ("train", "heldout")


class RecordedDataset(ClipReader):
    """Episodes of ROOT/SPLIT/episode_*.npz. An action is held for `chunk_frames` frames in the file.

    `arrays(i)` gives the file as it is (one action a chunk, poses, reward, success and the domain's own tracks); `[i]`
    gives a `Clip` of the same frames and poses, in which every frame has its share of the action.
    """

    convention = Convention(
        page="README.md of this project, Make your own world",
        rate="as each file's meta says; an action is held for chunk_frames of its frames",
        units="metres, radians, m/s^2; the gripper 0 open .. 1 closed",
        frame="that of the action modality; poses base-to-world or camera-to-world",
        order="that of the action modality; an action leads from the end of one chunk to the end of the next",
    )

    def __init__(self, root: str | os.PathLike[str], split: str = "train", **options: Any) -> None:
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}, expected one of {SPLITS}.")
        super().__init__(root, **options)
        self.paths = [self.files.path(name) for name in self.files.glob(f"{split}/episode_*.npz")]
        if not self.paths:
            raise FileNotFoundError(
                f"There are no episodes in {Path(root) / split}; record some with astra-env collect."
            )
        self._first_meta = self._meta(self.arrays(0))

    @property
    def modality(self) -> str:
        """Name of the action modality of all episodes."""
        return self._first_meta["modality"]

    @property
    def domain(self) -> str:
        """What was recorded: a key of `astra_env.simulators.collect.RECORDINGS`."""
        return self._first_meta.get("domain", "robot")  # the first recordings, of the robot, do not say

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """By the names of the episodes."""
        return any(root.glob("train/episode_*.npz"))

    @functools.cached_property
    def lengths(self) -> Sequence[int]:  # type: ignore[override]
        """Frames of each episode."""
        return [len(self.arrays(index, "measured_poses")["measured_poses"]) for index in range(len(self.paths))]

    def __len__(self) -> int:
        return len(self.paths) if self.num_frames is None else super().__len__()

    def arrays(self, index: int, *names: str) -> dict[str, np.ndarray]:
        """The arrays of one episode by name: those of these names, or all."""
        path = self.paths[index]
        try:
            with np.load(path, allow_pickle=False) as file:
                known = file.files
                found = {name: file[name] for name in names or known if name in known}
        except (BadZipFile, ValueError, EOFError) as error:
            raise ValueError(f"{path} is not a whole episode ({error}); delete it and collect again.") from error
        missing = sorted(set(names) - found.keys())
        if missing:
            raise ValueError(f"{path} has no {', '.join(missing)}, only {', '.join(known)}; collect it again.")
        return found

    def __getitem__(self, index: int) -> Clip:
        """One episode, or a window of one, as a clip at the frame rate."""
        return self.read(index, 0, None) if self.num_frames is None else super().__getitem__(index)

    def read(self, recording: int, start: int, stop: int | None) -> Clip:
        """See `ClipReader.read`; to its end if `stop` is None."""
        arrays = self.arrays(recording)
        meta = self._meta(arrays)
        shares = ACTION_MODALITIES[self.modality].split(arrays["actions"], meta["chunk_frames"])
        rows, frames = slice(start, stop), arrays["frames"][start:stop]
        clip = Clip(
            frames=frames,
            actions=shares.reshape(-1, shares.shape[-1])[start : start + len(frames) - 1],
            modality=self.modality,
            fps=float(meta["fps"]),
            poses=arrays["measured_poses"][rows],
            speeds=arrays["speed"][rows] if "speed" in arrays else None,
            text=meta["text"],
            source=str(self.paths[recording]),
        )
        return clip if self.frame_size is None else replace(clip, frames=resize_frames(frames, self.frame_size))

    @staticmethod
    def _meta(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        return json.loads(str(arrays["meta"]))
