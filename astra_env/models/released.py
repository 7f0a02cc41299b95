"""The released Astra world model: its weights over Wan-2.1's autoencoder and text encoder ("astra-1.3b")."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from astra_env.models.flow_matching import Sampling
from astra_env.models.hub import WAN_REPO, Source, download
from astra_env.models.reference import from_reference, load_reference_weights
from astra_env.models.text_encoder import TextEncoder
from astra_env.models.wan import load_wan_autoencoder
from astra_env.models.world_model import WorldModel

ASTRA_REPO = "EvanEternal/Astra"
ASTRA_FILE = "models/Astra/checkpoints/diffusion_pytorch_model.ckpt"
HEAD_DIM = 128
MODALITIES = ("camera", "vehicle", "end_effector")
"""Our names for the reference's sekai, nuscenes and openx."""
FRAME_SIZE = (480, 832)


def load_released(
    *,
    weights: Source = ASTRA_REPO,
    wan: Source = WAN_REPO,
    quantization: str | None = None,
    offload: bool = False,
) -> WorldModel:
    """World model with the released weights, as they were trained: 480 x 832 frames, 8 latents (32 frames) a step.

    Its modalities are camera and end_effector. The weights also know cars, whose rows are poses relative to the last
    key frame: those go through `reference_forward`.

    In bfloat16 the transformer takes 3.0 GB and the autoencoder 0.25 GB of memory; the text encoder (11.4 GB) is loaded
    where a new prompt comes and freed again.

    Args:
        weights: the released file, a folder that holds it, or a repository on the hub.
        wan: a folder with Wan-2.1-T2V-1.3B in diffusers form, or a repository on the hub.
        quantization: None, "int8" or "nf4" for the text encoder, which then takes about 8 or 6 GB.
        offload: keep the decoder's memory of the stream on the CPU and decode tile by tile: slower, for small GPUs.

    Raises:
        ValueError: files that are missing, damaged or of another model.
        ConnectionError: the files are neither here nor to be had.
    """
    tiling: dict[str, Any] = {"tile_size": [34, 34], "memory_device": "cpu"} if offload else {}
    state_dict = load_reference_weights(released_file(weights))
    transformer = from_reference(state_dict, sizes(state_dict), MODALITIES)
    autoencoder = load_wan_autoencoder(wan, **tiling)
    described = {name: value for name, value in autoencoder.vae.config.items() if name[0] != "_"}
    return WorldModel(
        autoencoder,
        transformer,
        frame_size=FRAME_SIZE,
        sampling=Sampling(num_inference_steps=50, shift=5.0, chunk_size=8),
        autoencoder_config={"type": "wan", **tiling, **described},
        action_encodings={"camera": "matrix", "end_effector": "matrix"},
        text_encoder=TextEncoder(wan, quantization=quantization),
    )


def released_file(source: Source) -> Path:
    """Path of the released weights: a file, a folder that holds them, or the hub."""
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        for candidate in (path / ASTRA_FILE, path / Path(ASTRA_FILE).name):
            if candidate.is_file():
                return candidate
        raise ValueError(f"{path} holds neither {ASTRA_FILE} nor {Path(ASTRA_FILE).name}; give the file itself.")

    def check(folder: Path) -> None:
        if not (folder / ASTRA_FILE).is_file():
            raise ValueError(f"{folder} lacks {ASTRA_FILE}.")

    return download(str(source), [ASTRA_FILE], check) / ASTRA_FILE


def sizes(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The reference's configuration, read off the shapes of its weights; ValueError for those of another model."""
    try:
        patch, text = state_dict["patch_embedding.weight"], state_dict["text_embedding.0.weight"]
        if patch.shape[0] % HEAD_DIM:
            width = f"The checkpoint is of width {patch.shape[0]}, expected a multiple of {HEAD_DIM}"
            raise ValueError(f"{width}, which is the width of an attention head; give {ASTRA_FILE} of {ASTRA_REPO}.")
        layers = {int(match[1]) for name in state_dict if (match := re.match(r"blocks\.(\d+)\.", name))}
        experts = [name for name in state_dict if re.fullmatch(r"blocks\.0\.moe\.experts\.\d+\.0\.weight", name)]
        return {
            "patch_size": list(patch.shape[2:]),
            "in_dim": patch.shape[1],
            "dim": patch.shape[0],
            "num_heads": patch.shape[0] // HEAD_DIM,
            "num_layers": len(layers),
            "ffn_dim": len(state_dict["blocks.0.ffn.0.bias"]),
            "freq_dim": state_dict["time_embedding.0.weight"].shape[1],
            "text_dim": text.shape[1],
            "unified_dim": len(state_dict["sekai_processor.projector.0.bias"]),
            "num_experts": len(experts),
            "top_k": 1,
        }
    except KeyError as error:
        found = sorted(state_dict)[:4]
        raise ValueError(
            f"The checkpoint has no {error}: it holds {len(state_dict)} tensors ({', '.join(found)}, ...), expected "
            f"the released weights of Astra ({ASTRA_FILE} of {ASTRA_REPO})."
        ) from error
