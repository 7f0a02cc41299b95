"""Batches for fine-tuning: each row is a window of an encoded clip, and a function of its number alone.

Clip, length of the history, dropouts, noise and noise levels of row k come from a generator seeded with k. So no
generator has a state to keep, processes share a batch without a word, and a run that goes on sees what it would have.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astra_env.actions import ACTION_MODALITIES
from astra_env.models import WorldModel
from astra_env.models.autoencoder import TEMPORAL_COMPRESSION
from astra_env.models.flow_matching import add_noise, sample_training_sigmas, shifted_sigmas
from astra_env.training.shards import ClipEntry, Shards, weights_digest, write_shard

NUM_LEVELS = 1000  # of the table from which shifted noise levels are drawn


@dataclass(frozen=True)
class WindowRecipe:
    """What the rows look like. Probabilities are per row."""

    condition_frames: int = 128  # longest history, in frames; its length is uniform from 1
    single_latent: float = 0.15  # histories of one latent: worlds that start from a picture
    action_dropout: float = 0.05  # of the chunk's action, for guidance
    history_action_dropout: float = 0.0  # where history is attended to in full, it goes with the chunk's
    noisy_memory: float = 0.8  # noise-as-mask: probability,
    noisy_memory_sigmas: tuple[float, ...] = (0.0, 0.1)  # the range of its level,
    noisy_memory_slots: str = "all"  # and where: "1x" for the slots at full resolution
    noise_levels: str = "logit-normal"  # "shifted" for Wan's: uniform steps of the shifted table, weighted by a bell


@dataclass(frozen=True)
class Batch:
    """Rows as the transformer reads them."""

    slots: Tensor  # (B, C, S, h, w), noisy memory included
    lengths: Tensor  # long (B,)
    past: Tensor  # (B, S, A), encoded
    known: Tensor  # (B, S)
    actions: Tensor  # (B, n, A), encoded
    given: Tensor  # (B, n)
    target: Tensor  # (B, C, n, h, w)
    noise: Tensor  # as target
    sigma: Tensor  # (B,)
    weight: Tensor  # (B,): of the row's loss
    prompts: Tensor  # (B, L, D); (B, 0, 0) in worlds that take no text
    modality: tuple[str, ...]
    clips: tuple[str, ...]  # where the rows come from

    def to(self, device: torch.device) -> Batch:
        """The same rows elsewhere."""
        moved: dict[str, Any] = {name: value.to(device) for name, value in self.tensors.items()}
        return dataclasses.replace(self, **moved)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def save(self, path: Path) -> None:
        """Write one safetensors file, with modalities and clips in its header, for a look at what went wrong."""
        tensors = {name: value.cpu() for name, value in self.tensors.items()}
        write_shard(path, tensors, {"modality": "\n".join(self.modality), "clips": "\n".join(self.clips)})


class Windows:
    """Rows of a mixture of shard folders for one world model.

    Args:
        world_model: for whom the rows are: chunk size, history layout, encoding of actions.
        folders: of shards.
        shares: of the folders in the rows, (K,).
        recipe: what the rows look like.
        seed: of the first row.

    Raises:
        ValueError: shards of modalities that the world model lacks, or without clips that are long enough.
    """

    def __init__(
        self,
        world_model: WorldModel,
        folders: Sequence[Shards],
        shares: Sequence[float] | None,
        recipe: WindowRecipe,
        seed: int,
    ) -> None:
        check_actions(world_model, folders)
        self.world_model, self.folders, self.recipe, self.seed = world_model, folders, recipe, seed
        self.chunk_size, self.layout = world_model.sampling.chunk_size, world_model.layout
        found = [folder.split("train") for folder in folders]
        self.clips = [[clip for clip in clips if clip.num_latents > self.chunk_size] for clips in found]
        self.left_out = sum(map(len, found)) - sum(map(len, self.clips))  # too short for a chunk
        for folder, clips in zip(folders, self.clips, strict=True):
            if not clips:
                raise ValueError(
                    f"{folder.folder} has no training clip of more than {self.chunk_size} latents, which a chunk and "
                    "the latent before it take; encode longer recordings."
                )
        if shares is not None and (len(shares) != len(folders) or min(shares) <= 0):
            raise ValueError(f"weights are {list(shares)}, expected one positive number for each of {len(folders)}.")
        self.shares = torch.tensor(shares if shares is not None else [len(clips) ** 0.5 for clips in self.clips])

    def batch(self, rows: Iterable[int]) -> Batch:
        """The rows of these numbers."""
        parts = [self.row(row) for row in rows]
        fields = {
            name: torch.stack([part[name] for part in parts]) for name in parts[0] if name not in ("modality", "clips")
        }
        return Batch(
            **fields,
            modality=tuple(part["modality"] for part in parts),
            clips=tuple(part["clips"] for part in parts),
        )

    def row(self, number: int) -> dict[str, Any]:
        """One row: the fields of `Batch` without the batch dimension."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)
        index = int(torch.multinomial(self.shares, 1, generator=generator))
        folder, clips, recipe = self.folders[index], self.clips[index], self.recipe
        draw = torch.rand(7, generator=generator).tolist()
        clip = clips[int(draw[0] * len(clips))]
        frames = min(recipe.condition_frames, TEMPORAL_COMPRESSION * (clip.num_latents - self.chunk_size))
        length = 1 + int(draw[1] * frames) // TEMPORAL_COMPRESSION
        row = self.read(folder, clip, 1 if draw[2] < recipe.single_latent else length)
        given, known = draw[3] >= recipe.action_dropout, draw[4] >= recipe.history_action_dropout
        if self.world_model.transformer.config.history_attention == "full":
            known = known and given  # as guidance of the released weights drops them
        row["given"], row["known"] = row["given"] * given, row["known"] * known
        low, high = recipe.noisy_memory_sigmas
        level = (low + (high - low) * draw[6]) * (draw[5] < recipe.noisy_memory) * self._noisy_slots()
        row["slots"] = add_noise(row["slots"], torch.randn(row["slots"].shape, generator=generator), level[None])
        row["noise"] = torch.randn(row["target"].shape, generator=generator)
        row["sigma"], row["weight"] = NOISE_LEVELS[recipe.noise_levels](self.world_model.sampling.shift, generator)
        return row

    def read(self, folder: Shards, clip: ClipEntry, length: int) -> dict[str, Any]:
        """What a clip holds around a history of length latents from its beginning, as the transformer reads it."""
        n, S = self.chunk_size, self.layout.size
        skipped = max(0, length - S)  # between the first latent and those that the window still holds
        if skipped:
            ends = [folder.latents(clip, 0, 1), folder.latents(clip, skipped + 1, length + n)]
            latents = torch.cat(ends).transpose(0, 1)
        else:
            latents = folder.latents(clip, 0, length + n).transpose(0, 1)
        actions = encoded_actions(self.world_model, clip, folder.actions(clip), folder.speeds(clip))
        rest, rest_known = self._rest(clip)
        past = torch.cat([rest, actions[: length - 1]])
        known = torch.ones(length)
        known[0] = rest_known
        prompt = folder.prompt(clip) if self.world_model.transformer.config.text_dim is not None else None
        return {
            "slots": self.layout.windowed(latents[:, :-n], dim=1),
            "lengths": torch.tensor(length),
            "past": self.layout.windowed(past, dim=0),
            "known": self.layout.windowed(known, dim=0),
            "actions": actions[length - 1 : length - 1 + n],
            "given": torch.ones(n),
            "target": latents[:, -n:],
            "prompts": torch.zeros(0, 0) if prompt is None else prompt,
            "modality": clip.modality,
            "clips": clip.name,
        }

    def _rest(self, clip: ClipEntry) -> tuple[Tensor, float]:
        """What stands for the action before the first latent (1, A), and whether it counts as known."""
        if self.world_model.transformer.config.routing != "fixed":
            return torch.zeros(1, self.world_model.action_dim), 0.0
        width = self.world_model.modalities[clip.modality].action_dim
        return self.world_model.normalise(torch.zeros(1, 1, width), (clip.modality,))[0], 1.0

    def _noisy_slots(self) -> Tensor:
        """1 for the slots of the window that noise-as-mask reaches, (S,)."""
        if self.recipe.noisy_memory_slots == "all":
            return torch.ones(self.layout.size)
        reached = torch.zeros(self.layout.size)
        for name, start, count in self.layout.scales:
            reached[start : start + count] = float(name == self.recipe.noisy_memory_slots)
        return reached


def encoded_actions(world_model: WorldModel, clip: ClipEntry, actions: Tensor, speeds: Tensor | None) -> Tensor:
    """Actions (N, A) as the network reads them (N, action_dim), each at the speed that was recorded before it."""
    if speeds is None and world_model.action_encodings[clip.modality] == "arc":
        raise ValueError(
            f"{clip.name} has no speed, expected a vehicle's in m/s at every frame; record it beside the poses."
        )
    before = None if speeds is None else speeds[:-1]
    return world_model.normalise(actions[:, None], (clip.modality,) * len(actions), before)[:, 0]


def check_encoder(world_model: WorldModel, folders: Sequence[Shards]) -> None:
    """ValueError unless shards were encoded by this world model, which is on the CPU as it was stored."""
    expected = {
        "autoencoder": weights_digest(world_model.autoencoder),
        "frame_size": list(world_model.frame_size),
        "text_dim": world_model.transformer.config.text_dim,
    }
    for folder in folders:
        for name, value in expected.items():
            if folder.manifest[name] != value:
                raise ValueError(
                    f"{folder.folder} was encoded with another {name} ({folder.manifest[name]}) than the world model's "
                    f"({value}); encode the recordings for this world model."
                )


def check_actions(world_model: WorldModel, folders: Sequence[Shards]) -> None:
    """ValueError unless the world model knows the modalities of shards in the convention of their recordings."""
    for folder in folders:
        for name, described in folder.manifest["modalities"].items():
            if name not in world_model.modalities or ACTION_MODALITIES[name].to_json() != described:
                raise ValueError(
                    f"{folder.folder} holds {name!r} actions ({described}), expected one of "
                    f"{sorted(world_model.modalities)} in this release's convention."
                )


def _logit_normal(shift: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return sample_training_sigmas(1, generator)[0], torch.ones(())


def _shifted(shift: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    table, weights = _bell(shift)
    index = torch.randint(NUM_LEVELS, (1,), generator=generator)[0]
    return table[index], weights[index]


@functools.lru_cache(maxsize=4)
def _bell(shift: float) -> tuple[Tensor, Tensor]:
    """Shifted noise levels, and weights of mean 1 that are largest in their middle and zero at pure noise."""
    table = shifted_sigmas(NUM_LEVELS, shift)[:-1]
    bell = torch.exp(-2 * (table - 0.5).square())
    weights = bell - bell.min()
    return table, weights / weights.mean()


NOISE_LEVELS: Mapping[str, Callable[[float, torch.Generator], tuple[Tensor, Tensor]]] = {
    "logit-normal": _logit_normal,
    "shifted": _shifted,
}
"""Name -> draws a noise level and the weight of its loss, each a scalar, for a world model's shift."""
