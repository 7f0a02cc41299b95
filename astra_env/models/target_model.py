"""A small network that tells from one latent where that is what a task is about: a thing, or the way ahead."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FILE_NAME = "target_model.safetensors"


class TargetModel(nn.Module):
    """Latents (B, C, h, w) -> metres (B, D) from what acts to its target, D numbers that the task gives a meaning."""

    centre: Tensor
    scale: Tensor

    def __init__(self, latent_channels: int = 16, dim: int = 64, latent_size: int = 8, num_outputs: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(latent_channels, dim, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(dim, dim, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(dim * ((latent_size + 1) // 2) ** 2, 128),
            nn.SiLU(),
            nn.Linear(128, num_outputs),
        )
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
        partial = Path(folder) / (FILE_NAME + ".partial")
        save_file({key: value.contiguous() for key, value in self.state_dict().items()}, partial)
        os.replace(partial, Path(folder) / FILE_NAME)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str | torch.device = "cpu") -> TargetModel:
        """Read what `save` wrote; sizes follow from the weights."""
        path = Path(folder) / FILE_NAME
        try:
            weights = load_file(path)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{folder} has no {FILE_NAME}; learn one from recorded episodes with astra-env fit-target."
            ) from None
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read ({error}); it is truncated or damaged, copy it again.") from error
        dim, channels = weights["features.0.weight"].shape[:2]
        size = round((weights["features.7.weight"].shape[1] / dim) ** 0.5) * 2
        model = cls(channels, dim, size, len(weights["scale"]))
        model.load_state_dict(weights)
        return model.to(device).eval().requires_grad_(False)
