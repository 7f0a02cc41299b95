"""What the small networks that read latents share: layers, and a file of their own beside a world's weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def latent_layers(channels: int, dim: int, latent_size: int, num_outputs: int) -> nn.Sequential:
    """Latents (B, channels, latent_size, latent_size) -> (B, num_outputs), which the last layer reads off (B, 128)."""
    return nn.Sequential(
        nn.Conv2d(channels, dim, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(dim, dim, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(dim, dim, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(dim * ((latent_size + 1) // 2) ** 2, 128),
        nn.SiLU(),
        nn.Linear(128, num_outputs),
    )


def layer_sizes(weights: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """Channels, dim and latent size (an odd one as the next even one) of `latent_layers` that are called features."""
    dim, channels = weights["features.0.weight"].shape[:2]
    return channels, dim, round((weights["features.7.weight"].shape[1] / dim) ** 0.5) * 2


def head_folders(folder: str | os.PathLike[str], name: str) -> list[Path]:
    """The folder, and those of further heads in it, as far as they have a file of this name."""
    return [entry for entry in (Path(folder), *sorted(Path(folder).glob("head_*"))) if (entry / name).is_file()]


def save_head(head: nn.Module, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file, which appears under its name only when complete."""
    partial = path.with_name(path.name + ".partial")
    weights = {key: value.contiguous() for key, value in head.state_dict().items()}
    save_file(weights, partial, metadata=dict(metadata or {}))
    os.replace(partial, path)


def read_head(path: Path, advice: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights and metadata that `save_head` wrote.

    Raises:
        FileNotFoundError: there is no such file; ``advice`` says what to do.
        ValueError: it is truncated or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
            return weights, file.metadata() or {}
    except FileNotFoundError:
        raise FileNotFoundError(f"{path.parent} has no {path.name}; {advice}.") from None
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}); it is truncated or damaged, copy it again.") from error
