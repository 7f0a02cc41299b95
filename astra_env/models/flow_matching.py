"""Flow matching: x_sigma = (1 - sigma) x0 + sigma noise, velocity = noise - x0, Euler steps from sigma 1 to 0.

The schedule is the shifted one of Wan and Astra (arXiv 2512.08931, section 3): sigma <- s sigma / (1 + (s - 1) sigma).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a step is sampled; a world model has its defaults.

    Guidance doubles the cost of a denoising step. Where it acts on an interval of noise levels alone, those outside
    cost one pass: the highest levels decide on the motion, the lowest on texture.
    """

    num_inference_steps: int = 1  # Euler steps
    guidance_scale: float = 1.0  # of the actions; 1 is none
    shift: float = 3.0  # of the noise levels
    text_guidance_scale: float = 1.0
    chunk_size: int = 1  # latents
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # noise levels at which guidance acts

    @property
    def single_pass(self) -> bool:
        """Whether one pass of the network does it."""
        return self.num_inference_steps == self.guidance_scale == self.text_guidance_scale == 1

    def replaced(self, **changes: Any) -> Sampling:
        """The same but for what is given and not None; TypeError for what is no field."""
        if unknown := sorted(changes.keys() - {field.name for field in dataclasses.fields(self)}):
            known = [field.name for field in dataclasses.fields(self)]
            raise TypeError(f"Sampling has no {unknown}, expected some of {known}.")
        given = {name: value for name, value in changes.items() if value is not None}
        if "guidance_interval" in given:
            low, high = given["guidance_interval"]
            given["guidance_interval"] = (float(low), float(high))
        return dataclasses.replace(self, **given)


def shifted_sigmas(num_inference_steps: int, shift: float = 3.0) -> Tensor:
    """Noise levels from 1 to 0, float32 (num_inference_steps + 1,); a shift above 1 spends the steps at high noise."""
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps is {num_inference_steps}, expected 1 or more.")
    sigmas = torch.linspace(1.0, 0.0, num_inference_steps + 1)
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def add_noise(latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Interpolate latents (B, ...) towards noise by sigma (B,) or a shape that broadcasts."""
    sigma = sigma.reshape(sigma.shape + (1,) * (latents.ndim - sigma.ndim))
    return (1 - sigma) * latents + sigma * noise


def denoise(
    velocity: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    sigmas: Tensor,
    watch: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Integrate velocity(latents, sigma) from noise down the given sigmas with Euler steps.

    ``watch`` is shown, after each step, the latents that its velocity would lead to at sigma 0.
    """
    latents = noise
    for sigma, next_sigma in pairwise(sigmas):
        way = velocity(latents, sigma)
        if watch is not None:
            watch(latents - sigma * way)
        latents = latents + (next_sigma - sigma) * way
    return latents


def sample_training_sigmas(num: int, generator: torch.Generator, *, mean: float = 0.7, std: float = 1.2) -> Tensor:
    """Logit-normal noise levels (num,); a positive mean favours high noise, where the motion is decided."""
    return torch.sigmoid(mean + std * torch.randn(num, generator=generator, device=generator.device))
