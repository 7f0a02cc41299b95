"""Rewards of imagined worlds: batched, differentiable functions of a WorldState, for environments and planners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from astra_env.models import WorldState
from astra_env.models.reward_model import RewardModel

SUCCESS_PROBABILITY = 0.5


@dataclass(frozen=True)
class Reward:
    """Value of B worlds: the reward (B,), whether the task is done (bool (B,)), and what they are made of."""

    value: Tensor
    done: Tensor
    terms: dict[str, Tensor]


RewardFunction = Callable[[WorldState], Reward]


class TaskReward:
    """The task's reward and success as a head learned them from recorded episodes; a success ends the episode."""

    def __init__(self, model: RewardModel) -> None:
        self.model = model

    def __call__(self, state: WorldState) -> Reward:
        """Reward in [0, 1]."""
        reward, success = self.model(state.newest)
        return Reward(reward, success > SUCCESS_PROBABILITY, {"task_reward": reward, "success_probability": success})


class GoalReward:
    """Closeness to a goal image: minus the root mean squared distance of latents, 0 at the goal."""

    def __init__(self, goal: Tensor) -> None:
        self.goal = goal  # (C, h, w)

    def __call__(self, state: WorldState) -> Reward:
        """Reward of at most 0; the episode goes on at the goal."""
        distance = (state.newest - self.goal).square().mean((1, 2, 3)).add(1e-12).sqrt()
        return Reward(-distance, distance < 0, {"goal_distance": distance})


def no_reward(state: WorldState) -> Reward:
    """Reward 0 for ever, in worlds that have learned none."""
    zero = state.newest.new_zeros(len(state))
    return Reward(zero, zero > 0, {})
