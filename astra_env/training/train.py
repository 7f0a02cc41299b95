"""`astra-env train DATA`: the whole recipe, from recorded episodes to a checkpoint folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from astra_env.models import WorldModel
from astra_env.models.autoencoder import TinyAutoencoder
from astra_env.models.transformer import AstraTransformer, TransformerConfig
from astra_env.training.autoencoder import fit_autoencoder
from astra_env.training.bundle import write_start_states
from astra_env.training.episodes import encode_episodes, load_episodes
from astra_env.training.rewards import fit_rewards
from astra_env.training.world_model import Recipe, fit_world_model

BUDGETS = {"cpu": (4000, 10000), "gpu": (20000, 100000)}  # autoencoder steps, transformer steps


@dataclass(frozen=True)
class TrainConfig:
    """One run. By the rate of the bundled world's training, "cpu" takes two to two and a half hours on two cores."""

    data: str
    out: str
    budget: str = "cpu"
    autoencoder_steps: int | None = None
    transformer_steps: int | None = None
    batch_size: int = 64
    seed: int = 0
    device: str = "cpu"
    dim: int = 256
    num_layers: int = 8
    compile: bool = True  # the transformer's blocks, with torch.compile: 1.2x faster, needs a C++ compiler on a CPU


def build_world_model(config: TrainConfig, modality: str, action_dim: int, frame_size: tuple[int, int]) -> WorldModel:
    """Fresh weights from the seed, at the sizes of the configuration."""
    torch.manual_seed(config.seed)
    sizes = TransformerConfig(
        {modality: action_dim}, dim=config.dim, num_layers=config.num_layers, ffn_dim=4 * config.dim
    )
    return WorldModel(TinyAutoencoder(), AstraTransformer(sizes), frame_size=frame_size).to(config.device)


def train(config: TrainConfig) -> Path:
    """Fit everything, resuming what an earlier call began; returns the checkpoint folder OUT/checkpoint."""
    if config.budget not in BUDGETS:
        raise ValueError(f"budget is {config.budget!r}, expected one of {sorted(BUDGETS)}.")
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "train_config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    episodes, heldout = load_episodes(config.data, "train"), load_episodes(config.data, "heldout")
    frame_size = (episodes.frames.shape[2], episodes.frames.shape[3])
    world_model = build_world_model(config, episodes.modality, episodes.actions.shape[-1], frame_size)
    autoencoder_steps, transformer_steps = BUDGETS[config.budget]
    assert isinstance(world_model.autoencoder, TinyAutoencoder)
    fit_autoencoder(
        world_model.autoencoder, episodes, heldout, out, num_steps=config.autoencoder_steps or autoencoder_steps
    )
    latents = encode_episodes(world_model.autoencoder, episodes, out)
    heldout_latents = encode_episodes(world_model.autoencoder, heldout, out)
    fit_world_model(
        world_model,
        latents,
        episodes,
        out,
        num_steps=config.transformer_steps or transformer_steps,
        recipe=Recipe(batch_size=config.batch_size),
        compile_blocks=config.compile,
        validation=heldout,
    )
    checkpoint = out / "checkpoint"
    world_model.save_pretrained(checkpoint, max_shard_size="14MB")  # repositories refuse large files
    fit_rewards(latents, episodes, heldout_latents, heldout, checkpoint)
    write_start_states(heldout, checkpoint)
    for source in (out / "train_config.json", out / "log.jsonl", Path(config.data) / "dataset.json"):
        if source.is_file():
            shutil.copy(source, checkpoint)
    return checkpoint
