"""A small network that tells from what a world and a goal show how far it is from the one to the other."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from astra_env.models.heads import read_head, save_head

FILE_NAME = "goal_model.safetensors"
PATCH = 4
"""Pixels along the edge of a cell of pictures."""
RADIUS = 8
"""Cells that a thing may be away from where it is in the goal, and still be found there."""


class GoalModel(nn.Module):
    """What a world shows and what a goal shows -> the motion (B, 6) from there to the goal.

    It is three metres along x, y and z and a turn as axis times angle in radians. Both show latents (B, C, h, w), that
    of the goal being of one still picture, as the autoencoder shows the first frame of a video.

    One that ``reads_pictures`` is shown those instead, (B, 3, H, W) in [-1, 1], for cameras that move: how far they did
    is told by small shifts, which latents do not keep. It compares what either shows at every shift within `RADIUS`.
    """

    scale: Tensor

    def __init__(self, latent_channels: int = 16, dim: int = 64, *, reads_pictures: bool = False) -> None:
        super().__init__()
        wide = 2 * dim
        self.embed = _picture_embedding(dim) if reads_pictures else None
        if reads_pictures:
            first = (wide + (2 * RADIUS + 1) ** 2, wide, 1, 1)  # what either shows, and at which shifts that is alike
            self.features = _layers((first, (wide, wide, 3, 1), (wide, wide, 3, 2), (wide, dim, 3, 1)), 8, 256)
        else:
            first = (2 * latent_channels, dim, 3, 1)
            self.features = _layers((first, (dim, dim, 3, 1), (dim, wide, 3, 2), (wide, dim, 3, 1)), 4, 128)
        self.register_buffer("scale", torch.ones(6))  # metres and radians that the layers take for 1

    @property
    def reads_pictures(self) -> bool:
        """Whether it is shown pictures instead of latents."""
        return self.embed is not None

    def forward(self, shown: Tensor, goals: Tensor) -> Tensor:
        """Differentiable, for planners that follow gradients."""
        return self.scale * self.features[-1](self.read(shown, goals))

    def read(self, shown: Tensor, goals: Tensor) -> Tensor:
        """What the motion is read off, (B, D)."""
        inputs = [shown.float(), goals.float()]
        if self.embed is not None:
            inputs = [self.embed(part) for part in inputs]
            inputs.append(4 * likeness(*(F.normalize(part, dim=1) for part in inputs)))
        return self.features[:-1](torch.cat(inputs, dim=1))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the weights beside a checkpoint's others."""
        save_head(self, Path(folder) / FILE_NAME)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str | torch.device = "cpu") -> GoalModel:
        """Read what `save` wrote; sizes follow from the weights."""
        weights, _ = read_head(Path(folder) / FILE_NAME, "learn one from recorded episodes with astra-env fit-goal")
        if "embed.1.weight" in weights:
            model = cls(dim=len(weights["embed.1.weight"]), reads_pictures=True)
        else:
            dim, channels = weights["features.0.weight"].shape[:2]
            model = cls(channels // 2, dim)
        model.load_state_dict(weights)
        return model.to(device).eval().requires_grad_(False)


def _picture_embedding(dim: int) -> nn.Sequential:
    """Pictures (B, 3, H, W) -> what their cells show, (B, dim, H / 4, W / 4)."""
    return nn.Sequential(
        nn.PixelUnshuffle(PATCH),
        nn.Conv2d(3 * PATCH**2, dim, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(dim, dim, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(dim, dim, 3, padding=1),
    )


def _layers(convolutions: Sequence[tuple[int, int, int, int]], cells: int, hidden: int) -> nn.Sequential:
    """Maps -> (B, 6), through convolutions (channels in and out, size, stride) and what is left of a map."""
    layers: list[nn.Module] = []
    for narrow, wide, size, stride in convolutions:
        layers += [nn.Conv2d(narrow, wide, size, stride, padding=size // 2), nn.SiLU()]
    pooled = [nn.AdaptiveAvgPool2d(cells), nn.Flatten(), nn.Linear(convolutions[-1][1] * cells**2, hidden), nn.SiLU()]
    return nn.Sequential(*layers, *pooled, nn.Linear(hidden, 6))


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
