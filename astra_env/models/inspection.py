"""What happens in a world model during a step, for those who want to see it; an ordinary step does none of this."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from astra_env.models.state import WorldState
from astra_env.models.world_model import WorldModel


def routing_weights(
    world_model: WorldModel, actions: Tensor, modality: Sequence[str], speeds: Tensor | None = None
) -> Tensor:
    """Shares (B, K), 1 in all, in which the experts answer for actions (B, n, A), in physical units.

    Args:
        world_model: whose router decides.
        actions: of B worlds.
        modality: one name a row.
        speeds: (B,) in m/s, of vehicles before the first action; None is standstill.
    """
    encoded = world_model.normalise(actions.to(world_model.device), modality, speeds)
    encoded = encoded.to(world_model.transformer.head.weight.dtype)
    features = world_model.transformer.action_features(encoded, torch.ones_like(encoded[..., 0]), modality)
    routing = features.routing.float().mean(1)
    return routing / routing.sum(-1, keepdim=True)


def denoising_frames(world_model: WorldModel, state: WorldState, actions: Tensor, **sampling: Any) -> Tensor:
    """What each denoising step of the next chunk expects in the end, decoded: uint8 (B, steps, T, H, W, 3).

    The step is imagined for this, under the noise that follows from the state; arguments are `WorldModel.step`'s. The
    last frames are those of the step itself.
    """
    expected: list[Tensor] = []
    after = world_model.step(state, actions, watch=expected.append, **sampling)
    n = expected[0].shape[2]
    shown = [
        world_model.decode(dataclasses.replace(after, latents=torch.cat([after.latents[:, :, :-n], latents], dim=2)))
        for latents in expected
    ]
    return torch.stack([frames for _, frames in shown], dim=1)
