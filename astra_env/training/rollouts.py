"""What a world imagines from encoded held-out clips, beside what was recorded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from astra_env.actions import ACTION_MODALITIES
from astra_env.models import WorldModel
from astra_env.models.autoencoder import TEMPORAL_COMPRESSION
from astra_env.training.shards import ClipEntry, Shards

HORIZON, KNOWN = 8, 5
"""Latents that are imagined, in whole chunks, and known before them, where a clip is long enough."""


@dataclass(frozen=True)
class Rollout:
    """One clip, imagined under its recorded actions without a look at what came."""

    name: str
    modality: str
    imagined: np.ndarray  # uint8 (T, H, W, 3)
    recorded: np.ndarray  # as the autoencoder shows it, uint8 (T, H, W, 3)
    start: np.ndarray  # the last known frame before them, uint8 (1, H, W, 3)
    actions: np.ndarray  # float32 (T / 4, A), physical units
    poses: np.ndarray  # (T / 4 + 1, 4, 4) that the actions lead through, seen from the start
    latent_error: float  # root mean square over all latents
    psnr: float  # dB, of imagined against recorded frames


def heldout_clips(folders: Sequence[Shards], chunk_size: int, count: int) -> list[tuple[Shards, ClipEntry]]:
    """So many held-out clips in all that a chunk can be imagined from, evenly chosen from each folder in turn."""
    chosen: list[tuple[Shards, ClipEntry]] = []
    for index, folder in enumerate(folders):
        clips = [clip for clip in folder.split("heldout") if clip.num_latents > chunk_size]
        share = min(len(clips), count // len(folders) + (index < count % len(folders)))
        chosen += [(folder, clips[k * len(clips) // share]) for k in range(share)]
    return chosen


@torch.no_grad()
def imagine_clip(world_model: WorldModel, folder: Shards, clip: ClipEntry) -> Rollout:
    """Imagine a clip's latents from its first ones with the world model's own sampling."""
    n = world_model.sampling.chunk_size
    num_chunks = min(max(1, HORIZON // n), (clip.num_latents - 1) // n)
    known = min(KNOWN, clip.num_latents - num_chunks * n)
    end = known + num_chunks * n
    latents = folder.latents(clip, 0, end).transpose(0, 1)[None].to(world_model.device)
    recorded = world_model.autoencoder.decode_video(latents).cpu()
    actions, speeds, prompt = folder.actions(clip)[None, : end - 1], folder.speeds(clip), folder.prompt(clip)
    state = world_model.init_state(
        recorded[:, : TEMPORAL_COMPRESSION * (known - 1) + 1],
        clip.modality,
        prompts=None if prompt is None else prompt[None],
        actions=actions[:, : known - 1] if known > 1 else None,
        speeds=None if speeds is None else speeds[known - 1 : known],
    )
    # what was encoded takes the place of what was decoded and encoded again
    state = dataclasses.replace(state, latents=world_model.layout.windowed(latents[:, :, :known], dim=2))
    frames, errors = [], []
    for start in range(known, end, n):
        state = world_model.step(state, actions[:, start - 1 : start - 1 + n])
        state, chunk = world_model.decode(state)
        frames.append(chunk[0].cpu())
        errors.append((state.latents[:, :, -n:].float() - latents[:, :, start : start + n]).square().mean())
    seen, taken = TEMPORAL_COMPRESSION * (known - 1) + 1, actions[0, known - 1 :].numpy()
    imagined, truth = torch.cat(frames), recorded[0, seen:]
    speed = 0.0 if speeds is None else float(speeds[known - 1])
    difference = (imagined.float() - truth.float()).square().mean().item()
    return Rollout(
        name=clip.name,
        modality=clip.modality,
        imagined=imagined.numpy(),
        recorded=truth.numpy(),
        start=recorded[0, seen - 1 : seen].numpy(),
        actions=taken,
        poses=ACTION_MODALITIES[clip.modality].integrate(np.eye(4), taken, speed=speed),
        latent_error=torch.stack(errors).mean().sqrt().item(),
        psnr=10 * math.log10(255**2 / max(difference, 1e-9)),
    )


def summary(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Means over rollouts."""
    return {
        "latent_error": round(sum(entry.latent_error for entry in rollouts) / len(rollouts), 4),
        "psnr": round(sum(entry.psnr for entry in rollouts) / len(rollouts), 2),
    }
