"""What policies see of a world's latents: as they are or as models read them, with what pictures do not tell."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.envs import ENVIRONMENTS, SURE
from astra_env.kinematics import BicycleMotion
from astra_env.models.heads import head_folders
from astra_env.models.reward_model import FILE_NAME as REWARD_FILE
from astra_env.models.reward_model import RewardModel
from astra_env.models.target_model import FILE_NAME as TARGET_FILE
from astra_env.models.target_model import TargetModel, read_all

SPEED = 5.0
"""Metres in a second that policies see as 1."""
WAY = 0.2
"""Metres and radians that policies see as 1."""
TARGET, DOUBT = "target", "doubt"
"""What is remembered of a target: its place, and how much that is in doubt."""
FAR = 2.0
"""Metres that policies see as 1, of what may be across a room."""
AGEING = 1.01
"""By how much what is remembered is more in doubt a step later."""
PLACES = 6
"""Numbers of a model that tells a target's place and an end effector's."""

Told = Mapping[str, np.ndarray]
"""Some of ``worlds.BESIDE``, and what is remembered, with a row for each of N worlds."""
Beside = Callable[[Told], np.ndarray]
"""What N worlds tell beside pictures, as numbers (N, K) about 1 in size."""
AT_REST: Told = {
    "speed": np.zeros(1),
    "pose": np.eye(4)[None],
    "next_pose": np.eye(4)[None],
    TARGET: np.zeros((1, 3)),
}
"""What a world might tell, from which follows how many numbers are seen of it."""


def speed_beside(told: Told) -> np.ndarray:
    """The speed (N, 1) of a vehicle, which one latent hardly shows."""
    return told["speed"][:, None] / SPEED


def way_beside(told: Told) -> np.ndarray:
    """The way (N, 6) to the next pose of a path, seen from the present one: along x, y, z, and axis times angle."""
    step = geometry.relative(told["pose"], told["next_pose"])
    return np.concatenate([step[:, :3, 3], geometry.matrix_to_axis_angle(step[:, :3, :3])], axis=1) / WAY


class View(Protocol):
    """From latents (N, C, h, w) and what is told beside them to what a policy sees (N, ...)."""

    def space(self, latents: Box) -> Box:
        """What is seen of one world, by the space of its latents (C, h, w)."""

    def remember(self, latents: np.ndarray, told: Told) -> dict[str, np.ndarray]:
        """What of N episodes goes with all that follows, a row for each: nothing, unless it says.

        What was remembered before is among what is told, unless episodes begin.
        """
        return {}

    def __call__(self, latents: np.ndarray, told: Told) -> np.ndarray:
        """See the class."""


class Planes(View):
    """Latents with one more channel for each number that is told beside them."""

    def __init__(self, beside: Beside) -> None:
        self.beside = beside

    def space(self, latents: Box) -> Box:
        """(C + K, h, w)."""
        channels, height, width = latents.shape
        return _unbounded(channels + self.beside(AT_REST).shape[1], height, width)

    def __call__(self, latents: np.ndarray, told: Told) -> np.ndarray:
        """float32 (N, C + K, h, w)."""
        numbers = self.beside(told).astype(np.float32)
        planes = np.broadcast_to(numbers[:, :, None, None], (*numbers.shape, *latents.shape[2:]))
        return np.concatenate([latents, planes], axis=1)


class Numbers(View):
    """What is told beside latents, and nothing of them."""

    def __init__(self, beside: Beside) -> None:
        self.beside = beside

    def space(self, latents: Box) -> Box:
        """(K,)."""
        return _unbounded(self.beside(AT_REST).shape[1])

    def __call__(self, latents: np.ndarray, told: Told) -> np.ndarray:
        """float32 (N, K)."""
        return self.beside(told).astype(np.float32)


class Readings(View):
    """What models that were learned from recordings say of latents, what they say it by, and a vehicle's speed.

    Small enough to learn from quickly, and as much alike for real and for imagined latents as the models make it.

    Models that tell the place of a target say just that, and again by where it was when the episode began: an arm that
    has arrived hides what it was to reach, and a dream may carry it along.
    """

    def __init__(self, models: Sequence[RewardModel | TargetModel]) -> None:
        if not models:
            raise ValueError("There are 0 models, expected one or more that read latents.")
        self.models = list(models)
        self.placing = [model for model in models if isinstance(model, TargetModel) and len(model.scale) == PLACES]

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str = "cpu") -> Readings:
        """The models that `astra-env fit-target` and `fit-reward` wrote."""
        return cls([kind.load(path.parent, torch.device(device)) for path, kind in _files(Path(folder))])

    def space(self, latents: Box) -> Box:
        """(D,)."""
        shown = self(np.zeros((1, *latents.shape), np.float32), AT_REST)
        return _unbounded(shown.shape[1])

    @torch.no_grad()
    def remember(self, latents: np.ndarray, told: Told) -> dict[str, np.ndarray]:
        """Where the target is, in metres (N, 3) as poses tell places."""
        if not self.placing or TARGET in told:
            return {}
        given = torch.from_numpy(latents).to(self.placing[0].scale.device)
        offsets = read_all(self.placing, given)[0][:, :3].cpu().numpy()
        return {TARGET: told["pose"][:, :3, 3] + offsets}

    @torch.no_grad()
    def __call__(self, latents: np.ndarray, told: Told) -> np.ndarray:
        """float32 (N, D)."""
        device = next(self.models[0].parameters()).device
        speeds = np.asarray(told.get("speed", np.zeros(len(latents))))
        given, driven = torch.from_numpy(latents).to(device), torch.from_numpy(speeds).float().to(device)
        said = [part.cpu().numpy() for model in self.models for part in self._read(model, given, driven)]
        said.append(speeds[:, None] / SPEED)
        if self.placing:
            said.append((told[TARGET] - told["pose"][:, :3, 3]) / WAY)
        return np.concatenate(said, axis=1, dtype=np.float32)

    def _read(self, model: RewardModel | TargetModel, latents: Tensor, speeds: Tensor) -> list[Tensor]:
        """What a model says, about 1 in size, and what it says it by, unless it tells a place."""
        embedded = model.embed(latents, speeds) if isinstance(model, RewardModel) else model.embed(latents)
        return [model.features[-1](embedded)] + [embedded] * (model not in self.placing)


class Sightings(View):
    """Where a thing was when models that tell their doubts were surest of it, as the camera sees the place now.

    Seven numbers: the way to the place along x, y and z; its direction, of length 1; and 1. They are all 0 as long as
    it has not been seen, by ``SURE``.
    """

    def __init__(self, models: Sequence[TargetModel]) -> None:
        self.models = list(models)

    def space(self, latents: Box) -> Box:
        """(7,)."""
        return _unbounded(7)

    @torch.no_grad()
    def remember(self, latents: np.ndarray, told: Told) -> dict[str, np.ndarray]:
        """The place, in metres (N, 3) as poses tell places, and its doubt (N,), which grows until it is seen better."""
        given = torch.from_numpy(latents).to(self.models[0].scale.device)
        offsets, doubts = (part.double().cpu().numpy() for part in read_all(self.models, given))
        poses = told["pose"]
        places = poses[:, :3, 3] + np.einsum("nij,nj->ni", poses[:, :3, :3], offsets)
        if DOUBT not in told:
            return {TARGET: places, DOUBT: doubts}
        known = told[DOUBT] * AGEING
        better = doubts < known
        return {TARGET: np.where(better[:, None], places, told[TARGET]), DOUBT: np.where(better, doubts, known)}

    def __call__(self, latents: np.ndarray, told: Told) -> np.ndarray:
        """float32 (N, 7)."""
        poses, seen = told["pose"], told[DOUBT] < SURE
        way = np.einsum("nji,nj->ni", poses[:, :3, :3], told[TARGET] - poses[:, :3, 3])
        direction = way / np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-6)
        return seen[:, None] * np.concatenate([way / FAR, direction, np.ones((len(way), 1))], axis=1, dtype=np.float32)


def _files(folder: Path) -> list[tuple[Path, type[RewardModel] | type[TargetModel]]]:
    """The files of a folder's models, in a fixed order."""
    kinds = ((TARGET_FILE, TargetModel), (REWARD_FILE, RewardModel))
    return [(entry / name, kind) for name, kind in kinds for entry in head_folders(folder, name)]


def _unbounded(*shape: int) -> Box:
    return Box(-np.inf, np.inf, shape, np.float32)


def view_of(environment: str, observation: str, folder: Path | None, device: str = "cpu") -> View | None:
    """How a policy sees the worlds of an id: as models of a folder read them, else a car's with its speed.

    Of a path, which no model reads, it sees the way to the next pose; that alone, where it is not to see latents.
    """
    if observation != "latent":
        return None
    spec = ENVIRONMENTS[environment]
    drives = isinstance(ACTION_MODALITIES[spec.modality].kinematics, BicycleMotion)
    if spec.follows_path:
        return Planes(way_beside) if folder is None else Numbers(way_beside)
    if folder is not None:
        readings = Readings.load(folder, device)
        sights = [model for model in readings.models if isinstance(model, TargetModel) and model.doubts]
        return Sightings(sights) if sights else readings
    return Planes(speed_beside) if drives else None


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
