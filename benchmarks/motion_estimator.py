"""A small network that reads the motion of a chunk off its two ends: it measures how imagined cameras and cars move.

It learns from recorded frames of training episodes and their measured poses, as they are and as the autoencoder shows
them; it never sees an imagined frame. What a motion is, `Motion` says: the car's speed and yaw rate, or the camera
action that was carried out.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from astra_env.datasets.recorded import RecordedDataset
from astra_env.models.autoencoder import VideoAutoencoder
from benchmarks.estimator_cache import cached_estimator
from benchmarks.imagination import CHUNK_FRAMES
from benchmarks.pose_estimator import correlation, soften

RADIUS = 4
"""Cells of 4 pixels that a thing may move between the ends of a chunk and still be found."""


@dataclass(frozen=True)
class Motion:
    """What is measured of the way from one pose to the next, a chunk later."""

    fields: tuple[str, ...]
    units: tuple[str, ...]
    between: Callable[[np.ndarray], np.ndarray]
    """Poses (T, 4, 4), one a chunk -> motions (T - 1, n)."""
    distance: Callable[[np.ndarray], float]
    """Motions (k, n) -> metres of the whole way."""
    reversible: bool
    """Whether frames in reverse order look like the scene from which they came: then they are learnt from, too."""


class MotionEstimator(nn.Module):
    """Frames uint8 (B, 2, H, W, 3), a chunk apart -> motions (B, n). The sides of a frame are multiples of 4.

    Features of either frame are compared at every shift within `RADIUS`; where they agree tells the motion.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, num_fields: int, dim: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.PixelUnshuffle(4), *_convolution(48, dim, 3), nn.Conv2d(dim, dim, 3, padding=1)
        )
        self.trunk = nn.Sequential(
            *_convolution((2 * RADIUS + 1) ** 2 + dim, 64, 1),
            *_convolution(64, 64, 3, stride=2),
            *_convolution(64, 32, 3),
        )
        layers = (nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(32 * 64, 128), nn.ReLU(), nn.Linear(128, num_fields))
        self.head = nn.Sequential(*layers)
        self.register_buffer("mean", torch.zeros(num_fields))
        self.register_buffer("scale", torch.ones(num_fields))

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 2, 3, H, W) in [-1, 1] -> motions in units of the scale about the mean."""
        features = self.features(pixels.flatten(0, 1)).unflatten(0, (-1, 2))  # (B, 2, D, h, w)
        before, after = F.normalize(features, dim=2).flatten(3).unbind(1)
        height, width = features.shape[-2:]
        likeness = F.pad(before.transpose(1, 2) @ after, (0, 1))  # (B, h w, h w + 1)
        index = shifted_cells(height, width).to(pixels.device).expand(len(likeness), -1, -1)
        shifts = likeness.gather(2, index).transpose(1, 2).unflatten(2, (height, width))
        return self.head(self.trunk(torch.cat([4 * shifts, features[:, 0]], dim=1)))

    def forward(self, frames: Tensor) -> Tensor:
        """Motions in the units of their fields."""
        pixels = (part.movedim(-1, 2).float() / 127.5 - 1 for part in frames.split(64))
        return torch.cat([self.from_pixels(part) for part in pixels]) * self.scale + self.mean

    def of_video(self, frames: Tensor) -> Tensor:
        """Motions (B, k, n) of the chunks of videos uint8 (B, 4 k + 1, H, W, 3)."""
        ends = frames[:, ::CHUNK_FRAMES]
        pairs = torch.stack([ends[:, :-1], ends[:, 1:]], dim=2)  # (B, k, 2, H, W, 3)
        return self(pairs.flatten(0, 1)).unflatten(0, pairs.shape[:2])


@functools.cache
def shifted_cells(height: int, width: int) -> Tensor:
    """Number of the cell at every shift from every cell (h w, shifts); h w where that lies outside."""
    span = torch.arange(-RADIUS, RADIUS + 1)
    rows, columns = torch.arange(height), torch.arange(width)
    y = (rows[:, None, None, None] + span[:, None]).expand(-1, width, -1, len(span))
    x = (columns[:, None, None] + span).expand(height, -1, len(span), -1)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return torch.where(inside, y * width + x, height * width).flatten(2).flatten(0, 1)


def _convolution(narrow: int, wide: int, size: int, stride: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(narrow, wide, size, stride, padding=size // 2, bias=False)
    return [layer, nn.BatchNorm2d(wide), nn.ReLU()]


@torch.no_grad()
def load_ends(
    root: str | os.PathLike[str], split: str, limit: int, motion: Motion, autoencoder: VideoAutoencoder
) -> tuple[Tensor, Tensor, Tensor]:
    """The ends of the chunks uint8 (2 E, N + 1, H, W, 3) of up to limit episodes, with motions there and back.

    Every episode comes twice: as it was recorded, and as the autoencoder shows it. Motions (2 E, N, n) are those from
    one frame to the next, and those from a frame to the one before.
    """
    dataset, device = RecordedDataset(root, split), next(autoencoder.parameters()).device
    frames, there, back = [], [], []
    for index in tqdm(range(min(len(dataset), limit)), desc=f"reading {split} motion", unit="episode", mininterval=2):
        arrays = dataset.arrays(index)
        recorded = torch.from_numpy(arrays["frames"])
        decoded = autoencoder.decode_video(autoencoder.encode(recorded[None].to(device)))[0].cpu()
        frames += [recorded[::CHUNK_FRAMES], decoded[::CHUNK_FRAMES]]
        poses = arrays["measured_poses"][::CHUNK_FRAMES].astype(np.float64)
        there += 2 * [motion.between(poses)]
        back += 2 * [motion.between(poses[::-1])[::-1]]
    motions = [torch.from_numpy(np.stack(part)).float() for part in (there, back)]
    return torch.stack(frames), motions[0], motions[1]


def fit_motion_estimator(
    frames: Tensor, there: Tensor, back: Tensor | None, steps: int, batch_size: int = 32
) -> MotionEstimator:
    """Train on frames (E, N + 1, H, W, 3) and motions (E, N, n); the same input gives the same network.

    Where motions back are given, pairs come in either order.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MotionEstimator(there.shape[-1])
    model.mean.copy_(there.flatten(0, 1).mean(0) if back is None else torch.zeros(there.shape[-1]))
    model.scale.copy_(there.flatten(0, 1).std(0).clamp(min=1e-4))
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps + 1)
    for _ in tqdm(range(steps), desc="motion estimator", unit="step", mininterval=2):
        episode = torch.randint(len(frames), (batch_size,), generator=generator)
        chunk = torch.randint(there.shape[1], (batch_size,), generator=generator)
        turned = torch.rand(batch_size, generator=generator) < (0 if back is None else 0.5)
        first, second = chunk + turned.long(), chunk + 1 - turned.long()
        pairs = torch.stack([frames[episode, first], frames[episode, second]], dim=1)
        truth = there[episode, chunk]
        if back is not None:
            truth = torch.where(turned[:, None], back[episode, chunk], truth)
        pixels = soften(pairs.flatten(0, 1).movedim(-1, 1).float() / 127.5 - 1, generator).unflatten(0, (-1, 2))
        loss = F.smooth_l1_loss(model.from_pixels(pixels), (truth - model.mean) / model.scale, beta=0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def trained_motion_estimator(
    root: str | os.PathLike[str],
    autoencoder: VideoAutoencoder,
    cache: Path,
    motion: Motion,
    *,
    steps: int,
    episodes: int,
) -> MotionEstimator:
    """The estimator of a data set, read from the cache when that was made from the same data by the same recipe."""

    def fit() -> MotionEstimator:
        frames, there, back = load_ends(root, "train", episodes, motion, autoencoder)
        return fit_motion_estimator(frames, there, back if motion.reversible else None, steps)

    return cached_estimator(
        MotionEstimator(len(motion.fields)),
        fit,
        cache,
        root=root,
        autoencoder=autoencoder,
        recipe={"steps": steps, "episodes": episodes, "fields": motion.fields},
    )


@torch.no_grad()
def motion_report(
    model: MotionEstimator, motion: Motion, frames: Tensor, poses: np.ndarray, autoencoder: VideoAutoencoder
) -> dict[str, Any]:
    """How far to trust the estimator, on held-out frames (E, 4 N + 1, H, W, 3) with poses (E, 4 N + 1, 4, 4).

    Mean absolute error, mean error, correlation and share of the right sign of every field on real and on autoencoded
    frames, and for scale the error of guessing the mean.
    """
    device = next(autoencoder.parameters()).device
    decoded = [autoencoder.decode_video(autoencoder.encode(part.to(device))).cpu() for part in frames.split(8)]
    truth = torch.from_numpy(np.concatenate([motion.between(part) for part in poses[:, ::CHUNK_FRAMES]])).float()
    report: dict[str, Any] = {"fields": motion.fields, "units": motion.units, "num_pairs": len(truth)}
    report["right_sign"] = "among the quarter of the pairs that move most along the field"
    most = truth.abs() >= truth.abs().quantile(0.75, dim=0)
    report["mean_absolute_error_guessing"] = (truth - truth.mean(0)).abs().mean(0).tolist()
    for name, shown in (("real", frames), ("autoencoded", torch.cat(decoded))):
        estimate = model.of_video(shown).flatten(0, 1)
        report[f"mean_absolute_error_{name}"] = (estimate - truth).abs().mean(0).tolist()
        report[f"mean_error_{name}"] = (estimate - truth).mean(0).tolist()
        right = (estimate * truth > 0) & most
        report[f"right_sign_{name}"] = (right.sum(0) / most.sum(0)).tolist()
        columns = zip(estimate.unbind(-1), truth.unbind(-1), strict=True)
        report[f"correlation_{name}"] = [correlation(*pair) for pair in columns]
    return report
