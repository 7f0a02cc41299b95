"""Goal images as `GoalEnv`s have them: worlds whose episodes each have a picture to bring about.

``SAC("MultiInputPolicy", SB3VecEnv(GoalWorlds(worlds)), replay_buffer_class=HerReplayBuffer)`` learns from hindsight:
what was reached counts as if it had been the goal.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorWrapper
from gymnasium.vector.utils import batch_space

from astra_env.envs.rewards import GoalReward
from astra_env.envs.vector_env import AstraVectorEnv


class GoalWorlds(VectorWrapper):
    """Worlds that observe latents float32 (C, h, w) by name: ``observation``, ``achieved_goal``, ``desired_goal``.

    Each episode's goal is the last picture of a recorded start state, drawn by the row's seed. The reward is minus the
    root mean squared distance of the newest latent to the goal's, or, where it is ``within`` that distance, 0 and
    otherwise -1, which is how hindsight works best. ``info["success"]`` tells whether it is; the episode goes on.

    Args:
        env: worlds with ``observation="latent"`` and ``autoreset_mode="Disabled"``.
        within: distance of latents that counts as reached; None for the distance itself as reward.
    """

    def __init__(self, env: AstraVectorEnv, *, within: float | None = None) -> None:
        if env.observation != "latent" or env.autoreset_mode is not AutoresetMode.DISABLED:
            given = f"{env.observation!r} and {env.autoreset_mode.value!r}"
            raise ValueError(f"GoalWorlds needs observation 'latent' and autoreset_mode 'Disabled', got {given}.")
        super().__init__(env)
        self._worlds, self.within = env, within
        latent = env.single_observation_space
        names = ("observation", "achieved_goal", "desired_goal")
        self.single_observation_space = gymnasium.spaces.Dict(dict.fromkeys(names, latent))
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self._goals = np.zeros(env.observation_space.shape or (), np.float32)
        self._rngs = [np.random.default_rng() for _ in range(env.num_envs)]

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin episodes, each with a goal of its own; ``options`` are the worlds', a ``goal`` among them stays."""
        options = dict(options or {})
        seeds = [seed + row for row in range(self.num_envs)] if isinstance(seed, int | np.integer) else seed
        for row, given in enumerate(seeds or []):
            if given is not None:
                self._rngs[row] = np.random.default_rng([given, 3])
        if "goal" not in options:
            mask = options.get("reset_mask", np.ones(self.num_envs, bool))
            goals = [{"goal": self._draw(row)} if begins else {} for row, begins in enumerate(mask)]
            rows = options.get("rows") or [{}] * self.num_envs
            options["rows"] = [{**goal, **row} for goal, row in zip(goals, rows, strict=True)]
        latents, info = self.env.reset(seed=seed, options=options)
        goal = self._worlds.reward_function
        assert isinstance(goal, GoalReward)
        self._goals = np.broadcast_to(goal.goal.float().cpu().numpy(), latents.shape).copy()
        return self._seen(latents), info

    def _draw(self, row: int) -> np.ndarray:
        """A picture to bring about, uint8 (H, W, 3)."""
        starts = self._worlds.start_states
        return starts.frames[int(self._rngs[row].integers(len(starts))), -1]

    def step(self, actions: Any) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """As the worlds', with the goals' rewards."""
        latents, _, terminations, truncations, info = self.env.step(actions)
        rewards = self.compute_reward(latents, self._goals, info)
        if self.within is not None:
            info["success"] = info["is_success"] = rewards >= 0
        return self._seen(latents), rewards, terminations, truncations, info

    def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> np.ndarray:
        """Rewards (N,) of having reached some latents (N, C, h, w) where others were the goal."""
        distance = np.sqrt(np.square(achieved_goal - desired_goal).mean((-3, -2, -1)))
        return -distance if self.within is None else -(distance > self.within).astype(np.float32)

    def _seen(self, latents: np.ndarray) -> dict[str, np.ndarray]:
        return {"observation": latents, "achieved_goal": latents.copy(), "desired_goal": self._goals.copy()}
