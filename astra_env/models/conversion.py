"""Released weights in our own form: routing by features, history that is computed once a chunk, FramePack positions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from astra_env.models.action_experts import ActionExperts, FixedActionExperts
from astra_env.models.transformer import AstraTransformer, TransformerConfig

SATURATED = 20.0  # silu is the identity here and nothing at its negative, to float32's precision
MIN_SHARED_DIM = 64


def convert_released(transformer: AstraTransformer) -> AstraTransformer:
    """Our own transformer from one with released weights (`from_reference`), with which it shares all other weights.

    The action path is the same function, null action and history flag included (3e-7 of the velocity), and so is a
    chunk without history. With history the velocity differs by design, so a converted model wants training before it
    is used: history does not see the noisy chunk, is modulated at sigma 0, stands where the latents that it covers
    stood, takes their actions, and the newest latent takes its own. On the recorded tiny model, whose weights are
    random, the relative RMS difference is 0.10 to 0.22 with a whole history and 0.15 to 0.26 with 1 to 20 latents;
    causal attention alone makes 0.06 to 0.12 of it, the packing alone 0.09 to 0.23.

    Action rows keep the released meaning: the row of a latent is the motion from it to the next one.
    """
    released = transformer.action_experts
    if not isinstance(released, FixedActionExperts):
        routing = transformer.config.routing
        raise ValueError(f"The transformer has routing {routing!r}, expected 'fixed': give one from from_reference.")
    width = 2 * released.expert_weight.shape[-1] + 1 + len(released.names)
    config = replace(
        transformer.config,
        shared_dim=max(MIN_SHARED_DIM, width),
        top_k=1,
        routing="learned",
        history_attention="causal",
        history_packing="framepack",
    )
    weights = {
        name: value for name, value in transformer.state_dict().items() if not name.startswith("action_experts.")
    }
    experts = convert_experts(released, config).to(released.expert_weight)
    weights |= {f"action_experts.{name}": value for name, value in experts.state_dict().items()}
    with torch.device("meta"):
        converted = AstraTransformer(config)
    converted.load_state_dict(weights, assign=True)
    return converted


@torch.no_grad()
def convert_experts(released: FixedActionExperts, config: TransformerConfig) -> ActionExperts:
    """Linear projectors and experts as networks with SiLU, of which x = silu(x) - silu(-x) makes linear ones.

    Shared features are the projected row and its negative, the history flag and one indicator a modality, by which the
    router chooses. Units beyond those keep fresh weights and have no effect until they are trained.
    """
    num_layers, num_experts, dim, size = released.expert_weight.shape
    experts = ActionExperts(
        config.action_dims, dim, num_layers, shared_dim=config.shared_dim, num_experts=num_experts, top_k=1
    )
    hidden = experts.expert_in.out_features // (num_layers * num_experts)
    if 2 * size + 1 > hidden:
        raise ValueError(f"Released experts of width {size} need {2 * size + 1} hidden units, there are {hidden}.")
    flag = 2 * size
    inner_weight = experts.expert_in.weight.view(num_layers, num_experts, hidden, -1)
    inner_bias = experts.expert_in.bias.view(num_layers, num_experts, hidden)
    outer = experts.expert_out.view(num_layers, num_experts, hidden, dim)
    experts.router.weight.zero_()
    experts.router.bias.zero_()
    for index, name in enumerate(released.names):
        theirs, ours = released.projectors[name], experts.projectors[name]
        assert isinstance(theirs, nn.Linear) and isinstance(ours, nn.Linear)
        _convert_projector(theirs, ours, flag + 1 + index, flag + 1 + len(released.names))
        experts.router.weight[index, flag + 1 + index] = 1

        row = torch.zeros(size, config.shared_dim)  # the projected row from shared features
        row[:, :size], row[:, size:flag] = torch.eye(size), -torch.eye(size)
        row[:, flag] = theirs.weight[:, -1] / SATURATED
        inner_weight[:, index, : flag + 1] = _both_signs(row, torch.zeros(1, config.shared_dim))
        inner_bias[:, index, : flag + 1] = torch.tensor([0.0] * flag + [SATURATED])
        weight, bias = released.expert_weight[:, index].mT, released.expert_bias[:, index, None]  # (L, F, D), (L, 1, D)
        outer[:, index, : flag + 1] = released.top_k * _both_signs(weight, bias / SATURATED)
    return experts


def _convert_projector(theirs: nn.Linear, ours: nn.Linear, indicator: int, used: int) -> None:
    """Their flag is 1 for history that has an action; ours are two: 1 with an action, 1 for the chunk."""
    flag, width = 2 * theirs.out_features, theirs.in_features - 1
    ours.weight[:used], ours.bias[:used] = 0, 0
    ours.weight[:flag, :width] = torch.cat([theirs.weight[:, :-1], -theirs.weight[:, :-1]])
    ours.bias[:flag] = torch.cat([theirs.bias, -theirs.bias])
    ours.weight[flag, width:] = torch.tensor([SATURATED, -SATURATED])
    ours.bias[indicator] = SATURATED


def _both_signs(positive: Tensor, last: Tensor) -> Tensor:
    """Rows (..., F, n), their negatives and a last one (..., 1, n)."""
    return torch.cat([positive, -positive, last], dim=-2)
