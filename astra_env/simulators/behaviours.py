"""What the behaviours of all recorded simulators are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Behaviour = Callable[[dict[str, Any]], np.ndarray]
"""Last ``info`` of a simulator -> action (A,); keeps its own progress."""


def interrupted(
    behaviour: Behaviour, bursts: Behaviour, rng: np.random.Generator, lengths: tuple[int, int], *, first: int = 0
) -> Behaviour:
    """A behaviour that another one interrupts: every tenth step for so many steps (low, high), and for first ones."""
    burst = first

    def act(info: dict[str, Any]) -> np.ndarray:
        nonlocal burst
        if burst == 0 and rng.random() < 0.10:
            burst = int(rng.integers(*lengths))
        burst = max(burst - 1, 0)
        return bursts(info) if burst else behaviour(info)

    return act
