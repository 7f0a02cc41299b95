"""Commands that fit a world model to data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from astra_env.commands import Command
from astra_env.flags import add_flags, from_flags


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", nargs="+", help="folders of recorded episodes, one for each domain")


def _add_train(parser: argparse.ArgumentParser) -> None:
    from astra_env.training import TrainConfig

    _add_data(parser)
    add_flags(parser, TrainConfig)


def _train(options: argparse.Namespace) -> None:
    from astra_env.training import TrainConfig, train

    checkpoint = train(from_flags(TrainConfig, options))
    print(f"{checkpoint} is the trained world; watch it with: astra-env demo --world-model {checkpoint}")


def _add_distill(parser: argparse.ArgumentParser) -> None:
    from astra_env.training import DistillConfig

    _add_data(parser)
    add_flags(parser, DistillConfig)


def _distill(options: argparse.Namespace) -> None:
    from astra_env.training import DistillConfig, distill

    checkpoint = distill(from_flags(DistillConfig, options))
    print(f"{checkpoint} is the student; watch it with: astra-env demo --world-model {checkpoint}")


def _add_encode(parser: argparse.ArgumentParser) -> None:
    from astra_env.training.encode import EncodeConfig

    _add_data(parser)
    add_flags(parser, EncodeConfig)


def _encode(options: argparse.Namespace) -> None:
    from astra_env.training.encode import EncodeConfig, encode

    print(f"{encode(from_flags(EncodeConfig, options))} holds the shards; they are what astra-env finetune reads.")


def _add_finetune(parser: argparse.ArgumentParser) -> None:
    from astra_env.training.recipes import FinetuneConfig

    parser.add_argument("data", metavar="SHARDS", nargs="+", help="folders that astra-env encode wrote")
    add_flags(parser, FinetuneConfig)


def _finetune(options: argparse.Namespace) -> None:
    from astra_env.training.finetune import finetune
    from astra_env.training.recipes import FinetuneConfig

    checkpoint = finetune(from_flags(FinetuneConfig, options), lambda step, rollout: _watch(options.out, step, rollout))
    print(f"{checkpoint} is the trained world; watch it with: astra-env demo --world-model {checkpoint}")


def _watch(out: str, step: int, rollout: Any) -> None:
    """Write a rollout as OUT/rollouts/STEP/NAME.rrd: what is imagined beside what was recorded."""
    import numpy as np

    from astra_env.actions import ACTION_MODALITIES
    from astra_env.visualization import Recording, log_rollout

    path = Path(out, "rollouts", f"step_{step:06d}", rollout.name.replace("/", "_") + ".rrd")
    modality, num = ACTION_MODALITIES[rollout.modality], len(rollout.imagined) // len(rollout.actions)
    views = {"imagined": rollout.imagined, "recorded": rollout.recorded}
    shown = {name: np.concatenate([rollout.start, frames]) for name, frames in views.items()}
    with Recording(path, views=tuple(views), modality=modality, fps=num * modality.rate_hz) as recording:
        log_rollout(recording, shown, rollout.actions, poses=rollout.poses)


def _add_fit_reward(parser: argparse.ArgumentParser) -> None:
    from astra_env.training.fit_reward import FitRewardConfig

    parser.add_argument("data", metavar="DATA", help="recorded episodes, success/ and failure/, or a CSV of file,label")
    add_flags(parser, FitRewardConfig)


def _fit_reward(options: argparse.Namespace) -> None:
    from astra_env.training.fit_reward import FitRewardConfig, fit_reward

    print(fit_reward(from_flags(FitRewardConfig, options)))


def _add_fit_goal(parser: argparse.ArgumentParser) -> None:
    from astra_env.training.fit_goal import FitGoalConfig

    parser.add_argument("data", metavar="DATA", help="recorded episodes: a folder of train/ and heldout/")
    add_flags(parser, FitGoalConfig)


def _fit_goal(options: argparse.Namespace) -> None:
    from astra_env.training.fit_goal import FitGoalConfig, fit_goal

    print(fit_goal(from_flags(FitGoalConfig, options)))


def _add_fit_target(parser: argparse.ArgumentParser) -> None:
    from astra_env.training.fit_target import FitTargetConfig

    parser.add_argument("data", metavar="DATA", help="recorded episodes: a folder of train/ and heldout/")
    add_flags(parser, FitTargetConfig)


def _fit_target(options: argparse.Namespace) -> None:
    from astra_env.training.fit_target import FitTargetConfig, fit_target

    print(fit_target(from_flags(FitTargetConfig, options)))


COMMANDS: dict[str, Command] = {
    "train": Command("fit a world to recorded episodes; resumes when called again", _add_train, _train),
    "encode": Command("encode recordings once, as shards, on any number of GPUs", _add_encode, _encode),
    "finetune": Command("let a world go on learning on shards, on any number of GPUs", _add_finetune, _finetune),
    "fit-reward": Command("learn a reward from labelled frames, in minutes", _add_fit_reward, _fit_reward),
    "fit-goal": Command("learn how far a world is from a goal picture, in minutes", _add_fit_goal, _fit_goal),
    "fit-target": Command("learn where a task's target is, in minutes", _add_fit_target, _fit_target),
    "distill": Command("fit a student that needs fewer denoising steps than its teacher", _add_distill, _distill),
}
