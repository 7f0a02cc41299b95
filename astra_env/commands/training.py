"""Commands that fit a world model to data."""

from __future__ import annotations

import argparse

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


COMMANDS: dict[str, Command] = {
    "train": Command("fit a world to recorded episodes; resumes when called again", _add_train, _train),
    "distill": Command("fit a student that needs fewer denoising steps than its teacher", _add_distill, _distill),
}
