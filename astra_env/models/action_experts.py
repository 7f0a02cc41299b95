"""Mixture of Action Experts (MoAE, arXiv 2512.08931): modality projectors, one learnable router, MLP experts per block.

Action features do not depend on the noise level, so they are computed once a chunk for all blocks in two products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class ActionFeatures:
    """What the experts add to the attention inputs, and how the router chose them."""

    values: Tensor  # (num_layers, B, G, D): G action groups (history groups or target latents)
    routing: Tensor  # (B, G, K): weight of each expert, zero outside the top-k

    def load_balancing_loss(self) -> Tensor:
        """1 when the experts share the rows equally, K when one takes all (Switch Transformer's form)."""
        share = self.routing.flatten(0, 1).mean(0)
        return len(share) * (share * share).sum() / share.sum() ** 2


class ActionExperts(nn.Module):
    """Routes action vectors of any modality through shared experts; starts neutral (its output is zero)."""

    def __init__(
        self,
        action_dims: Mapping[str, int],
        dim: int,
        num_layers: int,
        *,
        shared_dim: int = 64,
        hidden_dim: int = 64,
        num_experts: int = 4,
        top_k: int = 2,
    ) -> None:
        super().__init__()
        self.num_layers, self.num_experts, self.top_k = num_layers, num_experts, top_k
        # two extra inputs: whether there is an action at all, and whether it is the current (not a past) one
        self.projectors = nn.ModuleDict({name: nn.Linear(size + 2, shared_dim) for name, size in action_dims.items()})
        self.router = nn.Linear(shared_dim, num_experts)
        self.expert_in = nn.Linear(shared_dim, num_layers * num_experts * hidden_dim)
        self.expert_out = nn.Parameter(torch.zeros(num_layers, num_experts * hidden_dim, dim))

    def project(self, actions: Tensor, present: Tensor, modality: Sequence[str], *, current: bool) -> Tensor:
        """Bring normalised actions (B, G, A) to the shared width (B, G, F); absent ones become the null action.

        Rows may have different modalities; A is the widest, narrower ones read their first columns.
        """
        flags = torch.stack([present, torch.full_like(present, float(current))], dim=-1)
        projected = actions.new_zeros(*actions.shape[:2], self.router.in_features)
        for name in dict.fromkeys(modality):
            if name not in self.projectors:
                raise ValueError(f"This world model knows the modalities {sorted(self.projectors)}, not {name!r}.")
            rows = torch.tensor([entry == name for entry in modality], device=actions.device)
            projector = self.projectors[name]
            width = projector.in_features - 2  # type: ignore[operator]
            inputs = torch.cat([actions[rows, :, :width] * present[rows, :, None], flags[rows]], dim=-1)
            projected[rows] = F.silu(projector(inputs)).to(projected.dtype)
        return projected

    def forward(self, projected: Tensor) -> ActionFeatures:
        """Experts' outputs for all blocks from shared features (B, G, F)."""
        B, G, _ = projected.shape
        scores = self.router(projected).float().softmax(-1)
        top, index = scores.topk(self.top_k, dim=-1)
        routing = torch.zeros_like(scores).scatter(-1, index, top / top.sum(-1, keepdim=True))
        hidden = F.silu(self.expert_in(projected)).reshape(B * G, self.num_layers, self.num_experts, -1)
        hidden = hidden * routing.reshape(B * G, 1, self.num_experts, 1).to(hidden.dtype)
        hidden = hidden.flatten(2).transpose(0, 1)  # (L, B G, K hidden)
        return ActionFeatures(torch.bmm(hidden, self.expert_out.to(hidden.dtype)).unflatten(1, (B, G)), routing)
