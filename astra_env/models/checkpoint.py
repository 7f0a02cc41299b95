"""Files of a world model: where checkpoints are, how weights are read and written, which dtype runs fastest."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from astra_env.actions import ACTION_MODALITIES

BUNDLED = Path(__file__).parent.parent / "checkpoints"
MAX_SHARD_SIZE = "14MB"


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies in it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def checkpoint_folder(name_or_path: str | os.PathLike[str]) -> Path:
    """Folder of a bundled checkpoint or of a local path; ValueError names what exists."""
    for folder in (BUNDLED / str(name_or_path), Path(name_or_path)):
        if (folder / "config.json").is_file():
            return folder
    bundled = sorted(entry.parent.name for entry in BUNDLED.glob("*/config.json"))
    raise ValueError(
        f"There is no world model {str(name_or_path)!r}; expected one of {bundled} or a folder with a config.json."
    )


def check_modalities(config: Mapping[str, Any], folder: Path) -> None:
    """ValueError when a checkpoint was trained for actions of another convention than this release's."""
    for name, described in config["modalities"].items():
        known = ACTION_MODALITIES.get(name)
        if known is None or known.to_json() != described:
            raise ValueError(
                f"{folder} was trained for {name!r} actions of another convention ({described}); "
                "install the release that made it, or train it again."
            )


def save_weights(module: nn.Module, folder: Path, name: str, dtype: torch.dtype) -> None:
    """Write FOLDER/NAME*.safetensors in shards."""
    weights = {key: value.detach().cpu().to(dtype) for key, value in module.state_dict().items()}
    pattern = name + "{suffix}.safetensors"
    save_torch_state_dict(weights, folder, filename_pattern=pattern, max_shard_size=MAX_SHARD_SIZE)


def load_weights(module: nn.Module, folder: Path, name: str) -> None:
    """Read what `save_weights` wrote into a module; ValueError names what is missing or damaged."""
    weights: dict[str, Tensor] = {}
    files = sorted(folder.glob(f"{name}*.safetensors"))
    for file in files:
        try:
            weights |= load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file} cannot be read ({error}); it is truncated or damaged, copy it again.") from error
    missing = sorted(module.state_dict().keys() - weights.keys())
    if missing:
        lacking = f"{folder} lacks {missing[0]!r} and {len(missing) - 1} other weights of {name}*.safetensors"
        raise ValueError(f"{lacking}; the checkpoint is incomplete, copy it again.")
    module.load_state_dict(weights)
