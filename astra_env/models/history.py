"""FramePack history: the first latent and the most recent one at full resolution, older ones at 2x and 4x compression.

The window has a fixed number of slots, oldest first: [first | 4x slots | 2x slots | 1x slots]. Slots before the start
of a short history repeat the first latent and are masked, so shapes never change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LONGEST_HISTORY = 30  # latents of the longest history that the released weights were trained on
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


class ConvPatchEmbed(PatchEmbed):
    """The same function as a convolution, which adds in another order: the released weights' own, to the last bit."""

    def forward(self, latents: Tensor) -> Tensor:
        """As `PatchEmbed.forward`."""
        _, kh, kw = self.kernel
        padded = F.pad(latents, (0, -latents.shape[-1] % kw, 0, -latents.shape[-2] % kh, 0, 0), mode="replicate")
        return F.conv3d(padded, self.weight, self.bias, stride=self.kernel).flatten(3).permute(0, 2, 3, 1)


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
        layout = self.layout
        valid, times = layout.valid_slots(lengths), layout.slot_times(lengths)
        starts = (0, 1, 1 + layout.num_4x, 1 + layout.num_4x + layout.num_2x)
        scales = (("1x", 0, 1), ("4x", starts[1], layout.num_4x), ("2x", starts[2], layout.num_2x))
        tokens, positions, masks, groups = [], [], [], []
        weights: list[Tensor] = []
        for name, start, count in (*scales, ("1x", starts[3], layout.num_1x)):
            if count == 0:
                continue
            span, scale = PATCH_SCALES[name]
            embedded = self.embed[name](slots[:, :, start : start + count])  # (B, count / span, N', D)
            B, num_groups, per_group = embedded.shape[:3]
            rows = -(-slots.shape[3] // (self.patch_size[1] * scale))
            grid = grid_positions(rows, per_group // rows, scale, slots.device)
            covered = F.one_hot(torch.arange(start, start + count, device=slots.device), layout.size).float()
            covered = covered.reshape(num_groups, span, -1).sum(1) * valid[:, None]  # (B, groups, S)
            time = times[:, start : start + count].reshape(B, num_groups, span).mean(-1)
            position = torch.cat(
                [
                    time[:, :, None, None].expand(-1, -1, per_group, 1),
                    grid.expand(B, num_groups, per_group, 2),
                ],
                dim=-1,
            )
            tokens.append(embedded.flatten(1, 2))
            positions.append(position.flatten(1, 2))
            masks.append((covered.sum(-1) > 0).repeat_interleave(per_group, dim=1))
            first_group = sum(weight.shape[1] for weight in weights)
            groups.append(first_group + torch.arange(num_groups, device=slots.device).repeat_interleave(per_group))
            weights.append(covered / covered.sum(-1, keepdim=True).clamp(min=1))
        return PackedHistory(
            torch.cat(tokens, 1),
            torch.cat(positions, 1),
            torch.cat(masks, 1),
            torch.cat(groups),
            torch.cat(weights, 1),
            torch.zeros(len(slots), device=slots.device),
        )


@dataclass(frozen=True)
class ReleasedScale:
    """Latents of one scale as the released weights expect them, with what is known of each."""

    name: str
    latents: Tensor  # (B, C, T, h, w)
    times: Tensor  # (B, T)
    valid: Tensor  # bool (B, T)
    rows: Tensor  # long (B, T): the action row of each latent


class ReleasedHistoryEmbedder(HistoryEmbedder):
    """Packs history as the released weights were trained: a compressed token takes the time and the action row of the
    j-th valid latent of its scale rather than of those it covers, its place in the compressed grid rather than in the
    picture, and the newest latent takes the first action of the chunk. Empty slots are zeros.
    """

    embed_type = ConvPatchEmbed

    def forward(self, slots: Tensor, lengths: Tensor) -> PackedHistory:
        """As `HistoryEmbedder.forward`; the action rows are the S of the slots and the first of the chunk."""
        layout, S = self.layout, self.layout.size
        valid = layout.valid_slots(lengths)
        slots = slots * valid[:, None, :, None, None]
        times = layout.slot_times(lengths)
        times[:, 0] = -lengths.clamp(max=LONGEST_HISTORY)
        rows = torch.arange(S, device=slots.device).expand(len(slots), S).clone()
        rows[:, -1] = S
        bounds = {"4x": range(1, 1 + layout.num_4x), "2x": range(1 + layout.num_4x, S - layout.num_1x)}
        scales = [
            ReleasedScale(
                name,
                *(
                    entry[..., list(chosen), :, :] if entry.ndim == 5 else entry[:, list(chosen)]
                    for entry in (slots, times, valid, rows)
                ),
            )
            for name, chosen in (bounds | {"1x": [0, S - 1]}).items()
            if len(chosen)
        ]
        return self.pack(scales, S + 1, torch.zeros(len(slots), device=slots.device))

    def pack(self, scales: list[ReleasedScale], num_rows: int, start: Tensor) -> PackedHistory:
        """Tokens of several scales, in their order, over a table of num_rows action rows, before a chunk at start."""
        parts = [self._pack_scale(scale, num_rows, start) for scale in scales]
        groups, first = [], 0
        for part in parts:
            groups.append(first + part.groups)
            first += part.group_weights.shape[1]
        return PackedHistory(
            torch.cat([part.tokens for part in parts], 1),
            torch.cat([part.positions for part in parts], 1),
            torch.cat([part.mask for part in parts], 1),
            torch.cat(groups),
            torch.cat([part.group_weights for part in parts], 1),
            start,
        )

    def _pack_scale(self, scale: ReleasedScale, num_rows: int, start: Tensor) -> PackedHistory:
        embed = self.embed[scale.name]
        assert isinstance(embed, PatchEmbed)
        missing = -scale.latents.shape[2] % embed.kernel[0]
        latents = F.pad(scale.latents, (0, 0, 0, 0, 0, missing), mode="replicate") if missing else scale.latents
        embedded = embed(latents)  # (B, T', N', D)
        B, num_groups, per_group = embedded.shape[:3]
        order = torch.sort((~scale.valid).long(), dim=1, stable=True).indices  # valid latents first
        count = scale.valid.sum(1, keepdim=True)
        wanted = torch.arange(num_groups, device=latents.device).expand(B, -1)
        chosen = order.gather(1, torch.minimum(wanted, (count - 1).clamp(min=0)))
        height = -(-latents.shape[3] // embed.kernel[1])
        grid = grid_positions(height, per_group // height, 1, latents.device).expand(B, num_groups, -1, -1)
        times = scale.times.gather(1, chosen)[:, :, None, None].expand(-1, -1, per_group, 1)
        weights = F.one_hot(scale.rows.gather(1, chosen), num_rows) * (wanted < count)[..., None]
        return PackedHistory(
            embedded.flatten(1, 2),
            torch.cat([times.to(grid.dtype), grid], dim=-1).flatten(1, 2),
            (count > 0).expand(B, num_groups * per_group),
            torch.arange(num_groups, device=latents.device).repeat_interleave(per_group),
            weights.float(),
            start,
        )


HISTORY_PACKINGS: Mapping[str, type[HistoryEmbedder]] = {
    "framepack": HistoryEmbedder,
    "released": ReleasedHistoryEmbedder,
}
