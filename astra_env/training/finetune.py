"""`astra-env finetune SHARDS ...`: a world model that goes on learning on encoded recordings, on any number of GPUs.

A batch is drawn by the numbers of its rows, of which each process computes its share, so several processes end where
one does, and a run that was killed goes on as if nothing had been.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from astra_env.models import WorldModel
from astra_env.models.adaptation import with_modality
from astra_env.training.journal import LOG, Journal
from astra_env.training.lora import add_lora, merge_lora
from astra_env.training.parallel import Denoiser, Run, make_accelerator
from astra_env.training.recipes import FinetuneConfig, FinetuneRecipe, scheduled
from astra_env.training.rollouts import Rollout, heldout_clips, imagine_clip, summary
from astra_env.training.shards import Shards
from astra_env.training.trainable import checkpoint_blocks, train_only
from astra_env.training.windows import Batch, WindowRecipe, Windows, check_encoder
from astra_env.training.world_model import sampling_after_training
from astra_env.writing import write_json

Watch = Callable[[int, Rollout], None]
"""Is shown each rollout, with the step that it belongs to, in one process."""


def finetune(config: FinetuneConfig, watch: Watch | None = None) -> Path:
    """Train, resuming what an earlier call began; returns the checkpoint folder OUT/checkpoint.

    Raises:
        ValueError: shards of another autoencoder, rows that the processes cannot share equally, and the like.
        FloatingPointError: the loss or the gradient is not finite; its batch is saved and the step not taken.
    """
    recipe = config.recipe()
    folders, out = [Shards(root) for root in config.data], Path(config.out)
    accelerator = make_accelerator(config.precision)
    _check_rows(recipe.batch_size, config.accumulation, accelerator.num_processes)
    world_model, _ = start(config, folders, accelerator.device)
    windows = Windows(world_model, folders, config.weights, _windows(config, recipe), config.seed)
    if config.gradient_checkpointing:
        checkpoint_blocks(world_model.transformer)
    run = Run(
        Denoiser(world_model.transformer, recipe.load_balancing),
        accelerator,
        weight_decay=recipe.weight_decay,
        betas=(0.9, recipe.beta2),
        average_decay=config.ema,
    )
    out.mkdir(parents=True, exist_ok=True)
    run.resume(out / STATE)
    journal = None
    if accelerator.is_main_process:
        told = dataclasses.asdict(config) | dataclasses.asdict(recipe)
        write_json(out / CONFIG, told | {"num_clips": sum(map(len, windows.clips)), "num_too_short": windows.left_out})
        journal = Journal(out, run.step_index)
    fit(run, windows, config, journal, watch)
    run.use_average()
    weights = run.whole_weights()
    if journal is not None:
        journal.close()
        _export(config, folders, weights)
    accelerator.wait_for_everyone()
    return out / "checkpoint"


STATE, CONFIG = "state.pt", "finetune_config.json"


def start(config: FinetuneConfig, folders: Sequence[Shards], device: str | torch.device) -> tuple[WorldModel, Any]:
    """The world model as training begins, with modalities that it lacks, and its low-rank adapters if there are any.

    Raises:
        ValueError: the shards were not encoded for it.
    """
    which = config.recipe().trainable
    modalities = sorted({name for folder in folders for name in folder.manifest["modalities"]})
    torch.manual_seed(config.seed)  # of fresh weights
    world_model = WorldModel.from_pretrained(config.start_from, "cpu", torch.float32)
    check_encoder(world_model, folders)
    world_model, folder = world_model.placed(device, torch.float32), world_model.folder
    for name in modalities if which != "lora" else ():
        if name not in world_model.modalities:
            world_model = with_modality(world_model, name)
    world_model.folder = folder
    world_model.sampling = sampling_after_training(world_model.sampling)
    transformer = world_model.transformer
    lora = add_lora(transformer, config.lora_rank) if which == "lora" else None
    train_only(transformer, which)
    for name, projector in transformer.action_experts.projectors.items():
        if name not in modalities:  # nothing is learned of it
            projector.requires_grad_(False)
    return world_model, lora


def fit(run: Run, windows: Windows, config: FinetuneConfig, journal: Journal | None, watch: Watch | None) -> None:
    """Take the steps that are left; the journal is kept by one process."""
    recipe, out = config.recipe(), Path(config.out)
    progress = tqdm(total=config.num_steps, initial=run.step_index, unit="step", mininterval=5, disable=journal is None)
    since, taken = time.perf_counter(), run.step_index
    while run.step_index < config.num_steps:
        batches = _share(windows, run, recipe.batch_size, config.accumulation)
        losses, norm = run.gradients(batches), run.clip(recipe.max_norm or math.inf)
        _stop_where_not_finite(run, losses, norm, batches, out)
        rate = recipe.learning_rate * scheduled(recipe.schedule, recipe.warmup, run.step_index, config.num_steps)
        run.step(rate, losses.mean().item())
        progress.update()
        step, done = run.step_index, run.step_index == config.num_steps
        if journal is not None and (step % config.log_every == 0 or done):
            speed = (step - taken) * recipe.batch_size / (time.perf_counter() - since)
            since, taken = time.perf_counter(), step
            told = {"gradient_norm": norm, "learning_rate": rate, "rows_per_second": round(speed, 3)}
            journal.log(step, loss=run.running_loss, **told)
        if config.rollouts and (step % config.validate_every == 0 or done):
            validate(run, windows, config.rollouts, journal, watch)
        if step % config.save_every == 0 or done:
            run.save(out / STATE)


def _share(windows: Windows, run: Run, batch_size: int, passes: int) -> list[Batch]:
    """This process's rows of the step, in passes."""
    processes, process = run.accelerator.num_processes, run.accelerator.process_index
    each = batch_size // (processes * passes)
    firsts = [run.step_index * batch_size + (index * processes + process) * each for index in range(passes)]
    return [windows.batch(range(first, first + each)) for first in firsts]


def _check_rows(batch_size: int, passes: int, processes: int) -> None:
    if batch_size % (processes * passes):
        raise ValueError(
            f"batch_size is {batch_size}, expected a multiple of {processes * passes}: {processes} processes with "
            f"{passes} passes share it equally."
        )


def _stop_where_not_finite(run: Run, losses: Tensor, norm: float, batches: Sequence[Batch], out: Path) -> None:
    """Before the step: FloatingPointError that names it and the file in which the worst batch was saved."""
    bad = (~losses.isfinite()).nonzero().tolist()
    if not bad and math.isfinite(norm):
        return
    process, index = bad[0] if bad else (0, 0)
    number, value = run.step_index + 1, f"loss is {losses[process, index].item()}" if bad else f"gradient is {norm}"
    path = out / f"batch_{number:06d}_{process}.safetensors"
    if run.accelerator.process_index == process:
        batches[index].save(path)
    run.accelerator.wait_for_everyone()
    raise FloatingPointError(f"The {value} at step {number}; look at its batch in {path}, or resume at a lower rate.")


def validate(run: Run, windows: Windows, count: int, journal: Journal | None, watch: Watch | None) -> None:
    """Imagine held-out clips with the averaged weights; the journal's process does it, the others wait."""
    clips = heldout_clips(windows.folders, windows.chunk_size, count)
    if not clips:
        return
    with run.averaged(), run.accelerator.autocast():
        if journal is not None:
            found = [imagine_clip(windows.world_model, folder, clip) for folder, clip in clips]
            journal.log(run.step_index, validation=summary(found))
            if watch is not None:
                for rollout in found:
                    watch(run.step_index, rollout)
        run.accelerator.wait_for_everyone()


def _windows(config: FinetuneConfig, recipe: FinetuneRecipe) -> WindowRecipe:
    values = vars(config) | vars(recipe)
    return WindowRecipe(**{field.name: values[field.name] for field in dataclasses.fields(WindowRecipe)})


def _export(config: FinetuneConfig, folders: Sequence[Shards], weights: Mapping[str, Tensor]) -> None:
    """Write OUT/checkpoint: plain weights, adapters put into them, what the start's domains need, config and log."""
    out = Path(config.out)
    world_model, lora = start(config, folders, "cpu")
    world_model.transformer.load_state_dict(weights)
    domains = world_model.folder / "domains" if world_model.folder is not None else None
    if lora is not None:
        merge_lora(lora)
    else:
        for block in world_model.transformer.blocks:
            block.fold_adapter()  # type: ignore[operator]
    world_model.save_pretrained(out / "checkpoint")
    if domains is not None and domains.is_dir():
        shutil.copytree(domains, out / "checkpoint" / "domains", dirs_exist_ok=True)
    for name in (CONFIG, LOG):
        shutil.copy(out / name, out / "checkpoint")
