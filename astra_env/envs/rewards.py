"""Rewards of imagined worlds: batched, differentiable functions of a WorldState, for environments and planners.

Any function from a `WorldState` of B worlds to a `Reward` is one: ``gymnasium.make(id, reward=function)``. Paths and
goal pictures are here; `astra_env.envs.reward_kit` has learned ones and more, and sums of several.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from astra_env.envs import GOAL_ANGLE, GOAL_DISTANCE, REACHED, SLACK
from astra_env.models import WorldState

LIKELY = 0.5
"""Probability of success or failure from which a task counts as done."""
ON_PATH = (0.05, 0.1)
"""Metres and radians from the last pose of a path within which its end is reached."""

LANE = 1.5
"""Metres from a lane's middle at which driving is worth half."""
ELSEWHERE = 0.3
"""What it is worth to look the other way, somewhere else, where nothing was seen."""


@dataclass(frozen=True)
class Reward:
    """Value of B worlds: the reward (B,), whether the episode is over (bool (B,)), and what they are made of.

    ``success`` (bool (B,)) tells a task that is solved from one that has failed; without it, what is over is solved.
    """

    value: Tensor
    done: Tensor
    terms: dict[str, Tensor]
    success: Tensor | None = None


RewardFunction = Callable[[WorldState], Reward]


@runtime_checkable
class Remembering(Protocol):
    """A reward that depends on how an episode begins."""

    def begun(self, state: WorldState) -> Sequence[RewardFunction]:
        """The reward of each episode that begins with one of these worlds."""


@runtime_checkable
class Stacking(Protocol):
    """A kind of reward of which one can serve worlds that have one each."""

    @classmethod
    def stacked(cls, rows: Sequence[Any]) -> RewardFunction | None:
        """One reward of B worlds from their own ones, of this kind; None where these differ in more than numbers."""


class PathReward:
    """Closeness of where the actions have led to a path of poses (T + 1, 4, 4), one a step; the last one stays.

    Worlds with a path each have them stacked: (B, T + 1, 4, 4). Half a radian counts as much as 0.25 m. The end of the
    path ends the episode where it is reached: see ``ON_PATH``.
    """

    def __init__(self, path: Tensor) -> None:
        self.path = path

    @classmethod
    def stacked(cls, rows: Sequence[PathReward]) -> PathReward | None:
        """See `Stacking`."""
        same = len({row.path.shape for row in rows}) == 1
        return cls(torch.stack([row.path for row in rows])) if same else None

    def pose(self, num_steps: Tensor) -> Tensor:
        """The poses (B, 4, 4) that are due after so many steps (B,)."""
        due = num_steps.clamp(max=self.num_steps)
        return self.path[due] if self.path.ndim == 3 else self.path[torch.arange(len(due), device=due.device), due]

    @property
    def num_steps(self) -> int:
        """Steps to the end of the path."""
        return self.path.shape[-3] - 1

    def __call__(self, state: WorldState) -> Reward:
        """Reward in [0, 1]."""
        distance, angle = pose_error(state.poses, self.pose(state.num_steps))
        value = 1 - (3 * (distance + 0.5 * angle)).tanh()
        reached = (state.num_steps >= self.num_steps) & (distance < ON_PATH[0]) & (angle < ON_PATH[1])
        return Reward(value.float(), reached, {"path_distance": distance, "path_angle": angle})


def pose_error(poses: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Metres and radians (B,) from poses (B, 4, 4) to wanted ones (B, 4, 4) or (4, 4)."""
    place = poses[:, :3, 3] - wanted[..., :3, 3]
    turn = wanted[..., :3, :3].transpose(-2, -1) @ poses[:, :3, :3]
    sines = torch.stack([turn[:, i, j] - turn[:, j, i] for i, j in ((2, 1), (0, 2), (1, 0))], dim=-1)
    return length(place), torch.atan2(length(sines / 2), (turn.diagonal(dim1=1, dim2=2).sum(-1) - 1) / 2)


def length(offsets: Tensor) -> Tensor:
    """Of offsets (..., D), in their unit: (...). Gradients are finite at 0 too, as a little is added under the root."""
    return offsets.square().sum(-1).add(1e-12).sqrt()


class GoalReward:
    """Closeness to a goal image: minus the root mean squared distance of latents, 0 at the goal."""

    def __init__(self, goal: Tensor) -> None:
        self.goal = goal  # (C, h, w), or (B, C, h, w) for worlds with a goal each

    @classmethod
    def stacked(cls, rows: Sequence[GoalReward]) -> GoalReward:
        """See `Stacking`."""
        return cls(torch.stack([row.goal for row in rows]))

    def __call__(self, state: WorldState) -> Reward:
        """Reward of at most 0; the episode goes on at the goal."""
        distance = (state.newest - self.goal).square().mean((1, 2, 3)).add(1e-12).sqrt()
        return Reward(-distance, distance < 0, {"goal_distance": distance})


class Place:
    """Closeness of where the actions have led to a place (3,), in metres seen from the episode's start, or (B, 3).

    It counts as reached within ``REACHED``, which does not end the episode.

    An arm that presses on a table is told to go on, and stays. Where something tells where pictures show it, it is as
    near to where the actions have led as can be within ``slack`` of there. Plans and what learns from short dreams find
    the way more exactly with some; long dreams are judged best by pictures alone.

    Args:
        place: where to be.
        seen: where pictures show worlds (B, 3), along the same axes; None if nothing tells.
        origin: where the episode's start is for ``seen``, (3,), or (B, 3).
        slack: metres by which what is commanded may lead away from what is seen; more of it has met a resistance.
    """

    def __init__(
        self,
        place: Tensor,
        seen: Callable[[WorldState], Tensor] | None = None,
        origin: Tensor | None = None,
        slack: float = SLACK,
    ) -> None:
        self.place, self.seen, self.slack = place, seen, slack
        self.origin = torch.zeros_like(place) if origin is None else origin

    @classmethod
    def stacked(cls, rows: Sequence[Place]) -> Place | None:
        """See `Stacking`."""
        if len({(row.seen, row.slack) for row in rows}) > 1:
            return None
        places, origins = (torch.stack([getattr(row, name) for row in rows]) for name in ("place", "origin"))
        return cls(places, rows[0].seen, origins, rows[0].slack)

    def here(self, state: WorldState) -> Tensor:
        """Metres (B, 3) as the episode's start sees them."""
        return state.poses[:, :3, 3] if self.seen is None else self.near(state.poses[:, :3, 3], self.seen(state))

    def near(self, led: Tensor, seen: Tensor) -> Tensor:
        """Where the actions have led to, (B, 3), or as near to it as can be to where pictures show (B, 3)."""
        shown = seen - self.origin
        gap = led - shown
        return shown + gap * (self.slack / length(gap)).clamp(max=1)[..., None]

    def __call__(self, state: WorldState) -> Reward:
        """Reward 1 - tanh(8 d) at d metres from the place."""
        distance = length(self.here(state) - self.place)
        there = distance < REACHED
        return Reward((1 - (8 * distance).tanh()).float(), distance < 0, {"target_distance": distance}, there)


class Sight:
    """Closeness of where the actions have led a camera to a thing at (3,), seen from the episode's start, or (B, 3).

    It is reached within ``GOAL_DISTANCE``, looking at it within ``GOAL_ANGLE``, which ends the episode. Where it was
    not ``seen`` (bool () or (B,)), there is no place to go to, and the reward is for looking elsewhere than from the
    ``start``, a pose (4, 4) or (B, 4, 4): for the way and the turn from there, in its level.
    """

    def __init__(self, place: Tensor, seen: Tensor, start: Tensor) -> None:
        self.place, self.seen, self.start = place, seen, start

    @classmethod
    def stacked(cls, rows: Sequence[Sight]) -> Sight:
        """See `Stacking`."""
        return cls(*(torch.stack([getattr(row, name) for row in rows]) for name in ("place", "seen", "start")))

    def __call__(self, state: WorldState) -> Reward:
        """Reward 1 - tanh(0.4 d) at d metres, 1 where it is reached; up to ``ELSEWHERE`` where nothing was seen."""
        looks, way = state.poses[:, :3, 2], self.place - state.poses[:, :3, 3]
        distance = length(way)
        straight = (way * looks).sum(-1) > distance * math.cos(GOAL_ANGLE)
        reached = self.seen & straight & (distance < GOAL_DISTANCE)
        near = (1 - (0.4 * distance).tanh()).where(~reached, 1.0)
        value = near.where(self.seen, ELSEWHERE * self._elsewhere(state.poses))
        return Reward(value.float(), reached, {"target_distance": distance})

    def _elsewhere(self, poses: Tensor) -> Tensor:
        """In [0, 1], two thirds of it for turning and looking neither up nor down."""
        motion = torch.linalg.inv(self.start) @ poses
        right, ahead = motion[:, 0], motion[:, 2]
        moved, looks = (torch.stack([right[:, i], ahead[:, i]], dim=-1) for i in (3, 2))
        return (length(looks) - looks[:, 1] + length(moved).tanh()) / 3


class Lane:
    """A task's reward, and less of it beside a lane: divided by 1 + (d / 1.5)^2 at d metres from the lane's middle.

    The lane's middle is known at points (R, 2), or (B, R, 2), x forward and y left in metres as the episode's start
    sees them. It goes on straight behind the first point; beyond the last one nothing is known, and the task's reward
    stays.
    """

    def __init__(self, points: Tensor, task: RewardFunction) -> None:
        self.points, self.task = points, task

    @classmethod
    def stacked(cls, rows: Sequence[Lane]) -> Lane | None:
        """See `Stacking`."""
        same = all(row.task is rows[0].task for row in rows)
        return cls(torch.stack([row.points for row in rows]), rows[0].task) if same else None

    def __call__(self, state: WorldState) -> Reward:
        """The task's ends and success."""
        reward, here = self.task(state), state.poses[:, None, :2, 3]
        points = self.points.to(state.poses).expand(len(state), *self.points.shape[-2:])
        behind = points[:, :1] - 10 * (points[:, 1:2] - points[:, :1])
        points = torch.cat([behind, points], dim=1)
        along = points.diff(dim=1)  # (B, R, 2)
        share = ((here - points[:, :-1]) * along).sum(-1) / along.square().sum(-1).clamp(min=1e-6)  # (B, R) of a piece
        aside = here - points[:, :-1] - share.clamp(0, 1)[..., None] * along
        distance, piece = length(aside).min(1)
        unknown = (piece == share.shape[1] - 1) & (share[:, -1] >= 1)
        worth = (1 / (1 + (distance / LANE).square())).where(~unknown, 1.0)
        terms = {**reward.terms, "lane_distance": distance}
        return Reward(reward.value * worth.float(), reward.done, terms, reward.success)


def no_reward(state: WorldState) -> Reward:
    """Reward 0 for ever, in worlds that have learned none."""
    zero = state.newest.new_zeros(len(state))
    return Reward(zero, zero > 0, {})


def joined(functions: Sequence[RewardFunction]) -> RewardFunction:
    """One function of B worlds, each of which has its own; a function that all share serves any number of worlds."""
    if all(function is functions[0] for function in functions):
        return functions[0]
    kind = type(functions[0])
    if issubclass(kind, Stacking) and all(type(function) is kind for function in functions):
        together = kind.stacked(functions)
        if together is not None:
            return together
    return functools.partial(_row_by_row, tuple(functions))


def _row_by_row(functions: Sequence[RewardFunction], state: WorldState) -> Reward:
    """Rewards of different kinds; a term that a row does not have is NaN there."""
    rows = [function(state[index]) for index, function in enumerate(functions)]
    names = dict.fromkeys(name for row in rows for name in row.terms)
    missing = rows[0].value.new_full((1,), torch.nan)
    return Reward(
        torch.cat([row.value for row in rows]),
        torch.cat([row.done for row in rows]),
        {name: torch.cat([row.terms.get(name, missing) for row in rows]) for name in names},
        torch.cat([row.done if row.success is None else row.success for row in rows]),
    )
