"""Rewards that remember: where a task's target is, read off the picture that an episode begins with.

A dream may carry a thing along that nobody has touched, and a policy that is paid by the dreamt picture learns to be
paid for that. What was seen before the dream began does not change with it.
"""

from __future__ import annotations

import abc
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from astra_env.envs import SLACK, SURE
from astra_env.envs.lifting import Lift
from astra_env.envs.reward_kit import LearnedReward
from astra_env.envs.rewards import Lane, Place, Reward, RewardFunction, Sight, joined
from astra_env.models import WorldState
from astra_env.models.heads import head_folders
from astra_env.models.reward_model import FILE_NAME as REWARD_FILE
from astra_env.models.target_model import FILE_NAME, TargetModel, read_all


class RememberedTarget(abc.ABC):
    """Rewards by a target that stays where an episode's first latent has shown it; a subclass says which.

    Args:
        models: whose mean tells the points of a `astra_env.simulators.Target`.
    """

    def __init__(self, models: Sequence[TargetModel]) -> None:
        if not models:
            raise ValueError("There are 0 models, expected one or more that tell where the target is.")
        self.models = list(models)

    @abc.abstractmethod
    def begun(self, state: WorldState) -> list[RewardFunction]:
        """The reward of each episode that begins with one of these worlds."""

    def __call__(self, state: WorldState) -> Reward:
        """Reward by what the newest latents show, for worlds whose beginning nobody has seen."""
        return joined(self.begun(state))(state)

    def told(self, state: WorldState, num_dims: int) -> tuple[Tensor, Tensor]:
        """Points (B, P, num_dims) that the newest latents show, and how much they are in doubt, metres (B,)."""
        metres, doubts = read_all(self.models, state.newest)
        return metres.to(state.poses).unflatten(1, (-1, num_dims)), doubts


class RememberedPlace(RememberedTarget):
    """Of end effectors: closeness to the target, and where pictures show them; see `Place`.

    Attributes:
        slack: of the places of episodes that are to begin, in metres; see `Place`.
    """

    slack = SLACK

    def seen(self, state: WorldState) -> Tensor:
        """Where pictures show end effectors, metres float64 (B, 3) from the robot's origin."""
        return self.told(state, 3)[0][:, 1]

    def places(self, state: WorldState) -> list[Place]:
        """A `Place` each, with where the episode began for `seen`."""
        led, (points, _) = state.poses[:, :3, 3], self.told(state, 3)
        rows = zip(led + points[:, 0], points[:, 1] - led, strict=True)
        return [Place(target, self.seen, origin, self.slack) for target, origin in rows]

    def begun(self, state: WorldState) -> list[RewardFunction]:
        """A `Place` each."""
        return [*self.places(state)]


class RememberedLift(RememberedPlace):
    """Of end effectors: a task's own reward, at most what can be where the target was; see `Lift`.

    Attributes:
        shaped: whether the rewards of episodes that are to begin lead to the grasp.
    """

    shaped = True

    def __init__(self, models: Sequence[TargetModel], task: RewardFunction) -> None:
        super().__init__(models)
        self.task = task

    def points(self, state: WorldState) -> Tensor:
        """Metres (B, 2, 3) from end effectors to their targets, and as `seen`."""
        return self.told(state, 3)[0]

    def begun(self, state: WorldState) -> list[RewardFunction]:
        """A `Lift` each."""
        rows = self.places(state)
        return [Lift(row.place, self.points, self.task, row.origin, row.slack, self.shaped) for row in rows]


class RememberedSight(RememberedTarget):
    """Of cameras: closeness to a thing where it was seen; see `Sight`."""

    def begun(self, state: WorldState) -> list[RewardFunction]:
        """A `Sight` each."""
        points, doubts = self.told(state, 3)
        places = state.poses[:, :3, 3] + (state.poses[:, :3, :3] @ points.transpose(1, 2))[..., 0]
        return [Sight(*row) for row in zip(places, doubts < SURE, state.poses, strict=True)]


class RememberedLane(RememberedTarget):
    """Of vehicles: a task's own reward, and less of it beside the way ahead; see `Lane`."""

    def __init__(self, models: Sequence[TargetModel], task: RewardFunction) -> None:
        super().__init__(models)
        self.task = task

    def targets(self, state: WorldState) -> Tensor:
        """Points of the lanes, metres float64 (B, R, 2), as seen from where the episodes began."""
        return state.poses[:, None, :2, 3] + self.told(state, 2)[0] @ state.poses[:, :2, :2].transpose(1, 2)

    def begun(self, state: WorldState) -> list[RewardFunction]:
        """A `Lane` each."""
        return [Lane(points, self.task) for points in self.targets(state)]


def load_target(
    folder: str | os.PathLike[str], device: str | torch.device = "cpu", task: RewardFunction | None = None
) -> RememberedTarget:
    """The reward by what the models tell that `astra-env fit-target` wrote; lanes need the ``task``'s own reward."""
    models = [TargetModel.load(entry, device) for entry in head_folders(folder, FILE_NAME)]
    counts = [len(model.scale) for model in models]
    if set(counts) == {6}:
        return RememberedPlace(models) if task is None else RememberedLift(models, task)
    if all(model.doubts for model in models):
        return RememberedSight(models)
    if task is None:
        raise ValueError(
            f"The models of {folder} tell {counts} numbers, expected 6 each, of a target and an end effector; those of "
            "a lane need heads of a reward beside them (astra-env fit-reward)."
        )
    return RememberedLane(models, task)


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
        return load_target(folder, device, task)
    return task or LearnedReward.load(folder, device)
