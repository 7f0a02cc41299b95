"""Which experts an action takes, and what becomes of a world whose actions take the wrong way."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from astra_env.models import WorldModel, WorldState
from astra_env.models.action_experts import ActionExperts
from astra_env.models.autoencoder import VideoAutoencoder
from benchmarks.domain_table import Follower
from benchmarks.imagination import Bench, open_loop_frames, recorded_frames
from benchmarks.metrics import psnr


@torch.no_grad()
def expert_use(world_model: WorldModel, actions: Tensor, modality: str) -> list[float]:
    """Mean routing weight of each expert (K,) over physical actions (E, N, A) of one modality; they add up to 1."""
    total = torch.zeros(world_model.transformer.config.num_experts)
    dtype = world_model.transformer.head.weight.dtype
    for part in actions.split(256):
        encoded = world_model.normalise(part.to(world_model.device), (modality,) * len(part)).to(dtype)
        routing = world_model.transformer.action_features(
            encoded, torch.ones_like(encoded[..., 0]), (modality,) * len(part)
        ).routing
        total += routing.float().sum((0, 1)).cpu()
    return (total / total.sum()).tolist()


class Misrouted:
    """A world model whose actions, as the network reads them, pass through the projector of another modality."""

    def __init__(self, world_model: WorldModel, own: str, other: str) -> None:
        if set(world_model.action_encodings.values()) != {"bounds"}:
            raise ValueError(f"Misrouting needs actions encoded by their bounds, not {world_model.action_encodings}.")
        self.world_model, self.own, self.other = world_model, own, world_model.modalities[other]
        self.modalities = world_model.modalities

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.world_model.device

    @property
    def autoencoder(self) -> VideoAutoencoder:
        """The world model's own."""
        return self.world_model.autoencoder

    def init_state(self, frames: Tensor, modality: str, actions: Tensor) -> WorldState:
        """As `WorldModel.init_state`; the history's actions, too, will be read as those of the other modality."""
        state = self.world_model.init_state(frames, modality, actions=actions)
        return dataclasses.replace(state, modality=(self.other.name,) * len(state))

    def read_as_other(self, actions: Tensor) -> Tensor:
        """Actions (B, A) of their own modality -> those of the other that the network reads alike.

        Numbers beyond the other modality's fields are dropped, missing ones are 0 as the network reads them.
        """
        encoded = self.world_model.normalise(actions[:, None], (self.own,) * len(actions))[:, 0]
        low, high = (torch.tensor(bound) for bound in (self.other.low, self.other.high))
        return low + (encoded[:, : len(low)] + 1) / 2 * (high - low)

    def step(self, state: WorldState, actions: Tensor, **sampling: Any) -> WorldState:
        """As `WorldModel.step` under actions (B, A) in the units of their own modality."""
        return self.world_model.step(state, self.read_as_other(actions), **sampling)

    def imagine(self, state: WorldState, actions: Tensor, **sampling: Any) -> WorldState:
        """As `WorldModel.imagine`."""
        for action in actions.unbind(1):
            state = self.step(state, action, **sampling)
        return state

    def decode(self, state: WorldState) -> tuple[WorldState, Tensor]:
        """As `WorldModel.decode`."""
        return self.world_model.decode(state)


@contextmanager
def forced_expert(world_model: WorldModel, expert: int) -> Iterator[None]:
    """All actions take one expert, whatever the router says."""
    experts = world_model.transformer.action_experts
    if not isinstance(experts, ActionExperts):
        raise ValueError("Only a learned router can be overruled; this world model's routing is fixed.")

    def overrule(router: torch.nn.Module, inputs: tuple[Tensor, ...], scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -1e4)
        forced[..., expert] = 0
        return forced

    handle = experts.router.register_forward_hook(overrule)
    try:
        yield
    finally:
        handle.remove()


def wrong_routing(
    bench: Bench, follower: Follower, names: Sequence[str], *, episodes: int, starts: int, use: Sequence[float]
) -> dict[str, Any]:
    """Prediction and obedience with the right routing, through other modalities' projectors, and by a rare expert.

    Args:
        bench: the domain.
        follower: measures whether actions are followed.
        names: the actions that it holds.
        episodes: held-out episodes whose prediction is measured.
        starts: starts of each held action.
        use: mean weight of each expert over this domain's actions; the least used one is forced.
    """
    own = bench.heldout.modality
    rows = torch.arange(min(episodes, len(bench.heldout)))

    def measured(shown: Bench) -> dict[str, Any]:
        truth, video = recorded_frames(bench, rows), open_loop_frames(shown, rows, rows)
        horizons = [k for k in (1, 2, 5, 10) if k <= bench.horizon]
        followed = [follower.follow(shown, name, starts) for name in names]
        ways = [entry["right_way"] for entry in followed if entry["num_starts"]]
        return {
            "horizons": horizons,
            "psnr": [psnr(video[:, 4 * k - 4 : 4 * k], truth[:, 4 * k - 4 : 4 * k]) for k in horizons],
            "right_way": sum(ways) / len(ways) if ways else None,
        }

    report = {"right": measured(bench)}
    for other in sorted(bench.world_model.modalities.keys() - {own}):
        misrouted: Any = Misrouted(bench.world_model, own, other)
        report[f"as {other}"] = measured(dataclasses.replace(bench, world_model=misrouted))
    if isinstance(bench.world_model.transformer.action_experts, ActionExperts):
        shared = len(use) - len(bench.world_model.transformer.config.added_modalities)  # the others are not open to all
        rare = min(range(shared), key=lambda index: use[index])
        with forced_expert(bench.world_model, rare):
            report[f"expert {rare}, its least used"] = measured(bench)
    return report
