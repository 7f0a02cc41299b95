"""Configurations as dataclasses whose fields are the flags of a command."""

from __future__ import annotations

import argparse
import dataclasses
import json
import typing
from collections.abc import Callable
from typing import Any


def flag(default: Any, text: str) -> Any:
    """A field that the command line explains; `dataclasses.MISSING` is the default of one that must be given."""
    return dataclasses.field(default=default, metadata={"help": text})


def add_flags(parser: argparse._ActionsContainer, config: Any) -> None:
    """One flag for every explained field of a configuration class."""
    types = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if "help" not in field.metadata:
            continue
        kind = next(part for part in (*typing.get_args(types[field.name]), types[field.name]) if part is not type(None))
        several = typing.get_origin(types[field.name]) is tuple or typing.get_origin(kind) is tuple
        required = field.default is dataclasses.MISSING
        action = argparse.BooleanOptionalAction if kind is bool else "store"
        options: dict[str, Any] = {"required": True} if required else {"default": field.default}
        if several:
            part = kind if typing.get_origin(kind) is not tuple else typing.get_args(kind)[0]
            options |= {"type": part, "nargs": "+"}
        elif kind is not bool:
            options["type"] = kind
        text = field.metadata["help"] + ("" if field.default in (None, (), dataclasses.MISSING) else " (%(default)s)")
        parser.add_argument("--" + field.name.replace("_", "-"), action=action, help=text, **options)


def from_flags(config: Any, options: argparse.Namespace) -> Any:
    """The configuration that the options of a command tell."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(config)}
    return config(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def named_value(text: str) -> tuple[str, Any]:
    """Name and value of "NAME=VALUE"; a value that is JSON is what it says, anything else a string."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} has no value, expected NAME=VALUE.")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def ask(config: Any, answer: Callable[[str], str]) -> Any:
    """The configuration that a person's answers tell, one question a field; `answer` is such as `input`."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    add_flags(parser, config)
    arguments: list[str] = []
    for field in dataclasses.fields(config):
        default = " ".join(field.default) if isinstance(field.default, tuple) else field.default
        given = answer(f"{field.name.replace('_', ' ')}: {field.metadata['help']} [{default}] ").split()
        name = field.name.replace("_", "-")
        if isinstance(field.default, bool):
            arguments.append(f"--{name}" if given and given[0].lower().startswith(("y", "t")) else f"--no-{name}")
        elif given:
            arguments += [f"--{name}", *given]
    try:
        return from_flags(config, parser.parse_args(arguments))
    except argparse.ArgumentError as error:
        raise ValueError(f"That is not an answer: {error}") from error
