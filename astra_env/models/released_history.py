"""FramePack history as the released Astra weights expect it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from astra_env.models.history import HistoryEmbedder, PackedHistory, PatchEmbed, grid_positions

LONGEST_HISTORY = 30  # latents of the longest history that the released weights were trained on


class ConvPatchEmbed(PatchEmbed):
    """The same function as a convolution, which adds in another order: the released weights' own, to the last bit."""

    def forward(self, latents: Tensor) -> Tensor:
        """As `PatchEmbed.forward`."""
        _, kh, kw = self.kernel
        padded = F.pad(latents, (0, -latents.shape[-1] % kw, 0, -latents.shape[-2] % kh, 0, 0), mode="replicate")
        return F.conv3d(padded, self.weight, self.bias, stride=self.kernel).flatten(3).permute(0, 2, 3, 1)


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
