"""Worlds of latents, and policies, that are shown what a view makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from policies.evaluate import Policy
from policies.views import DOUBT, TARGET, Told, View
from policies.worlds import BESIDE, LastInfo


class Viewed(VectorWrapper):
    """Worlds of latents as a policy sees them."""

    def __init__(self, env: VectorEnv[Any, Any, Any], view: View) -> None:
        super().__init__(env)
        self._view, self._told = view, dict[str, np.ndarray]()
        space = env.single_observation_space
        assert isinstance(space, Box)
        self.single_observation_space = view.space(space)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the worlds'; rows that are not reset keep what they told."""
        observations, info = self.env.reset(seed=seed, options=options)
        self._hear(info)
        begun = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))
        self._keep(self._view.remember(observations, _without_memory(self._told)), begun)
        return self._view(observations, self._told), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As the worlds'."""
        observations, rewards, terminations, truncations, info = self.env.step(actions)
        self._hear(info)
        self._keep(self._view.remember(observations, self._told), np.ones(self.num_envs, bool))
        return self._view(observations, self._told), rewards, terminations, truncations, info

    def _hear(self, info: dict[str, Any]) -> None:
        for name in BESIDE:
            if name in info:
                self._keep({name: info[name]}, info[f"_{name}"])

    def _keep(self, told: Told, rows: np.ndarray) -> None:
        for name, values in told.items():
            new = rows.reshape(-1, *(1,) * (values.ndim - 1))
            self._told[name] = np.where(new, values, self._told.get(name, values))


class Seeing:
    """A policy that is shown a world of latents by a view, with what the world told last."""

    def __init__(self, policy: Policy, view: View, world: LastInfo) -> None:
        self.policy, self._view, self._world = policy, view, world
        self._remembered: dict[str, np.ndarray] = {}

    def reset(self, seed: int | None = None) -> Seeing:
        """As the policy; what is seen next is the beginning of an episode."""
        self.policy.reset(seed)
        self._remembered = {}
        return self

    def act(self, observation: np.ndarray) -> Any:
        """The policy's action for a latent (C, h, w)."""
        told = {name: np.array([self._world.info[name]]) for name in BESIDE if name in self._world.info}
        self._remembered |= self._view.remember(observation[None], told | self._remembered)
        return self.policy.act(self._view(observation[None], told | self._remembered)[0])


def _without_memory(told: Told) -> Told:
    return {name: values for name, values in told.items() if name not in (TARGET, DOUBT)}
