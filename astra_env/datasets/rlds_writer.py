"""Clips as a set in the layout of RLDS, which tensorflow-datasets and every Open X-Embodiment loader read."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets.clip import Clip
from astra_env.datasets.rlds import MODALITY, RATE, load_tfds

VERSION = "1.0.0"
_EPISODES_A_FILE = 256


def write_rlds(path: str | os.PathLike[str], clips: Iterable[Clip], *, name: str = "astra_env") -> Path:
    """Writes clips as episodes of the split train to PATH/NAME/1.0.0, whole or not at all.

    A step holds observation/image (PNG), with observation/pose (4, 4) and observation/speed where the clips have them,
    action (A,) as in `Clip`, language_instruction, and what RLDS asks for: is_first, is_last, is_terminal, discount 1
    and reward 0. The action of the last step stands still. Metadata of an episode are its source as file_path,
    action_modality and frames_per_second. Files are ArrayRecord, which need no TensorFlow to be written or read.

    Args:
        path: folder of sets, made if need be.
        clips: read one by one; all of one modality and frame size, and all with poses and speeds or all without.
        name: of the set: small letters, digits and underscores.

    Returns:
        The folder of the version, for `RLDSDataset` and `tensorflow_datasets.builder_from_directory`.

    Raises:
        ValueError: when the set exists, there are no clips, or one differs from the first.
    """
    tfds = load_tfds()
    folder = Path(path) / name / VERSION
    if folder.exists():
        raise ValueError(f"{folder} exists; choose another name, or delete it.")
    unfinished = folder.with_name(f"{VERSION}.incomplete{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        episodes = _alike(clips)
        first = next(episodes, None)
        if first is None:
            raise ValueError(f"There are no clips to write to {folder}.")
        identity = tfds.core.dataset_info.DatasetIdentity(
            name=name, version=tfds.core.Version(VERSION), data_dir=str(unfinished), module_name=__name__
        )
        info = tfds.core.DatasetInfo(builder=identity, features=_features(first), description=_description(first))
        writer = tfds.core.SequentialWriter(info, _EPISODES_A_FILE, file_format="array_record")
        writer.initialize_splits(["train"])
        writer.add_examples({"train": [_episode(first)]})
        for clip in episodes:
            writer.add_examples({"train": [_episode(clip)]})
        writer.close_all()
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _alike(clips: Iterable[Clip]) -> Iterator[Clip]:
    """The clips; ValueError for one that differs from the first in what all episodes share."""
    kind: tuple[Any, ...] | None = None
    for number, clip in enumerate(clips):
        own = (clip.modality, clip.frames.shape[1:3], clip.poses is not None, clip.speeds is not None)
        kind = kind or own
        if own != kind:
            raise ValueError(
                f"clip {number} ({clip.source}) has modality, frame size, poses and speeds {own}, the first {kind}; "
                "write one set for each."
            )
        yield clip


def _features(clip: Clip) -> Any:
    """Description of the episodes, from one of them."""
    features = load_tfds().features
    modality = ACTION_MODALITIES[clip.modality]
    parts = zip(modality.fields, modality.units, strict=True)
    meaning = ", ".join(f"{field} ({unit})" for field, unit in parts) + f"; {modality.frame}"
    observation: dict[str, Any] = {
        "image": features.Image(shape=clip.frames.shape[1:], encoding_format="png", doc="What the camera sees.")
    }
    if clip.poses is not None:
        observation["pose"] = features.Tensor(shape=(4, 4), dtype=np.float32, doc="Pose of what the actions move.")
    if clip.speeds is not None:
        observation["speed"] = features.Scalar(dtype=np.float32, doc="Metres a second.")
    step = {
        "observation": features.FeaturesDict(observation),
        "action": features.Tensor(shape=(modality.action_dim,), dtype=np.float32, doc=meaning),
        "language_instruction": features.Text(),
        **dict.fromkeys(("is_first", "is_last", "is_terminal"), np.bool_),
        **dict.fromkeys(("discount", "reward"), np.float32),
    }
    metadata = {"file_path": features.Text(), MODALITY: features.Text(), RATE: np.float32}
    return features.FeaturesDict({"steps": features.Dataset(step), "episode_metadata": metadata})


def _description(clip: Clip) -> str:
    return f"Episodes of {clip.modality} actions at {clip.fps:g} frames a second, written by astra-env."


def _episode(clip: Clip) -> dict[str, Any]:
    """A clip as the example that the features describe."""
    still = np.zeros((1, ACTION_MODALITIES[clip.modality].action_dim), np.float32)
    moving = ACTION_MODALITIES[clip.modality].kinematics.num_fields
    still[:, moving:] = clip.actions[-1:, moving:]
    actions, last = np.concatenate([clip.actions, still]), len(clip.frames) - 1
    steps = []
    for index, frame in enumerate(clip.frames):
        # a file instead of an array: tensorflow-datasets would encode an array with TensorFlow
        observation: dict[str, Any] = {"image": io.BytesIO(_png(frame))}
        if clip.poses is not None:
            observation["pose"] = clip.poses[index].astype(np.float32)
        if clip.speeds is not None:
            observation["speed"] = clip.speeds[index]
        steps.append(
            {
                "observation": observation,
                "action": actions[index].astype(np.float32),
                "language_instruction": clip.text,
                "is_first": index == 0,
                "is_last": index == last,
                "is_terminal": False,
                "discount": 1.0,
                "reward": 0.0,
            }
        )
    return {"steps": steps, "episode_metadata": {"file_path": clip.source, MODALITY: clip.modality, RATE: clip.fps}}


def _png(frame: np.ndarray) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1].tobytes()
