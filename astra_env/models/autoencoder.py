"""Video autoencoders: 8x in space, 4x in time, causal, encoded and decoded as a stream.

One interface over two parts: `TinyAutoencoder`, which the bundled world uses, and `WanAutoencoder` over diffusers'
`AutoencoderKLWan`. Frames (B, T, H, W, 3) uint8 become latents (B, C, T', h, w) here and nowhere else. The first latent
shows the first frame; every later one shows the next four.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from astra_env.models.tiling import Tiling, decode_apart

Cache = tuple[Tensor, ...]
TEMPORAL_COMPRESSION = 4
SPATIAL_COMPRESSION = 8


def frames_to_pixels(frames: Tensor) -> Tensor:
    """uint8 (B, T, H, W, 3) -> float (B, T, 3, H, W) in [-1, 1]."""
    return frames.movedim(-1, 2).float() / 127.5 - 1


def pixels_to_frames(pixels: Tensor) -> Tensor:
    """float (B, T, 3, H, W) in [-1, 1] -> uint8 (B, T, H, W, 3)."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(2, -1)


def pad_to_latents(frames: Tensor) -> Tensor:
    """Repeat the first frame until T is a multiple of four: T = 1 + 4 k gains three copies, as the stream expects."""
    missing = -frames.shape[1] % TEMPORAL_COMPRESSION
    return torch.cat([frames[:, :1].expand(-1, missing, -1, -1, -1), frames], dim=1)


def check_size(height: int, width: int) -> None:
    """ValueError for frames that latents cannot cover."""
    if height % SPATIAL_COMPRESSION or width % SPATIAL_COMPRESSION:
        raise ValueError(f"Frames are {height}x{width}, expected multiples of 8; resize them first.")


class VideoAutoencoder(nn.Module):
    """Interface. Latents have unit variance; `decode` continues the stream that its cache remembers."""

    latent_channels: int
    latent_mean: Tensor
    latent_std: Tensor
    decoding_dtype: torch.dtype = torch.float32  # what the decoder multiplies in; its weights stay as they are

    def encode(self, frames: Tensor) -> Tensor:
        """uint8 frames (B, T, H, W, 3), T >= 1 -> latents (B, C, ceil(T / 4), H / 8, W / 8)."""
        raise TypeError(f"{type(self).__name__} does not define encode.")

    def init_cache(self, batch_size: int, height: int, width: int) -> Cache:
        """Decoder memory before the first of latents (B, C, T, height, width); every tensor has B rows."""
        raise TypeError(f"{type(self).__name__} does not define init_cache.")

    def decode_pixels(self, latents: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Latents (B, C, T, h, w) -> pixels (B, 4 T, 3, 8 h, 8 w) in [-1, 1], and the memory for the next ones.

        The first three frames of a stream repeat its first frame, so that every latent gives four.
        """
        raise TypeError(f"{type(self).__name__} does not define decode_pixels.")

    def decode(self, latents: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """As `decode_pixels`, with frames uint8 (B, 4 T, 8 h, 8 w, 3)."""
        pixels, cache = self.decode_pixels(latents, cache)
        return pixels_to_frames(pixels), cache

    def decode_video(self, latents: Tensor) -> Tensor:
        """Whole stream at once: (B, C, T, h, w) -> frames uint8 (B, 4 T - 3, 8 h, 8 w, 3)."""
        frames, _ = self.decode(latents, self.init_cache(len(latents), *latents.shape[-2:]))
        return frames[:, TEMPORAL_COMPRESSION - 1 :]


class MemoryBlock(nn.Module):
    """Residual block over each frame and the one before it, as in TAEHV."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(2 * dim, dim, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 3, padding=1),
        )

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, C, h, w), memory (B, C, h, w): the frame before -> same shape, and the new memory."""
        past = torch.cat([memory[:, None], x[:, :-1]], dim=1)
        joined = torch.cat([x, past], dim=2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return F.relu(x + self.convs(joined).unflatten(0, x.shape[:2])), x[:, -1]


class FrameConv(nn.Module):
    """2-D layers applied to every frame of (B, T, C, h, w)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Fold time into the batch."""
        folded = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return self.layers(folded).unflatten(0, x.shape[:2])


class TimePool(nn.Module):
    """Merge pairs of frames into one, after halving the picture where stride is 2."""

    def __init__(self, dim: int, out_dim: int, stride: int) -> None:
        super().__init__()
        self.merge = FrameConv(nn.Conv2d(2 * dim, out_dim, 4, 2, 1) if stride == 2 else nn.Conv2d(2 * dim, out_dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C, h, w) -> (B, T / 2, C', h / stride, w / stride)."""
        B, T, C, h, w = x.shape
        return self.merge(x.reshape(B, T // 2, 2 * C, h, w))


class TimeGrow(nn.Module):
    """Make two frames of each, doubling the picture where scale is 2."""

    def __init__(self, dim: int, out_dim: int, scale: int) -> None:
        super().__init__()
        self.grow = FrameConv(nn.Conv2d(dim, 2 * out_dim * scale**2, 1), *([nn.PixelShuffle(2)] if scale == 2 else []))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C, h, w) -> (B, 2 T, C', scale h, scale w)."""
        grown = self.grow(x)
        B, T, C, h, w = grown.shape
        return grown.reshape(B, 2 * T, C // 2, h, w)


class MemoryStack(nn.Module):
    """A sequence of layers in which each MemoryBlock owns one entry of the cache."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """x (B, T, C, h, w) -> output and the cache after it."""
        memories, kept = iter(cache), []
        for layer in self.layers:
            if isinstance(layer, MemoryBlock):
                x, memory = layer(x, next(memories).to(x.dtype))
                kept.append(memory.float())
            else:
                x = layer(x)
        return x, tuple(kept)


class TinyAutoencoder(VideoAutoencoder):
    """Causal convolutional autoencoder of about 1M parameters with 4x4 pixel shuffle at both ends (TAEHV kind)."""

    def __init__(self, latent_channels: int = 16, dim: int = 64, coarse_dim: int = 64) -> None:
        super().__init__()
        self.latent_channels, self.dim, self.coarse_dim = latent_channels, dim, coarse_dim
        self.encoder = MemoryStack(
            FrameConv(
                nn.PixelUnshuffle(4),
                nn.Conv2d(48, dim, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(dim, dim, 3, padding=1),
                nn.ReLU(),
            ),
            TimePool(dim, dim, stride=1),
            MemoryBlock(dim),
            TimePool(dim, coarse_dim, stride=2),
            MemoryBlock(coarse_dim),
            FrameConv(nn.Conv2d(coarse_dim, latent_channels, 3, padding=1)),
        )
        self.decoder = MemoryStack(
            FrameConv(nn.Conv2d(latent_channels, coarse_dim, 3, padding=1), nn.ReLU()),
            MemoryBlock(coarse_dim),
            MemoryBlock(coarse_dim),
            TimeGrow(coarse_dim, dim, scale=2),
            MemoryBlock(dim),
            TimeGrow(dim, dim, scale=1),
            MemoryBlock(dim),
            FrameConv(nn.Conv2d(dim, 48, 3, padding=1), nn.PixelShuffle(4)),
        )
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_std", torch.ones(latent_channels))

    def raw_latents(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 4 T, 3, H, W) -> latents (B, T, C, h, w) before normalisation."""
        height, width = pixels.shape[-2:]
        check_size(height, width)
        sizes = ((self.dim, 4), (self.coarse_dim, 8))
        cache = tuple(pixels.new_zeros(len(pixels), dim, height // s, width // s) for dim, s in sizes)
        return self.encoder(pixels, cache)[0]

    def encode(self, frames: Tensor) -> Tensor:
        """See `VideoAutoencoder.encode`."""
        latents = self.raw_latents(frames_to_pixels(pad_to_latents(frames))).float().transpose(1, 2)
        return (latents - self.latent_mean[:, None, None, None]) / self.latent_std[:, None, None, None]

    def init_cache(self, batch_size: int, height: int, width: int) -> Cache:
        """See `VideoAutoencoder.init_cache`."""
        sizes = ((self.coarse_dim, 1), (self.coarse_dim, 1), (self.dim, 2), (self.dim, 2))
        device = self.latent_mean.device
        return tuple(torch.zeros(batch_size, dim, height * s, width * s, device=device) for dim, s in sizes)

    def decode_raw(self, latents: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Latents (B, T, C, h, w) before normalisation -> pixels (B, 4 T, 3, H, W)."""
        bounded = 4 * torch.tanh(latents / 4)  # a stray latent cannot flood a picture
        return self.decoder(bounded, cache)

    def decode_pixels(self, latents: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """See `VideoAutoencoder.decode_pixels`."""
        raw = latents * self.latent_std[:, None, None, None] + self.latent_mean[:, None, None, None]
        with torch.autocast(raw.device.type, torch.bfloat16, enabled=self.decoding_dtype == torch.bfloat16):
            pixels, cache = self.decode_raw(raw.transpose(1, 2), cache)
        return pixels.float(), cache


class WanAutoencoder(VideoAutoencoder):
    """Wan-2.1's autoencoder through diffusers (config is `AutoencoderKLWan`'s), streamed, in tiles if given a size.

    Tiles are in latents, 34x34 in the reference implementation. At 480x832 a stream's memory takes 3.8 GB in float32,
    in those tiles 10.8 GB; with memory_device "cpu" only the tile at hand visits the weights' device.
    """

    def __init__(
        self,
        tile_size: Sequence[int] | None = None,
        tile_stride: Sequence[int] = (18, 16),
        memory_device: str | None = None,
        **config: Any,
    ) -> None:
        super().__init__()
        from diffusers import AutoencoderKLWan

        self.vae = AutoencoderKLWan(**config)
        self.tiling = Tiling(tile_size, tile_stride, SPATIAL_COMPRESSION)
        self.memory_device, self.memory_sizes = memory_device, _memory_sizes(self.vae)
        self.latent_channels = self.vae.config.z_dim
        for name, values in (("latent_mean", "latents_mean"), ("latent_std", "latents_std")):
            self.register_buffer(name, torch.tensor(self.vae.config[values]), persistent=False)

    def encode(self, frames: Tensor) -> Tensor:
        """See `VideoAutoencoder.encode`; the posterior's mean, normalised per channel."""
        check_size(*frames.shape[2:4])
        return self.tiling.encode(self._encode_tile, pad_to_latents(frames)[:, TEMPORAL_COMPRESSION - 1 :])

    def _encode_tile(self, frames: Tensor) -> Tensor:
        latents = self.vae.encode(frames_to_pixels(frames).transpose(1, 2).to(self.vae.dtype)).latent_dist.mean.float()
        return (latents - self.latent_mean[:, None, None, None]) / self.latent_std[:, None, None, None]

    def init_cache(self, batch_size: int, height: int, width: int) -> Cache:
        """For each tile: whether its stream has begun (B,), then two frames for each convolution (B, C, 2, H, W)."""
        return self.tiling.init_cache(self._init_tile, batch_size, height, width)

    def _init_tile(self, batch_size: int, height: int, width: int) -> Cache:
        begun = torch.zeros(batch_size, dtype=torch.bool, device=self.memory_device or self.vae.device)
        zero = begun.new_zeros((), dtype=self.vae.dtype)  # what precedes a first frame; expanded, it takes no memory
        return begun, *(zero.expand(batch_size, dim, 2, height * s, width * s) for dim, s in self.memory_sizes)

    def decode_pixels(self, latents: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """See `VideoAutoencoder.decode_pixels`; rows that begin and rows that go on may share a batch."""
        pixels, cache = self.tiling.decode(self._decode_tile, latents, cache)
        return pixels.clamp(-1, 1), cache

    def _decode_tile(self, latents: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        begun, *before = cache
        if begun.any() and not begun.all():  # a first latent gives one frame, every later one four
            return decode_apart(self._decode_tile, latents, cache, begun)
        first = not begun.any()
        memory: list[Any] = [None] * len(before) if first else [*before]
        raw = latents * self.latent_std[:, None, None, None] + self.latent_mean[:, None, None, None]
        frames = []
        for features in self.vae.post_quant_conv(raw.to(self.vae.dtype)).split(1, dim=2):
            pixels = self.vae.decoder(features, feat_cache=memory, feat_idx=[0], first_chunk=first)
            frames.append(pixels.expand(-1, -1, TEMPORAL_COMPRESSION, -1, -1) if first else pixels)
            first = False
        kept = [  # after a first latent diffusers holds one frame, and text for what has yet to run
            F.pad(new, (0, 0, 0, 0, 2 - new.shape[2], 0)).to(old.device) if isinstance(new, Tensor) else old
            for new, old in zip(memory, before, strict=True)
        ]
        return torch.cat(frames, dim=2).transpose(1, 2).float(), (torch.ones_like(begun), *kept)


@torch.no_grad()
def _memory_sizes(vae: Any) -> list[tuple[int, int]]:
    """Channels and pixels a latent of what each causal convolution of the decoder remembers, from a 1x1 picture."""
    memory: list[Any] = [None] * len(list(vae.decoder.modules()))  # at least one place for each convolution
    for first in (True, False):
        latent = torch.zeros(1, vae.config.z_dim, 1, 1, 1, dtype=vae.dtype, device=vae.device)
        vae.decoder(latent, feat_cache=memory, feat_idx=[0], first_chunk=first)
    return [(entry.shape[1], entry.shape[-1]) for entry in memory if entry is not None]


AUTOENCODERS: Mapping[str, type[VideoAutoencoder]] = {"tiny": TinyAutoencoder, "wan": WanAutoencoder}
