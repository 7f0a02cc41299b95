"""`astra-env distill DATA ...`: a student that takes in one, two or four steps the way its teacher takes in many.

Teacher and student read the same histories, which the student imagines itself. From the same noise, each of the
student's steps learns to land where the teacher's finer steps, guidance included, have led: the student needs neither
the steps nor the second pass of guidance.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astra_env.flags import flag
from astra_env.models import WorldModel
from astra_env.models.flow_matching import denoise, shifted_sigmas
from astra_env.models.guidance import GuidedVelocity, Pass
from astra_env.training.episodes import Episodes, encode_episodes, load_episodes, mixture_weights
from astra_env.training.loop import Trainer
from astra_env.training.walkers import Recipe, Walkers
from astra_env.training.world_model import make_tracks, open_loop_psnr
from astra_env.writing import write_json


@dataclass(frozen=True)
class DistillConfig:
    """One run; each field is a flag of `astra-env distill` and says in its metadata what it means."""

    data: tuple[str, ...]  # folders of recorded episodes, for histories and actions
    out: str = flag(dataclasses.MISSING, "folder of the run; what an earlier call began there goes on")
    teacher: str = flag("astra-tiny", "bundled name or checkpoint folder")
    teacher_steps: int = flag(8, "the teacher's denoising steps, a multiple of the student's")
    guidance_scale: float = flag(1.0, "of the teacher, whose second pass the student does without")
    student_steps: int = flag(1, "the student's denoising steps")
    num_steps: int = flag(2000, "steps of training")
    batch_size: int = flag(40, "rows of a batch")
    learning_rate: float = flag(2e-4, "highest, after warming up")
    weights: tuple[float, ...] | None = flag(None, "share of each folder in a batch; by the root of its size")
    device: str = flag("cpu", "'cpu', 'cuda', …")
    compile: bool = flag(True, "the blocks with torch.compile")

    def __post_init__(self) -> None:
        if self.student_steps < 1 or self.teacher_steps % self.student_steps or self.teacher_steps < 1:
            raise ValueError(
                f"teacher_steps is {self.teacher_steps} and student_steps {self.student_steps}, expected a positive "
                "multiple and its divisor."
            )


def distill(config: DistillConfig) -> Path:
    """Train the student, resuming what an earlier call began; returns the checkpoint folder OUT/checkpoint."""
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "distill_config.json", dataclasses.asdict(config))
    teacher = WorldModel.from_pretrained(config.teacher, config.device, torch.float32)
    student = copy.deepcopy(teacher).train()
    student.transformer.requires_grad_(True)
    size = teacher.frame_size[0]
    datasets, heldout = (
        [load_episodes(root, split, frame_size=size) for root in config.data] for split in ("train", "heldout")
    )
    _check_known(teacher, datasets, config.teacher)
    latents = [encode_episodes(teacher.autoencoder, part, out) for part in datasets]
    weights = mixture_weights(datasets, config.weights)
    tracks = make_tracks(teacher, [part.without_frames() for part in datasets], latents, weights)
    walkers = Walkers(student, tracks, Recipe(batch_size=config.batch_size, history_action_dropout=0.0))
    fit_student(student, teacher, walkers, config, heldout)
    student.sampling = teacher.sampling.replaced(num_inference_steps=config.student_steps, guidance_scale=1.0)
    for block in student.transformer.blocks:
        block.fold_adapter()  # type: ignore[operator]
    checkpoint = out / "checkpoint"
    student.save_pretrained(checkpoint, max_shard_size="14MB")
    if teacher.folder is not None and (teacher.folder / "domains").is_dir():
        shutil.copytree(teacher.folder / "domains", checkpoint / "domains", dirs_exist_ok=True)
    for name in ("distill_config.json", "log.jsonl"):
        shutil.copy(out / name, checkpoint)
    return checkpoint


def fit_student(
    student: WorldModel,
    teacher: WorldModel,
    walkers: Walkers,
    config: DistillConfig,
    heldout: list[Episodes],
) -> None:
    """Train the student's transformer in place; leave the averaged weights in it."""
    trainer = Trainer(
        student.transformer,
        Path(config.out),
        "student",
        num_steps=config.num_steps,
        learning_rate=config.learning_rate,
        weight_decay=0.0,
    )
    walkers.state |= {key: value.cpu() for key, value in trainer.resume().items()}
    every = max(1, min(500, config.num_steps // 4))
    if config.compile:
        for world_model in (student, teacher):
            world_model.compile()
    while not trainer.done:
        walkers.restart(trainer.generator)
        trainer.step(distillation_loss(student, teacher, walkers, config, trainer.generator))
        if trainer.step_index % every == 0 or trainer.done:
            trainer.log()
            trainer.save(**walkers.state)
    trainer.use_average()
    sides: dict[str, tuple[WorldModel, dict[str, Any]]] = {
        "student": (student, {"num_inference_steps": config.student_steps}),
        "teacher": (teacher, {"num_inference_steps": config.teacher_steps, "guidance_scale": config.guidance_scale}),
    }
    with torch.compiler.set_stance("force_eager"):
        psnr = {
            name: {part.name: open_loop_psnr(world_model, part, **sampling) for part in heldout}
            for name, (world_model, sampling) in sides.items()
        }
    trainer.log(psnr=psnr)


def distillation_loss(
    student: WorldModel, teacher: WorldModel, walkers: Walkers, config: DistillConfig, generator: torch.Generator
) -> Tensor:
    """Squared error of the velocity of one of the student's steps, at random for each row; the rows walk one step.

    The velocity that is right for a step from sigma to the next is the mean of the teacher's on its way between them.
    """
    target, actions = walkers.targets()
    B, device = len(target), student.device
    noise = torch.randn(target.shape, generator=generator)
    chosen = torch.randint(config.student_steps, (B,), generator=generator)
    fine = shifted_sigmas(config.teacher_steps, teacher.sampling.shift)
    each = config.teacher_steps // config.student_steps
    coarse = fine[::each]
    with torch.autocast(device.type, torch.bfloat16):
        with torch.no_grad():
            velocity = _velocity(teacher, walkers, actions, config.guidance_scale)
            points = [noise.to(device)]
            for begin in range(0, config.teacher_steps, each):
                points.append(denoise(velocity, points[-1], fine[begin : begin + each + 1].to(device)))
        means = [
            (later - earlier) / (low - high)
            for (earlier, later), (high, low) in zip(pairwise(points), pairwise(coarse.tolist()), strict=True)
        ]
        rows = torch.arange(B)
        start, truth = torch.stack(points[:-1])[chosen, rows], torch.stack(means)[chosen, rows]
        own = _velocity(student, walkers, actions, 1.0)
        predicted = own.transformer(start, coarse[:-1][chosen].to(device), own.first.features, own.first.cache)
        with torch.no_grad():
            imagined = denoise(own, points[0], coarse.to(device))
    walkers.advance(imagined.float().cpu(), actions, torch.ones(B, 1))
    return (predicted - truth).square().mean()


def _velocity(world_model: WorldModel, walkers: Walkers, actions: Tensor, guidance_scale: float) -> GuidedVelocity:
    """The velocity of the walkers' next latents under their actions (B, 1, A)."""
    transformer, state, device = world_model.transformer, walkers.state, world_model.device
    slots, lengths, past, present = (state[key].to(device) for key in ("slots", "lengths", "past", "present"))
    cache, _ = transformer.encode_history(slots, lengths, past, present, walkers.modality)
    given = torch.ones(actions.shape[:2], device=device)
    actions = actions.to(device)
    passes = [Pass(guidance_scale, transformer.action_features(actions, given, walkers.modality), cache)]
    if guidance_scale != 1:
        free = transformer.action_features(actions, torch.zeros_like(given), walkers.modality)
        passes.append(Pass(1 - guidance_scale, free, cache))
    return GuidedVelocity(transformer, passes)


def _check_known(teacher: WorldModel, datasets: list[Episodes], name: str) -> None:
    unknown = sorted({part.modality for part in datasets} - teacher.modalities.keys())
    if unknown:
        raise ValueError(
            f"{name} does not know the actions {unknown} of the data, expected some of {sorted(teacher.modalities)}."
        )
