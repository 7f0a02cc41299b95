"""The orders that a page can give, each with what has to be in its message."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from astra_env.play.visitor import Visitor

_NAMES = {int: "a whole number", bool: "true or false", str: "a text"}


def field(message: Mapping[str, Any], name: str, kind: type) -> Any:
    """An entry of a message.

    Raises:
        ValueError: it is missing or of another kind.
    """
    value = message.get(name)
    if type(value) is not kind:
        raise ValueError(f"{message.get('type')} has the {name} {value!r}, expected {_NAMES[kind]}.")
    return value


def check_seed(seed: int) -> None:
    """ValueError where no start has such a seed."""
    if not 0 <= seed < 2**31:
        raise ValueError(f"The seed is {seed}, expected 0 to {2**31 - 1}.")


def _play(visitor: Visitor, message: Mapping[str, Any]) -> None:
    visitor.play(field(message, "on", bool))


def _step(visitor: Visitor, message: Mapping[str, Any]) -> None:
    visitor.order_step(field(message, "id", int))


def _go(visitor: Visitor, message: Mapping[str, Any]) -> None:
    to = field(message, "to", int)
    visitor.playing = False
    visitor.order(functools.partial(visitor.world.go, to))


def _reset(visitor: Visitor, message: Mapping[str, Any]) -> None:
    seed = field(message, "seed", int)
    check_seed(seed)
    visitor.order(functools.partial(visitor.world.reset, seed))


def _fork(visitor: Visitor, message: Mapping[str, Any]) -> None:
    by, other_noise = field(message, "by", str), field(message, "other_noise", bool)
    visitor.order(functools.partial(visitor.world.fork, by, other_noise=other_noise))


def _join(visitor: Visitor, message: Mapping[str, Any]) -> None:
    visitor.order(functools.partial(visitor.world.join, field(message, "keep", int)))


def _choose(visitor: Visitor, message: Mapping[str, Any]) -> None:
    branch, by = field(message, "branch", int), field(message, "by", str)
    visitor.order(functools.partial(visitor.world.choose, branch, by))


def _prompt(visitor: Visitor, message: Mapping[str, Any]) -> None:
    visitor.order(functools.partial(visitor.world.set_prompt, field(message, "text", str)))


def _record(visitor: Visitor, message: Mapping[str, Any]) -> None:
    visitor.order(functools.partial(visitor.world.record, field(message, "on", bool)))


def _save(visitor: Visitor, message: Mapping[str, Any]) -> None:
    visitor.order_save()


ORDERS: dict[str, Callable[[Visitor, Mapping[str, Any]], None]] = {
    "play": _play,
    "step": _step,
    "go": _go,
    "reset": _reset,
    "fork": _fork,
    "join": _join,
    "choose": _choose,
    "prompt": _prompt,
    "record": _record,
    "save": _save,
}
"""Type of a message -> what it makes a visitor do; ValueError where something in it is not right."""
