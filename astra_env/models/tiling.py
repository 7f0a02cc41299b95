"""Autoencoders piece by piece: large pictures in tiles that are blended where they overlap, mixed batches in groups.

The cut and the ramps are those of the reference implementation (EternalEvan/Astra, 3fb82e19), so that what its encoder
shows its transformer, and its decoder the user, is the same here. Tiles stream: each has decoder memory of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Memory = tuple[Tensor, ...]  # as autoencoder.Cache, which is above this file
Decode = Callable[[Tensor, Memory], tuple[Tensor, Memory]]
Tile = tuple[int, int, int, int]  # top, bottom, left, right in latents; bottom and right may lie past the border


def spans(length: int, size: int, stride: int) -> list[tuple[int, int]]:
    """Starts and ends along one side: a stride apart, until one reaches the border."""
    return [(start, start + size) for start in range(0, max(length - size, 0) + stride, stride)]


def ramp(length: int, border: int, first: bool, last: bool) -> Tensor:
    """Weights (length,) that rise over border steps unless the tile is first, and fall again unless it is last.

    Where both slopes meet the falling one counts, as in the reference.
    """
    rising = (torch.arange(1, length + 1) / max(border, 1)).clamp(max=1)
    weights = torch.ones(length) if first else rising
    return weights if last else torch.where(torch.arange(length, 0, -1) <= border, rising.flip(0), weights)


@dataclass(frozen=True)
class Tiling:
    """How latents (h, w) are cut in tiles; a size of None is one tile, the whole picture.

    The functions that it is given encode and decode one tile, with the signatures of `VideoAutoencoder`.
    """

    size: Sequence[int] | None = None
    stride: Sequence[int] = (18, 16)
    scale: int = 8  # pixels a latent, in both directions

    def __post_init__(self) -> None:
        size = self.size or self.stride
        if not len(size) == len(self.stride) == 2 or not all(
            0 < s <= t for s, t in zip(self.stride, size, strict=True)
        ):
            raise ValueError(
                f"Tiles are {self.size} latents, {self.stride} apart; expected (height, width) for both, "
                "and distances from 1 to the size."
            )

    def tiles(self, height: int, width: int) -> list[Tile]:
        """The plan for latents (height, width), row by row."""
        size = self.size or (height, width)
        rows, columns = (spans(*side) for side in zip((height, width), size, self.stride, strict=True))
        return [(*row, *column) for row in rows for column in columns]

    def weights(self, tile: Tile, height: int, width: int, scale: int) -> Tensor:
        """How much the tile's part inside latents (height, width) counts, at scale cells a latent: (rows, columns)."""
        sides = ((*tile[:2], height, self.stride[0]), (*tile[2:], width, self.stride[1]))
        rows, columns = (
            ramp(scale * (min(end, length) - start), scale * (end - start - stride), start == 0, end >= length)
            for start, end, length, stride in sides
        )
        return torch.minimum(rows[:, None], columns)

    def blend(self, parts: Iterable[Tensor], height: int, width: int, scale: int) -> Tensor:
        """Results (..., rows, columns), one a tile in the order of the plan -> (..., scale height, scale width).

        Parts are added up as they come, so that only one needs to exist at a time.
        """
        total, norm = torch.zeros(()), torch.zeros(scale * height, scale * width)
        for index, (tile, part) in enumerate(zip(self.tiles(height, width), parts, strict=True)):
            weights = self.weights(tile, height, width, scale)
            if index == 0:
                total = part.new_zeros(*part.shape[:-2], *norm.shape)
            top, bottom, left, right = (scale * edge for edge in tile)
            total[..., top:bottom, left:right] += part * weights.to(part)
            norm[top:bottom, left:right] += weights
        return total / norm.to(total)

    def encode(self, encode: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
        """Frames uint8 (B, T, H, W, 3) -> latents (B, C, T', H / scale, W / scale)."""
        height, width = (side // self.scale for side in frames.shape[2:4])

        def parts() -> Iterator[Tensor]:
            for tile in self.tiles(height, width):
                top, bottom, left, right = (self.scale * edge for edge in tile)
                yield encode(frames[:, :, top:bottom, left:right])

        return self.blend(parts(), height, width, scale=1)

    def init_cache(
        self, init_cache: Callable[[int, int, int], Memory], batch_size: int, height: int, width: int
    ) -> Memory:
        """The tiles' memories one after the other; every tensor has B rows."""
        inside = [(min(b, height) - t, min(r, width) - left) for t, b, left, r in self.tiles(height, width)]
        return tuple(entry for size in inside for entry in init_cache(batch_size, *size))

    def decode(self, decode: Decode, latents: Tensor, cache: Memory) -> tuple[Tensor, Memory]:
        """Latents (B, C, T, h, w) -> pixels (B, 4 T, 3, scale h, scale w), and the tiles' memories after them."""
        height, width = latents.shape[-2:]
        tiles = self.tiles(height, width)
        each, rest = divmod(len(cache), len(tiles))
        if rest:
            raise ValueError(
                f"The decoder memory has {len(cache)} entries, expected as many for each of {len(tiles)} tiles; "
                f"make it with init_cache for latents of {height}x{width} and the same tiles."
            )
        kept: list[Tensor] = []

        def parts() -> Iterator[Tensor]:
            for index, (top, bottom, left, right) in enumerate(tiles):
                pixels, memory = decode(latents[..., top:bottom, left:right], cache[index * each : (index + 1) * each])
                kept.extend(memory)
                yield pixels

        return self.blend(parts(), height, width, self.scale), tuple(kept)


def decode_apart(decode: Decode, latents: Tensor, cache: Memory, chosen: Tensor) -> tuple[Tensor, Memory]:
    """Decode the rows not chosen (B,), then the chosen ones, and put them back in order."""
    order, count = chosen.int().argsort(), int(chosen.sum())
    groups = order.split([len(chosen) - count, count])
    parts = [decode(latents[rows], tuple(entry[rows] for entry in cache)) for rows in groups]
    memory = zip(*(part[1] for part in parts), strict=True)
    back = order.argsort()
    return torch.cat([part[0] for part in parts])[back], tuple(torch.cat(entries)[back] for entries in memory)
