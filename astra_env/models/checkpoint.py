"""Files of a world model: where checkpoints are, how weights are read and written, which dtype runs fastest."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import HfApi, save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from astra_env.actions import ACTION_MODALITIES
from astra_env.models.hub import download
from astra_env.models.model_card import model_card

if TYPE_CHECKING:
    from astra_env.models.world_model import WorldModel

BUNDLED = Path(__file__).parent.parent / "checkpoints"
PRESETS: Mapping[str, str] = {"astra-1.3b": "astra_env.models.released:load_released"}
"""World models that are put together from the releases of others: name -> function that builds one."""


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies in it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def checkpoint_folder(name_or_path: str | os.PathLike[str]) -> Path:
    """Folder of a bundled checkpoint, of a local path or of a repository on the hub; ValueError names what exists."""
    for folder in (BUNDLED / str(name_or_path), Path(name_or_path)):
        if (folder / "config.json").is_file():
            return folder
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(name_or_path)) and not Path(name_or_path).exists():
        return download(str(name_or_path), ["*.json", "*.safetensors", "*.npz"], _check_whole)
    bundled = sorted([*PRESETS, *(entry.parent.name for entry in BUNDLED.glob("*/config.json"))])
    raise ValueError(
        f"There is no world model {str(name_or_path)!r}; expected one of {bundled}, a folder with a config.json or "
        "the owner/name of a repository on the hub."
    )


def _check_whole(folder: Path) -> None:
    if not (folder / "config.json").is_file() or not any(folder.glob("transformer*.safetensors")):
        raise ValueError(
            f"{folder} lacks config.json or transformer*.safetensors; expected what save_pretrained wrote."
        )


def save_checkpoint(
    world_model: WorldModel, folder: Path, dtype: torch.dtype, max_shard_size: str, name: str | None = None
) -> None:
    """Write the weights in shards, config.json and, where there is none, a model card as README.md."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(world_model.transformer, folder, "transformer", dtype, max_shard_size)
    save_weights(world_model.autoencoder, folder, "autoencoder", torch.float16, max_shard_size)
    texts = {"config.json": json.dumps(world_model.config, indent=2) + "\n"}
    if not (folder / "README.md").exists():
        num_parameters = sum(parameter.numel() for parameter in world_model.transformer.parameters())
        texts["README.md"] = model_card(world_model.config, name or folder.name, num_parameters)
    for file_name, text in texts.items():
        partial = folder / f"{file_name}.partial"
        partial.write_text(text)
        os.replace(partial, folder / file_name)


def push_checkpoint(world_model: WorldModel, repo_id: str, dtype: torch.dtype, *, private: bool) -> str:
    """Upload what `save_checkpoint` writes to a repository on the hub, made where there is none; returns its URL."""
    api = HfApi()
    with TemporaryDirectory() as folder:
        save_checkpoint(world_model, Path(folder), dtype, "5GB", repo_id)
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload a world model")
    return str(url)


def check_modalities(config: Mapping[str, Any], folder: Path) -> None:
    """ValueError when a checkpoint was trained for actions of another convention than this release's."""
    for name, described in config["modalities"].items():
        known = ACTION_MODALITIES.get(name)
        if known is None or known.to_json() != described:
            raise ValueError(
                f"{folder} was trained for {name!r} actions of another convention ({described}); "
                "install the release that made it, or train it again."
            )


def checkpoint_digest(folder: Path) -> str:
    """SHA-256 of a checkpoint folder's config.json and weights."""
    content = hashlib.sha256()
    for file in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        content.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return content.hexdigest()


def save_weights(module: nn.Module, folder: Path, name: str, dtype: torch.dtype, max_shard_size: str) -> None:
    """Write FOLDER/NAME*.safetensors in shards."""
    weights = {key: value.detach().cpu().to(dtype) for key, value in module.state_dict().items()}
    pattern = name + "{suffix}.safetensors"
    save_torch_state_dict(weights, folder, filename_pattern=pattern, max_shard_size=max_shard_size)


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
