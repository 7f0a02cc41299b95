"""Recorded episodes as tensors: what every training stage reads."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from astra_env.actions import ACTION_MODALITIES, ActionModality
from astra_env.datasets.recorded import RecordedDataset
from astra_env.models.autoencoder import VideoAutoencoder
from astra_env.video import resize_frames

FRAMES_PER_ACTION = 4
"""Frames that an action of one chunk is held for, as the autoencoder compresses time."""


@dataclass(frozen=True)
class Episodes:
    """E episodes of N chunks and one modality: one data set."""

    name: str
    """The data set's domain, by which a checkpoint keeps its start states and reward head."""
    modality: str
    frames: Tensor  # uint8 (E, 4 N + 1, H, W, 3)
    actions: Tensor  # float32 (E, N, A), physical units
    rewards: Tensor  # float32 (E, N + 1)
    success: Tensor  # bool (E, N + 1)
    failure: Tensor | None = None  # bool (E, N + 1), where the task knows of failing
    speeds: Tensor | None = None  # float32 (E, N + 1), m/s, of vehicles

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def labelled(self) -> bool:
        """Whether the recordings tell of reward, so that a head can learn it."""
        return bool(self.rewards.std() > 0)

    def without_frames(self) -> Episodes:
        """The same episodes with empty pictures, for stages that read latents alone."""
        return replace(self, frames=self.frames[:, :0].clone())


def load_episodes(
    root: str | os.PathLike[str], split: str, limit: int | None = None, *, frame_size: int | None = None
) -> Episodes:
    """Read a recorded split into memory, at the modality's rate and, where given, resized to square frames.

    ValueError when episodes differ in length, or when their rate is no whole multiple or part of the modality's.
    """
    dataset = RecordedDataset(root, split)
    modality = ACTION_MODALITIES[dataset.modality]
    count = min(len(dataset), limit or len(dataset))
    arrays = []
    for index in tqdm(range(count), desc=f"reading {Path(root).name} {split}", unit="episode", mininterval=5):
        entry = at_rate(dataset.arrays(index), modality, dataset.paths[index])
        if frame_size is not None and entry["frames"].shape[1:3] != (frame_size, frame_size):
            entry["frames"] = resize_frames(entry["frames"], (frame_size, frame_size))
        arrays.append(entry)
    lengths = {len(entry["actions"]) for entry in arrays}
    if len(lengths) != 1:
        raise ValueError(f"Episodes of {root} have {sorted(lengths)} chunks, expected one length; collect them again.")

    def stack(name: str) -> Tensor | None:
        return torch.from_numpy(np.stack([entry[name] for entry in arrays])) if name in arrays[0] else None

    frames, actions, rewards, success = (stack(name) for name in ("frames", "actions", "reward", "success"))
    assert frames is not None and actions is not None and rewards is not None and success is not None
    return Episodes(
        dataset.domain, dataset.modality, frames, actions, rewards, success, stack("failure"), stack("speed")
    )


def at_rate(arrays: dict[str, np.ndarray], modality: ActionModality, path: Path) -> dict[str, np.ndarray]:
    """The arrays of one episode, with one action for each chunk of four frames; speed and labels at its ends."""
    meta = json.loads(str(arrays["meta"]))
    num, seconds, chunk = len(arrays["actions"]), meta["chunk_frames"] / meta["fps"], 1 / modality.rate_hz
    finer, coarser = round(seconds / chunk), round(chunk / seconds)
    if abs(finer * chunk - seconds) < 1e-6 * chunk:
        actions, coarser = arrays["actions"], 1
        if finer > 1:
            actions = modality.split(actions, finer).reshape(num * finer, -1)
    elif abs(coarser * seconds - chunk) < 1e-6 * chunk:
        whole = num // coarser * coarser
        actions, finer = modality.combine(arrays["actions"][:whole].reshape(-1, coarser, modality.action_dim)), 1
    else:
        raise ValueError(
            f"{path} holds an action for {seconds:g} s, expected a whole multiple or part of {chunk:g} s, the chunk "
            f"of {modality.name} actions; record it again at such a rate."
        )
    # a finer chunk ends between two labels: it has that of the action's end
    ends = np.minimum(np.ceil(np.arange(len(actions) + 1) * coarser / finer).astype(int), num)
    rows = (len(arrays["frames"]) - 1) / num * coarser / finer
    frames = np.rint(np.arange(FRAMES_PER_ACTION * len(actions) + 1) * rows / FRAMES_PER_ACTION).astype(int)
    kept = {"frames": arrays["frames"][frames], "actions": actions}
    if "speed" in arrays:
        kept["speed"] = arrays["speed"][frames[::FRAMES_PER_ACTION]]
    return kept | {name: arrays[name][ends] for name in ("reward", "success", "failure") if name in arrays}


def mixture_weights(datasets: Sequence[Episodes], weights: Sequence[float] | None) -> Tensor:
    """Share of the rows (K,) of each data set: as given, else in proportion to the root of its number of episodes."""
    if weights is not None and (len(weights) != len(datasets) or min(weights) <= 0):
        raise ValueError(f"weights are {list(weights)}, expected one positive number for each of {len(datasets)}.")
    raw = torch.tensor(weights if weights is not None else [len(part) ** 0.5 for part in datasets])
    return raw / raw.sum()


@torch.no_grad()
def encode_episodes(autoencoder: VideoAutoencoder, episodes: Episodes, folder: Path | None = None) -> Tensor:
    """Latents float32 (E, N + 1, C, h, w) of all episodes, encoded once and kept in folder where one is given."""
    cache = None
    if folder is not None:  # the name tells of which weights and frames, so that other ones never pass for these
        digest = hashlib.sha256(episodes.frames[:: max(1, len(episodes) // 16), ::16].numpy().tobytes())
        for weight in autoencoder.state_dict().values():
            digest.update(weight.cpu().numpy().tobytes())
        cache = folder / f"latents_{len(episodes)}_{digest.hexdigest()[:12]}.npy"
        if cache.is_file():
            return torch.from_numpy(np.load(cache))
    device = next(autoencoder.parameters()).device
    batches = tqdm(episodes.frames.split(8), desc=f"encoding {episodes.name}", unit="batch", mininterval=5)
    latents = torch.cat([autoencoder.encode(batch.to(device)).cpu() for batch in batches]).transpose(1, 2).contiguous()
    if cache is not None:
        partial = cache.with_name("partial-" + cache.name)
        np.save(partial, latents.numpy())
        os.replace(partial, cache)
    return latents
