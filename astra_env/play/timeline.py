"""The moments of an imagined world, of which any that is remembered can be now again, exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from astra_env.models import WorldState

HISTORY_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Moment:
    """What one step came to, or the start."""

    step: int
    """Steps since the start."""
    info: Mapping[str, Any]
    """As `AstraEnv` tells it; ``frames`` uint8 (T, H, W, 3) among it."""
    observation: np.ndarray
    action: np.ndarray | None
    """Physical, float32 (A,): what has led here; None at the start."""
    reward: float = 0.0
    over: bool = False


class Timeline:
    """A world's past, up to a size in memory, and where in it now is; going on from the past replaces what came after.

    Args:
        state: of the start.
        moment: of the start.
        max_bytes: of states and frames; the oldest are forgotten beyond.
    """

    def __init__(self, state: WorldState, moment: Moment, max_bytes: int = HISTORY_BYTES) -> None:
        self.max_bytes = max_bytes
        self._states, self._moments, self._now = [state], [moment], 0

    @property
    def state(self) -> WorldState:
        """The world as it is now."""
        return self._states[self._now]

    @property
    def now(self) -> Moment:
        """What it has come to."""
        return self._moments[self._now]

    @property
    def oldest(self) -> int:
        """The first step that is remembered."""
        return self._moments[0].step

    @property
    def newest(self) -> int:
        """The last step that is remembered; later than now after going back."""
        return self._moments[-1].step

    def add(self, state: WorldState, moment: Moment) -> None:
        """Go on to a new moment."""
        self._states[self._now + 1 :], self._moments[self._now + 1 :] = [state], [moment]
        size = num_bytes(state) + moment.info["frames"].nbytes
        surplus = max(0, len(self._states) - max(2, self.max_bytes // size))
        del self._states[:surplus], self._moments[:surplus]
        self._now = len(self._states) - 1

    def go(self, step: int) -> None:
        """Make the remembered moment that is nearest to a step now."""
        self._now = min(max(step - self.oldest, 0), len(self._states) - 1)

    def amend(self, state: WorldState) -> None:
        """Replace the state that now has, such as by one with another prompt."""
        self._states[self._now] = state

    def fork(self, state: WorldState) -> Timeline:
        """A time line of its own with the same past, whose present is state."""
        other = Timeline(state, self.now, self.max_bytes)
        other._states = [*self._states[: self._now], state]
        other._moments, other._now = self._moments[: self._now + 1], self._now
        return other


def num_bytes(state: WorldState) -> int:
    """Memory of a state's tensors."""
    values = [getattr(state, field.name) for field in dataclasses.fields(state) if field.name != "modality"]
    tensors = [tensor for value in values for tensor in (value if isinstance(value, tuple) else (value,))]
    return sum(tensor.nbytes for tensor in tensors)
