"""A small network that tells from one latent where that is what a task is about: a thing, or the way ahead."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from astra_env.models.heads import latent_layers, layer_sizes, read_head, save_head

FILE_NAME = "target_model.safetensors"


class TargetModel(nn.Module):
    """Latents (B, C, h, w) -> metres (B, D) from what acts to its target, D numbers that the task gives a meaning."""

    centre: Tensor
    scale: Tensor

    def __init__(self, latent_channels: int = 16, dim: int = 64, latent_size: int = 8, num_outputs: int = 3) -> None:
        super().__init__()
        self.features = latent_layers(latent_channels, dim, latent_size, num_outputs)
        self.register_buffer("centre", torch.zeros(num_outputs))  # metres that the layers take for 0
        self.register_buffer("scale", torch.ones(num_outputs))  # and those that they take for 1

    def forward(self, latents: Tensor) -> Tensor:
        """Differentiable, for planners that follow gradients."""
        return self.centre + self.scale * self.features[-1](self.embed(latents))

    def embed(self, latents: Tensor) -> Tensor:
        """What the place is read off, (B, 128)."""
        return self.features[:-1](latents.float())

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the weights into a folder."""
        save_head(self, Path(folder) / FILE_NAME)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str | torch.device = "cpu") -> TargetModel:
        """Read what `save` wrote; sizes follow from the weights."""
        weights, _ = read_head(Path(folder) / FILE_NAME, "learn one from recorded episodes with astra-env fit-target")
        model = cls(*layer_sizes(weights), len(weights["scale"]))
        model.load_state_dict(weights)
        return model.to(device).eval().requires_grad_(False)
