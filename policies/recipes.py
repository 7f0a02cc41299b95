"""How the policy of each id is learned: algorithms, their parameters, and what no task needs to be explored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium.spaces import Box

LEARN_EVERY = 16
"""Steps of all worlds together between two rounds of learning of what replays."""

_REPLAYING = {"batch_size": 128, "gradient_steps": 4, "learning_starts": 1000, "buffer_size": 50_000, "n_steps": 3}
HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    "ppo": {"n_steps": 64, "batch_size": 256, "n_epochs": 6, "ent_coef": 0.002},
    "sac": {**_REPLAYING, "tau": 0.01, "ent_coef": "auto_0.02"},
    "td3": {**_REPLAYING, "tau": 0.01},
    "dqn": {**_REPLAYING, "target_update_interval": 1000, "exploration_fraction": 0.2},
}
"""Algorithm -> what differs from Stable-Baselines3's defaults; what replays learns 4 times in ``LEARN_EVERY``."""


@dataclass(frozen=True)
class Recipe:
    """How the policy of an id is learned, where the configuration does not say."""

    algorithm: str
    gamma: float
    """Discount of a reward one step (0.2 s) later."""
    learning_rate: float = 3e-4
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    """On top of ``HYPERPARAMETERS``, where the algorithm is the recipe's."""
    limits: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Low and high of what is learned to do, within the id's bounds: what no task needs is not explored either."""


def _limits(*largest: float, gripper: float | None = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """As far to either side; of a gripper, from open to so far closed."""
    closed = () if gripper is None else (gripper,)
    return (*(-value for value in largest), *(0.0 for _ in closed)), (*largest, *closed)


RECIPES: dict[str, Recipe] = {
    "Astra-RT1-v0": Recipe(
        "sac",
        0.9,
        hyperparameters={"gradient_steps": 16},
        limits=_limits(0.05, 0.05, 0.05, 0.0, 0.0, 0.0, gripper=1.0),  # fingers that turn hide the cube
    ),
    "Astra-RT1-Reach-v0": Recipe(
        "sac",
        0.9,
        hyperparameters={"gradient_steps": 16},  # a few numbers are seen, and centimetres count
        limits=_limits(0.05, 0.05, 0.05, 0.05, 0.05, 0.05, gripper=0.2),
    ),
    "Astra-NuScenes-v0": Recipe("sac", 0.9, hyperparameters={"ent_coef": "auto_0.004"}, limits=_limits(0.2, 3.0)),
    "Astra-Sekai-v0": Recipe(
        "sac",
        0.95,
        hyperparameters={"gradient_steps": 16, "ent_coef": "auto_0.004"},
        limits=_limits(0.2, 0.05, 0.2, 0.02, 0.05, 0.2),  # a dream has neither floor nor ceiling
    ),
    "Astra-SpatialVID-v0": Recipe("dqn", 0.95, hyperparameters={"gradient_steps": 16}),
    "Astra-MultiCam-v0": Recipe("sac", 0.9),
}


def acting_space(space: Any, limits: Sequence[Sequence[float]] | None) -> Any:
    """The part of an action space that lies within limits."""
    if limits is None:
        return space
    low, high = (np.array(bound, np.float32) for bound in limits)
    return Box(np.maximum(low, space.low), np.minimum(high, space.high))
