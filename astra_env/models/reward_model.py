"""A small head that reads task reward, success and failure off one latent."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FILE_NAME = "reward_model.safetensors"


class RewardModel(nn.Module):
    """Latents (B, C, h, w) -> reward (B,) in [0, 1], the probability (B,) of success and, of two flags, of failure."""

    def __init__(self, latent_channels: int = 16, dim: int = 64, latent_size: int = 8, num_flags: int = 1) -> None:
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
            nn.Linear(128, 1 + num_flags),
        )

    def forward(self, latents: Tensor) -> tuple[Tensor, ...]:
        """All outputs are differentiable, for planners that follow gradients."""
        return self.features(latents.float()).sigmoid().unbind(-1)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the weights beside a checkpoint's others."""
        partial = Path(folder) / (FILE_NAME + ".partial")
        save_file({key: value.contiguous() for key, value in self.state_dict().items()}, partial)
        os.replace(partial, Path(folder) / FILE_NAME)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: torch.device) -> RewardModel:
        """Read what `save` wrote; sizes follow from the weights."""
        path = Path(folder) / FILE_NAME
        try:
            weights = load_file(path)
        except FileNotFoundError:
            raise FileNotFoundError(f"{folder} has no {FILE_NAME}; this world cannot give the task's reward.") from None
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read ({error}); it is truncated or damaged, copy it again.") from error
        dim, channels = weights["features.0.weight"].shape[:2]
        size = round((weights["features.7.weight"].shape[1] / dim) ** 0.5) * 2
        model = cls(channels, dim, size, len(weights["features.9.bias"]) - 1)
        model.load_state_dict(weights)
        return model.to(device).eval().requires_grad_(False)
