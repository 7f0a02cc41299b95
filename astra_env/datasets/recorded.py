"""Our own recordings: one npz an episode, as `astra-env collect` writes them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets.clip import Clip

SPLITS = ("train", "heldout")


class RecordedDataset:
    """Episodes of ROOT/SPLIT/episode_*.npz. An action is held for `chunk_frames` frames in the file.

    `arrays(i)` gives the file as it is (one action a chunk, poses, reward, success and the domain's own tracks); `[i]`
    gives a `Clip` of the same frames and poses, in which every frame has its share of the action.
    """

    def __init__(self, root: str | os.PathLike[str], split: str = "train") -> None:
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}, expected one of {SPLITS}.")
        self.paths = sorted((Path(root) / split).glob("episode_*.npz"))
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

    def __len__(self) -> int:
        return len(self.paths)

    def arrays(self, index: int) -> dict[str, np.ndarray]:
        """All arrays of one episode by name."""
        path = self.paths[index]
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (BadZipFile, ValueError, EOFError) as error:
            raise ValueError(f"{path} is not a whole episode ({error}); delete it and collect again.") from error

    def __getitem__(self, index: int) -> Clip:
        """One episode as a clip at the frame rate."""
        arrays = self.arrays(index)
        meta = self._meta(arrays)
        shares = ACTION_MODALITIES[self.modality].split(arrays["actions"], meta["chunk_frames"])
        return Clip(
            frames=arrays["frames"],
            actions=shares.reshape(-1, shares.shape[-1]),
            modality=self.modality,
            fps=float(meta["fps"]),
            poses=arrays["measured_poses"],
            text=meta["text"],
            source=str(self.paths[index]),
        )

    @staticmethod
    def _meta(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        return json.loads(str(arrays["meta"]))
