"""A small network that tells from two latents how far it is from the one to the other."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from astra_env.models.heads import read_head, save_head

FILE_NAME = "goal_model.safetensors"
CELLS = 4
"""Edge of the map that is left of latents of any size before all of it is read at once."""
RADIUS = 4
"""Cells of latents that a thing may be away from where it is in the goal, and still be found there."""


class GoalModel(nn.Module):
    """Latents (B, C, h, w) of a world and of a goal picture -> the motion (B, 6) from there to the goal.

    It is three metres along x, y and z and a turn as axis times angle in radians. The latent of the goal is that of one
    still picture, as the autoencoder shows the first frame of a video.

    One that ``matches`` compares what either shows at every shift within `RADIUS`, for cameras that move.
    """

    scale: Tensor

    def __init__(self, latent_channels: int = 16, dim: int = 64, *, matches: bool = False) -> None:
        super().__init__()
        self.embed = None
        if matches:
            layers = (nn.Conv2d(latent_channels, dim, 3, padding=1), nn.SiLU(), nn.Conv2d(dim, dim // 2, 3, padding=1))
            self.embed = nn.Sequential(*layers)
        self.features = nn.Sequential(
            nn.Conv2d(2 * latent_channels + matches * (2 * RADIUS + 1) ** 2, dim, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * dim, dim, 3, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(CELLS),
            nn.Flatten(),
            nn.Linear(dim * CELLS**2, 128),
            nn.SiLU(),
            nn.Linear(128, 6),
        )
        self.register_buffer("scale", torch.ones(6))  # metres and radians that the layers take for 1

    def forward(self, latents: Tensor, goals: Tensor) -> Tensor:
        """Differentiable, for planners that follow gradients."""
        inputs = [latents.float(), goals.float()]
        if self.embed is not None:
            inputs.append(4 * likeness(*(F.normalize(self.embed(part), dim=1) for part in inputs)))
        return self.scale * self.features(torch.cat(inputs, dim=1))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the weights beside a checkpoint's others."""
        save_head(self, Path(folder) / FILE_NAME)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str | torch.device = "cpu") -> GoalModel:
        """Read what `save` wrote; sizes follow from the weights."""
        weights, _ = read_head(Path(folder) / FILE_NAME, "learn one from recorded episodes with astra-env fit-goal")
        matches, first = "embed.0.weight" in weights, weights["features.0.weight"]
        channels = weights["embed.0.weight"].shape[1] if matches else first.shape[1] // 2
        model = cls(channels, len(first), matches=matches)
        model.load_state_dict(weights)
        return model.to(device).eval().requires_grad_(False)


def likeness(maps: Tensor, others: Tensor) -> Tensor:
    """Products (B, shifts, h, w) of each cell of maps (B, D, h, w) with the cells around it in others, 0 outside."""
    height, width = maps.shape[-2:]
    products = F.pad(maps.flatten(2).transpose(1, 2) @ others.flatten(2), (0, 1))  # (B, h w, h w + 1)
    index = _around(height, width).to(maps.device).expand(len(maps), -1, -1)
    return products.gather(2, index).transpose(1, 2).unflatten(2, (height, width))


@functools.cache
def _around(height: int, width: int) -> Tensor:
    """Numbers (h w, shifts) of the cells around each cell; h w where they lie outside."""
    span = torch.arange(-RADIUS, RADIUS + 1)
    y, x = (shift.flatten() for shift in torch.meshgrid(span, span, indexing="ij"))
    rows = torch.arange(height).repeat_interleave(width)[:, None] + y
    columns = torch.arange(width).repeat(height)[:, None] + x
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return torch.where(inside, rows * width + columns, height * width)
