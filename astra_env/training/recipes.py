"""How a world model goes on learning: the recipes by name, and the flags of `astra-env finetune`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from astra_env.flags import flag
from astra_env.training.trainable import TRAINABLE
from astra_env.training.windows import NOISE_LEVELS

PRECISIONS = ("no", "bf16")
SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)),
}
"""Name -> share of the highest learning rate at some progress from 0 to 1."""


def scheduled(kind: str, warmup: int, step_index: int, num_steps: int) -> float:
    """Share of the highest learning rate at a step."""
    return min(1.0, (step_index + 1) / max(1, warmup)) * SCHEDULES[kind](step_index / num_steps)


@dataclass(frozen=True)
class FinetuneRecipe:
    """What a preset tells; the flags of the same names say what each value means."""

    trainable: str
    batch_size: int
    learning_rate: float
    schedule: str = "cosine"
    warmup: int = 200
    weight_decay: float = 0.0
    beta2: float = 0.999
    max_norm: float = 1.0
    action_dropout: float = 0.05
    history_action_dropout: float = 0.0
    noisy_memory_sigmas: tuple[float, ...] = (0.0, 0.1)
    noisy_memory_slots: str = "all"
    noise_levels: str = "logit-normal"
    load_balancing: float = 0.0


PRESETS: Mapping[str, FinetuneRecipe] = {
    # arXiv 2512.08931 with the authors' code: what the released weights were trained with, on eight GPUs
    "paper": FinetuneRecipe(
        trainable="paper",
        batch_size=8,
        learning_rate=1e-5,
        schedule="constant",
        warmup=0,
        weight_decay=0.01,
        max_norm=0.0,
        noisy_memory_sigmas=(0.626, 1.0),
        noisy_memory_slots="1x",
        noise_levels="shifted",
    ),
    # what the bundled world was trained with, but for walks on its own predictions
    "bundled": FinetuneRecipe(
        trainable="all",
        batch_size=40,
        learning_rate=8e-4,
        weight_decay=0.02,
        beta2=0.98,
        action_dropout=0.1,
        history_action_dropout=0.1,
        load_balancing=0.01,
    ),
    "lora": FinetuneRecipe(trainable="lora", batch_size=8, learning_rate=1e-4),
}


@dataclass(frozen=True)
class FinetuneConfig:
    """One run; each field is a flag of `astra-env finetune` and says in its metadata what it means."""

    data: tuple[str, ...]  # folders that `astra-env encode` wrote; their modalities may differ
    out: str = flag(dataclasses.MISSING, "folder of the run; what an earlier call began there goes on")
    start_from: str = flag(dataclasses.MISSING, "bundled name, 'astra-1.3b' or folder: whose weights go on learning")
    preset: str = flag("paper", f"recipe that tells what is not told here: {', '.join(PRESETS)}")
    weights: tuple[float, ...] | None = flag(None, "share of each folder in a batch; by the root of its size")
    num_steps: int = flag(20000, "steps of the optimiser")
    batch_size: int | None = flag(None, "rows of a step, over all processes and passes")
    accumulation: int = flag(1, "passes, one after the other, into which each process divides its rows")
    learning_rate: float | None = flag(None, "highest")
    schedule: str | None = flag(None, f"of the learning rate: {' or '.join(SCHEDULES)}")
    warmup: int | None = flag(None, "steps in which the learning rate rises")
    weight_decay: float | None = flag(None, "of matrices")
    beta2: float | None = flag(None, "of AdamW")
    max_norm: float | None = flag(None, "longest gradient; 0 leaves it as it is")
    ema: float = flag(0.999, "decay of the moving average of the weights, which is what the checkpoint holds")
    trainable: str | None = flag(None, f"weights that learn: {', '.join(TRAINABLE)}")
    lora_rank: int = flag(16, "of the low-rank adapters, where they are what learns")
    condition_frames: int = flag(128, "longest history; its length is uniform from one frame")
    single_latent: float = flag(0.15, "share of the rows that know a single picture alone")
    action_dropout: float | None = flag(None, "share of the rows without actions, for guidance")
    history_action_dropout: float | None = flag(None, "share of the rows without the history's actions")
    noisy_memory: float = flag(0.8, "share of the rows with noise in the history")
    noisy_memory_sigmas: tuple[float, ...] | None = flag(None, "lowest and highest level of that noise")
    noisy_memory_slots: str | None = flag(None, "which latents of the history it reaches: all, 1x, 2x or 4x")
    noise_levels: str | None = flag(None, f"of the target: {' or '.join(NOISE_LEVELS)}")
    load_balancing: float | None = flag(None, "weight of an equal use of the experts by the rows of a process")
    precision: str = flag("bf16", "of products, 'bf16' or 'no'; the weights are in float32 in either case")
    gradient_checkpointing: bool = flag(False, "compute blocks twice: less memory, a third more time")
    log_every: int = flag(50, "steps between lines of the log")
    save_every: int = flag(500, "steps between states, from which a killed run goes on")
    validate_every: int = flag(1000, "steps between rollouts of held-out clips")
    rollouts: int = flag(4, "held-out clips to imagine; 0 is none")
    seed: int = flag(0, "of rows and fresh weights")

    def recipe(self) -> FinetuneRecipe:
        """The preset with what is told instead; ValueError for what no run can be made of."""
        if self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}, expected one of {sorted(PRESETS)}.")
        preset = PRESETS[self.preset]
        told = {name: value for name in vars(preset) if (value := getattr(self, name)) is not None}
        recipe = dataclasses.replace(preset, **told)
        choices: dict[str, Sequence[str]] = {
            "schedule": sorted(SCHEDULES),
            "trainable": sorted(TRAINABLE),
            "noise_levels": sorted(NOISE_LEVELS),
            "noisy_memory_slots": ["1x", "2x", "4x", "all"],
            "precision": PRECISIONS,
        }
        values = vars(self) | vars(recipe)
        for name, known in choices.items():
            if values[name] not in known:
                raise ValueError(f"{name} is {values[name]!r}, expected one of {list(known)}.")
        for name in ("num_steps", "batch_size", "accumulation", "lora_rank", "condition_frames", *EVERY):
            if values[name] < 1:
                raise ValueError(f"{name} is {values[name]}, expected at least 1.")
        if len(recipe.noisy_memory_sigmas) != 2:
            raise ValueError(f"noisy_memory_sigmas are {recipe.noisy_memory_sigmas}, expected a lowest and a highest.")
        return recipe


EVERY = ("log_every", "save_every", "validate_every")
