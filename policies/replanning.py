"""Planning in an imagined world what to do in another one, of which only pictures and one's own actions are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from policies.mpc import MPCPolicy
from policies.worlds import LastInfo

KNOWN_ACTIONS = 4
"""Newest actions, with the frames that they led through, from which each plan's world begins."""
PLAN: dict[str, Any] = {"horizon": 4, "num_samples": 32, "num_iterations": 3}
"""Options of `MPCPolicy` for tasks."""


class ReplanningPolicy:
    """`MPCPolicy` in an imagined world that begins anew, before each action, from what the real one showed so far.

    Args:
        imagined: where plans are made, a world of the same id.
        world: where they are carried out; its ``info`` tells the frames and, where there are such, the speed and the
            path to follow.
        goal: a picture uint8 (H, W, 3) to bring about, None for the task.
        options: of `MPCPolicy`, on top of ``PLAN``; the optimiser is "icem", or "cem" where actions are keys.
    """

    def __init__(
        self,
        imagined: gymnasium.Env[Any, Any],
        world: LastInfo,
        *,
        goal: np.ndarray | None = None,
        **options: Any,
    ) -> None:
        self.imagined, self.world, self.goal = imagined, world, goal
        optimizer = "cem" if isinstance(imagined.action_space, gymnasium.spaces.Discrete) else "icem"
        self.planner = MPCPolicy(imagined, **{"optimizer": optimizer} | PLAN | options)
        self.reset(0)

    def reset(self, seed: int | None = None) -> ReplanningPolicy:
        """Forget the last episode; the seed decides what the planner tries."""
        self.planner.reset(seed)
        self._frames: np.ndarray | None = None
        self._actions: list[np.ndarray] = []
        self._num_steps = 0
        return self

    def act(self, observation: Any) -> Any:
        """The first action of a plan from here; the observation is not looked at, since ``info`` tells its frames."""
        told: Mapping[str, Any] = self.world.info
        shown = told["frames"]
        if self._frames is None:
            self._frames = shown[-1:]
        else:
            self._frames = np.concatenate([self._frames, shown])[-KNOWN_ACTIONS * len(shown) - 1 :]
        path = path_ahead(told["path"], told["pose"], self._num_steps) if "path" in told else None
        action = self.plan_from(self._frames, self._actions, speed=told.get("speed"), path=path)
        self._actions = [*self._actions, self._physical(action)][-KNOWN_ACTIONS:]
        self._num_steps += 1
        return action

    def plan_from(
        self,
        frames: np.ndarray,
        actions: Sequence[np.ndarray],
        *,
        speed: float | None = None,
        path: np.ndarray | None = None,
    ) -> Any:
        """The first action of a plan after frames uint8 (4 N + 1, H, W, 3) and the N actions (A,) between them.

        ``speed`` is in m/s; ``path`` (T + 1, 4, 4) begins with the pose of the last frame.
        """
        begin: dict[str, Any] = {"frames": frames, "goal": self.goal, "speed": speed, "path": path}
        if len(actions):
            begin["actions"] = np.stack(actions)
        observation, _ = self.imagined.reset(seed=0, options=begin)
        return self.planner.act(observation)

    def _physical(self, action: Any) -> np.ndarray:
        return self.planner.world.physical(np.asarray(action), ())


def path_ahead(path: np.ndarray, pose: np.ndarray, num_steps: int) -> np.ndarray:
    """What is left of a path (T + 1, 4, 4) after so many steps, from where they have led to (4, 4); its end stays."""
    left = path[min(num_steps + 1, len(path) - 1) :]
    return np.concatenate([pose[None], left])
