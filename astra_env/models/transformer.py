"""AstraTransformer: a Wan-shaped video diffusion transformer made autoregressive, chunk by chunk.

History attends to history only and is modulated at sigma 0, so its keys and values are computed once a chunk and serve
every denoising step and both guidance passes exactly. Actions enter each block through the experts (MoAE) before
attention and the ACT-Adapter after it (arXiv 2512.08931, section 3).
"""

from __future__ import annotations

import functools
import math
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from astra_env.models.action_experts import ACTION_EXPERTS, ActionFeatures
from astra_env.models.block import EPS, Block, Context, KeysValues, as_mask, attention_mask, rotary_tables
from astra_env.models.history import HISTORY_PACKINGS, HistoryLayout, PackedHistory, grid_positions


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the network; the defaults are the bundled world's.

    The released Astra weights need `routing="fixed"`, `history_attention="full"` and `history_packing="released"`.
    """

    action_dims: Mapping[str, int]
    in_channels: int = 16
    dim: int = 256
    num_layers: int = 8
    num_heads: int = 4
    ffn_dim: int = 1024
    patch_size: tuple[int, int, int] = (1, 2, 2)
    freq_dim: int = 256  # width of the noise level's sinusoids
    gelu: str = "none"  # approximation of the feed-forward's GELU: "tanh" in Wan, which is slower on a CPU
    text_dim: int | None = None  # width of prompt embeddings; None for worlds that take no text
    num_experts: int = 4
    top_k: int = 2
    shared_dim: int = 64  # width to which actions of all modalities are brought
    added_modalities: tuple[str, ...] = ()  # those that came to a trained world: each has the use of one expert alone
    routing: str = "learned"  # "fixed" gives each modality one linear expert
    history_attention: str = "causal"  # "full" lets history attend to the noisy chunk, so nothing can be cached
    history_packing: str = "framepack"  # "released" has the positions and action rows of the released weights
    precondition: bool = True  # False for pretrained backbones, whose output is the velocity itself
    history: HistoryLayout = field(default_factory=HistoryLayout)


@dataclass(frozen=True)
class HistoryCache:
    """What all denoising steps of a chunk share: the history and the prompt, as every block sees them."""

    mask: Tensor  # bool (B, N): which of the N history tokens are real
    history: tuple[KeysValues, ...] = ()  # (B, H, N, d) of the history in every block, under causal attention
    text: tuple[KeysValues, ...] = ()  # (B, H, L, d) of the prompt in every block
    packed: PackedHistory | None = None  # under full attention: the tokens join every pass,
    actions: Tensor | None = None  # with their action features (num_layers, B, G, D)

    def select(self, rows: Tensor) -> HistoryCache:
        """The chosen rows (long); a row may be chosen often: several targets share one history."""
        history, text = ([(k[rows], v[rows]) for k, v in pairs] for pairs in (self.history, self.text))
        return HistoryCache(
            self.mask[rows],
            tuple(history),
            tuple(text),
            None if self.packed is None else self.packed.select(rows),
            None if self.actions is None else self.actions[:, rows],
        )

    def expand(self, n: int) -> HistoryCache:
        """The one row n times, in the same memory."""
        history, text = (
            [(k.expand(n, -1, -1, -1), v.expand(n, -1, -1, -1)) for k, v in pairs]
            for pairs in (self.history, self.text)
        )
        return HistoryCache(self.mask.expand(n, -1), tuple(history), tuple(text))

    @staticmethod
    def cat(caches: Sequence[HistoryCache]) -> HistoryCache:
        """Rows of several caches of one transformer in one batch."""
        history, text = (
            tuple(
                (torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer]))
                for layer in zip(*pairs, strict=True)
            )
            for pairs in ([cache.history for cache in caches], [cache.text for cache in caches])
        )
        packed = [cache.packed for cache in caches if cache.packed is not None]
        actions = [cache.actions for cache in caches if cache.actions is not None]
        return HistoryCache(
            torch.cat([cache.mask for cache in caches]),
            history,
            text,
            PackedHistory.cat(packed) if packed else None,
            torch.cat(actions, dim=1) if actions else None,
        )


def precondition(output: Tensor, latents: Tensor, sigma: Tensor) -> Tensor:
    """Velocity from an output of unit variance and the noisy latents: the part of the velocity that the latents tell
    linearly (all of the noise at sigma 1) passes by the network. Latents are taken to have unit variance.
    """
    sigma = sigma.reshape(-1, 1, 1, 1, 1)
    variance = sigma.square() + (1 - sigma).square()
    return (2 * sigma - 1) / variance * latents + output / variance.sqrt()


def timestep_embedding(sigma: Tensor, freq_dim: int) -> Tensor:
    """Sinusoids of 1000 sigma, cosines first, float64 (..., freq_dim)."""
    half = freq_dim // 2
    frequency = torch.exp(-math.log(10000.0) * torch.arange(half, device=sigma.device, dtype=torch.float64) / half)
    angle = 1000.0 * sigma[..., None].double() * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def chunk_positions(n: int, height: int, width: int, device: torch.device) -> Tensor:
    """Time in latents, row and column (1, n * height * width, 3) of a chunk's tokens."""
    grid = grid_positions(height, width, 1, device)
    times = torch.arange(n, device=device, dtype=grid.dtype).repeat_interleave(len(grid))
    return torch.cat([times[:, None], grid.repeat(n, 1)], dim=-1)[None]


@functools.lru_cache(maxsize=32)
def chunk_tables(
    n: int, height: int, width: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Rotary tables of a chunk's tokens, the same for all chunks."""
    return rotary_tables(chunk_positions(n, height, width, device), head_dim, dtype)


def _wider(dtype: torch.dtype) -> torch.dtype:
    """What queries and keys are rotated in."""
    return torch.promote_types(dtype, torch.float32)


class AstraTransformer(nn.Module):
    """Predicts the velocity of a noisy chunk from the history's cache, the noise level and the chunk's actions."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.config = config
        self.head_dim = dim // config.num_heads
        packing: Any = pkgutil.resolve_name(HISTORY_PACKINGS[config.history_packing])
        self.patch_embedding = packing.embed_type(config.in_channels, dim, config.patch_size)
        self.history_embedder = packing(config.in_channels, dim, config.patch_size, config.history)
        self.history_embedder.grow_from(self.patch_embedding)
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Linear(dim, 6 * dim)
        self.text_embedding = None
        if config.text_dim is not None:
            layers = (nn.Linear(config.text_dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim))
            self.text_embedding = nn.Sequential(*layers)
        self.action_experts = ACTION_EXPERTS[config.routing](
            config.action_dims,
            dim,
            config.num_layers,
            shared_dim=config.shared_dim,
            num_experts=config.num_experts,
            top_k=config.top_k,
            added=config.added_modalities,
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head_modulation = nn.Parameter(torch.zeros(2, dim))
        self.head = nn.Linear(dim, config.in_channels * math.prod(config.patch_size))
        for module in (self.time_projection, self.head):  # zero gates and velocity: training starts from the identity
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    def leave_out_identities(self) -> None:
        """Skip adapters that were folded, for as long as they are frozen."""
        for block in self.blocks:
            block.leave_out_identity()  # type: ignore[operator]

    def modulations(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Time embedding (B, D) and the six modulation vectors (B, 6, D) of noise levels (B,)."""
        time = self.time_embedding(timestep_embedding(sigma, self.config.freq_dim).to(self.head.weight.dtype))
        return time, self.time_projection(F.silu(time)).unflatten(-1, (6, -1))

    def encode_text(self, prompt_embeds: Tensor | None) -> tuple[KeysValues, ...]:
        """Keys and values of prompt embeddings (B, L, text_dim) in every block."""
        if self.text_embedding is None or prompt_embeds is None:
            return ()
        text = self.text_embedding(prompt_embeds.to(self.head.weight.dtype))
        return tuple(block.text_attention.keys_values(text) for block in self.blocks)  # type: ignore[union-attr, operator]

    def encode_history(
        self,
        slots: Tensor,
        lengths: Tensor,
        actions: Tensor,
        present: Tensor,
        modality: Sequence[str],
        prompt_embeds: Tensor | None = None,
    ) -> tuple[HistoryCache, ActionFeatures]:
        """Cache of the window of slots (B, C, S, h, w) and lengths (B,).

        actions (B, S, A) are those that led to each slot, where present (B, S) is 1 and not 0; the chunk's own actions
        may follow in further rows, which the released packing reads. Also returns the experts' features.
        """
        packed, features = self.pack_history(slots, lengths, actions, present, modality)
        return self.cache_history(packed, features, self.encode_text(prompt_embeds)), features

    def pack_history(
        self, slots: Tensor, lengths: Tensor, actions: Tensor, present: Tensor, modality: Sequence[str]
    ) -> tuple[PackedHistory, ActionFeatures]:
        """Tokens of a history, and the experts' features of the action groups (B, G) that they belong to."""
        packed = self.history_embedder(slots.to(self.head.weight.dtype), lengths)
        rows = packed.group_weights.shape[-1]
        current = (torch.arange(rows, device=actions.device) >= slots.shape[2]).to(present).expand(len(slots), rows)
        projected = self.action_experts.project(actions[:, :rows], present[:, :rows], modality, current=current)
        # (B, G, F): mean over the slots that a token covers
        return packed, self.action_experts(packed.group_weights.to(projected.dtype) @ projected, modality)

    def cache_history(
        self, packed: PackedHistory, features: ActionFeatures, text: tuple[KeysValues, ...] = ()
    ) -> HistoryCache:
        """Cache of packed tokens under their action features: keys and values at sigma 0, or the tokens themselves."""
        if self.config.history_attention == "full":
            return HistoryCache(packed.mask, text=text, packed=packed, actions=features.values)
        _, modulation = self.modulations(torch.zeros(1, device=packed.tokens.device))
        rotary = rotary_tables(packed.positions, self.head_dim, _wider(packed.tokens.dtype))
        x, mask, history = packed.tokens, attention_mask(packed.mask, packed.tokens.dtype), []
        for index, block in enumerate(self.blocks):
            context = Context(mask=mask, text=text[index] if text else None)
            x, keys_values = block(x, modulation[:, :, None], features.values[index][:, packed.groups], rotary, context)
            history.append(keys_values)
        return HistoryCache(packed.mask, tuple(history), text)

    def action_features(self, actions: Tensor, present: Tensor, modality: Sequence[str]) -> ActionFeatures:
        """Features of the chunk's actions (B, n, A); present (B, n) of 0 gives the null action of guidance."""
        return self.action_experts(self.action_experts.project(actions, present, modality, current=True), modality)

    def forward(self, latents: Tensor, sigma: Tensor, actions: ActionFeatures, history: HistoryCache) -> Tensor:
        """Velocity (B, C, n, h, w) of noisy latents of the same shape at noise levels sigma (B,), or (1,) for all."""
        _, _, n, h, w = latents.shape
        _, ph, pw = self.config.patch_size
        embedded = self.patch_embedding(latents.to(self.head.weight.dtype))  # (B, n, N', D)
        B, _, per_latent, _ = embedded.shape
        x = embedded.flatten(1, 2)
        mask = attention_mask(F.pad(history.mask, (0, x.shape[1]), value=True), x.dtype)
        joined = history.packed
        if joined is None:
            rotary = chunk_tables(n, h // ph, w // pw, self.head_dim, _wider(x.dtype), x.device)
        else:
            x = torch.cat([joined.tokens, x], dim=1)
            own = chunk_positions(n, h // ph, w // pw, x.device).expand(B, -1, -1)
            positions = torch.cat([joined.positions, own + F.pad(joined.start[:, None, None], (0, 2))], dim=1)
            # the released weights' own code rotates in double precision
            rotary = rotary_tables(
                positions, self.head_dim, torch.float64 if x.dtype == torch.float32 else torch.float32
            )
        time, modulation = self.modulations(sigma)
        for index, block in enumerate(self.blocks):
            action = actions.values[index].repeat_interleave(per_latent, dim=1)
            if joined is not None and history.actions is not None:
                action = torch.cat([history.actions[index][:, joined.groups], action], dim=1)
            past = history.history[index] if history.history else None
            x, _ = block(
                x,
                modulation[:, :, None],
                action,
                rotary,
                Context(past, mask, history.text[index] if history.text else None),
            )
        return self._velocity(x[:, -n * per_latent :], time, latents, sigma)

    def joint(
        self,
        latents: Tensor,
        sigma: Tensor,
        actions: ActionFeatures,
        packed: PackedHistory,
        past: ActionFeatures,
        text: tuple[KeysValues, ...] = (),
    ) -> Tensor:
        """What `forward` gives on the cache of a packed history, in one pass over history and chunk together.

        For a single denoising step: nothing is kept for another, and all weights are read once instead of twice.

        Args:
            latents: (B, C, n, h, w), noisy.
            sigma: (1,), the noise level of all.
            actions: features of the chunk's actions.
            packed: tokens of the history.
            past: features of the history's action groups.
            text: keys and values of the prompt in every block.
        """
        _, ph, pw = self.config.patch_size
        n, height, width = latents.shape[2], latents.shape[3] // ph, latents.shape[4] // pw
        fresh = self.patch_embedding(latents.to(self.head.weight.dtype))
        x = torch.cat([packed.tokens, fresh.flatten(1, 2)], dim=1)
        B, N = x.shape[:2]
        is_new = torch.arange(N, device=x.device) >= packed.tokens.shape[1]
        real = F.pad(packed.mask, (0, N - packed.mask.shape[1]), value=True)
        mask = as_mask((~is_new | is_new[:, None])[None, None] & real[:, None, None], x.dtype)
        tables = rotary_tables(packed.positions, self.head_dim, _wider(x.dtype))
        own = chunk_tables(n, height, width, self.head_dim, _wider(x.dtype), x.device)
        rotary = [torch.cat([old, new.expand(B, -1, -1, -1, -1)], dim=1) for old, new in zip(tables, own, strict=True)]
        time, modulation = self.modulations(torch.cat([torch.zeros_like(sigma), sigma]))  # the history's, the chunk's
        tokenwise = modulation[is_new.long()].transpose(0, 1)[None]  # (1, 6, N, D)
        for index, block in enumerate(self.blocks):
            old, new = past.values[index][:, packed.groups], actions.values[index]
            action = torch.cat([old, new.repeat_interleave(fresh.shape[2], dim=1)], dim=1)
            context = Context(mask=mask, text=text[index] if text else None)
            x, _ = block(x, tokenwise, action, (rotary[0], rotary[1]), context)
        return self._velocity(x[:, packed.tokens.shape[1] :], time[1:], latents, sigma)

    def _velocity(self, x: Tensor, time: Tensor, latents: Tensor, sigma: Tensor) -> Tensor:
        """From the chunk's tokens (B, N, D) to the velocity in the shape of its noisy latents (B, C, n, h, w)."""
        B, _, n, h, w = latents.shape
        _, ph, pw = self.config.patch_size
        shift, scale = (self.head_modulation + time[:, None])[:, :, None].unbind(1)
        x = self.head(F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift)
        x = x.reshape(B, n, h // ph, w // pw, ph, pw, -1).permute(0, 6, 1, 2, 4, 3, 5)
        output = x.reshape(latents.shape).to(torch.promote_types(x.dtype, torch.float32))
        return precondition(output, latents, sigma) if self.config.precondition else output
