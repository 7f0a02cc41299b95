"""Real simulators with the spaces and timing of the imagined environments: they collect data and verify policies."""

from __future__ import annotations

from pkgutil import resolve_name

import gymnasium

FRAME_SIZE = 64
"""Height and width of every simulator's frames."""
CHUNK_FRAMES = 4
FPS = 20

SIMULATORS: dict[str, str] = {"Astra-RT1-v0": "astra_env.simulators.robot:RobotSimulator"}


def make_simulator(env_id: str, **options: object) -> gymnasium.Env:
    """Make the real counterpart of an environment id: same spaces and chunk timing; ``options`` go to its class."""
    if env_id not in SIMULATORS:
        raise ValueError(f"There is no simulator for {env_id!r}; there are simulators for {sorted(SIMULATORS)}.")
    return resolve_name(SIMULATORS[env_id])(**options)
