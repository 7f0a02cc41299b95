"""Rewards that remember: where a task's target is, read off the picture that an episode begins with.

A dream may carry a thing along that nobody has touched, and a policy that is paid by the dreamt picture learns to be
paid for that. What was seen before the dream began does not change with it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from astra_env.envs.reward_kit import LearnedReward
from astra_env.envs.rewards import Place, Reward, RewardFunction
from astra_env.models import WorldState
from astra_env.models.reward_model import FILE_NAME as REWARD_FILE
from astra_env.models.target_model import FILE_NAME, TargetModel


class RememberedTarget:
    """Closeness to a target that stays where an episode's first latent has shown it: see `Place`.

    Several models tell the place by their mean. Made for end effectors, whose poses are told along fixed axes.
    """

    def __init__(self, models: Sequence[TargetModel]) -> None:
        if not models:
            raise ValueError("There are 0 models, expected one or more that tell where the target is.")
        self.models = list(models)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str | torch.device = "cpu") -> RememberedTarget:
        """Read the models that `fit_target` wrote."""
        return cls([TargetModel.load(entry, device) for entry in (Path(folder), *sorted(Path(folder).glob("head_*")))])

    def places(self, state: WorldState) -> Tensor:
        """Metres float64 (B, 3) to the target that the newest latents show, from where the episodes began."""
        offsets = torch.stack([model(state.newest) for model in self.models]).mean(0)
        return state.poses[:, :3, 3] + offsets.to(state.poses)

    def begun(self, state: WorldState) -> list[RewardFunction]:
        """The reward of each episode that begins with one of these worlds."""
        return [Place(place) for place in self.places(state)]

    def __call__(self, state: WorldState) -> Reward:
        """Reward in [0, 1] by what the newest latents show, for worlds whose beginning nobody has seen."""
        return Place(self.places(state))(state)


def has_reward(folder: Path) -> bool:
    """Whether a folder holds what `load_reward` reads."""
    return any((folder / name).is_file() for name in (FILE_NAME, REWARD_FILE))


def load_reward(
    folder: str | os.PathLike[str], device: str | torch.device = "cpu", *, pessimism: float = 0.0, ends: bool = True
) -> RewardFunction:
    """The reward that a folder holds: a target's place (`fit_target`) or heads (`fit_reward`), with their options."""
    if (Path(folder) / FILE_NAME).is_file():
        return RememberedTarget.load(folder, device)
    return LearnedReward.load(folder, device, pessimism=pessimism, ends=ends)
