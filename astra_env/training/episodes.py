"""Recorded episodes as tensors: what every training stage reads."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from astra_env.datasets.recorded import RecordedDataset
from astra_env.models.autoencoder import VideoAutoencoder


@dataclass(frozen=True)
class Episodes:
    """E episodes of N chunks and one modality."""

    frames: Tensor  # uint8 (E, 4 N + 1, H, W, 3)
    actions: Tensor  # float32 (E, N, A), physical units
    rewards: Tensor  # float32 (E, N + 1)
    success: Tensor  # bool (E, N + 1)
    modality: str

    def __len__(self) -> int:
        return len(self.frames)


def load_episodes(root: str | os.PathLike[str], split: str, limit: int | None = None) -> Episodes:
    """Read a recorded split into memory; ValueError when episodes differ in length."""
    dataset = RecordedDataset(root, split)
    count = min(len(dataset), limit or len(dataset))
    arrays = [dataset.arrays(index) for index in tqdm(range(count), desc=f"reading {split}", unit="episode")]
    lengths = {len(entry["actions"]) for entry in arrays}
    if len(lengths) != 1:
        raise ValueError(f"Episodes of {root} have {sorted(lengths)} chunks, expected one length; collect them again.")

    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([entry[name] for entry in arrays]))

    return Episodes(stack("frames"), stack("actions"), stack("reward"), stack("success"), dataset.modality)


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
    batches = tqdm(episodes.frames.split(8), desc="encoding", unit="batch")
    latents = torch.cat([autoencoder.encode(batch.to(device)).cpu() for batch in batches]).transpose(1, 2).contiguous()
    if cache is not None:
        partial = cache.with_name("partial-" + cache.name)
        np.save(partial, latents.numpy())
        os.replace(partial, cache)
    return latents
