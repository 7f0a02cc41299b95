"""A small network that tells from one latent where that is what a task is about: a thing, or the way ahead."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from astra_env.models.heads import latent_layers, layer_sizes, read_head, save_head

FILE_NAME = "target_model.safetensors"


class TargetModel(nn.Module):
    """Latents (B, C, h, w) -> metres (B, D) from what acts to its target, D numbers that the task gives a meaning.

    One that ``doubts`` tells besides how sure it is of them: of a target that may be out of sight.
    """

    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        latent_channels: int = 16,
        dim: int = 64,
        latent_size: int = 8,
        num_outputs: int = 3,
        *,
        doubts: bool = False,
    ) -> None:
        super().__init__()
        self.doubts = doubts
        self.features = latent_layers(latent_channels, dim, latent_size, num_outputs + doubts)
        self.register_buffer("centre", torch.zeros(num_outputs))  # metres that the layers take for 0
        self.register_buffer("scale", torch.ones(num_outputs))  # and those that they take for 1

    def forward(self, latents: Tensor) -> Tensor:
        """Differentiable, for planners that follow gradients."""
        return self.read(latents)[0]

    def read(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Metres (B, D), and the standard deviation (B,) of their errors in metres, 0 of models that tell none."""
        told = self.features(latents.float())
        metres = self.centre + self.scale * told[:, : len(self.scale)]
        if not self.doubts:
            return metres, metres.new_zeros(len(metres))
        return metres, self.scale.mean() * told[:, -1].clamp(-6, 2).exp()

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
        count = len(weights["scale"])
        model = cls(*layer_sizes(weights), count, doubts=len(weights["features.9.bias"]) > count)
        model.load_state_dict(weights)
        return model.to(device).eval().requires_grad_(False)


def read_all(models: Sequence[TargetModel], latents: Tensor) -> tuple[Tensor, Tensor]:
    """What several models tell together: their mean (B, D), and the doubt (B,) of each and between them."""
    metres, doubts = (torch.stack(told) for told in zip(*(model.read(latents) for model in models), strict=True))
    between = metres.var(0, correction=0).mean(-1)
    return metres.mean(0), (doubts.square().mean(0) + between).sqrt()
