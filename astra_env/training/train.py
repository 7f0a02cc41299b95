"""`astra-env train DATA ...`: the whole recipe, from recorded episodes to a checkpoint folder."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astra_env.actions import ACTION_MODALITIES
from astra_env.flags import flag
from astra_env.models import WorldModel
from astra_env.models.action_encoding import encoded_width, usual_encoding
from astra_env.models.adaptation import freeze_but, with_modality
from astra_env.models.autoencoder import TinyAutoencoder, VideoAutoencoder
from astra_env.models.checkpoint import checkpoint_folder
from astra_env.models.flow_matching import Sampling
from astra_env.models.transformer import AstraTransformer, TransformerConfig
from astra_env.training.autoencoder import fit_autoencoder
from astra_env.training.bundle import domain_folder, write_start_states
from astra_env.training.episodes import Episodes, encode_episodes, load_episodes, mixture_weights
from astra_env.training.rewards import fit_rewards
from astra_env.training.walkers import Recipe
from astra_env.training.world_model import fit_world_model, make_tracks, sampling_after_training
from astra_env.writing import write_json

BUDGETS = {"cpu": (6000, 16000), "gpu": (20000, 100000)}  # autoencoder steps, transformer steps
TRAINABLE = ("all", "new")


@dataclass(frozen=True)
class TrainConfig:
    """One run; each field is a flag of `astra-env train` and says in its metadata what it means."""

    data: tuple[str, ...]  # folders of recorded episodes; their modalities may differ
    out: str = flag(dataclasses.MISSING, "folder of the run; what an earlier call began there goes on")
    weights: tuple[float, ...] | None = flag(None, "share of each folder in a batch; by the root of its size")
    autoencoder: str | None = flag(None, "bundled name or checkpoint folder whose autoencoder is taken as it is")
    start_from: str | None = flag(None, "bundled name or checkpoint folder whose autoencoder and weights are taken")
    trainable: str = flag("all", "'new' with --start-from: the projectors and experts of new modalities alone")
    budget: str = flag("cpu", "numbers of steps for a 'cpu' or a 'gpu'")
    autoencoder_steps: int | None = flag(None, "steps of the autoencoder; by the budget")
    transformer_steps: int | None = flag(None, "steps of the transformer; by the budget")
    batch_size: int = flag(40, "of the transformer")
    learning_rate: float = flag(8e-4, "of the transformer")
    seed: int = flag(0, "of fresh weights")
    device: str = flag("cpu", "'cpu', 'cuda', …")
    frame_size: int = flag(64, "height and width of the world's frames")
    dim: int = flag(256, "width of the transformer")
    num_layers: int = flag(8, "blocks of the transformer")
    patch_size: int = flag(
        2, "latents that a token covers in height and width; 1 sees finer and costs four times as much"
    )
    coarse_dim: int = flag(128, "width of the autoencoder where its pictures are coarse")
    chunk_size: int = flag(1, "latents that a step imagines: more of them cost less each and come later")
    compile: bool = flag(True, "the blocks with torch.compile: 1.2x faster, needs a C++ compiler on a CPU")


def build_world_model(config: TrainConfig, modalities: Sequence[str]) -> WorldModel:
    """Fresh weights from the seed at the sizes of the configuration, or those to start from with what is new."""
    torch.manual_seed(config.seed)
    if config.start_from is not None:
        world_model = WorldModel.from_pretrained(config.start_from, config.device, torch.float32)
        new = [name for name in modalities if name not in world_model.modalities]
        for name in new:
            world_model = with_modality(world_model, name)
        world_model.transformer.requires_grad_(True)
        if config.trainable == "new":
            freeze_but(world_model.transformer, new)
        else:
            world_model.sampling = sampling_after_training(world_model.sampling)
        return world_model.train()
    encodings = {name: usual_encoding(ACTION_MODALITIES[name]) for name in modalities}
    dims = {name: encoded_width(encoding, ACTION_MODALITIES[name]) for name, encoding in encodings.items()}
    patch = (1, config.patch_size, config.patch_size)
    sizes = TransformerConfig(
        dims, dim=config.dim, num_layers=config.num_layers, ffn_dim=4 * config.dim, patch_size=patch
    )
    described: dict[str, Any] = {"dim": 64, "coarse_dim": config.coarse_dim}
    autoencoder: VideoAutoencoder = TinyAutoencoder(**described)
    described["type"] = "tiny"
    if config.autoencoder is not None:
        other = WorldModel.from_pretrained(config.autoencoder, config.device)
        autoencoder, described = other.autoencoder, other.autoencoder_config
    size, transformer = (config.frame_size, config.frame_size), AstraTransformer(sizes)
    sampling = sampling_after_training(Sampling(num_inference_steps=1, chunk_size=config.chunk_size))
    return WorldModel(
        autoencoder,
        transformer,
        frame_size=size,
        sampling=sampling,
        autoencoder_config=described,
        action_encodings=encodings,
    ).to(config.device)


def train(config: TrainConfig) -> Path:
    """Fit everything, resuming what an earlier call began; returns the checkpoint folder OUT/checkpoint."""
    _check(config)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "train_config.json", dataclasses.asdict(config))
    datasets = [load_episodes(root, "train", frame_size=config.frame_size) for root in config.data]
    heldout = [load_episodes(root, "heldout", frame_size=config.frame_size) for root in config.data]
    _check_names(datasets, config.data)
    weights = mixture_weights(datasets, config.weights)
    world_model = build_world_model(config, list(dict.fromkeys(part.modality for part in datasets)))
    autoencoder_steps, transformer_steps = BUDGETS[config.budget]
    if config.start_from is None and config.autoencoder is None:
        assert isinstance(world_model.autoencoder, TinyAutoencoder)
        num_steps = config.autoencoder_steps or autoencoder_steps
        fit_autoencoder(world_model.autoencoder, datasets, heldout, weights, out, num_steps=num_steps)
    latents = [encode_episodes(world_model.autoencoder, part, out) for part in datasets]
    heldout_latents = [encode_episodes(world_model.autoencoder, part, out) for part in heldout]
    datasets = [part.without_frames() for part in datasets]
    going_on = config.start_from is not None and config.trainable == "all"
    recipe = Recipe(batch_size=config.batch_size, growing=not going_on)
    fit_world_model(
        world_model,
        make_tracks(world_model, datasets, latents, weights),
        out,
        num_steps=config.transformer_steps or transformer_steps,
        recipe=recipe if config.trainable == "all" else dataclasses.replace(recipe, load_balancing=0.0),
        learning_rate=config.learning_rate,
        weight_decay=0.02 if config.trainable == "all" else 0.0,
        compile_blocks=config.compile,
        validation=heldout,
    )
    checkpoint = out / "checkpoint"
    if config.trainable == "all":
        for block in world_model.transformer.blocks:
            block.fold_adapter()  # type: ignore[operator]
    world_model.save_pretrained(checkpoint, max_shard_size="14MB")  # repositories refuse large files
    if config.start_from is not None and (known := checkpoint_folder(config.start_from) / "domains").is_dir():
        shutil.copytree(known, checkpoint / "domains", dirs_exist_ok=True)  # those worlds can still be begun
    _write_domains(config, checkpoint, datasets, latents, heldout, heldout_latents)
    for source in (out / "train_config.json", out / "log.jsonl"):
        if source.is_file():
            shutil.copy(source, checkpoint)
    return checkpoint


def _write_domains(
    config: TrainConfig,
    checkpoint: Path,
    datasets: Sequence[Episodes],
    latents: Sequence[Tensor],
    heldout: Sequence[Episodes],
    heldout_latents: Sequence[Tensor],
) -> None:
    """What the environments of each data set need besides the weights: start states, a reward head, its manifest."""
    for part, root, *encoded, held in zip(datasets, config.data, latents, heldout_latents, heldout, strict=True):
        folder = domain_folder(checkpoint, part.name)
        if part.labelled:
            fit_rewards(encoded[0], part, encoded[1], held, folder)
        write_start_states(held, folder)
        manifest = Path(root) / "dataset.json"
        if manifest.is_file():
            shutil.copy(manifest, folder)


def _check(config: TrainConfig) -> None:
    if config.budget not in BUDGETS:
        raise ValueError(f"budget is {config.budget!r}, expected one of {sorted(BUDGETS)}.")
    if config.chunk_size < 1:
        raise ValueError(f"chunk_size is {config.chunk_size}, expected 1 or more latents.")
    if config.trainable not in TRAINABLE:
        raise ValueError(f"trainable is {config.trainable!r}, expected one of {TRAINABLE}.")
    if config.trainable == "new" and config.start_from is None:
        raise ValueError("trainable is 'new' without start_from; name the checkpoint that the modality is added to.")


def _check_names(datasets: Sequence[Episodes], roots: Sequence[str | os.PathLike[str]]) -> None:
    names = [part.name for part in datasets]
    if len(set(names)) != len(names):
        raise ValueError(f"{list(roots)} hold the domains {names}, expected each once; put them into one folder.")
