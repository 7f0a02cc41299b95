"""Lifting as it can be: what a head says of dreamt pictures counts where a gripper has grasped what it was to lift.

A head that learned what lifted cubes look like is fooled by pictures that look so: fingers that turn until they hide a
cube on the table. Where the cube was before the dream began, and what the gripper was told since, are no dream.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from astra_env.actions import ACTION_MODALITIES
from astra_env.envs import SLACK
from astra_env.envs.rewards import Place, Reward, RewardFunction, length
from astra_env.models import WorldState
from astra_env.models.action_encoding import from_bounds

ABOVE = 0.06
"""Metres over a thing at which a gripper comes to it without pushing it away."""
AROUND = 0.02
"""Metres from its middle within which closing the gripper grasps it."""
PUSHED = 0.02
"""Metres by which it may have been pushed aside; dreamt things go along with what only passes them."""
RISEN = 0.04
"""Metres above where it was grasped from which on it may be lifted."""
CLOSED = 0.5
"""What a gripper is told, at least, that holds a thing; less lets it between the fingers."""
OPEN = 0.2
"""What it is told, at most, on a way that leads to a thing."""

Points = Callable[[WorldState], Tensor]
"""What pictures show of worlds (B, 2, 3), in metres: from the gripper to the thing, and where the gripper is."""


class Lift(Place):
    """A task's reward for lifting what lies at a place, where a gripper can have grasped it.

    It is grasped where the gripper is closed, and the thing was ``AROUND`` it, on average of the moments before and
    after it closed, or at the beginning, if it was closed then: at the place, or aside of it where pictures showed it
    pushed, by ``PUSHED`` at most. Then the reward is the task's, up to 0.8, and all of it ``RISEN`` above; only there
    the task is solved, if pictures show it so, which ends the episode. Until then it is 0.6 (1 - tanh(8 d)) at d metres
    from the place. Shaped, for who is to learn it, d is from the way to the place, which leads there from ``ABOVE``,
    and a gripper that is not open gets half as much.

    Args:
        place: as `Place` has it, with ``origin`` and ``slack``.
        points: what pictures show.
        task: the reward by pictures.
        shaped: whether it leads to the grasp; the task itself knows no way.
    """

    def __init__(
        self,
        place: Tensor,
        points: Points,
        task: RewardFunction,
        origin: Tensor | None = None,
        slack: float = SLACK,
        shaped: bool = True,
    ) -> None:
        super().__init__(place, None, origin, slack)
        self.points, self.task, self.shaped = points, task, shaped

    @classmethod
    def stacked(cls, rows: Sequence[Lift]) -> Lift | None:  # type: ignore[override]
        """See `Stacking`."""
        first, places = rows[0], Place.stacked(rows)
        alike = all((row.points, row.shaped) == (first.points, first.shaped) and row.task is first.task for row in rows)
        if places is None or not alike:
            return None
        return cls(places.place, first.points, first.task, places.origin, places.slack, first.shaped)

    def __call__(self, state: WorldState) -> Reward:
        """Reward in [0, 1]."""
        judged, (moves, gripper) = self.task(state), _commands(state)
        steps = _closed_for(gripper, state.num_steps)
        closing = ((steps > 0) & (steps < state.num_steps)).long()
        ages = torch.stack([steps, steps - closing, 0 * steps])  # of the moments before and after it closed, and now
        there, distance = self._shown(state, moves, ages)
        held = (steps > 0) & (distance[:2].mean(0) < AROUND)
        lifted = held & (there[2, :, 2] - there[:2, :, 2].amin(0) >= RISEN)
        offset = there[2] - self.place
        near = 0.6 * (1 - (8 * (_from_above(offset) if self.shaped else length(offset))).tanh())
        if self.shaped:
            near = near.where(gripper[:, -1] < OPEN, near / 2)
        value = near.maximum(judged.value.clamp(max=0.8)).where(held, near).where(~lifted, judged.value.to(near))
        solved = lifted & (judged.done if judged.success is None else judged.success)
        terms = {**judged.terms, "target_distance": length(offset), "held": held.to(near)}
        return Reward(value.float(), solved, terms, solved)

    def _shown(self, state: WorldState, moves: Tensor, ages: Tensor) -> tuple[Tensor, Tensor]:
        """Where grippers were so many steps (K, B) ago, metres (K, B, 3), and how far (K, B) from the things."""
        slots = moves.shape[1]
        # many of them are the same moment, and pictures are read once
        moments, index = (torch.arange(len(state), device=ages.device) * slots + ages).unique(return_inverse=True)
        moment = _rewound(state, moves, moments // slots, moments % slots)
        offset, gripper = self.points(moment)[index].unbind(2)
        there = self.near(moment.poses[index][..., :3, 3], gripper)
        pushed = (there + offset - self.place)[..., :2]
        pushed = pushed * (PUSHED / length(pushed)).clamp(max=1)[..., None]
        return there, length(self.place + F.pad(pushed, (0, 1)) - there)


def _commands(state: WorldState) -> tuple[Tensor, Tensor]:
    """Of the action that led to each slot, metres float64 (B, S, 3) and what the gripper was told (B, S)."""
    actions = from_bounds(state.actions, ACTION_MODALITIES["end_effector"]).to(state.poses)
    return actions[..., :3], actions[..., -1]


def _closed_for(gripper: Tensor, num_steps: Tensor) -> Tensor:
    """Steps (B,) of this episode since which a gripper has been closed, as far as slots (B, S) remember."""
    closed = (gripper > CLOSED).flip(1).long().cumprod(1).sum(1)
    return closed.minimum(num_steps).clamp(max=gripper.shape[1] - 1)


def _rewound(state: WorldState, moves: Tensor, rows: Tensor, ages: Tensor) -> WorldState:
    """Some rows (M,) of worlds as they were so many steps (M,) ago, as far as pictures and places tell."""
    slots = moves.shape[1]
    since = torch.arange(slots, device=moves.device) >= slots - ages[:, None]
    poses = state.poses[rows]
    poses[:, :3, 3] -= (moves[rows] * since[..., None]).sum(1)
    newest = state.latents[rows, :, slots - 1 - ages]
    return dataclasses.replace(state, latents=newest[:, :, None], poses=poses)


def _from_above(offsets: Tensor) -> Tensor:
    """Metres (B,) to the way to a place, of what is at offsets (B, 3) from it."""
    aside = length(offsets[:, :2])
    height = ABOVE * ((aside - 0.01) / 0.02).clamp(0, 1)
    return length(torch.stack([aside, offsets[:, 2] - height], dim=-1))
