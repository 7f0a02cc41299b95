"""HDF5 files of demonstrations: robomimic's layout, or episodes in groups or files of their own."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from astra_env.datasets.clip import Clip
from astra_env.datasets.columns import ActionColumns, told
from astra_env.datasets.reader import ClipReader, Convention
from astra_env.video import resize_frames

SUFFIXES = (".hdf5", ".h5")
ROBOMIMIC = ActionColumns(
    modality="end_effector",
    meaning="poses",
    translation=tuple(f"obs/robot0_eef_pos_{i}" for i in range(3)),
    rotation=tuple(f"obs/robot0_eef_quat_{i}" for i in range(4)),
    rotation_kind="quaternion_xyzw",
    gripper="actions_6",
    gripper_open=-1.0,
    gripper_closed=1.0,
    gripper_meaning="commanded",
)
"""One robosuite arm: measured poses, and the gripper's command. The other fields of `actions` are no lengths: they are
shares, from -1 to 1, of the controller's largest motion (0.05 m and 0.5 rad where it was not changed), and an arm does
not go all the way that it is told."""
PRESETS: Mapping[str, ActionColumns] = {"robomimic": ROBOMIMIC}
_GROUP = re.compile(r"(?:demo|episode|traj)_(\d+)")
_FOLLOWING = "next_obs"  # the observations once more, one frame later


class _Episode(NamedTuple):
    file: str
    group: str
    """Its place in the file; "/" for a file that is one episode."""


class HDF5Dataset(ClipReader):
    """Episodes of HDF5 files: groups data/demo_0 … as robomimic writes them, demo_0 or episode_0 … in the file itself,
    or a file each.

    A column is called by the place of its numbers in the episode: ``rewards``, or ``obs/robot0_eef_pos_0`` to ``_2``
    where there are three a frame.

    Args:
        root: a file, a folder of files (.hdf5, .h5), or the address of one.
        columns: what the columns mean, or "robomimic"; None if `columns.json` beside the files tells the fields.
        image: place of the pictures in an episode, such as ``obs/agentview_image``; None if there are no others.
        fps: frames in a second; None if the file tells a control_freq in its env_args.
        split: a filter of robomimic's, such as "train" or "valid"; None for all episodes.
        frame_size: see `ClipReader`.
        num_frames: see `ClipReader`.
        cache_gb: see `ClipReader`.
    """

    convention = Convention(
        page="https://robomimic.github.io/docs/datasets/overview.html",
        rate="env_kwargs.control_freq of the attribute env_args, or as told",
        units="as ActionColumns tells; robot0_eef_pos in metres, robot0_eef_quat x y z w",
        frame="as ActionColumns tells; robosuite's poses are in its world, whose axes are those of a single arm's base",
        order="row k of actions leads from observation k to k + 1",
    )

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        columns: ActionColumns | str | None = None,
        image: str | None = None,
        fps: float | None = None,
        split: str | None = None,
        frame_size: tuple[int, int] | None = None,
        num_frames: int | None = None,
        cache_gb: float = 20.0,
    ) -> None:
        folder, _, name = str(root).rpartition("/")
        alone = name.endswith(SUFFIXES)
        super().__init__(
            (folder or ".") if alone else root, frame_size=frame_size, num_frames=num_frames, cache_gb=cache_gb
        )
        if isinstance(columns, str) and columns not in PRESETS:
            raise ValueError(f"columns are {columns!r}, expected ActionColumns or one of {sorted(PRESETS)}.")
        names = [name] if alone else sorted(name for suffix in SUFFIXES for name in self.files.glob(f"*{suffix}"))
        if not names:
            raise FileNotFoundError(f"There are no HDF5 files ({', '.join(SUFFIXES)}) in {root}.")
        self.fps, self._image = fps, image
        self._episodes: list[_Episode] = []
        self.lengths: list[int] = []
        for name in names:
            with self._open(name) as file:
                for group in _episodes(file, split, str(self.files.path(name))):
                    self._episodes.append(_Episode(name, group))
                    self.lengths.append(len(self._pictures(file[group], f"{self.files.path(name)}, {group}")))
        chosen = PRESETS[columns] if isinstance(columns, str) else columns
        self.columns = told(chosen, self.files, self._names)

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """See `ClipReader.recognises`: HDF5 files right in the folder."""
        return any(path.suffix in SUFFIXES for path in root.glob("*"))

    def read(self, recording: int, start: int, stop: int) -> Clip:
        """See `ClipReader.read`. Only the pictures of these frames are read."""
        episode, length = self._episodes[recording], self.lengths[recording]
        with self._open(episode.file) as file:
            group, source = file[episode.group], f"{self.files.path(episode.file)}, {episode.group}"
            places = _places(group, length)
            table = np.full((length, len(places)), np.nan)
            for column, (name, (place, index)) in enumerate(places.items()):
                if name in self.columns.names:
                    values = group[place][:] if index is None else group[place][:, index]
                    table[: len(values), column] = values
            fps = self.fps or _control_rate(file, source)
            frames = self._pictures(group, source)[start:stop]
            text = _text(file)
        motion = self.columns.read(table, list(places), fps, source).cut(start, stop)
        return Clip(
            frames=frames if self.frame_size is None else resize_frames(frames, self.frame_size),
            actions=motion.actions,
            modality=self.columns.modality,
            fps=fps,
            poses=motion.poses,
            speeds=motion.speeds,
            text=text,
            source=source,
        )

    def _open(self, name: str) -> Any:
        """The file, which closes with its context."""
        try:
            import h5py
        except ImportError as error:
            raise ImportError("HDF5 files need h5py: pip install 'astra-env[datasets]'.") from error
        path = self.files.path(name)
        try:
            return h5py.File(path, "r")
        except OSError as error:
            raise ValueError(f"{path} is not a whole HDF5 file ({error}); write or fetch it again.") from error

    def _pictures(self, group: Any, source: str) -> Any:
        """The pictures (N, H, W, 3) of an episode, not read yet."""
        found = [place for place, data in _datasets(group) if data.ndim == 4 and _is_picture(data)]
        wanted = self._image or (found[0] if len(found) == 1 else None)
        if wanted not in found:
            raise ValueError(
                f"{source}: image is {self._image!r}, expected one of the places of uint8 pictures (N, H, W, 3): "
                f"{found or 'there are none'}."
            )
        return group[wanted]

    def _names(self) -> list[str]:
        """Columns of the first episode."""
        with self._open(self._episodes[0].file) as file:
            return list(_places(file[self._episodes[0].group], self.lengths[0]))


def _episodes(file: Any, split: str | None, source: str) -> list[str]:
    """Places of the episodes, by their numbers."""
    base = "data" if "data" in file else "/"
    found = {name: int(match[1]) for name in file[base] if (match := _GROUP.fullmatch(name))}
    if split is not None:
        masks = list(file.get("mask", ()))
        if split not in masks:
            raise ValueError(f"{source}: split is {split!r}, expected one of its filters {masks}, or None.")
        kept = {name.decode() for name in file["mask"][split][:]}
        if kept - found.keys():
            raise ValueError(f"{source}: the filter {split!r} names {sorted(kept - found.keys())}, which are missing.")
        found = {name: number for name, number in found.items() if name in kept}
    elif not found:
        return [base]
    return [str(PurePosixPath("/", base, name)) for name in sorted(found, key=found.__getitem__)]


def _datasets(group: Any) -> Iterator[tuple[str, Any]]:
    """Place and data set of everything below a group, but for observations that are there twice."""
    import h5py

    places: list[str] = []
    group.visit(places.append)
    for place in places:
        if isinstance(group[place], h5py.Dataset) and not place.startswith(f"{_FOLLOWING}/"):
            yield place, group[place]


def _is_picture(data: Any) -> bool:
    return bool(data.dtype == np.uint8 and data.shape[-1] == 3)


def _places(group: Any, length: int) -> dict[str, tuple[str, int | None]]:
    """Column -> place of its numbers, and which of them: of all with a row for each frame, or each but the last."""
    places: dict[str, tuple[str, int | None]] = {}
    for place, data in _datasets(group):
        if data.dtype.kind not in "fiub" or data.ndim not in (1, 2) or len(data) not in (length, length - 1):
            continue
        if data.ndim == 1:
            places[place] = (place, None)
        else:
            places |= {f"{place}_{index}": (place, index) for index in range(data.shape[1])}
    return places


def _attribute(file: Any, name: str) -> dict[str, Any]:
    """A JSON attribute of the group of all episodes; empty where there is none."""
    holder = file.get("data", file)
    return json.loads(holder.attrs[name]) if name in holder.attrs else {}


def _control_rate(file: Any, source: str) -> float:
    rate = _attribute(file, "env_args").get("env_kwargs", {}).get("control_freq")
    if rate is None:
        raise ValueError(f"{source}: no env_args tells a control_freq, expected fps, the frames in a second.")
    return float(rate)


def _text(file: Any) -> str:
    """What LIBERO's files say of their task."""
    instruction = _attribute(file, "problem_info").get("language_instruction", "")
    return instruction if isinstance(instruction, str) else " ".join(instruction)
