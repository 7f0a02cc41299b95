"""Fit the tiny autoencoder on the recorded frames of one or several data sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from astra_env.models.autoencoder import TinyAutoencoder, frames_to_pixels, pad_to_latents
from astra_env.training.episodes import Episodes
from astra_env.training.loop import Trainer

BOTTLENECK_NOISE = 0.1
"""Noise on latents in training, as a share of each channel's standard deviation: imagined latents are a little off."""


def sample_clips(
    datasets: Sequence[Episodes], weights: Tensor, batch_size: int, num_latents: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random clips uint8 (batch, 4 num_latents, H, W, 3) that begin where a latent begins, and their data sets."""
    chosen = torch.multinomial(weights, batch_size, replacement=True, generator=generator)
    clips = []
    for index in chosen.tolist():
        frames, draw = datasets[index].frames, torch.rand(2, generator=generator).tolist()
        start = int(draw[1] * ((frames.shape[1] - 1) // 4 + 2 - num_latents))
        times = 4 * start + torch.arange(-3, 4 * num_latents - 3)  # latent k shows frames 4 k - 3 .. 4 k
        clips.append(frames[int(draw[0] * len(frames)), times.clamp(min=0)])
    return torch.stack(clips), chosen


def mean_pictures(datasets: Sequence[Episodes]) -> Tensor:
    """What each data set shows on average, pixels (K, 1, 3, H, W): what differs from it is what moves."""
    pictures = [part.frames[:: max(1, len(part) // 64), ::16].flatten(0, 1) for part in datasets]
    return torch.stack([frames_to_pixels(frames[:, None]).mean(0) for frames in pictures])


def reconstruction_loss(pixels: Tensor, target: Tensor, background: Tensor) -> Tensor:
    """L1 + L2 + edges, heavier where the picture differs from the background (B, 1, 3, H, W): moving things are small.

    Each clip has the same weight in total, whether little of it moves or all.
    """
    weight = 1 + 5 * (target - background).abs().mean(2, keepdim=True).mul(4).clamp(max=1)
    weight = 2 * weight / weight.mean((1, 2, 3, 4), keepdim=True)
    error = (pixels - target) * weight
    edges = sum((torch.diff(pixels, dim=dim) - torch.diff(target, dim=dim)).abs().mean() for dim in (-1, -2))
    return error.abs().mean() + 2 * ((pixels - target).square() * weight).mean() + edges


def fit_autoencoder(
    autoencoder: TinyAutoencoder,
    train: Sequence[Episodes],
    heldout: Sequence[Episodes],
    weights: Tensor,
    folder: Path,
    *,
    num_steps: int,
    batch_size: int = 10,
) -> None:
    """Train in place on data sets (K,) with their shares, set the latent statistics, leave the averaged weights."""
    trainer = Trainer(autoencoder, folder, "autoencoder", num_steps=num_steps, learning_rate=1.5e-3)
    trainer.resume()
    device, num_latents = trainer.device, min(4, min(part.actions.shape[1] for part in train) + 1)
    backgrounds = mean_pictures(train)
    while not trainer.done:
        clips, chosen = sample_clips(train, weights, batch_size, num_latents, trainer.generator)
        pixels = frames_to_pixels(clips.to(device))
        with torch.autocast(device.type, torch.bfloat16):
            raw = autoencoder.raw_latents(pixels)
            level = BOTTLENECK_NOISE * raw.detach().float().std((0, 1, 3, 4), keepdim=True)
            noise = torch.randn(raw.shape, generator=trainer.generator).to(device)
            cache = autoencoder.init_cache(len(pixels), *raw.shape[-2:])
            decoded, _ = autoencoder.decode_raw(raw + level * noise, cache)
        loss = reconstruction_loss(decoded.float(), pixels, backgrounds[chosen].to(device))
        trainer.step(loss + 1e-4 * raw.float().square().mean())
        if trainer.step_index % 500 == 0 or trainer.done:
            trainer.log(heldout_psnr=_psnr(autoencoder, heldout, device))
            trainer.save()
    trainer.use_average()
    _set_statistics(autoencoder, train, weights, device)
    trainer.log(heldout_psnr=_psnr(autoencoder, heldout, device), averaged=True)


def _psnr(autoencoder: TinyAutoencoder, heldout: Sequence[Episodes], device: torch.device) -> dict[str, float]:
    return {part.name: round(reconstruction_psnr(autoencoder, part, device), 2) for part in heldout}


@torch.no_grad()
def reconstruction_psnr(autoencoder: TinyAutoencoder, episodes: Episodes, device: torch.device) -> float:
    """PSNR in dB of held-out frames after encoding and decoding."""
    frames = episodes.frames[:8].to(device)
    decoded = autoencoder.decode_video(autoencoder.encode(frames))
    error = (decoded.float() - frames.float()).square().mean()
    return 10 * math.log10(255**2 / error.item())


@torch.no_grad()
def _set_statistics(
    autoencoder: TinyAutoencoder, datasets: Sequence[Episodes], weights: Tensor, device: torch.device
) -> None:
    """Mean and deviation of every channel over the mixture."""
    total, squares = torch.zeros(2, len(autoencoder.latent_mean), dtype=torch.float64, device=device)
    for part, weight in zip(datasets, weights.tolist(), strict=True):
        frames = part.frames[:: max(1, len(part) // 64)][:64].to(device)
        raw = torch.cat([autoencoder.raw_latents(frames_to_pixels(pad_to_latents(rows))) for rows in frames.split(8)])
        total += weight * raw.double().mean((0, 1, 3, 4))
        squares += weight * raw.double().square().mean((0, 1, 3, 4))
    autoencoder.latent_mean.copy_(total)
    autoencoder.latent_std.copy_((squares - total.square()).sqrt())
