"""A small head that reads task reward, success and failure off one latent."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from astra_env.models.heads import latent_layers, layer_sizes, read_head, save_head

FILE_NAME = "reward_model.safetensors"
SPEED = 10.0
"""Metres in a second that a head takes for 1."""


class RewardModel(nn.Module):
    """Latents (B, C, h, w) -> reward (B,) in [0, 1], the probability (B,) of success and, of two flags, of failure.

    One that ``reads_speed`` is told how fast vehicles are (B,), in m/s, which one latent hardly shows; others leave
    that aside.
    """

    def __init__(
        self,
        latent_channels: int = 16,
        dim: int = 64,
        latent_size: int = 8,
        num_flags: int = 1,
        *,
        reads_speed: bool = False,
    ) -> None:
        super().__init__()
        self.reads_speed = reads_speed
        self.features = latent_layers(latent_channels + reads_speed, dim, latent_size, 1 + num_flags)

    def forward(self, latents: Tensor, speeds: Tensor | None = None) -> tuple[Tensor, ...]:
        """All outputs are differentiable, for planners that follow gradients.

        Raises:
            ValueError: the head reads speeds, and there are none.
        """
        return self.features[-1](self.embed(latents, speeds)).sigmoid().unbind(-1)

    def embed(self, latents: Tensor, speeds: Tensor | None = None) -> Tensor:
        """What the outputs are read off, (B, 128)."""
        inputs = latents.float()
        if self.reads_speed:
            if speeds is None:
                raise ValueError("This head reads the speed too; give it the speeds (B,) in m/s.")
            plane = (speeds.to(inputs) / SPEED)[:, None, None, None].expand(-1, 1, *inputs.shape[2:])
            inputs = torch.cat([inputs, plane], dim=1)
        return self.features[:-1](inputs)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the weights beside a checkpoint's others."""
        save_head(self, Path(folder) / FILE_NAME, {"reads_speed": json.dumps(self.reads_speed)})

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: torch.device) -> RewardModel:
        """Read what `save` wrote; sizes follow from the weights."""
        weights, metadata = read_head(Path(folder) / FILE_NAME, "this world cannot give the task's reward")
        reads_speed = json.loads(metadata.get("reads_speed", "false"))
        channels, dim, size = layer_sizes(weights)
        num_flags = len(weights["features.9.bias"]) - 1
        model = cls(channels - reads_speed, dim, size, num_flags, reads_speed=reads_speed)
        model.load_state_dict(weights)
        return model.to(device).eval().requires_grad_(False)
