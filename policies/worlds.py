"""Imagined worlds and their real counterparts, with the same observations, ends and length of episodes."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch

import astra_env  # noqa: F401  registers the ids
from astra_env.envs import ENVIRONMENTS
from astra_env.models import WorldModel
from astra_env.simulators import make_simulator

BESIDE = ("speed", "pose", "next_pose")
"""What policies see of ``info`` besides pictures, where a world tells it."""
HISTORY = 16
"""Newest frames of a real episode that its latent is encoded from: four latents, more than the encoder remembers."""


def make_imagined(environment: str, **options: Any) -> LastInfo:
    """``gymnasium.make(environment, **options)`` that remembers what it told last."""
    return LastInfo(gymnasium.make(environment, **options))


def make_real(
    environment: str, world_model: WorldModel | None = None, *, num_steps: int | None = None, **options: Any
) -> LastInfo:
    """The simulator of an id as a world of ``num_steps``, by default the id's, which ends as the imagined one does.

    With a ``world_model``, it shows its latents; ``options`` go to the simulator.
    """
    simulator: gymnasium.Env[Any, Any] = Ending(make_simulator(environment, **options), environment, num_steps)
    if world_model is not None:
        simulator = Latents(simulator, world_model)
    return LastInfo(simulator)


class LastInfo(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Remembers the last ``info``, for experts, who know more than what is to be seen."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.info: dict[str, Any] = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the environment's."""
        observation, self.info = self.env.reset(seed=seed, options=options)
        return observation, self.info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment's."""
        observation, reward, terminated, truncated, self.info = self.env.step(action)
        return observation, reward, terminated, truncated, self.info


class Ending(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A simulator, whose episodes never end, with the ends of an id: success, failure, and its number of steps.

    Who follows a path, or is to stay somewhere, is done at the last step only.
    """

    def __init__(self, simulator: gymnasium.Env[Any, Any], environment: str, num_steps: int | None = None) -> None:
        super().__init__(simulator)
        self._spec, self._num_steps = ENVIRONMENTS[environment], 0
        self._last = self._spec.max_episode_steps if num_steps is None else num_steps

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the simulator's."""
        self._num_steps = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the simulator's, with the ends."""
        observation, reward, _, _, info = self.env.step(action)
        self._num_steps += 1
        over = bool(info["success"] or info.get("failure", False))
        over &= not (self._spec.follows_path or self._spec.dwells)
        return observation, reward, over, self._num_steps >= self._last, info


class SuccessAlone(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Tells whether the task is solved, and what policies see (``BESIDE``), for many simulators in one `SyncVectorEnv`.

    That puts what they tell into one array each, and simulators tell of scenes with different numbers of things.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the simulator's."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, _alone(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the simulator's."""
        *outcome, info = self.env.step(action)
        return *outcome, _alone(info)


def _alone(info: dict[str, Any]) -> dict[str, Any]:
    solved = bool(info["success"])
    told = {"success": solved, "is_success": solved}
    return told | {name: info[name] for name in BESIDE if name in info}


class Latents(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Shows the newest latent float32 (C, h, w) of a real world, as ``observation="latent"`` of an imagined one."""

    def __init__(self, env: gymnasium.Env[Any, Any], world_model: WorldModel) -> None:
        super().__init__(env)
        height, width = world_model.frame_size
        channels = world_model.transformer.config.in_channels
        self._autoencoder, self._device = world_model.autoencoder, world_model.device
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (channels, height // 8, width // 8), np.float32)
        self._frames = np.zeros((0, height, width, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The latent of the first frame."""
        _, info = self.env.reset(seed=seed, options=options)
        return self._see(self._frames[:0], info), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """The latent of the frames that the action has led through."""
        _, reward, terminated, truncated, info = self.env.step(action)
        return self._see(self._frames, info), reward, terminated, truncated, info

    @torch.no_grad()
    def _see(self, before: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        self._frames = np.concatenate([before, info["frames"]])[-HISTORY:]
        frames = torch.from_numpy(self._frames)[None].to(self._device)
        return self._autoencoder.encode(frames)[0, :, -1].float().cpu().numpy()
