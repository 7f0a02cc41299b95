"""What `collect` needs to know of a simulator to record it; every simulator module ends with one such row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from astra_env.simulators.behaviours import Behaviour


@dataclass(frozen=True)
class Recording:
    """How episodes of one simulator come about and what is kept of them."""

    make: Callable[[str], Any]
    """The simulator of one of its variants."""
    variants: Mapping[str, float]
    """Variant, such as the task -> share of episodes."""
    behaviours: Mapping[str, float]
    """Behaviour -> share of episodes."""
    make_behaviour: Callable[[str, np.random.Generator, dict[str, Any]], Behaviour]
    """Behaviour by name, for the episode that begins with this ``info``."""
    text: str
    """What a person would tell the agent to do."""
    packages: tuple[str, ...]
    """Distributions whose versions decide what the recordings look like."""
    tracks: Mapping[str, str] = field(default_factory=dict)
    """Array in the file -> key in ``info``, besides frames and poses: one row for each frame."""
    moments: Mapping[str, str] = field(default_factory=dict)
    """Array in the file -> key in ``info``: one row for the beginning and one for each action."""
    scene: Mapping[str, Any] = field(default_factory=dict)
    """What the manifest says about the scene."""
