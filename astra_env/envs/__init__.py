"""The table of environments; a row here is an id that ``gymnasium.make`` knows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EnvironmentSpec:
    """What distinguishes one environment id from another.

    Attributes:
        modality: name of the action modality (a key of ``astra_env.actions.ACTION_MODALITIES``).
        task: what the reward measures and the start states are recorded from.
        max_episode_steps: steps after which an episode is truncated.
        description: one line for listings.
    """

    modality: str
    task: str
    max_episode_steps: int
    description: str


ENVIRONMENTS: dict[str, EnvironmentSpec] = {
    "Astra-RT1-v0": EnvironmentSpec(
        modality="end_effector",
        task="lift",
        max_episode_steps=50,
        description="a robot arm at a table, moved by 7-DoF end-effector actions",
    ),
}
