"""Fit the tiny autoencoder on recorded frames."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from astra_env.models.autoencoder import TinyAutoencoder, frames_to_pixels, pad_to_latents
from astra_env.training.episodes import Episodes
from astra_env.training.loop import Trainer


def sample_clips(frames: Tensor, batch_size: int, num_latents: int, generator: torch.Generator) -> Tensor:
    """Random clips uint8 (batch, 4 num_latents, H, W, 3) that begin where a latent begins."""
    episode = torch.randint(len(frames), (batch_size,), generator=generator)
    num_starts = (frames.shape[1] - 1) // 4 + 1 - num_latents
    start = torch.randint(num_starts + 1, (batch_size,), generator=generator)
    index = 4 * start[:, None] + torch.arange(-3, 4 * num_latents - 3)  # latent k shows frames 4 k - 3 .. 4 k
    return frames[episode[:, None], index.clamp(min=0)]


def reconstruction_loss(pixels: Tensor, target: Tensor) -> Tensor:
    """L1 + L2 + edges, heavier where the picture differs from the batch's mean: the moving things are small."""
    background = target.mean((0, 1))
    weight = 1 + 5 * (target - background).abs().mean(2, keepdim=True).mul(4).clamp(max=1)
    error = (pixels - target) * weight
    edges = sum((torch.diff(pixels, dim=dim) - torch.diff(target, dim=dim)).abs().mean() for dim in (-1, -2))
    return error.abs().mean() + 2 * ((pixels - target).square() * weight).mean() + edges


def fit_autoencoder(
    autoencoder: TinyAutoencoder,
    train: Episodes,
    heldout: Episodes,
    folder: Path,
    *,
    num_steps: int,
    batch_size: int = 10,
) -> None:
    """Train in place, set the latent statistics, leave the averaged weights in the module."""
    trainer = Trainer(autoencoder, folder, "autoencoder", num_steps=num_steps, learning_rate=1.5e-3)
    trainer.resume()
    device, num_latents = trainer.device, min(4, train.actions.shape[1] + 1)
    while not trainer.done:
        clips = sample_clips(train.frames, batch_size, num_latents, trainer.generator)
        pixels = frames_to_pixels(clips.to(device))
        with torch.autocast(device.type, torch.bfloat16):
            raw = autoencoder.raw_latents(pixels)
            noise = torch.randn(raw.shape, generator=trainer.generator).to(device)
            cache = autoencoder.init_cache(len(pixels), *raw.shape[-2:])
            decoded, _ = autoencoder.decode_raw(raw + 0.05 * noise, cache)
        loss = reconstruction_loss(decoded.float(), pixels) + 1e-4 * raw.float().square().mean()
        trainer.step(loss)
        if trainer.step_index % 500 == 0 or trainer.done:
            trainer.log(heldout_psnr=reconstruction_psnr(autoencoder, heldout, device))
            trainer.save()
    trainer.use_average()
    _set_statistics(autoencoder, train, device)
    trainer.log(heldout_psnr=reconstruction_psnr(autoencoder, heldout, device), averaged=True)


@torch.no_grad()
def reconstruction_psnr(autoencoder: TinyAutoencoder, episodes: Episodes, device: torch.device) -> float:
    """PSNR in dB of held-out frames after encoding and decoding."""
    frames = episodes.frames[:8].to(device)
    decoded = autoencoder.decode_video(autoencoder.encode(frames))
    error = (decoded.float() - frames.float()).square().mean()
    return 10 * math.log10(255**2 / error.item())


@torch.no_grad()
def _set_statistics(autoencoder: TinyAutoencoder, episodes: Episodes, device: torch.device) -> None:
    frames = episodes.frames[:: max(1, len(episodes) // 64)][:64].to(device)
    raw = torch.cat([autoencoder.raw_latents(frames_to_pixels(pad_to_latents(part))) for part in frames.split(8)])
    autoencoder.latent_mean.copy_(raw.mean((0, 1, 3, 4)))
    autoencoder.latent_std.copy_(raw.std((0, 1, 3, 4)))
