"""Who acts when it is not the visitor: random actions, or a plug-in by "module:name"."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any

from astra_env.envs.env import AstraEnv

RANDOM = "random"
_HELD = 3  # steps that a random action is held for

Player = Callable[[Any], Any]
"""From an observation, the newest frame uint8 (H, W, 3), to an action: float32 (A,), or a number of keys."""


def find_player(name: str) -> Callable[[AstraEnv], Player]:
    """What makes a player for an environment, from the name of a class or a function.

    Args:
        name: "random"; "module:function" of an observation; or "module:Class", which is made with the environment (as
            `policies.mpc:MPCPolicy` is), anew for each who asks for it, and has ``act(observation)``.

    Raises:
        ValueError: there is no such thing.
    """
    if name == RANDOM:
        return _random
    try:
        found: Any = resolve_name(name)
    except (AttributeError, ImportError, ValueError) as error:
        raise ValueError(f"There is no policy {name!r} ({error}); expected module:function or module:Class.") from error
    if inspect.isclass(found):
        made: Any = found
        return lambda env: made(env).act
    if not callable(found):
        raise ValueError(f"{name} is {found!r}, expected a function of the observation or a class with act().")
    return lambda env: found


def _random(env: AstraEnv) -> Player:
    """Random actions, each held for three steps."""
    steps, action = 0, env.action_space.sample()

    def act(observation: Any) -> Any:
        nonlocal steps, action
        action = env.action_space.sample() if steps % _HELD == 0 else action
        steps += 1
        return action

    return act
