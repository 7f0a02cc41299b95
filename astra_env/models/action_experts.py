"""Mixture of Action Experts (MoAE, arXiv 2512.08931): modality projectors, one learnable router, MLP experts per block.

Action features do not depend on the noise level, so they are computed once a chunk for all blocks in two products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MIN_ROWS = 64


@dataclass(frozen=True)
class ActionFeatures:
    """What the experts add to the attention inputs, and how the router chose them."""

    values: Tensor  # (num_layers, B, G, D): G action groups (history groups or target latents)
    routing: Tensor  # (B, G, K): weight of each expert, zero outside the top-k

    def load_balancing_loss(self) -> Tensor:
        """1 when the experts share the rows equally, K when one takes all (Switch Transformer's form)."""
        share = self.routing.flatten(0, 1).mean(0)
        return len(share) * (share * share).sum() / share.sum() ** 2


def project_rows(projectors: nn.ModuleDict, actions: Tensor, flags: Tensor, modality: Sequence[str]) -> Tensor:
    """Each row of actions (B, G, A) and flags (B, G, k) through the projector of its modality -> (B, G, F)."""
    parts = []
    for name in dict.fromkeys(modality):
        if name not in projectors:
            raise ValueError(f"This world model knows the modalities {sorted(projectors)}, not {name!r}.")
        rows = torch.tensor([row for row, entry in enumerate(modality) if entry == name], device=actions.device)
        projector = projectors[name]
        width = projector.in_features - flags.shape[-1]  # type: ignore[operator]
        parts.append((rows, projector(torch.cat([actions[rows, :, :width], flags[rows].to(actions.dtype)], dim=-1))))
    order = torch.cat([rows for rows, _ in parts]).argsort()
    return torch.cat([projected for _, projected in parts])[order]


class ActionExperts(nn.Module):
    """Routes action vectors of any modality through shared experts; starts neutral (its output is zero).

    `added` names modalities that came later: each has an expert of its own, the last of all, beside the shared ones.
    """

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
        added: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.num_layers, self.num_experts, self.top_k, self.added = num_layers, num_experts, top_k, tuple(added)
        # two extra inputs: whether there is an action at all, and whether it is the current (not a past) one
        self.projectors = nn.ModuleDict({name: nn.Linear(size + 2, shared_dim) for name, size in action_dims.items()})
        self.router = nn.Linear(shared_dim, num_experts)
        self.expert_in = nn.Linear(shared_dim, num_layers * num_experts * hidden_dim)
        self.expert_out = nn.Parameter(torch.zeros(num_layers, num_experts * hidden_dim, dim))

    def project(self, actions: Tensor, present: Tensor, modality: Sequence[str], *, current: Tensor | bool) -> Tensor:
        """Bring normalised actions (B, G, A) to the shared width (B, G, F); absent ones become the null action.

        Rows may have different modalities; A is the widest, narrower ones read their first columns. current says
        whether actions are of the chunk that is imagined, or (B, G) which ones are: 1, and 0 for past ones.
        """
        flags = torch.stack([present, torch.as_tensor(current).to(present).expand_as(present)], dim=-1)
        return F.silu(project_rows(self.projectors, actions * present[..., None], flags, modality))

    def forward(self, projected: Tensor, modality: Sequence[str]) -> ActionFeatures:
        """Experts' outputs for all blocks from shared features (B, G, F); the features decide, not the modality."""
        B, G, _ = projected.shape
        scores = self.router(projected).float()
        if self.added:
            scores = scores.masked_fill(self._closed(modality).to(scores.device)[:, None], float("-inf"))
        scores = scores.softmax(-1)
        top, index = scores.topk(self.top_k, dim=-1)
        routing = torch.zeros_like(scores).scatter(-1, index, top / top.sum(-1, keepdim=True))
        hidden = F.silu(self.expert_in(projected)).reshape(B * G, self.num_layers, self.num_experts, -1)
        hidden = hidden * routing.reshape(B * G, 1, self.num_experts, 1).to(hidden.dtype)
        hidden = hidden.flatten(2).transpose(0, 1)  # (L, B G, K hidden)
        return ActionFeatures(torch.bmm(hidden, self.expert_out.to(hidden.dtype)).unflatten(1, (B, G)), routing)

    def _closed(self, modality: Sequence[str]) -> Tensor:
        """bool (B, K): the last experts belong to the added modalities, one each, and are closed to all others."""
        owners = (None,) * (self.num_experts - len(self.added)) + self.added
        return torch.tensor([[owner is not None and owner != name for owner in owners] for name in modality])


class FixedActionExperts(nn.Module):
    """The released weights' form: a linear projector and one linear expert a modality, chosen by its name alone.

    A row of zeros, its history flag included, is the null action; it passes through the biases like any other.
    """

    def __init__(
        self,
        action_dims: Mapping[str, int],
        dim: int,
        num_layers: int,
        *,
        shared_dim: int = 25,
        num_experts: int = 3,
        top_k: int = 1,
        added: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if added:
            raise ValueError(f"Fixed routing has no experts for added modalities {list(added)}; use routing='learned'.")
        if num_experts < len(action_dims):
            raise ValueError(f"Fixed routing needs an expert for each of {len(action_dims)} modalities: {num_experts}.")
        self.num_experts, self.top_k = num_experts, top_k
        self.names = tuple(action_dims)
        self.projectors = nn.ModuleDict({name: nn.Linear(size + 1, shared_dim) for name, size in action_dims.items()})
        self.expert_weight = nn.Parameter(torch.zeros(num_layers, num_experts, dim, shared_dim))
        self.expert_bias = nn.Parameter(torch.zeros(num_layers, num_experts, dim))

    def project(self, actions: Tensor, present: Tensor, modality: Sequence[str], *, current: Tensor | bool) -> Tensor:
        """As `ActionExperts.project`; the flag is 1 for history and 0 for the chunk."""
        return project_rows(
            self.projectors, actions * present[..., None], ((1 - current) * present)[..., None], modality
        )

    def forward(self, projected: Tensor, modality: Sequence[str]) -> ActionFeatures:
        """Expert outputs for all blocks; top_k slots all pick the same expert, with weight 1 each."""
        B, G, _ = projected.shape
        index = [self.names.index(name) for name in modality]
        # the reference passes every token: with fewer rows the product takes another kernel and rounds otherwise
        padded = F.pad(projected, (0, 0, 0, max(0, MIN_ROWS - G)))
        values = projected.new_empty(self.expert_weight.shape[0], B, G, self.expert_weight.shape[2])
        for expert in dict.fromkeys(index):
            rows = [row for row, chosen in enumerate(index) if chosen == expert]
            weight, bias = self.expert_weight[:, expert].flatten(0, 1), self.expert_bias[:, expert].flatten()
            out = F.linear(padded[rows], weight, bias)[:, :G].unflatten(-1, (-1, values.shape[-1]))  # (b, G, L, D)
            values[:, rows] = self.top_k * out.movedim(2, 0).to(values.dtype)
        routing = F.one_hot(torch.tensor(index, device=projected.device), self.num_experts)
        return ActionFeatures(values, routing.to(projected)[:, None].expand(-1, G, -1))


ACTION_EXPERTS: Mapping[str, type[ActionExperts] | type[FixedActionExperts]] = {
    "learned": ActionExperts,
    "fixed": FixedActionExperts,
}
