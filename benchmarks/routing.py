"""Which experts an action takes, and what becomes of a world whose actions take the wrong way."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from astra_env.models import WorldModel
from astra_env.models.action_experts import ActionExperts
from astra_env.models.inspection import routing_weights
from benchmarks.domain_table import Follower
from benchmarks.imagination import Bench, open_loop_frames, recorded_frames
from benchmarks.metrics import psnr


@torch.no_grad()
def expert_use(bench: Bench) -> list[float]:
    """Mean routing weight of each expert (K,) over a domain's actions; they add up to 1."""
    world_model, modality = bench.world_model, bench.heldout.modality
    total = torch.zeros(world_model.transformer.config.num_experts)
    speeds = torch.from_numpy(bench.speeds[:, 0]).to(world_model.device)
    for part, before in zip(bench.heldout.actions.split(256), speeds.split(256), strict=True):
        total += routing_weights(world_model, part, (modality,) * len(part), before).sum(0).cpu()
    return (total / total.sum()).tolist()


def misrouted(bench: Bench, other: str) -> Bench:
    """The same domain in a world that passes its actions, as the network reads them, through another's projector.

    Numbers beyond those that the projector takes are dropped, missing ones are 0.
    """
    world_model, own = copy.copy(bench.world_model), bench.heldout.modality
    world_model.modalities = {**world_model.modalities, other: world_model.modalities[own]}
    world_model.action_encodings = {**world_model.action_encodings, other: world_model.action_encodings[own]}
    return dataclasses.replace(
        bench, world_model=world_model, heldout=dataclasses.replace(bench.heldout, modality=other)
    )


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
        report[f"as {other}"] = measured(misrouted(bench, other))
    if isinstance(bench.world_model.transformer.action_experts, ActionExperts):
        shared = len(use) - len(bench.world_model.transformer.config.added_modalities)  # the others are not open to all
        rare = min(range(shared), key=lambda index: use[index])
        with forced_expert(bench.world_model, rare):
            report[f"expert {rare}, its least used"] = measured(bench)
    return report
