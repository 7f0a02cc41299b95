"""Rows of a batch that walk along recorded episodes, on the model's own predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from astra_env.models import WorldModel


@dataclass(frozen=True)
class Recipe:
    """What the batches look like. Probabilities are per row."""

    batch_size: int = 64
    max_rollout: int = 8  # longest walk on the model's own predictions, in chunks
    growing: bool = True  # walks reach that length at the end of training; False for a model that can predict already
    action_dropout: float = 0.1  # of the chunk's action, for guidance
    history_action_dropout: float = 0.1
    single_latent: float = 0.15  # histories of one latent: worlds that start from a picture
    noisy_memory: float = 0.8  # noise-as-mask: probability, and the largest noise level
    noisy_memory_sigma: float = 0.1
    load_balancing: float = 0.01


@dataclass(frozen=True)
class Track:
    """One data set as the transformer trains on it."""

    name: str
    modality: str
    latents: Tensor  # (E, N + 1, C, h, w)
    actions: Tensor  # (E, N, A), normalised, A of the widest modality
    share: float  # of the rows


class Walkers:
    """Rows that walk along episodes of a mixture of data sets; the batch's memory between steps."""

    def __init__(self, world_model: WorldModel, tracks: Sequence[Track], recipe: Recipe) -> None:
        self.layout, self.tracks, self.recipe = world_model.layout, tuple(tracks), recipe
        self.chunk_size = world_model.sampling.chunk_size
        shortest = min(track.actions.shape[1] for track in tracks)
        if shortest < self.chunk_size:
            raise ValueError(
                f"Episodes of {shortest} latents after the first cannot teach chunks of {self.chunk_size}; give longer "
                "recordings or a smaller chunk_size."
            )
        self._shares = torch.tensor([track.share for track in tracks])
        B, (C, h, w), S = recipe.batch_size, tracks[0].latents.shape[2:], world_model.layout.size
        self.state: dict[str, Tensor] = {
            "slots": torch.zeros(B, C, S, h, w),
            "past": torch.zeros(B, S, world_model.action_dim),
            "present": torch.zeros(B, S),
            "lengths": torch.ones(B, dtype=torch.long),
            "track": torch.zeros(B, dtype=torch.long),
            "episode": torch.zeros(B, dtype=torch.long),
            "time": torch.zeros(B, dtype=torch.long),
            "remaining": torch.zeros(B, dtype=torch.long),
        }

    @property
    def modality(self) -> tuple[str, ...]:
        """Of each row."""
        return tuple(self.tracks[index].modality for index in self.state["track"].tolist())

    def restart(self, generator: torch.Generator, progress: float = 1.0) -> None:
        """Give each row that has walked its way a data set by its share, an episode, a time and the true history.

        The longest walk grows with progress (0 at the start of training, 1 at its end): long walks on the predictions
        of a model that cannot yet predict teach nothing.
        """
        longest = 1 + (progress if self.recipe.growing else 1.0) * (self.recipe.max_rollout - 1)
        for row in torch.nonzero(self.state["remaining"] == 0)[:, 0].tolist():
            index = int(torch.multinomial(self._shares, 1, generator=generator))
            self._place(row, index, longest, torch.rand(5, generator=generator).tolist())

    def _place(self, row: int, index: int, longest: float, draw: list[float]) -> None:
        state, recipe, track = self.state, self.recipe, self.tracks[index]
        last = track.actions.shape[1] - self.chunk_size  # time of the last chunk that the recording covers
        # a first latent shows one still picture, so worlds that start from a picture start at time 0
        episode, time = int(draw[0] * len(track.latents)), int(draw[1] * (last + 1))
        time = 0 if draw[2] < recipe.single_latent else time
        history = track.latents[episode, : time + 1].transpose(0, 1)[None]
        past = torch.zeros(1, time + 1, track.actions.shape[-1])
        present = torch.zeros(1, time + 1)
        if draw[3] >= recipe.history_action_dropout:
            past[0, 1:], present[0, 1:] = track.actions[episode, :time], 1
        state["slots"][row] = self.layout.windowed(history, dim=2)[0]
        state["past"][row] = self.layout.windowed(past, dim=1)[0]
        state["present"][row] = self.layout.windowed(present, dim=1)[0]
        state["lengths"][row], state["episode"][row], state["time"][row] = time + 1, episode, time
        state["track"][row] = index
        state["remaining"][row] = min(1 + int(draw[4] * longest), (last - time) // self.chunk_size + 1)

    def targets(self) -> tuple[Tensor, Tensor]:
        """The recorded next latents (B, C, n, h, w) and the actions (B, n, A) that lead to them."""
        places = list(zip(*(self.state[key].tolist() for key in ("track", "episode", "time")), strict=True))
        n = self.chunk_size
        latents = torch.stack([self.tracks[i].latents[episode, time + 1 : time + 1 + n] for i, episode, time in places])
        actions = torch.stack([self.tracks[i].actions[episode, time : time + n] for i, episode, time in places])
        return latents.transpose(1, 2), actions

    def advance(self, predicted: Tensor, actions: Tensor, present: Tensor) -> None:
        """Append the model's own latents (B, C, n, h, w) to the histories; present (B, 1) is 0 without actions."""
        state = self.state
        state["slots"] = self.layout.push(state["slots"], predicted, dim=2)
        state["past"] = self.layout.push(state["past"], actions, dim=1)
        state["present"] = self.layout.push(state["present"], present.expand(-1, self.chunk_size), dim=1)
        state["lengths"] = state["lengths"] + self.chunk_size
        state["time"] = state["time"] + self.chunk_size
        # without its action a row does not know where to go: its walk ends
        state["remaining"] = (state["remaining"] - 1) * (present[:, 0] > 0)
