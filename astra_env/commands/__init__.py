"""Subcommands of `astra-env`, by what they are about."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A subcommand. Its options are added only when it is the one called, since some come from heavy modules."""

    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def run_command(prog: str, text: str, commands: Mapping[str, Command], arguments: Sequence[str] | None) -> None:
    """Run one of the commands of a program; what a user can put right is told in one sentence, with exit code 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog=prog, description=text)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in commands.items():
        subparser = subparsers.add_parser(name, help=command.help, description=command.help)
        if arguments[:1] == [name]:
            command.add_options(subparser)
    options = parser.parse_args(arguments)
    try:
        commands[options.command].run(options)
    except (FloatingPointError, ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"{prog} {options.command}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{prog} {options.command}: interrupted", file=sys.stderr)
        sys.exit(130)
