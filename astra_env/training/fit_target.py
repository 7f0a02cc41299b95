"""`astra-env fit-target DATA --task ID`: where a task's target is, learned from recorded episodes in minutes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from astra_env.datasets.recorded import RecordedDataset
from astra_env.envs import ENVIRONMENTS, SURE
from astra_env.flags import flag
from astra_env.models import WorldModel
from astra_env.models.target_model import TargetModel, read_all
from astra_env.simulators import TARGETS, Target
from astra_env.training.episodes import FRAMES_PER_ACTION, Episodes, encode_episodes, load_episodes
from astra_env.training.fit_goal import encode_stills
from astra_env.writing import write_json


@dataclass(frozen=True)
class FitTargetConfig:
    """One fit; each field is a flag of `astra-env fit-target` and says in its metadata what it means."""

    data: str  # recorded episodes: a folder of train/ and heldout/
    task: str = flag(dataclasses.MISSING, "id whose target is looked for")
    out: str = flag(
        dataclasses.MISSING, "folder of the models; a checkpoint's domain folder gives that world the reward"
    )
    world_model: str = flag("astra-tiny", "bundled name or checkpoint folder whose autoencoder reads the frames")
    num_heads: int = flag(2, "models that begin from different weights; their mean is taken")
    num_steps: int = flag(4000, "steps of training of each")
    batch_size: int = flag(256, "latents of a batch")
    episodes: int = flag(1500, "recorded episodes to learn from and to test on, at most")
    seed: int = flag(0, "of the weights and the batches")

    def __post_init__(self) -> None:
        if min(self.num_heads, self.num_steps, self.batch_size, self.episodes) < 1:
            raise ValueError(
                f"num_heads is {self.num_heads}, num_steps {self.num_steps}, batch_size {self.batch_size} and episodes "
                f"{self.episodes}, expected at least 1 of each."
            )
        if self.task not in TARGETS:
            raise ValueError(f"task is {self.task!r}, expected one of {sorted(TARGETS)}.")


def fit_target(config: FitTargetConfig) -> dict[str, Any]:
    """Write OUT/target_model.safetensors, further models in OUT/head_I, and OUT/targets.json, which it returns.

    It tells, on held-out episodes, how many metres each point of the target is from where it is thought to be (mean of
    all moments), in what share of them it is found as nearly as `Target.near` says, the same where one still picture is
    all that is seen, and how far always guessing the mean would be off. Where a target may be out of sight, it tells
    in what share of the moments the model is sure, and how far off it is in these.
    """
    began = time.perf_counter()
    world_model = WorldModel.from_pretrained(config.world_model)
    train, heldout = (read_examples(config, world_model, split) for split in ("train", "heldout"))
    models = [train_target_model(train, config, index) for index in range(config.num_heads)]
    report = measure(models, heldout, train[1].mean(0), TARGETS[config.task])
    report |= {"num_heads": config.num_heads, "seconds": round(time.perf_counter() - began, 1)}
    out = Path(config.out)
    for index, model in enumerate(models):
        folder = out / f"head_{index}" if index else out
        folder.mkdir(parents=True, exist_ok=True)
        model.save(folder)
    write_json(out / "targets.json", report)
    return report


def measure(
    models: Sequence[TargetModel], examples: tuple[Tensor, Tensor, Tensor], guess: Tensor, target: Target
) -> dict[str, Any]:
    """How far models are off on examples, as `fit_target` tells it; guess (P, 2 or 3) is the mean of other ones."""
    latents, points, still = examples
    report: dict[str, Any] = {"num_latents": len(latents), "metres_guessing": _metres(guess, points).mean(0).tolist()}
    for name, part in (("recorded", ~still), ("still", still)):
        told, doubts = _told(models, latents[part], guess.shape[-1])
        errors = _metres(told, points[part])
        report[f"{name}_metres_error"] = errors.mean(0).tolist()
        report[f"{name}_found"] = (errors < target.near).float().mean(0).tolist()
        if target.hides:
            sure = doubts < SURE
            report[f"{name}_sure"] = sure.float().mean().item()
            report[f"{name}_metres_error_where_sure"] = errors[sure].mean(0).tolist() if sure.any() else None
    return report


def train_target_model(examples: tuple[Tensor, Tensor, Tensor], config: FitTargetConfig, index: int = 0) -> TargetModel:
    """One model, from latents (N, C, h, w) and metres (N, P, 2 or 3)."""
    latents, points, _ = examples
    offsets = points.flatten(1)
    generator = torch.Generator().manual_seed(config.seed + index)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed + index)
        sizes = {"latent_size": latents.shape[-1], "num_outputs": offsets.shape[1]}
        model = TargetModel(latents.shape[1], **sizes, doubts=TARGETS[config.task].hides)
    model.centre.copy_(offsets.mean(0))
    model.scale.copy_(offsets.std(0).clamp(min=1e-4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, config.num_steps + 1)
    steps = tqdm(range(config.num_steps), desc=f"target, {index + 1} of {config.num_heads}", unit="step", mininterval=5)
    for _ in steps:
        rows = torch.randint(len(latents), (config.batch_size,), generator=generator)
        noise = 0.3 * torch.rand(config.batch_size, 1, 1, 1, generator=generator)
        inputs = latents[rows] + noise * torch.randn(rows.shape + latents.shape[1:], generator=generator)
        loss = _loss(model, inputs, offsets[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def _loss(model: TargetModel, latents: Tensor, offsets: Tensor) -> Tensor:
    """Of metres alone; or minus the logarithm of how likely they are, by what the model tells and doubts."""
    metres, doubts = model.read(latents)
    if not model.doubts:
        return F.smooth_l1_loss(metres / model.scale, offsets / model.scale, beta=0.1)
    return F.gaussian_nll_loss(metres, offsets, doubts.square()[:, None].expand_as(metres))


def read_examples(config: FitTargetConfig, world_model: WorldModel, split: str) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (N, C, h, w), metres to the target (N, P, 2 or 3), and which latents are of pictures, bool (N,)."""
    episodes = load_episodes(config.data, split, config.episodes, frame_size=world_model.frame_size[0])
    if ENVIRONMENTS[config.task].modality != episodes.modality:
        raise ValueError(
            f"{config.data} has {episodes.modality} actions, expected those of {config.task}; choose other recordings."
        )
    latents = encode_episodes(world_model.autoencoder, episodes).flatten(0, 1)
    stills = encode_stills(world_model.autoencoder, episodes).flatten(0, 1)
    dataset, target, told = RecordedDataset(config.data, split), TARGETS[config.task], []
    for index in range(len(episodes)):
        arrays = dataset.arrays(index, *target.arrays)
        told.append(target.offsets({name: _moments(arrays[name], latents, episodes, name) for name in target.arrays}))
    points = torch.from_numpy(np.concatenate(told)).float()
    still = torch.arange(2 * len(latents)) >= len(latents)
    return torch.cat([latents, stills]), torch.cat([points, points]), still


def _moments(array: np.ndarray, latents: Tensor, episodes: Episodes, name: str) -> np.ndarray:
    """One row for each latent of an episode, of an array with one for each or one for each frame."""
    count = len(latents) // len(episodes)
    if len(array) not in (count, FRAMES_PER_ACTION * (count - 1) + 1):
        raise ValueError(
            f"{name} of {episodes.name} has {len(array)} rows, expected {count}, one for each {FRAMES_PER_ACTION} "
            "frames; record it at 5 Hz."
        )
    return array[:: (len(array) - 1) // (count - 1)]


@torch.no_grad()
def _told(models: Sequence[TargetModel], latents: Tensor, num_dims: int) -> tuple[Tensor, Tensor]:
    """Points (N, P, num_dims) and how much they are in doubt (N,)."""
    metres, doubts = zip(*(read_all(models, part) for part in latents.split(512)), strict=True)
    return torch.cat(metres).unflatten(1, (-1, num_dims)), torch.cat(doubts)


def _metres(places: Tensor, truth: Tensor) -> Tensor:
    """Metres (N, P) between points."""
    return (places - truth).norm(dim=-1)
