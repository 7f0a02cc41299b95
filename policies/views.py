"""What policies see of a world's latents: with a car's speed beside them, or as models read them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv, VectorWrapper
from torch import Tensor

from astra_env.actions import ACTION_MODALITIES
from astra_env.envs import ENVIRONMENTS
from astra_env.kinematics import BicycleMotion
from astra_env.models.reward_model import FILE_NAME as REWARD_FILE
from astra_env.models.reward_model import RewardModel
from astra_env.models.target_model import FILE_NAME as TARGET_FILE
from astra_env.models.target_model import TargetModel
from policies.evaluate import Policy
from policies.worlds import LastInfo

SPEED = 5.0
"""Metres in a second that policies see as 1."""


class View(Protocol):
    """From latents (N, C, h, w) and speeds (N,) in m/s, 0 where nothing has one, to what a policy sees (N, ...)."""

    def space(self, latents: Box) -> Box:
        """What is seen of one world, by the space of its latents (C, h, w)."""

    def __call__(self, latents: np.ndarray, speeds: np.ndarray) -> np.ndarray:
        """See the class."""


class WithSpeed:
    """Latents with one more channel, the speed of a vehicle, which one latent hardly shows."""

    def space(self, latents: Box) -> Box:
        """(C + 1, h, w)."""
        channels, height, width = latents.shape
        return _unbounded(channels + 1, height, width)

    def __call__(self, latents: np.ndarray, speeds: np.ndarray) -> np.ndarray:
        """float32 (N, C + 1, h, w)."""
        plane = np.broadcast_to(speeds[:, None, None, None] / SPEED, (len(latents), 1, *latents.shape[2:]))
        return np.concatenate([latents, plane.astype(np.float32)], axis=1)


class Readings:
    """What models that were learned from recordings say of latents, and what they say it by; and the speed.

    Small enough to learn from quickly, and as much alike for real and for imagined latents as the models make it.
    """

    def __init__(self, models: Sequence[RewardModel | TargetModel]) -> None:
        if not models:
            raise ValueError("There are 0 models, expected one or more that read latents.")
        self.models = list(models)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str = "cpu") -> Readings:
        """The models that `astra-env fit-target` and `fit-reward` wrote."""
        return cls([kind.load(path.parent, torch.device(device)) for path, kind in _files(Path(folder))])

    def space(self, latents: Box) -> Box:
        """(D,)."""
        shown = self(np.zeros((1, *latents.shape), np.float32), np.zeros(1))
        return _unbounded(shown.shape[1])

    @torch.no_grad()
    def __call__(self, latents: np.ndarray, speeds: np.ndarray) -> np.ndarray:
        """float32 (N, D)."""
        device = next(self.models[0].parameters()).device
        given, driven = torch.from_numpy(latents).to(device), torch.from_numpy(speeds).float().to(device)
        said = [part for model in self.models for part in _readings(model, given, driven)]
        return torch.cat([*said, driven[:, None] / SPEED], dim=1).cpu().numpy()


def _files(folder: Path) -> list[tuple[Path, type[RewardModel] | type[TargetModel]]]:
    """The files of a folder's models, in a fixed order."""
    kinds = ((TARGET_FILE, TargetModel), (REWARD_FILE, RewardModel))
    return [
        (entry / name, kind)
        for name, kind in kinds
        for entry in (folder, *sorted(folder.glob("head_*")))
        if (entry / name).is_file()
    ]


def _readings(model: RewardModel | TargetModel, latents: Tensor, speeds: Tensor) -> tuple[Tensor, Tensor]:
    """What a model says, about 1 in size, and what it says it by."""
    embedded = model.embed(latents, speeds) if isinstance(model, RewardModel) else model.embed(latents)
    return model.features[-1](embedded), embedded


def _unbounded(*shape: int) -> Box:
    return Box(-np.inf, np.inf, shape, np.float32)


def view_of(environment: str, observation: str, folder: Path | None, device: str = "cpu") -> View | None:
    """How a policy sees the worlds of an id: as models of a folder read them, else a car's with its speed."""
    if observation != "latent":
        return None
    if folder is not None:
        return Readings.load(folder, device)
    drives = isinstance(ACTION_MODALITIES[ENVIRONMENTS[environment].modality].kinematics, BicycleMotion)
    return WithSpeed() if drives else None


def keep_models(source: Path, target: Path) -> None:
    """Copy the models of a folder that `Readings.load` reads, and nothing else of it, into one that does not exist."""
    Readings.load(source)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for path, _ in _files(source):
        kept = partial / path.relative_to(source)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, kept)
    os.replace(partial, target)


class Viewed(VectorWrapper):
    """Worlds of latents as a policy sees them."""

    def __init__(self, env: VectorEnv[Any, Any, Any], view: View) -> None:
        super().__init__(env)
        self._view, self._speeds = view, np.zeros(env.num_envs)
        space = env.single_observation_space
        assert isinstance(space, Box)
        self.single_observation_space = view.space(space)
        self.observation_space = _unbounded(env.num_envs, *self.single_observation_space.shape)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the worlds'; rows that are not reset keep their speed."""
        observations, info = self.env.reset(seed=seed, options=options)
        return self._shown(observations, info), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As the worlds'."""
        observations, rewards, terminations, truncations, info = self.env.step(actions)
        return self._shown(observations, info), rewards, terminations, truncations, info

    def _shown(self, observations: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        if "speed" in info:
            self._speeds = np.where(info["_speed"], info["speed"], self._speeds)
        return self._view(observations, self._speeds)


class Seeing:
    """A policy that is shown a world of latents by a view; the speed is what the world told last."""

    def __init__(self, policy: Policy, view: View, world: LastInfo) -> None:
        self.policy, self._view, self._world = policy, view, world

    def reset(self, seed: int | None = None) -> Seeing:
        """As the policy."""
        self.policy.reset(seed)
        return self

    def act(self, observation: np.ndarray) -> Any:
        """The policy's action for a latent (C, h, w)."""
        speed = np.array([self._world.info.get("speed", 0.0)])
        return self.policy.act(self._view(observation[None], speed)[0])
