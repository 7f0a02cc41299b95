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

from astra_env.envs import SLACK
from astra_env.envs.reward_kit import LearnedReward
from astra_env.envs.rewards import Lane, Place, Reward, RewardFunction
from astra_env.models import WorldState
from astra_env.models.reward_model import FILE_NAME as REWARD_FILE
from astra_env.models.target_model import FILE_NAME, TargetModel


class RememberedTarget:
    """Closeness to a target that stays where an episode's first latent has shown it.

    A place, for end effectors, and where pictures show them: see `Place`. The way ahead (pairs of numbers, as a vehicle
    sees it): see `Lane`, which a task's own reward is multiplied by.

    Args:
        models: whose mean tells the points of a `astra_env.simulators.Target`.
        task: of lanes, the reward whose ends and value count beside.

    Attributes:
        slack: of the places of episodes that are to begin, in metres; see `Place`.
    """

    def __init__(self, models: Sequence[TargetModel], task: RewardFunction | None = None) -> None:
        if not models:
            raise ValueError("There are 0 models, expected one or more that tell where the target is.")
        if task is None and any(len(model.scale) != 6 for model in models):
            told = [len(model.scale) for model in models]
            raise ValueError(
                f"The models tell {told} numbers, expected 6 each, of a target and an end effector; those of a lane "
                "need heads of a reward beside them (astra-env fit-reward)."
            )
        self.models, self.task, self.slack = list(models), task, SLACK

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], device: str | torch.device = "cpu", task: RewardFunction | None = None
    ) -> RememberedTarget:
        """Read the models that `fit_target` wrote."""
        folders = (Path(folder), *sorted(Path(folder).glob("head_*")))
        return cls([TargetModel.load(entry, device) for entry in folders if (entry / FILE_NAME).is_file()], task)

    def targets(self, state: WorldState) -> Tensor:
        """Metres float64 (B, 3), or points of a lane (B, R, 2), as seen from where the episodes began."""
        if self.task is None:
            return self._places(state)[0]
        return state.poses[:, None, :2, 3] + self._told(state, 2) @ state.poses[:, :2, :2].transpose(1, 2)

    def seen(self, state: WorldState) -> Tensor:
        """Where pictures show end effectors, metres float64 (B, 3) from the robot's origin."""
        return self._told(state, 3)[:, 1]

    def _told(self, state: WorldState, num_dims: int) -> Tensor:
        """Points (B, P, num_dims)."""
        told = torch.stack([model(state.newest) for model in self.models]).mean(0)
        return told.to(state.poses).unflatten(1, (-1, num_dims))

    def begun(self, state: WorldState) -> list[RewardFunction]:
        """The reward of each episode that begins with one of these worlds."""
        task = self.task
        if task is not None:
            return [Lane(points, task) for points in self.targets(state)]
        rows = zip(*self._places(state), strict=True)
        return [Place(target, self.seen, origin, self.slack) for target, origin in rows]

    def _places(self, state: WorldState) -> tuple[Tensor, Tensor]:
        """Targets (B, 3), and where the episodes began for `seen`, (B, 3)."""
        led, told = state.poses[:, :3, 3], self._told(state, 3)
        return led + told[:, 0], told[:, 1] - led

    def __call__(self, state: WorldState) -> Reward:
        """Reward by what the newest latents show, for worlds whose beginning nobody has seen."""
        targets = self.targets(state)
        return (Place(targets) if self.task is None else Lane(targets, self.task))(state)


def has_reward(folder: Path) -> bool:
    """Whether a folder holds what `load_reward` reads."""
    return any((folder / name).is_file() for name in (FILE_NAME, REWARD_FILE))


def load_reward(
    folder: str | os.PathLike[str], device: str | torch.device = "cpu", *, pessimism: float = 0.0, ends: bool = True
) -> RewardFunction:
    """The reward that a folder holds: heads (`fit_reward`), with their options; a target (`fit_target`); or both."""
    task = None
    if (Path(folder) / REWARD_FILE).is_file():
        task = LearnedReward.load(folder, device, pessimism=pessimism, ends=ends)
    if (Path(folder) / FILE_NAME).is_file():
        return RememberedTarget.load(folder, device, task)
    return task or LearnedReward.load(folder, device)
