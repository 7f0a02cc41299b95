"""WorldState: all that a batch of worlds needs to continue, as one immutable value."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from astra_env.models.autoencoder import Cache
from astra_env.models.history import HistoryLayout


@dataclass(frozen=True)
class WorldState:
    """B worlds. Noise is a function of `seeds` and `num_steps`, so nothing else is needed to continue exactly."""

    latents: Tensor  # (B, C, S, h, w): the history's slots, oldest first; the last is the newest latent
    actions: Tensor  # (B, S, A): normalised action that led to each slot
    action_present: Tensor  # (B, S): 1 where that action is known
    lengths: Tensor  # long (B,): latents seen, the first included
    undecoded: Tensor  # long (B,): newest latents that the decoder has not seen
    seeds: Tensor  # long (B,)
    num_steps: Tensor  # long (B,): chunks imagined
    poses: Tensor  # float64 (B, 4, 4): where actions have led what acts, seen from the start of the episode
    speeds: Tensor  # float64 (B,): m/s that actions have led vehicles to; 0 for what has none
    prompt_embeds: Tensor  # (B, L, D): the prompt, embedded; (B, 0, 0) in worlds that take no text
    decoder_cache: Cache  # tensors with B rows
    modality: tuple[str, ...]  # one name a row

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def newest(self) -> Tensor:
        """The newest latent of each world (B, C, h, w)."""
        return self.latents[:, :, -1]

    @property
    def forked(self) -> bool:
        """Whether all worlds are still the copies of one that `repeat` made, in its memory."""
        return len(self) > 1 and self.latents.stride(0) == self.actions.stride(0) == self.lengths.stride(0) == 0

    def _map(self, function: Any) -> dict[str, Any]:
        values: dict[str, Any] = {f.name: function(getattr(self, f.name)) for f in fields(self)[:-2]}
        values["decoder_cache"] = tuple(function(entry) for entry in self.decoder_cache)
        return values

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> WorldState:
        """The chosen worlds; an integer keeps the batch dimension."""
        index = torch.arange(len(self))[[rows] if isinstance(rows, int) else rows]
        return WorldState(
            **self._map(lambda t: t[index.to(t.device)]), modality=tuple(self.modality[i] for i in index.tolist())
        )

    def repeat(self, n: int) -> WorldState:
        """Each world n times in a row: (B n) worlds. Copies of a single world share its memory until they diverge."""
        if len(self) == 1:
            return WorldState(**self._map(lambda t: t.expand(n, *t.shape[1:])), modality=self.modality * n)
        index = torch.arange(len(self)).repeat_interleave(n)
        return self[index]

    def replaced(self, rows: Sequence[int], worlds: WorldState) -> WorldState:
        """The same batch with other worlds in some rows."""
        order = list(range(len(self)))
        for index, row in enumerate(rows):
            order[row] = len(self) + index
        return WorldState.cat([self, worlds])[order]

    @staticmethod
    def cat(states: Sequence[WorldState]) -> WorldState:
        """Worlds of several states in one batch."""
        values: dict[str, Any] = {
            f.name: torch.cat([getattr(state, f.name) for state in states]) for f in fields(WorldState)[:-2]
        }
        caches = zip(*(state.decoder_cache for state in states), strict=True)
        return WorldState(
            **values,
            decoder_cache=tuple(torch.cat(entries) for entries in caches),
            modality=tuple(name for state in states for name in state.modality),
        )

    def detach(self) -> WorldState:
        """The same worlds without the graph of gradients."""
        return WorldState(**self._map(Tensor.detach), modality=self.modality)

    def noise(self, n: int, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Standard normal (B, C, n, h, w) for the next n latents.

        It is drawn on the CPU world by world, from its generator or else from its seed and step count, so that it
        depends on nothing else.
        """
        C, _, h, w = self.latents.shape[1:]
        if generators is None:
            pairs = zip(self.seeds.tolist(), self.num_steps.tolist(), strict=True)
            generators = [torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63) for seed, step in pairs]
        if len(generators) != len(self):
            raise ValueError(f"There are {len(generators)} generators for {len(self)} worlds, expected one for each.")
        noise = [torch.randn(C, n, h, w, generator=generator) for generator in generators]
        return torch.stack(noise).to(self.latents.device)

    def advance(self, latents: Tensor, actions: Tensor, layout: HistoryLayout) -> WorldState:
        """The worlds after latents (B, C, n, h, w) were generated under normalised actions (B, n, A)."""
        n = latents.shape[2]
        return replace(
            self,
            latents=layout.push(self.latents, latents, dim=2),
            actions=layout.push(self.actions, actions, dim=1),
            action_present=layout.push(self.action_present, torch.ones_like(actions[:, :, 0]), dim=1),
            lengths=self.lengths + n,
            undecoded=self.undecoded + n,
            num_steps=self.num_steps + 1,
        )

    def _named(self) -> dict[str, Tensor]:
        """All tensors by name, on the CPU."""
        tensors = self._map(lambda t: t.detach().cpu().contiguous())
        cache = tensors.pop("decoder_cache")
        return tensors | {f"decoder_cache.{index}": entry for index, entry in enumerate(cache)}

    def digest(self) -> str:
        """SHA-256 of every bit of the worlds: equal for equal worlds alone."""
        content = hashlib.sha256(repr(self.modality).encode())
        for name, tensor in self._named().items():
            content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            content.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
        return content.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, exact, with the names in its JSON header."""
        path = Path(path)
        tensors = {name: tensor.clone() for name, tensor in self._named().items()}  # the file takes no shared memory
        partial = path.with_name(path.name + ".partial")
        save_file(tensors, partial, metadata={"world_state": json.dumps({"modality": self.modality})})
        os.replace(partial, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> WorldState:
        """Read what `save` wrote; ValueError when the file is not a whole WorldState."""
        try:
            with safe_open(path, "pt") as file:
                modality = tuple(json.loads(file.metadata()["world_state"])["modality"])
                # copied: tensors lie unaligned in the file, and what is computed from such rounds differently
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            count = sum(name.startswith("decoder_cache.") for name in tensors)
            cache = tuple(tensors.pop(f"decoder_cache.{index}") for index in range(count))
            return WorldState(**tensors, decoder_cache=cache, modality=modality)
        except FileNotFoundError:
            raise FileNotFoundError(f"There is no world state at {path}; expected a file that save() wrote.") from None
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a whole WorldState file ({error}); save the state again.") from error
