"""A small network that reads the gripper's pose off one frame: it measures how far imagined grippers move.

It learns from recorded frames of training episodes and their measured poses, as they are and as the autoencoder shows
them; it never sees an imagined frame. Blur, shade and noise make it tolerant.
A pose is a vector (7,): x y z in metres in the robot's base frame, roll pitch yaw in radians away from pointing down,
and the gripper from 0 open to 1 closed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from astra_env import geometry
from astra_env.datasets.recorded import RecordedDataset
from astra_env.models.autoencoder import VideoAutoencoder
from benchmarks.estimator_cache import cached_estimator

POSE_FIELDS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
HOME_ROTATION = np.diag([1.0, -1.0, -1.0])
"""The gripper points straight down."""
SCALE = (0.06, 0.06, 0.06, 0.2, 0.2, 0.4, 0.2)
"""What counts as much in one field as in another: the unit of the training loss."""


def pose_vectors(poses: np.ndarray, gripper: np.ndarray) -> np.ndarray:
    """Poses (..., 4, 4) and gripper (...,) -> float32 (..., 7)."""
    rpy = geometry.matrix_to_rpy(np.asarray(poses, np.float64)[..., :3, :3] @ HOME_ROTATION.T)
    return np.concatenate([poses[..., :3, 3], rpy, gripper[..., None]], axis=-1).astype(np.float32)


def displacement(start: Tensor, end: Tensor) -> Tensor:
    """Motion (..., 7) between poses (..., 7): metres, rotation vector about the base axes, change of the gripper."""
    before, after = (geometry.rpy_to_matrix(pose[..., 3:6].double().cpu().numpy()) for pose in (start, end))
    turn = geometry.matrix_to_axis_angle(after @ np.swapaxes(before, -1, -2))
    moved = (end - start).clone()
    moved[..., 3:6] = torch.from_numpy(turn).to(moved)
    return moved


def load_poses(root: str | os.PathLike[str], split: str, limit: int | None = None) -> Tensor:
    """Measured poses float32 (E, 4 N + 1, 7) of a recorded split."""
    dataset = RecordedDataset(root, split)
    count = min(len(dataset), limit or len(dataset))
    arrays = (dataset.arrays(index) for index in range(count))
    return torch.from_numpy(np.stack([pose_vectors(a["measured_poses"], a["gripper"]) for a in arrays]))


@torch.no_grad()
def load_frames(
    root: str | os.PathLike[str], split: str, limit: int, autoencoder: VideoAutoencoder
) -> tuple[Tensor, Tensor]:
    """The last frame of each chunk uint8 (K, H, W, 3) and its pose (K, 7), from up to limit episodes.

    Every frame comes twice: as it was recorded, and as the autoencoder shows it.
    """
    dataset, device = RecordedDataset(root, split), next(autoencoder.parameters()).device
    frames, poses = [], []
    for index in tqdm(range(min(len(dataset), limit)), desc=f"reading {split} poses", unit="episode", mininterval=2):
        arrays = dataset.arrays(index)
        recorded = torch.from_numpy(arrays["frames"])
        decoded = autoencoder.decode_video(autoencoder.encode(recorded[None].to(device)))[0].cpu()
        frames += [recorded[::4], decoded[::4]]
        poses += 2 * [pose_vectors(arrays["measured_poses"][::4], arrays["gripper"][::4])]
    return torch.cat(frames), torch.from_numpy(np.concatenate(poses))


class PoseEstimator(nn.Module):
    """Frames uint8 (B, H, W, 3) -> poses (B, 7). The sides of a frame are multiples of 4.

    Heads of attention look for parts of the gripper: where they find them and what they see there tell the pose.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int = 64, num_heads: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.PixelUnshuffle(2)]
        for narrow, wide, stride in ((12, dim // 2, 1), (dim // 2, dim, 2), (dim, dim, 1), (dim, dim, 1)):
            layers += [nn.Conv2d(narrow, wide, 3, stride, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.attention = nn.Conv2d(dim, num_heads, 1)
        self.head = nn.Sequential(nn.Linear(num_heads * (dim + 2), 256), nn.ReLU(), nn.Linear(256, 7))
        self.register_buffer("mean", torch.zeros(7))
        self.register_buffer("scale", torch.tensor(SCALE))

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> poses in units of the scale about the mean."""
        features = self.trunk(pixels)
        height, width = features.shape[-2:]
        axes = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
        places = torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(len(features), -1, -1, -1)
        values = torch.cat([places, features], dim=1).flatten(2)  # (B, 2 + D, h w)
        weights = self.attention(features).flatten(2).softmax(-1)  # (B, K, h w)
        return self.head((weights @ values.transpose(1, 2)).flatten(1))

    def forward(self, frames: Tensor) -> Tensor:
        """Poses in metres, radians and 0 to 1."""
        pixels = (part.movedim(-1, 1).float() / 127.5 - 1 for part in frames.split(256))
        return torch.cat([self.from_pixels(part) for part in pixels]) * self.scale + self.mean


def soften(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Blur, shade and add noise to pixels (B, 3, H, W), each picture by its own amount."""
    amount = torch.rand(4, len(pixels), 1, 1, 1, generator=generator)
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    pixels = pixels + 0.6 * amount[0] * (blurred - pixels) + 0.08 * (amount[1] - 0.5)
    noise = torch.randn(pixels.shape, generator=generator)
    return pixels * (0.95 + 0.1 * amount[2]) + 0.05 * amount[3] * noise


def fit_pose_estimator(frames: Tensor, poses: Tensor, steps: int, batch_size: int = 64) -> PoseEstimator:
    """Train on frames (K, H, W, 3) and poses (K, 7); the same input gives the same network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PoseEstimator()
    model.mean.copy_(poses.mean(0))
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in tqdm(range(steps), desc="pose estimator", unit="step", mininterval=2):
        index = torch.randint(len(frames), (batch_size,), generator=generator)
        pixels = soften(frames[index].movedim(-1, 1).float() / 127.5 - 1, generator)
        loss = F.smooth_l1_loss(model.from_pixels(pixels), (poses[index] - model.mean) / model.scale, beta=0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def trained_pose_estimator(
    root: str | os.PathLike[str], autoencoder: VideoAutoencoder, cache: Path, *, steps: int, episodes: int
) -> PoseEstimator:
    """The estimator of a data set, read from the cache when that was made from the same data by the same recipe."""
    return cached_estimator(
        PoseEstimator(),
        lambda: fit_pose_estimator(*load_frames(root, "train", episodes, autoencoder), steps),
        cache,
        root=root,
        autoencoder=autoencoder,
        recipe={"steps": steps, "episodes": episodes},
    )


@torch.no_grad()
def estimator_report(
    model: PoseEstimator, frames: Tensor, poses: Tensor, autoencoder: VideoAutoencoder, window: int = 5
) -> dict[str, Any]:
    """How far to trust the estimator, on held-out frames (E, 4 N + 1, H, W, 3) with poses (E, 4 N + 1, 7).

    Mean absolute error of every field on real and on autoencoded frames, and the correlation of estimated with
    measured motion over windows of so many chunks.
    """
    device = next(autoencoder.parameters()).device
    latents = [autoencoder.encode(part.to(device)) for part in frames.split(8)]
    decoded = torch.cat([autoencoder.decode_video(part).cpu() for part in latents])
    report: dict[str, Any] = {"fields": POSE_FIELDS, "units": ["m"] * 3 + ["rad"] * 3 + ["0 open .. 1 closed"]}
    truth = poses[:, ::4]
    for name, shown in (("real", frames), ("autoencoded", decoded)):
        estimate = model(shown[:, ::4].flatten(0, 1)).unflatten(0, truth.shape[:2])
        report[f"mean_absolute_error_{name}"] = (estimate - truth).abs().mean((0, 1)).tolist()
        pairs = [displacement(p[:, :-window], p[:, window:]).flatten(0, 1) for p in (estimate, truth)]
        report[f"motion_correlation_{name}"] = [
            correlation(pairs[0][:, axis], pairs[1][:, axis]) for axis in range(len(POSE_FIELDS))
        ]
    return report


def correlation(first: Tensor, second: Tensor) -> float | None:
    """Pearson's coefficient of two rows (N,); None where one side is constant."""
    value = torch.corrcoef(torch.stack([first, second]))[0, 1]
    return float(value) if torch.isfinite(value) else None
