"""What a plan is worth, judged by the worlds that it leads through.

A score maps an environment, the states after each step of N plans (one `WorldState` of N worlds a step) and their
actions (N, horizon, A) to values (N,), larger is better. Scores look at latents and poses alone: no picture is decoded.
They are differentiable, for planners that follow gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from astra_env.models import WorldState

Score = Callable[[Any, Sequence[WorldState], Tensor], Tensor]


def mean_reward(env: Any, states: Sequence[WorldState], actions: Tensor) -> Tensor:
    """The environment's objective (its task, or closeness to a goal image), on average over the steps."""
    return torch.stack([env.objective(state) for state in states]).mean(0)


def last_reward(env: Any, states: Sequence[WorldState], actions: Tensor) -> Tensor:
    """The environment's objective after the last step."""
    return env.objective(states[-1])


def best_reward(env: Any, states: Sequence[WorldState], actions: Tensor) -> Tensor:
    """The environment's objective at its best step: a plan may reach a goal early and move on."""
    return torch.stack([env.objective(state) for state in states]).amax(0)


def with_action_cost(score: Score, weight: float) -> Score:
    """A score less a cost: weight times the mean square of the actions, each field as a share of half its range.

    The gripper and other absolute values count by their distance from the middle, as all fields do.
    """

    def less_cost(env: Any, states: Sequence[WorldState], actions: Tensor) -> Tensor:
        low, high = torch.tensor(env.action_modality.low), torch.tensor(env.action_modality.high)
        shares = (actions - (low + high) / 2) / ((high - low) / 2)
        value = score(env, states, actions)
        return value - weight * shares.square().mean((1, 2)).to(value)

    return less_cost
