"""Picture measures on uint8 frames: PSNR, SSIM, sharpness, and distances of EfficientNet-Lite0 features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from astra_env.models.image_network import efficientnet_lite0

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
FEATURE_SIZE = 128
"""Edge in pixels that frames are enlarged to before the image network sees them."""
FEATURE_BLOCKS = (0, 2, 4, 10, 15)
"""Blocks of EfficientNet-Lite0 whose outputs are compared: the last one of each resolution."""


def psnr(shown: Tensor, truth: Tensor) -> float:
    """Decibels from the mean squared error over everything given; 99 for equal frames."""
    error = (shown.float() - truth.float()).square().mean()
    return float((10 * torch.log10(255**2 / error)).clamp(max=99))


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of frames (N, H, W, 3) -> (N,), at most 1.

    Gaussian window of 11 pixels and sigma 1.5, constants 0.01 and 0.03, mean over positions where the window fits
    and over colours.
    """
    offsets = torch.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    window = (window / window.sum()).to(first.device)

    def blurred(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, window[None, None, :, None]), window[None, None, None, :])

    x, y = (frames.movedim(-1, 1).flatten(0, 1)[:, None].float() / 255 for frames in (first, second))
    mean_x, mean_y = blurred(x), blurred(y)
    variance_x, variance_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    likeness = likeness / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    return likeness.mean((1, 2, 3)).unflatten(0, (len(first), 3)).mean(1)


def sharpness(frames: Tensor) -> Tensor:
    """Mean length of the brightness gradient in grey levels a pixel: (N, H, W, 3) -> (N,)."""
    grey = frames.float().mean(-1)
    across = grey[:, :-1, 1:] - grey[:, :-1, :-1]
    down = grey[:, 1:, :-1] - grey[:, :-1, :-1]
    return torch.hypot(across, down).mean((1, 2))


class PerceptualFeatures:
    """EfficientNet-Lite0 as trained on ImageNet, from the Python package that holds its weights."""

    def __init__(self) -> None:
        self.network = efficientnet_lite0()

    def _maps(self, frames: Tensor) -> list[Tensor]:
        """Feature maps (N, C_i, h_i, w_i) at every resolution, then those of the head, of frames (N, H, W, 3)."""
        pixels = (frames.movedim(-1, 1).float() - 127) / 128
        x = F.interpolate(pixels, (FEATURE_SIZE, FEATURE_SIZE), mode="bilinear", align_corners=False)
        network, maps = self.network, []
        x = network._swish(network._bn0(network._conv_stem(x)))
        for index, block in enumerate(network._blocks):
            x = block(x)
            if index in FEATURE_BLOCKS:
                maps.append(x)
        return [*maps, network._swish(network._bn1(network._conv_head(x)))]

    @torch.no_grad()
    def distance(self, first: Tensor, second: Tensor) -> float:
        """Mean distance of frame pairs (N, H, W, 3), 0 for equal ones.

        Features have unit length at every position; squared differences are averaged over positions, then over the
        five resolutions.
        """
        totals = []
        for x, y in zip(first.split(32), second.split(32), strict=True):
            pairs = zip(self._maps(x)[:-1], self._maps(y)[:-1], strict=True)
            layers = [(F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2)) for a, b in pairs]
            totals.append(torch.stack(layers).mean(0))
        return float(torch.cat(totals).mean())

    @torch.no_grad()
    def describe(self, frames: Tensor) -> Tensor:
        """One vector of unit length for each frame: (N, H, W, 3) -> (N, 1280)."""
        return torch.cat([F.normalize(self._maps(part)[-1].mean((2, 3)), dim=1) for part in frames.split(32)])


def nearest_distance(vectors: Tensor, bank: Tensor) -> float:
    """Mean distance from vectors (N, D) to the nearest of bank (K, D)."""
    return float(torch.cdist(vectors, bank).min(dim=1).values.mean())
