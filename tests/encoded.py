"""Recordings, shards and releases that tests of encoding and fine-tuning share."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_shards import ARM, CAR, record
from tiny import DOMAINS, save_checkpoint
from tiny_release import load_release, write_release

from astra_env.models import WorldModel
from astra_env.training.encode import EncodeConfig, encode
from astra_env.training.shards import Shards


def encoded_world(root: Path) -> SimpleNamespace:
    """A checkpoint for all modalities, and shards of an arm's and of a car's recordings."""
    for modality in (ARM, CAR):
        for index, num_chunks in enumerate((12, 9, 14)):
            split = "train" if index else "heldout"
            path = root / "recorded" / modality / split / f"episode_{index:05d}.npz"
            record(path, num_chunks, modality=modality, seed=index)
    checkpoint = save_checkpoint(root / "start", domains=[next(iter(DOMAINS))])
    shards = {
        modality: str(encode(EncodeConfig((str(folder),), str(root / modality), str(checkpoint))))
        for modality in (ARM, CAR)
        for folder in [root / "recorded" / modality]
    }
    return SimpleNamespace(start=str(checkpoint), **shards)


def a_release(folder: Path) -> tuple[WorldModel, Shards]:
    """The released form, tiny, and shards for it: 20 latents are known, eight are imagined."""
    world_model = load_release(write_release(folder))
    world_model.text_encoder = None
    world_model.save_pretrained(folder / "saved", torch.float32)
    for split in ("train", "heldout"):
        record(folder / "recorded" / split / "episode_00000.npz", 33)
    config = EncodeConfig((str(folder / "recorded"),), str(folder / "shards"), str(folder / "saved"))

    def embed(prompts, batch_size):
        return torch.ones(batch_size, 3, 8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorldModel, "embed_prompts", lambda self, *given: embed(*given))
        return world_model, Shards(encode(config))
