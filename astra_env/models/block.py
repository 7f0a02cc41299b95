"""One block of the transformer, and the attention in it: few kernels, since small worlds are bound by their number."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from astra_env.models.transformer import TransformerConfig

EPS = 1e-6
KeysValues = tuple[Tensor, Tensor]


class Context(NamedTuple):
    """What the tokens of a block see besides themselves."""

    history: KeysValues | None = None
    mask: Tensor | None = None  # (B, 1, 1 or N, N_keys), as `attention_mask` makes it
    text: KeysValues | None = None


# 1. Rotary positions


def rotary_tables(positions: Tensor, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines (B, N, 1, 1, head_dim) of positions (B, N, 3), each for both channels of a pair.

    The channels are split among the axes as in Wan, time first.
    """
    axes, frequencies = _frequencies(head_dim, positions.device)
    angle = (positions.double()[..., axes] * frequencies)[:, :, None, None]
    cosines, sines = angle.cos(), angle.sin()
    pairs = torch.stack([cosines, cosines], dim=-1), torch.stack([-sines, sines], dim=-1)
    return pairs[0].flatten(-2).to(dtype), pairs[1].flatten(-2).to(dtype)


@functools.lru_cache(maxsize=8)
def _frequencies(head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The axis of each pair of channels, and radians by which it turns for each step along that axis."""
    spatial = 2 * (head_dim // 6)
    widths = (head_dim - 2 * spatial, spatial, spatial)
    exponents = torch.cat([torch.arange(0, width, 2, dtype=torch.float64) / width for width in widths])
    axes = torch.tensor([axis for axis, width in enumerate(widths) for _ in range(width // 2)])
    return axes.to(device), (10000.0**-exponents).to(device)


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate adjacent channel pairs of x (B, N, ., H, d)."""
    cosines, sines = tables
    return torch.addcmul(x * cosines, x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2), sines)


# 2. Attention


def attention_mask(real: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Mask (B, 1, 1, N) from which of N tokens are real (B, N); None where all are, which is faster."""
    return None if real.is_meta or bool(real.all()) else as_mask(real[:, None, None], dtype)


def as_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Mask from which keys queries may see, bool (B, 1, ., N_keys): added to the scores where `attention` multiplies by
    hand, and bool elsewhere.
    """
    if not _by_hand(allowed, dtype):
        return allowed
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, float("-inf"))


def _by_hand(x: Tensor, dtype: torch.dtype) -> bool:
    """The CPU kernel of scaled_dot_product_attention is 2-3x slower than plain products in bfloat16."""
    return x.device.type == "cpu" and dtype == torch.bfloat16


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention of queries (B, H, N, d); the mask is that of `attention_mask`."""
    if not _by_hand(query, query.dtype):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    B, H, _, d = query.shape
    folded = [part.reshape(B * H, -1, d) for part in (query, key, value)]
    if mask is None:
        bias, beta = query.new_empty(1, 1, 1), 0
    else:
        bias, beta = mask.expand(B, H, -1, -1).flatten(0, 1), 1
    scores = torch.baddbmm(bias, folded[0], folded[1].transpose(1, 2), beta=beta, alpha=d**-0.5)
    return torch.bmm(scores.softmax(-1), folded[2]).unflatten(0, (B, H))


# Fused kernels round otherwise than single operations, by which the released weights' outputs were recorded: they serve
# bfloat16 alone, which is coarser than that.


def rms_normalised(x: Tensor, scale: Tensor) -> Tensor:
    """RMS norm over the channels of x (..., D), scaled; float32 at least."""
    if x.dtype != torch.bfloat16:
        return F.rms_norm(x, x.shape[-1:], eps=EPS) * scale
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return x * (norm.square() / x.shape[-1] + EPS).rsqrt() * scale


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm of x (B, N, D), scaled by 1 + scale and shifted, (B or 1, N or 1, D) each."""
    width = x.shape[-1:]
    if x.dtype != torch.bfloat16:
        return F.layer_norm(x, width, eps=EPS) * (1 + scale) + shift
    if scale.numel() == x.shape[-1]:  # one noise level for all
        return F.layer_norm(x, width, (1 + scale).flatten(), shift.flatten(), EPS)
    return torch.addcmul(shift, F.layer_norm(x, width, eps=EPS), 1 + scale)


def gated(x: Tensor, gate: Tensor, change: Tensor) -> Tensor:
    """x + gate * change."""
    return torch.addcmul(x, gate, change) if x.dtype == change.dtype == torch.bfloat16 else x + gate * change


class TextAttention(nn.Module):
    """Cross-attention to a prompt; its keys and values are computed once a chunk."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim, EPS)
        self.q, self.kv, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.norm_q, self.norm_k = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))

    def keys_values(self, text: Tensor) -> KeysValues:
        """Of projected prompt embeddings (B, L, D)."""
        k, v = self.kv(text).chunk(2, dim=-1)
        k = rms_normalised(k, self.norm_k).to(v.dtype)
        return self._heads(k), self._heads(v)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, text: KeysValues) -> Tensor:
        """Tokens x (B, N, D) -> what they read from the prompt, same shape."""
        q = self.q(self.norm(x))
        q = self._heads(rms_normalised(q, self.norm_q).to(q.dtype))
        return self.out(attention(q, *text, None).transpose(1, 2).flatten(2))


# 3. The block


def _adapter_unknown(block: nn.Module, incompatible: object) -> None:
    """Other weights may have an adapter that does something."""
    block.adapter_folded = False  # type: ignore[assignment]


class Block(nn.Module):
    """Modulate, add the action experts, self-attention, ACT-Adapter, gate; then the prompt; then the feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim, self.num_heads = config.dim, config.num_heads
        self.modulation = nn.Parameter(torch.zeros(6, dim))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.norm_q, self.norm_k = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))
        self.out = nn.Linear(dim, dim)
        self.adapter = nn.Linear(dim, dim)  # ACT-Adapter: the identity at the start
        self.text_attention = None if config.text_dim is None else TextAttention(dim, config.num_heads)
        layers = (nn.Linear(dim, config.ffn_dim), nn.GELU(config.gelu), nn.Linear(config.ffn_dim, dim))
        self.ffn = nn.Sequential(*layers)
        nn.init.eye_(self.adapter.weight)
        nn.init.zeros_(self.adapter.bias)
        self.adapter_folded = False  # the adapter is the identity and frozen: it can be left out
        self.register_load_state_dict_post_hook(_adapter_unknown)

    @torch.no_grad()
    def fold_adapter(self) -> None:
        """Put the adapter into the output projection before it: the same function in one product instead of two."""
        weight, bias = (parameter.double() for parameter in (self.adapter.weight, self.adapter.bias))
        self.out.bias.copy_(weight @ self.out.bias.double() + bias)
        self.out.weight.copy_(weight @ self.out.weight.double())
        nn.init.eye_(self.adapter.weight)
        nn.init.zeros_(self.adapter.bias)

    def leave_out_identity(self) -> None:
        """Skip an adapter that was folded, for as long as it is frozen."""
        identity = torch.eye(len(self.adapter.weight)).to(self.adapter.weight)
        self.adapter_folded = bool(torch.equal(self.adapter.weight, identity)) and not self.adapter.bias.any()

    def forward(
        self, x: Tensor, modulation: Tensor, action: Tensor, rotary: tuple[Tensor, Tensor], context: Context
    ) -> tuple[Tensor, KeysValues]:
        """Tokens x (B, N, D), modulation (B or 1, 6, N or 1, D), action (B, N, D) -> new tokens, keys and values."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (self.modulation[:, None] + modulation).unbind(1)
        q, k, v = self._queries_keys_values(modulated(x, shift_a, scale_a) + action, rotary)
        past = context.history
        all_k, all_v = (k, v) if past is None else (torch.cat([past[0], k], 2), torch.cat([past[1], v], 2))
        attended = attention(q, all_k, all_v, context.mask).transpose(1, 2).flatten(2)  # (B, N, D)
        attended = self.out(attended)
        if not self.adapter_folded or self.adapter.weight.requires_grad:
            attended = self.adapter(attended)
        x = gated(x, gate_a, attended)
        if self.text_attention is not None and context.text is not None:
            x = x + self.text_attention(x, context.text)
        return gated(x, gate_f, self.ffn(modulated(x, shift_f, scale_f))), (k, v)

    def _queries_keys_values(self, h: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Each (B, H, N, d); queries and keys are normalised and rotated together."""
        qkv = self.qkv(h).unflatten(-1, (3, -1))  # (B, N, 3, D)
        scale = torch.stack([self.norm_q, self.norm_k])
        heads = rms_normalised(qkv[:, :, :2], scale).unflatten(-1, (self.num_heads, -1))  # (B, N, 2, H, d)
        q, k = rotate(heads, rotary).to(qkv.dtype).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, qkv[:, :, 2].unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
