"""RLDS, the layout of Open X-Embodiment: episodes that tensorflow-datasets describes, read without TensorFlow."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import cv2
import numpy as np

from astra_env.datasets.clip import Clip
from astra_env.datasets.columns import ActionColumns, Motion
from astra_env.datasets.files import Files
from astra_env.datasets.reader import ClipReader, Convention, Untold
from astra_env.datasets.rlds_sets import KNOWN, SetRow, Steps
from astra_env.datasets.tfrecord import Record, index_records, read_record
from astra_env.video import resize_frames

RT1 = "fractal20220817_data"
MODALITY, RATE = "action_modality", "frames_per_second"
"""Metadata of the episodes that `write_rlds` writes."""
_INFO, _FEATURES = "dataset_info.json", "features.json"
_DEPTHS = ("", "*/", "*/*/")  # the folder of a version, of a set, of all sets
_TEXTS = (
    *(f"language_instruction{number}" for number in ("", "_2", "_3")),
    "observation/natural_language_instruction",
    "observation/instruction",
)  # where sets keep what the robot was told; the first that is not empty counts


class RLDSDataset(ClipReader):
    """Episodes of one version of a set, in TFRecord or ArrayRecord files.

    Columns are named by the path of a feature in a step and an index, where it has several values: ``action_0``,
    ``action/world_vector_2``, ``observation/state_6``, ``action/open_gripper``. The sets in `KNOWN` and those that
    `write_rlds` wrote need no options.

    Args:
        root: the folder of a version, which holds dataset_info.json and features.json, or one above it; or its address.
        split: a split, or a part of one such as ``train[:100]`` or ``train[90%:]``; other files are not fetched.
        image: path of the picture in a step, such as ``observation/image``; must be told where there are several.
        fps: steps in a second; must be told for sets that are not known.
        columns: what the columns mean; must be told for sets that are not known.
        options: those of `ClipReader`.
    """

    convention = Convention(
        page="https://github.com/google-research/rlds",
        rate="not in the files; one action a step",
        units="not in the files",
        frame="not in the files",
        order="the action of a step leads from its frame to the next one; that of the last step means nothing",
    )
    row: ClassVar[SetRow | None] = None
    """What a subclass knows of the one set that it reads."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        split: str = "train",
        image: str | None = None,
        fps: float | None = None,
        columns: ActionColumns | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        folder = _version_folder(self.files)
        info = _dataset_info(self.files, folder)
        self._features = info.features
        shapes = _shapes(info.features["steps"].feature)
        known = self.row or KNOWN.get(info.name, SetRow())
        row = known._replace(fps=fps or known.fps, image=image or known.image, columns=columns or known.columns)
        written = "episode_metadata" in info.features and {MODALITY, RATE} <= set(info.features["episode_metadata"])
        if (row.columns is None and not written) or (row.columns is not None and not row.fps):
            raise Untold(
                f"{root}: {info.name} is none of the known sets {sorted(KNOWN)}; give fps, and columns that say what "
                f"its steps mean, which hold {_ranges(shapes)}."
            )
        self._row = row
        self._image = _picture(shapes, row.image, str(root))
        self._places = _places(shapes) | ({} if row.gripper is None else {"gripper": ("gripper", 0)})
        missing = [name for part in (row.columns, row.state) for name in _names(part) if name not in self._places]
        if missing:
            raise ValueError(f"{root}: columns {missing} are missing; its steps hold {_ranges(shapes)}.")
        self._records = list(_records(self.files, folder, info, split))
        self.lengths = [record.num_steps for _, record in self._records]

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """See `ClipReader.recognises`; a set with a reader of its own is left to that."""
        infos = [path for depth in _DEPTHS for path in root.glob(depth + _INFO)]
        found = {json.loads(path.read_text()).get("name") for path in infos if path.with_name(_FEATURES).is_file()}
        return bool(found) and (found == {RT1}) == (cls.row is not None)

    def read(self, recording: int, start: int, stop: int) -> Clip:
        """See `ClipReader.read`."""
        steps, metadata, source = self._episode(recording)
        motion = self._motion(steps, source)
        columns = self._row.columns
        return Clip(
            frames=_frames(steps[self._image], range(start, stop), self.frame_size, f"{source}: {self._image}"),
            actions=motion.actions[start : stop - 1],
            modality=metadata[MODALITY].decode() if columns is None else columns.modality,
            fps=self._row.fps or float(metadata[RATE]),
            poses=None if motion.poses is None else motion.poses[start:stop],
            speeds=None if motion.speeds is None else motion.speeds[start:stop],
            text=_text(steps),
            source=source,
        )

    def _episode(self, recording: int) -> tuple[Steps, Mapping[str, Any], str]:
        """Steps with their pictures still encoded, metadata, and what to call the episode."""
        from google.protobuf.message import DecodeError

        name, record = self._records[recording]
        path = self.files.path(name)
        source = f"{path}, record {record.number}"
        data, decoders = read_record(path, record), {"steps": load_tfds().decode.SkipDecoding()}
        try:
            example = self._features.deserialize_example_np(data, decoders=decoders)
        except (DecodeError, AttributeError, KeyError, ValueError) as error:
            raise ValueError(f"{source}: it is not what {_FEATURES} describes ({error}); fetch both again.") from error
        steps = dict(_flat(example["steps"]))
        for feature, values in steps.items():
            if feature.startswith("action"):
                values[-1] = values[-min(2, len(values))]  # the last step's may be anything, even not a number
        if self._row.gripper is not None:
            steps["gripper"] = self._row.gripper(steps)
        return steps, example.get("episode_metadata", {}), source

    def _motion(self, steps: Steps, source: str) -> Motion:
        """Actions of a whole episode, and its measured poses and speeds."""
        columns, state = self._row.columns, self._row.state
        if columns is None:
            return Motion(steps["action"][:-1], steps.get("observation/pose"), steps.get("observation/speed"))
        motion = self._read(columns, steps, source)
        return motion if state is None else motion._replace(poses=self._read(state, steps, source).poses)

    def _read(self, columns: ActionColumns, steps: Steps, source: str) -> Motion:
        names, rows = _names(columns), []
        for feature, index in map(self._places.__getitem__, names):
            rows.append(steps[feature].reshape(len(steps["is_first"]), -1)[:, index].astype(np.float64))
        return columns.read(np.stack(rows, axis=-1), names, self._row.fps, source)


class RT1Dataset(RLDSDataset):
    """The robot episodes of RT-1, which Open X-Embodiment calls fractal20220817_data; see `RLDSDataset`."""

    convention = Convention(
        page="https://github.com/google-deepmind/open_x_embodiment/issues/39",
        rate="3 Hz",
        units="metres, radians; the gripper's commands are 1 close, -1 open, 0 hold, made a position here",
        frame="commands along and about the axes of the robot's base; pose of the tool in the base, quaternion x y z w",
        order="world_vector, rotation_delta as roll pitch yaw; the action of a step leads to the next one",
    )
    row = KNOWN[RT1]


def load_tfds() -> Any:
    """The library tensorflow_datasets, which takes no TensorFlow for what is done here."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError("RLDS needs tensorflow-datasets: pip install 'astra-env[datasets]'.") from error
    return tensorflow_datasets


def _version_folder(files: Files) -> str:
    """Where a version lies below the root, with a slash behind it."""
    found = [name for depth in _DEPTHS for name in files.glob(depth + _INFO)]
    if len(found) != 1:
        raise ValueError(
            f"{files.root} holds {found or 'no ' + _INFO}, expected one; give the folder of a version, such as "
            "bridge_dataset/1.0.0."
        )
    return found[0].removesuffix(_INFO)


def _dataset_info(files: Files, folder: str) -> Any:
    """What tensorflow-datasets reads from the two descriptions of a version."""
    from google.protobuf.json_format import ParseError

    paths = [files.path(folder + name) for name in (_INFO, _FEATURES)]
    try:
        info = load_tfds().builder_from_directory(str(paths[0].parent)).info
        steps = info.features["steps"].feature
    except (ParseError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"{paths[0]} or {_FEATURES} beside it describe no episodes of steps ({error!r}).") from error
    if "is_first" not in steps:
        raise ValueError(f"{paths[1]}: its steps have no is_first, expected the layout of RLDS.")
    return info


def _records(files: Files, folder: str, info: Any, split: str) -> Iterator[tuple[str, Record]]:
    """File and record of each episode of a split."""
    name = split.partition("[")[0]
    if name not in info.splits:
        raise ValueError(f"{files.root} has the splits {sorted(info.splits)}, not {split!r}.")
    try:
        parts = info.splits[split].file_instructions
    except ValueError as error:
        raise ValueError(f"split is {split!r}, expected such as {name}, {name}[:100] or {name}[90%:].") from error
    for part in parts:
        shard = folder + PurePosixPath(part.filename).name
        records = index_records(files.path(shard))
        if len(records) != part.examples_in_shard:
            raise ValueError(
                f"{shard} holds {len(records)} episodes, {_INFO} tells of {part.examples_in_shard}; fetch both again."
            )
        yield from ((shard, record) for record in records[part.skip : part.skip + part.take])


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of each leaf of nested mappings."""
    for name, part in tree.items():
        yield from _flat(part, f"{above}{name}/") if isinstance(part, Mapping) else [(above + name, part)]


def _shapes(step: Any) -> dict[str, tuple[int, ...]]:
    """Path of each feature of a step that is numbers or a picture -> its shape."""
    infos = dict(_flat(step.get_tensor_info()))
    return {name: info.shape for name, info in infos.items() if np.dtype(info.np_dtype).kind in "biuf"}


def _is_picture(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[-1] == 3


def _picture(shapes: Mapping[str, tuple[int, ...]], wanted: str | None, root: str) -> str:
    """Path of the picture to read."""
    pictures = sorted(name for name, shape in shapes.items() if _is_picture(shape))
    if wanted is None and len(pictures) == 1:
        return pictures[0]
    if wanted not in pictures:
        raise ValueError(f"{root}: image is {wanted!r}, expected one of its pictures {pictures}.")
    return wanted


def _places(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[str, int]]:
    """Name of each column -> its feature and index."""
    places: dict[str, tuple[str, int]] = {}
    for name, shape in shapes.items():
        if not shape:
            places[name] = (name, 0)
        elif None not in shape and not _is_picture(shape):
            places |= {f"{name}_{index}": (name, index) for index in range(math.prod(shape))}
    return places


def _ranges(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The columns in a few words."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items() if None not in shape and not _is_picture(shape)}
    return ", ".join(f"{name}_0 … {name}_{sizes[name] - 1}" if shapes[name] else name for name in sorted(sizes))


def _names(columns: ActionColumns | None) -> list[str]:
    """The columns that `ActionColumns.read` asks for."""
    if columns is None:
        return []
    moving = columns.controls if columns.meaning == "controls" else (*columns.translation, *columns.rotation)
    return [*moving, *(name for name in (columns.gripper, columns.speed) if name is not None)]


def _text(steps: Steps) -> str:
    """What the robot was told; one set has bytes as numbers, filled up with zeros."""
    for name in _TEXTS:
        if name in steps and len(steps[name]):
            first = steps[name][0]
            text = first if isinstance(first, bytes) else bytes(first[first > 0].astype(np.uint8))
            if text:
                return text.decode(errors="replace")
    return ""


def _frames(encoded: np.ndarray, wanted: range, size: tuple[int, int] | None, source: str) -> np.ndarray:
    """Frames uint8 (T, H, W, 3) of pictures that are encoded, or arrays already."""
    frames = []
    for index in wanted:
        picture = encoded[index]
        if isinstance(picture, bytes):
            decoded = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR) if picture else None
            if decoded is None:
                raise ValueError(f"{source} of row {index} is no picture that can be decoded; drop the episode.")
            picture = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
        frames.append(picture if size is None else resize_frames(picture, size))
    return np.stack(frames)
