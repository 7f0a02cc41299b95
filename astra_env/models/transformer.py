"""AstraTransformer: a Wan-shaped video diffusion transformer made autoregressive, chunk by chunk.

History attends to history only and is modulated at sigma 0, so its keys and values are computed once a chunk and serve
every denoising step and both guidance passes exactly. Actions enter each block through the experts (MoAE) before
attention and the ACT-Adapter after it (arXiv 2512.08931, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from astra_env.models.action_experts import ActionExperts, ActionFeatures
from astra_env.models.history import HistoryEmbedder, HistoryLayout, PatchEmbed, grid_positions

TIME_FREQUENCIES = 128


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the network; the defaults are the bundled world's."""

    action_dims: Mapping[str, int]
    in_channels: int = 16
    dim: int = 256
    num_layers: int = 8
    num_heads: int = 4
    ffn_dim: int = 1024
    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_experts: int = 4
    top_k: int = 2
    precondition: bool = True  # False for pretrained backbones, whose output is the velocity itself
    history: HistoryLayout = field(default_factory=HistoryLayout)


@dataclass(frozen=True)
class HistoryCache:
    """Keys and values (B, H, N, d) of the history in every block, and which of its N tokens are real (B, N)."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor

    def select(self, rows: Tensor) -> HistoryCache:
        """The chosen rows (long); a row may be chosen often: several targets share one history."""
        layers = [tuple(entry[rows] for entry in entries) for entries in (self.keys, self.values)]
        return HistoryCache(layers[0], layers[1], self.mask[rows])


def rotary_tables(positions: Tensor, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, 1, N, head_dim / 2) of positions (B, N, 3); axes split as in Wan, time first."""
    spatial = 2 * (head_dim // 6)
    angles = []
    for axis, width in enumerate((head_dim - 2 * spatial, spatial, spatial)):
        frequency = 10000.0 ** (-torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width)
        angles.append(positions[..., axis : axis + 1] * frequency)
    angle = torch.cat(angles, dim=-1)[:, None]
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate adjacent channel pairs of x (B, H, N, d)."""
    cos, sin = tables
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention; mask is bool (B, 1, 1, N_keys)."""
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        # the CPU kernel of scaled_dot_product_attention is 2-3x slower than plain products in bfloat16
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(-1) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def precondition(output: Tensor, latents: Tensor, sigma: Tensor) -> Tensor:
    """Velocity from an output of unit variance and the noisy latents: the part of the velocity that the latents tell
    linearly (all of the noise at sigma 1) passes by the network. Latents are taken to have unit variance.
    """
    sigma = sigma.reshape(-1, 1, 1, 1, 1)
    variance = sigma.square() + (1 - sigma).square()
    return (2 * sigma - 1) / variance * latents + output / variance.sqrt()


def timestep_embedding(sigma: Tensor) -> Tensor:
    """Sinusoids of 1000 sigma, cosines first, (..., 256)."""
    frequency = torch.exp(-math.log(10000.0) * torch.arange(TIME_FREQUENCIES, device=sigma.device) / TIME_FREQUENCIES)
    angle = 1000.0 * sigma[..., None].float() * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class Block(nn.Module):
    """Modulate, add the action experts, self-attention, ACT-Adapter, gate; then the feed-forward network."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.modulation = nn.Parameter(torch.zeros(6, dim))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.norm_q, self.norm_k = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))
        self.out = nn.Linear(dim, dim)
        self.adapter = nn.Linear(dim, dim)  # ACT-Adapter: the identity at the start
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(), nn.Linear(ffn_dim, dim))
        nn.init.eye_(self.adapter.weight)
        nn.init.zeros_(self.adapter.bias)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        action: Tensor,
        rotary: tuple[Tensor, Tensor],
        history: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens x (B, N, D), modulation (B, 6, D), action (B, N, D) -> new tokens and their keys and values."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (self.modulation + modulation)[:, :, None].unbind(1)
        h = F.layer_norm(x, x.shape[-1:]) * (1 + scale_a) + shift_a + action
        q, k, v = self.qkv(h).chunk(3, dim=-1)
        q, k = (
            F.rms_norm(t, t.shape[-1:], scale.to(t.dtype), 1e-6) for t, scale in ((q, self.norm_q), (k, self.norm_k))
        )
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        q, k = rotate(q, rotary).to(v.dtype), rotate(k, rotary).to(v.dtype)
        all_k, all_v = (k, v) if history is None else (torch.cat([history[0], k], 2), torch.cat([history[1], v], 2))
        attended = attention(q, all_k, all_v, mask).transpose(1, 2).flatten(2)  # (B, N, D)
        x = x + gate_a * self.adapter(self.out(attended))
        x = x + gate_f * self.ffn(F.layer_norm(x, x.shape[-1:]) * (1 + scale_f) + shift_f)
        return x, k, v


class AstraTransformer(nn.Module):
    """Predicts the velocity of a noisy chunk from the history's cache, the noise level and the chunk's actions."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.config = config
        self.head_dim = dim // config.num_heads
        self.patch_embedding = PatchEmbed(config.in_channels, dim, config.patch_size)
        self.history_embedder = HistoryEmbedder(config.in_channels, dim, config.patch_size, config.history)
        self.history_embedder.grow_from(self.patch_embedding)
        self.time_embedding = nn.Sequential(nn.Linear(2 * TIME_FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Linear(dim, 6 * dim)
        self.action_experts = ActionExperts(
            config.action_dims, dim, config.num_layers, num_experts=config.num_experts, top_k=config.top_k
        )
        self.blocks = nn.ModuleList(Block(dim, config.num_heads, config.ffn_dim) for _ in range(config.num_layers))
        self.head_modulation = nn.Parameter(torch.zeros(2, dim))
        self.head = nn.Linear(dim, config.in_channels * math.prod(config.patch_size))
        for module in (self.time_projection, self.head):  # zero gates and velocity: training starts from the identity
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    def modulations(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Time embedding (B, D) and the six modulation vectors (B, 6, D) of noise levels (B,)."""
        time = self.time_embedding(timestep_embedding(sigma).to(self.head.weight.dtype))
        return time, self.time_projection(F.silu(time)).unflatten(-1, (6, -1))

    def encode_history(
        self, slots: Tensor, lengths: Tensor, actions: Tensor, present: Tensor, modality: Sequence[str]
    ) -> tuple[HistoryCache, ActionFeatures]:
        """Keys and values of the window: slots (B, C, S, h, w), lengths (B,) and the actions (B, S, A) that led to
        each slot, where present (B, S) is 1 and not 0. Also returns the experts' features, with the routing weights.
        """
        packed = self.history_embedder(slots.to(self.head.weight.dtype), lengths)
        projected = self.action_experts.project(actions, present, modality, current=False)
        grouped = packed.group_weights.to(projected.dtype) @ projected  # (B, G, F): mean over the slots a token covers
        features = self.action_experts(grouped)
        _, modulation = self.modulations(torch.zeros(len(slots), device=slots.device))
        rotary = rotary_tables(packed.positions, self.head_dim, packed.tokens.dtype)
        mask = packed.mask[:, None, None]
        x, keys, values = packed.tokens, [], []
        for block, action in zip(self.blocks, features.values, strict=True):
            x, k, v = block(x, modulation, action[:, packed.groups], rotary, None, mask)
            keys.append(k)
            values.append(v)
        return HistoryCache(tuple(keys), tuple(values), packed.mask), features

    def action_features(self, actions: Tensor, present: Tensor, modality: Sequence[str]) -> ActionFeatures:
        """Features of the chunk's actions (B, n, A); present (B, n) of 0 gives the null action of guidance."""
        return self.action_experts(self.action_experts.project(actions, present, modality, current=True))

    def forward(self, latents: Tensor, sigma: Tensor, actions: ActionFeatures, history: HistoryCache) -> Tensor:
        """Velocity (B, C, n, h, w) of noisy latents of the same shape at noise levels sigma (B,)."""
        B, _, n, h, w = latents.shape
        _, ph, pw = self.config.patch_size
        embedded = self.patch_embedding(latents.to(self.head.weight.dtype))  # (B, n, N', D)
        per_latent = embedded.shape[2]
        grid = grid_positions(h // ph, w // pw, 1, latents.device)
        times = torch.arange(n, device=latents.device, dtype=grid.dtype).repeat_interleave(per_latent)
        positions = torch.cat([times[:, None], grid.repeat(n, 1)], dim=-1)[None]
        rotary = rotary_tables(positions, self.head_dim, embedded.dtype)
        x = embedded.flatten(1, 2)
        mask = F.pad(history.mask, (0, x.shape[1]), value=True)[:, None, None]
        time, modulation = self.modulations(sigma)
        for index, block in enumerate(self.blocks):
            action = actions.values[index].repeat_interleave(per_latent, dim=1)
            x, _, _ = block(x, modulation, action, rotary, (history.keys[index], history.values[index]), mask)
        shift, scale = (self.head_modulation + time[:, None])[:, :, None].unbind(1)
        x = self.head(F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift)
        x = x.reshape(B, n, h // ph, w // pw, ph, pw, -1).permute(0, 6, 1, 2, 4, 3, 5)
        output = x.reshape(latents.shape).float()
        return precondition(output, latents, sigma) if self.config.precondition else output
