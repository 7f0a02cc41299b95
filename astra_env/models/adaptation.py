"""A further action modality for a trained world: a projector and an expert of its own, everything else as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from astra_env.actions import ACTION_MODALITIES
from astra_env.models.action_encoding import encoded_width, usual_encoding
from astra_env.models.action_experts import ActionExperts
from astra_env.models.transformer import AstraTransformer
from astra_env.models.world_model import WorldModel

OPENNESS = 2.0
"""Bias with which the router begins to send a new modality to its own expert."""


def with_modality(world_model: WorldModel, name: str) -> WorldModel:
    """The same world with one more modality, a key of ``ACTION_MODALITIES``; what it knew computes as before.

    ValueError for a modality that it has or that has no table row, and for weights with fixed routing.
    """
    config = world_model.transformer.config
    if name not in ACTION_MODALITIES or name in world_model.modalities:
        known = sorted(world_model.modalities)
        raise ValueError(
            f"{name!r} is no new modality: it needs a row in ACTION_MODALITIES, and the world has {known}."
        )
    if config.routing != "learned":
        raise ValueError(f"The world's routing is {config.routing!r}, expected 'learned': its experts are fixed.")
    encoding = usual_encoding(ACTION_MODALITIES[name])
    transformer = AstraTransformer(
        replace(
            config,
            action_dims={**config.action_dims, name: encoded_width(encoding, ACTION_MODALITIES[name])},
            num_experts=config.num_experts + 1,
            added_modalities=(*config.added_modalities, name),
        )
    ).to(world_model.device)
    weights = transformer.state_dict() | world_model.transformer.state_dict()
    for key in _EXPERT_AXES:
        old, fresh = (
            world_model.transformer.action_experts.get_parameter(key),
            transformer.action_experts.get_parameter(key),
        )
        weights[f"action_experts.{key}"] = _extended(key, old, fresh, config.num_experts, config.num_layers)
    transformer.load_state_dict(weights)
    return WorldModel(
        world_model.autoencoder,
        transformer,
        frame_size=world_model.frame_size,
        sampling=world_model.sampling,
        autoencoder_config=world_model.autoencoder_config,
        action_encodings={**world_model.action_encodings, name: encoding},
        text_encoder=world_model.text_encoder,
    )


def freeze_but(transformer: AstraTransformer, modalities: Sequence[str]) -> None:
    """Let only the projectors, experts and router rows of added modalities learn; to be trained without decay."""
    experts = transformer.action_experts
    if not isinstance(experts, ActionExperts) or not set(modalities) <= set(experts.added) or not modalities:
        raise ValueError(f"{list(modalities)} cannot be trained alone, expected modalities that were added to a world.")
    transformer.requires_grad_(False)
    first = experts.num_experts - len(experts.added)
    own = torch.zeros(experts.num_experts, dtype=torch.bool)
    own[[first + experts.added.index(name) for name in modalities]] = True
    for name in modalities:
        experts.projectors[name].requires_grad_(True)
    for key, axis in _EXPERT_AXES.items():
        weight = experts.get_parameter(key)
        mask = _by_expert(key, torch.ones_like(weight), experts.num_experts, experts.num_layers).clone()
        mask.index_fill_(axis, torch.nonzero(~own)[:, 0].to(mask.device), 0.0)
        mask = mask.reshape(weight.shape)
        weight.requires_grad_(True)
        weight.register_hook(lambda gradient, mask=mask: gradient * mask)


_EXPERT_AXES = {"router.weight": 0, "router.bias": 0, "expert_in.weight": 1, "expert_in.bias": 1, "expert_out": 1}
"""Weights that hold all experts, and the axis of the experts in what `_by_expert` gives."""


def _by_expert(key: str, weight: Tensor, num_experts: int, num_layers: int) -> Tensor:
    """A view of a weight with an axis for the experts."""
    if key.startswith("router"):
        return weight
    return weight.reshape(num_layers, num_experts, -1, weight.shape[-1] if weight.ndim > 1 else 1)


def _extended(key: str, weight: Tensor, fresh: Tensor, num_experts: int, num_layers: int) -> Tensor:
    """Old experts' weights, then the new expert's fresh ones."""
    old, new = _by_expert(key, weight, num_experts, num_layers), _by_expert(key, fresh, num_experts + 1, num_layers)
    axis = _EXPERT_AXES[key]
    new = new.narrow(axis, num_experts, 1)
    if key == "router.bias":
        new = torch.full_like(new, OPENNESS)
    return torch.cat([old, new.to(old)], dim=axis).reshape(fresh.shape)
