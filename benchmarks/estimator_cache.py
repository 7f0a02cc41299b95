"""Estimators are trained once for each data set and autoencoder, and kept in a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from astra_env.models.autoencoder import VideoAutoencoder

Estimator = TypeVar("Estimator", bound=nn.Module)


def cached_estimator(
    model: Estimator,
    fit: Callable[[], Estimator],
    cache: Path,
    *,
    root: str | os.PathLike[str],
    autoencoder: VideoAutoencoder,
    recipe: dict[str, Any],
) -> Estimator:
    """The estimator in the cache when it was made from the same data by the same recipe, else what fit makes.

    Args:
        model: takes the cached weights.
        fit: trains the estimator.
        cache: safetensors file.
        root: folder whose dataset.json tells one data set from another.
        autoencoder: whose frames the estimator learns from.
        recipe: JSON-ready, what else decides the weights.
    """
    digest = hashlib.sha256((Path(root) / "dataset.json").read_bytes())
    digest.update(str(model).encode())
    for weights in autoencoder.state_dict().values():
        digest.update(weights.cpu().numpy().tobytes())
    metadata = {"recipe": json.dumps({"inputs": digest.hexdigest(), **recipe})}
    if cache.is_file():
        try:
            with safe_open(cache, "pt") as file:
                if file.metadata() == metadata:
                    model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
                    return model.eval().requires_grad_(False)
        except SafetensorError as error:
            raise ValueError(f"{cache} cannot be read ({error}); delete it, and it is made again.") from error
    model = fit()
    partial = cache.with_name(cache.name + ".partial")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, partial, metadata=metadata)
    os.replace(partial, cache)
    return model
