"""Start states: short recorded clips with their actions, from which imagined episodes begin."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

FILE_NAME = "start_states.npz"


@dataclass(frozen=True)
class StartStates:
    """K clips: frames uint8 (K, 4 P + 1, H, W, 3) and the actions float32 (K, P, A) between them, physical units.

    ``speeds`` float32 (K,) are those of vehicles at the last frame, in m/s; None where nothing has a speed.
    """

    frames: np.ndarray
    actions: np.ndarray
    speeds: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.frames)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> StartStates:
        """Read an npz file, or the one inside a domain's folder of a checkpoint."""
        file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return cls(arrays["frames"], arrays["actions"], arrays.get("speeds"))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"There are no start states at {file}; expected an npz of frames and actions."
            ) from None
        except (BadZipFile, KeyError, ValueError, EOFError) as error:
            raise ValueError(f"{file} is not an npz of frames and actions ({error}); write it with save().") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an npz file, or the one inside a domain's folder of a checkpoint."""
        file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
        if file.suffix != ".npz":
            raise ValueError(f"{file} is no name of start states, expected an existing folder or FILE.npz.")
        partial = file.with_name("partial-" + file.name)
        np.savez_compressed(partial, **{name: value for name, value in vars(self).items() if value is not None})
        os.replace(partial, file)
