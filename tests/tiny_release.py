"""A tiny release in its authors' form: random weights under their names, over a tiny autoencoder of Wan-2.1's kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file
from tiny import perturb, random_frames, seeded
from torch import Tensor

from astra_env.actions import ACTION_MODALITIES
from astra_env.models import WorldModel, WorldState
from astra_env.models.reference import dead_weights, reference_config, to_reference_names
from astra_env.models.released import MODALITIES
from astra_env.models.transformer import AstraTransformer

SIZES = {
    "patch_size": [1, 2, 2],
    "in_dim": 16,
    "dim": 128,
    "ffn_dim": 64,
    "freq_dim": 32,
    "text_dim": 8,
    "num_heads": 1,
    "num_layers": 2,
    "unified_dim": 25,
    "num_experts": 3,
    "top_k": 1,
}
CHUNK = 8
WEIGHTS = {"plain": "a.ckpt", "lightning": "b.ckpt", "safetensors": "c.safetensors"}
SMALL = (32, 32)


def released_weights() -> dict[str, Tensor]:
    """Random weights under the authors' names, with those that they store and never read."""
    torch.manual_seed(0)
    transformer = AstraTransformer(reference_config(SIZES, MODALITIES)).requires_grad_(False)
    perturb(transformer)
    weights = to_reference_names(transformer.state_dict(), transformer.config)
    return {name: value.clone() for name, value in weights.items()} | {name: torch.ones(3) for name in dead_weights(2)}


def write_release(root: Path) -> Path:
    """The weights in three kinds of file, and the autoencoder in diffusers form."""
    weights = released_weights()
    torch.save(weights, root / WEIGHTS["plain"])
    wrapped = {f"pipe.dit.{name}": value for name, value in weights.items()}
    wrapped["pipe.vae.model.conv1.weight"] = torch.zeros(2)
    torch.save({"epoch": 3, "state_dict": wrapped, "optimizer_states": []}, root / WEIGHTS["lightning"])
    save_file(weights, root / WEIGHTS["safetensors"])
    torch.manual_seed(0)
    AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1).save_pretrained(root / "wan" / "vae")
    return root


def load_release(root: Path, **options: Any) -> WorldModel:
    """The release with frames of 32 x 32, on the CPU in float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("astra_env.models.released.FRAME_SIZE", SMALL)
        given = {"weights": root / WEIGHTS["plain"], "wan": root / "wan"} | options
        return WorldModel.from_pretrained("astra-1.3b", device="cpu", dtype=torch.float32, **given)


def actions_of(modality: str, *shape: int, seed: int = 0) -> Tensor:
    """Random actions (*shape, A) inside the bounds."""
    space = ACTION_MODALITIES[modality]
    low, high = torch.tensor(space.low), torch.tensor(space.high)
    return low + (high - low) * torch.rand(*shape, space.action_dim, generator=seeded(seed))


def start(world_model: WorldModel, num_history: int = 1, modality: str = "camera", batch: int = 1) -> WorldState:
    """A world with a history of random latents, and of random actions that led to all but the first."""
    prompts = torch.randn(batch, 4, 8, generator=seeded(1))
    state = world_model.init_state(random_frames(batch, 1), modality, prompts, seeds=range(3, 3 + batch))
    if num_history > 1:
        latents = torch.randn(batch, 16, num_history - 1, 4, 4, generator=seeded(2))
        past = world_model.normalise(actions_of(modality, batch, num_history - 1, seed=3), state.modality)
        state = state.advance(latents, past, world_model.layout)
    return replace(state, num_steps=torch.zeros(batch, dtype=torch.long))
