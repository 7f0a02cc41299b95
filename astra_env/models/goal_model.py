"""A small network that tells from what a world and a goal show how far it is from the one to the other."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from astra_env.models.camera_motion import CameraMotion
from astra_env.models.heads import read_head, save_head

FILE_NAME = "goal_model.safetensors"


class GoalModel(nn.Module):
    """What a world shows and what a goal shows -> the motion (B, 6) from there to the goal.

    It is three metres along x, y and z and a turn as axis times angle in radians. Both show latents (B, C, h, w), that
    of the goal being of one still picture, as the autoencoder shows the first frame of a video.
    """

    scale: Tensor
    reads_pictures = False
    """Whether it is shown pictures instead of latents."""

    def __init__(self, latent_channels: int = 16, dim: int = 64) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(2 * latent_channels, dim, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * dim, dim, 3, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(16 * dim, 128),
            nn.SiLU(),
            nn.Linear(128, 6),
        )
        self.register_buffer("scale", torch.ones(6))  # metres and radians that the layers take for 1

    def forward(self, shown: Tensor, goals: Tensor) -> Tensor:
        """Differentiable, for planners that follow gradients."""
        return self.scale * self.features(torch.cat([shown, goals], dim=1).float())

    def loss(self, shown: Tensor, goals: Tensor, motions: Tensor) -> Tensor:
        """Of what it tells where motions (B, 6) are known."""
        return F.smooth_l1_loss(self(shown, goals) / self.scale, motions / self.scale, beta=0.3)


AnyGoalModel = GoalModel | CameraMotion
"""What reads latents, or for cameras that move pictures: latents do not keep the small shifts that tell how far."""


def save_goal_model(model: AnyGoalModel, folder: str | os.PathLike[str]) -> None:
    """Write the weights beside a checkpoint's others."""
    save_head(model, Path(folder) / FILE_NAME)


def load_goal_model(folder: str | os.PathLike[str], device: str | torch.device = "cpu") -> AnyGoalModel:
    """Read what `save_goal_model` wrote; kind and sizes follow from the weights."""
    weights, _ = read_head(Path(folder) / FILE_NAME, "learn one from recorded episodes with astra-env fit-goal")
    model: AnyGoalModel
    if "cells.features.weight" in weights:
        model = CameraMotion(len(weights["cells.features.weight"]))
    else:
        dim, channels = weights["features.0.weight"].shape[:2]
        model = GoalModel(channels // 2, dim)
    model.load_state_dict(weights)
    return model.to(device).eval().requires_grad_(False)
