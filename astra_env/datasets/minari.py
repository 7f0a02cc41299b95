"""Minari: offline reinforcement learning data of Gymnasium environments whose observations hold pictures."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator, registry

from astra_env.datasets.clip import Clip
from astra_env.datasets.columns import ActionColumns, told
from astra_env.datasets.reader import ClipReader, Convention
from astra_env.video import resize_frames


class MinariDataset(ClipReader):
    """Episodes of one Minari data set that lies on this machine.

    A column is called by the place of its numbers: ``action_0``, ``observation/achieved_goal_2``, ``info/speed``.

    Args:
        root: the folder of the data set, which holds the folder data.
        columns: what the columns mean; None if `columns.json` in the root tells the fields.
        image: place of the pictures, such as ``observation/pixels``; None if there are no others.
        fps: frames in a second; None if the environment is registered here and tells its render_fps.
        options: those of `ClipReader`.
    """

    convention = Convention(
        page="https://minari.farama.org/content/dataset_standards/",
        rate="render_fps of the environment, or as told",
        units="as ActionColumns tells",
        frame="as ActionColumns tells",
        order="one observation more than actions; row k of actions leads from observation k to k + 1",
    )

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        columns: ActionColumns | None = None,
        image: str | None = None,
        fps: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        if self.files.remote is not None:
            raise ValueError(f"{root} lies elsewhere, and Minari reads local folders; fetch it with minari download.")
        try:
            import minari
        except ImportError as error:
            raise ImportError("Minari data sets need minari: pip install 'astra-env[datasets]'.") from error
        self._data = minari.MinariDataset(self.files.path("data/metadata.json").parent)
        pictures = [
            name for name, space in _leaves("observation", _spaces(self._data.observation_space)) if _seen(space)
        ]
        if image is None and len(pictures) == 1:
            image = pictures[0]
        if image not in pictures:
            raise ValueError(
                f"{root}: image is {image!r}, expected one of the uint8 pictures (H, W, 3) among the observations: "
                f"{pictures or 'there are none'}."
            )
        self._image = image
        self.fps = fps or _render_rate(self._data.env_spec, str(root))
        steps = self._data.storage.get_episode_metadata(self._data.episode_indices)
        self.lengths = [int(episode["total_steps"]) + 1 for episode in steps]
        self._kept: tuple[int, dict[str, np.ndarray]] | None = None
        self.columns = told(columns, self.files, lambda: list(_columns(self._arrays(0), self.lengths[0])))

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """See `ClipReader.recognises`."""
        return (root / "data" / "metadata.json").is_file()

    def read(self, recording: int, start: int, stop: int) -> Clip:
        """See `ClipReader.read`. Minari reads whole episodes, so the last one is kept."""
        arrays, length = self._arrays(recording), self.lengths[recording]
        values = _columns(arrays, length)
        source = f"{self.files.root}, episode {int(self._data.episode_indices[recording])}"
        table = np.stack(list(values.values()), axis=-1) if values else np.zeros((length, 0))
        motion = self.columns.read(table, list(values), self.fps, source).cut(start, stop)
        frames = arrays[self._image][start:stop]
        return Clip(
            frames=frames if self.frame_size is None else resize_frames(frames, self.frame_size),
            actions=motion.actions,
            modality=self.columns.modality,
            fps=self.fps,
            poses=motion.poses,
            speeds=motion.speeds,
            source=source,
        )

    def _arrays(self, recording: int) -> dict[str, np.ndarray]:
        """All of an episode by its place."""
        if self._kept is None or self._kept[0] != recording:
            episode = self._data[recording]
            parts = {"observation": episode.observations, "action": episode.actions, "info": episode.infos or {}}
            leaves = (leaf for name, part in parts.items() for leaf in _leaves(name, part))
            self._kept = recording, {name: np.asarray(values) for name, values in leaves}
        return self._kept[1]


def _leaves(name: str, tree: Any) -> Iterator[tuple[str, Any]]:
    """Place and value of everything in nested dictionaries and tuples."""
    if isinstance(tree, tuple):
        tree = {str(index): part for index, part in enumerate(tree)}
    if not isinstance(tree, Mapping):
        yield name, tree
        return
    for key, part in tree.items():
        yield from _leaves(f"{name}/{key}", part)


def _spaces(space: gymnasium.Space) -> Any:
    """A space as a tree of dictionaries and tuples."""
    if isinstance(space, gymnasium.spaces.Dict):
        return {key: _spaces(part) for key, part in space.spaces.items()}
    return tuple(_spaces(part) for part in space.spaces) if isinstance(space, gymnasium.spaces.Tuple) else space


def _seen(space: gymnasium.Space) -> bool:
    return space.dtype == np.uint8 and len(space.shape or ()) == 3 and (space.shape or ())[-1] == 3


def _columns(arrays: dict[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
    """Column -> numbers (length,); those of steps have none for the last frame."""
    found: dict[str, np.ndarray] = {}
    for name, values in arrays.items():
        if values.dtype.kind not in "fiub" or values.ndim not in (1, 2) or len(values) not in (length, length - 1):
            continue
        padded = np.full((length, *values.shape[1:]), np.nan)
        padded[: len(values)] = values
        if values.ndim == 1:
            found[name] = padded
        else:
            found |= {f"{name}_{index}": padded[:, index] for index in range(values.shape[1])}
    return found


def _render_rate(spec: EnvSpec | None, source: str) -> float:
    """What the environment tells, if this machine knows it: the data's own word for its code is not run."""
    known = registry.get(spec.id) if spec is not None else None
    maker = None
    if known is not None and isinstance(known.entry_point, str):
        with contextlib.suppress(ImportError, gymnasium.error.DependencyNotInstalled):
            maker = load_env_creator(known.entry_point)
    rate = maker.metadata.get("render_fps") if isinstance(maker, type) and issubclass(maker, gymnasium.Env) else None
    if rate is None:
        name = "its environment" if spec is None else spec.id
        raise ValueError(f"{source}: {name} tells no render_fps here, expected fps, the frames in a second.")
    return float(rate)
