"""FramePack history: the first latent and the most recent one at full resolution, older ones at 2x and 4x compression.

The window has a fixed number of slots, oldest first: [first | 4x slots | 2x slots | 1x slots]. Slots before the start
of a short history repeat the first latent and are masked, so shapes never change.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PATCH_SCALES = {"1x": (1, 1), "2x": (2, 2), "4x": (4, 4)}  # latents per token in time, patches per token in space


@dataclass(frozen=True)
class HistoryLayout:
    """How many latents each scale of the window holds, besides the first latent, which is kept for ever."""

    num_4x: int = 16
    num_2x: int = 2
    num_1x: int = 1

    def __post_init__(self) -> None:
        if self.num_4x % 4 or self.num_2x % 2 or self.num_1x < 1:
            raise ValueError(f"{self} needs num_4x divisible by 4, num_2x divisible by 2 and num_1x of at least 1.")

    @property
    def size(self) -> int:
        """Number of slots S."""
        return 1 + self.num_4x + self.num_2x + self.num_1x

    @property
    def scales(self) -> list[tuple[str, int, int]]:
        """Scale, first slot and number of slots of each part of the window, in the order of the tokens."""
        coarse, fine = 1 + self.num_4x, 1 + self.num_4x + self.num_2x
        parts = [("1x", 0, 1), ("4x", 1, self.num_4x), ("2x", coarse, self.num_2x), ("1x", fine, self.num_1x)]
        return [part for part in parts if part[2]]

    def valid_slots(self, lengths: Tensor) -> Tensor:
        """Which slots hold a real latent, bool (B, S), for histories of lengths (B,); the first always does."""
        age = torch.arange(self.size, 0, -1, device=lengths.device)  # slot 1 is S - 1 latents before the target
        valid = age <= lengths[:, None]
        valid[:, 0] = True
        return valid

    def slot_times(self, lengths: Tensor) -> Tensor:
        """Time of each slot relative to the target, float (B, S); the first latent's age is capped at S."""
        times = torch.arange(-self.size, 0, device=lengths.device, dtype=torch.float32).repeat(len(lengths), 1)
        times[:, 0] = -lengths.clamp(max=self.size)
        return times

    def windowed(self, history: Tensor, dim: int) -> Tensor:
        """The S slots of a whole history of latents (or actions), which has T >= 1 entries along dim."""
        count = min(history.shape[dim], self.size - 1)
        recent = history.narrow(dim, history.shape[dim] - count, count)
        return torch.cat([history.narrow(dim, 0, 1).repeat_interleave(self.size - count, dim), recent], dim=dim)

    def push(self, slots: Tensor, new: Tensor, dim: int) -> Tensor:
        """Slots after the latents (or actions) new were generated: the first stays, the oldest others fall out."""
        first, recent = slots.split([1, self.size - 1], dim=dim)
        recent = torch.cat([recent, new], dim=dim)
        return torch.cat([first, recent.narrow(dim, recent.shape[dim] - (self.size - 1), self.size - 1)], dim=dim)


class PatchEmbed(nn.Module):
    """Strided 3-D convolution as one matrix product; the weight has Conv3d's shape (D, C, kt, kh, kw)."""

    def __init__(self, in_channels: int, dim: int, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.empty(dim, in_channels, *kernel))
        self.bias = nn.Parameter(torch.zeros(dim))
        nn.init.normal_(self.weight, std=(in_channels * kernel[0] * kernel[1] * kernel[2]) ** -0.5)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, T, h, w) -> tokens (B, T', N', D), padding with edge values to whole patches."""
        kt, kh, kw = self.kernel
        pad_h, pad_w = -latents.shape[-2] % kh, -latents.shape[-1] % kw
        if pad_h or pad_w:
            latents = F.pad(latents, (0, pad_w, 0, pad_h, 0, 0), mode="replicate")
        B, C, T, h, w = latents.shape
        patches = latents.reshape(B, C, T // kt, kt, h // kh, kh, w // kw, kw).permute(0, 2, 4, 6, 1, 3, 5, 7)
        patches = patches.reshape(B, T // kt, (h // kh) * (w // kw), -1)  # (B, T', N', C kt kh kw)
        return F.linear(patches, self.weight.flatten(1), self.bias)

    def grow_from(self, patch: PatchEmbed) -> None:
        """Start as the average of the finer embedding over the patches that one token covers."""
        repeats = [coarse // fine for coarse, fine in zip(self.kernel, patch.kernel, strict=True)]
        count = repeats[0] * repeats[1] * repeats[2]
        with torch.no_grad():
            self.weight.copy_(patch.weight.repeat(1, 1, *repeats) / count)
            self.bias.copy_(patch.bias)


@dataclass(frozen=True)
class PackedHistory:
    """History tokens of one batch: what the transformer's history pass reads."""

    tokens: Tensor  # (B, N, D)
    positions: Tensor  # (B, N, 3): time in latents, row and column in patches
    mask: Tensor  # bool (B, N): True where the token holds at least one real latent
    groups: Tensor  # long (N,): index of the token's action group
    group_weights: Tensor  # (B, G, R): share of each action row in a group; the first S rows led to the slots
    start: Tensor  # (B,): time of the chunk's first latent, on the clock of the positions

    @classmethod
    def empty(cls, batch_size: int, dim: int, num_rows: int, device: torch.device) -> PackedHistory:
        """No history: the chunk is a video of its own."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(batch_size, *shape, device=device)

        groups = torch.zeros(0, dtype=torch.long, device=device)
        return cls(zeros(0, dim), zeros(0, 3), zeros(0).bool(), groups, zeros(0, num_rows), zeros())

    @staticmethod
    def cat(parts: Sequence[PackedHistory]) -> PackedHistory:
        """Rows of several histories of one layout in one batch."""
        tokens = torch.cat([part.tokens for part in parts])
        positions = torch.cat([part.positions for part in parts])
        mask = torch.cat([part.mask for part in parts])
        weights, start = torch.cat([part.group_weights for part in parts]), torch.cat([part.start for part in parts])
        return PackedHistory(tokens, positions, mask, parts[0].groups, weights, start)

    def select(self, rows: Tensor) -> PackedHistory:
        """The chosen rows (long) of the batch."""
        tokens, positions, mask, weights = (
            entry[rows] for entry in (self.tokens, self.positions, self.mask, self.group_weights)
        )
        return PackedHistory(tokens, positions, mask, self.groups, weights, self.start[rows])


def grid_positions(height: int, width: int, scale: int, device: torch.device) -> Tensor:
    """Centres of a grid of tokens that each cover scale x scale patches, in patches, float (height * width, 2)."""
    centre = (scale - 1) / 2
    rows = torch.arange(height, device=device) * scale + centre
    columns = torch.arange(width, device=device) * scale + centre
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(-1, 2)


class TokenPlan(NamedTuple):
    """Which slots each of the G groups of history tokens covers, and where its tokens lie."""

    covered: Tensor  # (G, S): 1 for the slots of a group
    means: Tensor  # (S, G): averages what is known of slots over groups
    groups: Tensor  # long (N,): the group of each token
    grid: Tensor  # (N, 2): row and column of each token, in patches


@functools.lru_cache(maxsize=32)
def token_plan(layout: HistoryLayout, rows: int, columns: int, device: torch.device) -> TokenPlan:
    """What is the same for all histories of pictures of rows x columns patches."""
    covered: list[Tensor] = []
    groups, grids, first = [], [], 0
    for name, start, count in layout.scales:
        span, scale = PATCH_SCALES[name]
        slots = F.one_hot(torch.arange(start, start + count, device=device), layout.size).float()
        grid = grid_positions(-(-rows // scale), -(-columns // scale), scale, device)
        covered.append(slots.reshape(count // span, span, -1).sum(1))
        groups.append(first + torch.arange(count // span, device=device).repeat_interleave(len(grid)))
        grids.append(grid.repeat(count // span, 1))
        first += count // span
    together = torch.cat(covered)
    means = (together / together.sum(-1, keepdim=True)).T.contiguous()
    return TokenPlan(together, means, torch.cat(groups), torch.cat(grids))


class HistoryEmbedder(nn.Module):
    """Embeds the window of slots at its three scales, with the time positions of the latents that a token covers."""

    embed_type: type[PatchEmbed] = PatchEmbed

    def __init__(self, in_channels: int, dim: int, patch_size: tuple[int, int, int], layout: HistoryLayout) -> None:
        super().__init__()
        self.layout, self.patch_size = layout, patch_size
        kernels = {name: (t, patch_size[1] * s, patch_size[2] * s) for name, (t, s) in PATCH_SCALES.items()}
        self.embed = nn.ModuleDict(
            {name: self.embed_type(in_channels, dim, kernel) for name, kernel in kernels.items()}
        )

    def grow_from(self, patch: PatchEmbed) -> None:
        """Start every scale from the target's patch embedding, so that history is understood at once."""
        for embed in self.embed.values():
            embed.grow_from(patch)  # type: ignore[operator]

    def forward(self, slots: Tensor, lengths: Tensor) -> PackedHistory:
        """Pack slots (B, C, S, h, w) of histories with lengths (B,) latents."""
        parts = [(name, slots[:, :, start : start + count]) for name, start, count in self.layout.scales]
        tokens = torch.cat([self.embed[name](part).flatten(1, 2) for name, part in parts], dim=1)
        rows, columns = (-(-size // patch) for size, patch in zip(slots.shape[3:], self.patch_size[1:], strict=True))
        plan = token_plan(self.layout, rows, columns, slots.device)
        covered = plan.covered * self.layout.valid_slots(lengths)[:, None]  # (B, G, S)
        count = covered.sum(-1, keepdim=True)
        time = self.layout.slot_times(lengths) @ plan.means  # (B, G)
        positions = torch.cat([time[:, plan.groups, None], plan.grid.expand(len(slots), -1, -1)], dim=-1)
        mask = (count[..., 0] > 0)[:, plan.groups]
        start = torch.zeros(len(slots), device=slots.device)
        return PackedHistory(tokens, positions, mask, plan.groups, covered / count.clamp(min=1), start)


HISTORY_PACKINGS: Mapping[str, str] = {
    "framepack": "astra_env.models.history:HistoryEmbedder",
    "released": "astra_env.models.released_history:ReleasedHistoryEmbedder",
}
