"""Model-predictive control inside an imagined environment: plan, act once, plan again from where that led."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from policies.optimizers import Plan, cem


class MPCPolicy:
    """Chooses each action by the cross-entropy method over futures imagined in the environment's own world model.

    Every iteration imagines its samples as one batch from the environment's present state, in latent space: no
    picture is decoded. A plan is worth the mean of the environment's objective over its steps, and the next search
    starts from the rest of the last plan.

    Args:
        env: an astra-env environment with a `Box` action space, wrapped or not.
        horizon: steps that a plan looks ahead.
        num_samples: plans imagined at once.
        num_iterations: rounds of sampling for one action.
        num_elites: plans that the next round is drawn around.
        std_scale: initial standard deviation as a share of half the range of each action field.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        *,
        horizon: int = 4,
        num_samples: int = 32,
        num_iterations: int = 3,
        num_elites: int = 6,
        std_scale: float = 0.5,
    ) -> None:
        space = env.action_space
        if not isinstance(space, gymnasium.spaces.Box):
            raise ValueError(f"MPCPolicy plans continuous actions, expected a Box action space, got {space}")
        self.env, self.horizon = env, horizon
        self._search = {"num_samples": num_samples, "num_iterations": num_iterations, "num_elites": num_elites}
        self._low, self._high = torch.from_numpy(space.low), torch.from_numpy(space.high)
        self._std = (std_scale * (self._high - self._low) / 2).expand(horizon, -1)
        self.plan: Plan | None = None
        self.reset()

    def reset(self, seed: int | None = None) -> MPCPolicy:
        """Forgets the last plan and restarts the random numbers; call it when an episode begins."""
        self._generator = torch.Generator().manual_seed(0 if seed is None else seed)
        self._noise_seed = 0
        self._mean = ((self._low + self._high) / 2).expand(self.horizon, -1)
        self.plan = None
        return self

    def act(self, observation: Any) -> np.ndarray:
        """Plans from the environment's present state and returns the first action, float32 (A,).

        The observation is not looked at: the state that the environment imagines from says more. The whole plan
        stays in `self.plan`.
        """
        # All plans of a search share their noise, so that they differ by their actions only; it is the planner's own
        # and not the noise that the environment goes on to draw.
        self._noise_seed = int(torch.randint(2**31, (), generator=self._generator))
        with torch.no_grad():
            plan = cem(
                self._evaluate, self._mean, self._std, self._low, self._high, **self._search, generator=self._generator
            )
        self.plan = plan
        self._mean = torch.cat([plan.mean[1:], plan.mean[-1:]])
        return plan.actions[0].numpy().copy()

    def _evaluate(self, actions: Tensor) -> Tensor:
        """Mean objective (N,) over the steps of plans (N, horizon, A), all imagined as one batch."""
        env: Any = self.env.unwrapped
        states = env.save_state().repeat(len(actions))
        total = torch.zeros(len(actions))
        generators = [torch.Generator().manual_seed(self._noise_seed) for _ in range(len(actions))]
        for step in range(self.horizon):
            states = env.world_model.step(states, actions[:, step], generators, **env.sampling)
            total += env.objective(states).cpu()
        return total / self.horizon
