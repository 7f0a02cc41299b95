"""Lifting as it can be: what a head says of dreamt pictures counts where a gripper has grasped what it was to lift.

A head that learned what lifted cubes look like is fooled by pictures that look so: fingers that turn until they hide a
cube on the table. Where the cube was before the dream began, and what the gripper was told since, are no dream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from astra_env.actions import ACTION_MODALITIES
from astra_env.envs import SLACK
from astra_env.envs.rewards import Place, Reward, RewardFunction
from astra_env.models import WorldState
from astra_env.models.action_encoding import from_bounds

ABOVE = 0.06
"""Metres over a thing at which a gripper comes to it without pushing it away."""
AROUND = 0.03
"""Metres from its middle within which closing the gripper may grasp it."""
RISEN = 0.04
"""Metres above where it was grasped from which on it may be lifted."""
OPEN, CLOSED = 0.2, 0.5
"""What a gripper is told that lets a thing between its fingers, at most, and that holds it, at least."""


class Lift(Place):
    """A task's reward for lifting what is at a place, where a gripper can have grasped it.

    It is grasped where the gripper came open to within ``AROUND`` and was closed in all steps since, or was closed in
    all steps there have been; the worlds' slots remember as many as they have. Then the reward is the task's, up to
    0.8, and all of it ``RISEN`` above; only there the task is solved, if pictures show it so, which ends the episode.
    Until then it is 0.6 (1 - tanh(8 d)) at d metres from the way to the place, which leads there from ``ABOVE``, and
    half as much for a gripper that is not open.

    Args:
        place: as `Place` has it, with ``seen``, ``origin`` and ``slack``.
        task: the reward by pictures.
    """

    def __init__(
        self,
        place: Tensor,
        task: RewardFunction,
        seen: Callable[[WorldState], Tensor] | None = None,
        origin: Tensor | None = None,
        slack: float = SLACK,
    ) -> None:
        super().__init__(place, seen, origin, slack)
        self.task = task

    @classmethod
    def stacked(cls, rows: Sequence[Lift]) -> Lift | None:  # type: ignore[override]
        """See `Stacking`."""
        places = Place.stacked(rows)
        if places is None or any(row.task is not rows[0].task for row in rows):
            return None
        return cls(places.place, rows[0].task, places.seen, places.origin, places.slack)

    def __call__(self, state: WorldState) -> Reward:
        """Reward in [0, 1]."""
        judged, here = self.task(state), self.here(state)
        moves, gripper = _commands(state, here)
        way = here[:, None] - (moves.flip(1).cumsum(1).flip(1) - moves)  # (B, S, 3): where each slot was
        offsets = way - self.place[..., None, :]
        distances = offsets.square().sum(-1).add(1e-12).sqrt()
        grasped = _closing(gripper, state.num_steps) & (distances < AROUND)
        held, lifted = grasped.any(1), (grasped & (here[:, None, 2] - way[..., 2] >= RISEN)).any(1)
        near = 0.6 * (1 - (8 * _from_above(offsets[:, -1])).tanh())
        near = near.where(gripper[:, -1] < OPEN, near / 2)
        value = near.maximum(judged.value.clamp(max=0.8)).where(held, near).where(~lifted, judged.value.to(near))
        solved = lifted & (judged.done if judged.success is None else judged.success)
        terms = {**judged.terms, "target_distance": distances[:, -1], "held": held.to(near)}
        return Reward(value.float(), solved, terms, solved)


def _commands(state: WorldState, like: Tensor) -> tuple[Tensor, Tensor]:
    """Of the action that led to each slot, metres (B, S, 3) and what the gripper was told (B, S)."""
    actions = from_bounds(state.actions, ACTION_MODALITIES["end_effector"]).to(like)
    return actions[..., :3], actions[..., -1]


def _closing(gripper: Tensor, num_steps: Tensor) -> Tensor:
    """Whether a slot is the last before a gripper was closed for good, or the first of its episode: bool (B, S)."""
    age = torch.arange(gripper.shape[1] - 1, -1, -1, device=gripper.device)  # steps since
    closed = (gripper > CLOSED).flip(1).long().cumprod(1).flip(1).roll(-1, 1) > 0  # in all of them
    came_open = (gripper < OPEN) & (age < num_steps[:, None])
    return closed & (age > 0) & (came_open | (age == num_steps[:, None]))


def _from_above(offsets: Tensor) -> Tensor:
    """Metres (B,) to the way to a place, of what is at offsets (B, 3) from it."""
    aside = offsets[:, :2].square().sum(-1).add(1e-12).sqrt()
    height = ABOVE * ((aside - 0.01) / 0.02).clamp(0, 1)
    return (aside.square() + (offsets[:, 2] - height).square()).add(1e-12).sqrt()
