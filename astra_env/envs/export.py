"""Imagined episodes as clips, for the writers of data sets: they train other people's policies."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pkgutil import resolve_name
from typing import Any

import gymnasium
import numpy as np

import astra_env  # noqa: F401  registers the ids
from astra_env.datasets import Clip
from astra_env.envs import ENVIRONMENTS
from astra_env.envs.worlds import ImaginedWorlds

WRITERS: dict[str, str] = {
    "lerobot": "astra_env.datasets.lerobot_writer:write_lerobot",
    "rlds": "astra_env.datasets.rlds_writer:write_rlds",
}
"""Format -> function of a folder and clips."""
Policy = Callable[[np.ndarray, dict[str, Any]], np.ndarray]
"""Actions (N, …) of N worlds from their observations and infos."""


def export(clips: Iterable[Clip], path: str | os.PathLike[str], file_format: str) -> None:
    """Write clips in a format, a key of `WRITERS`; the folder appears when it is whole."""
    if file_format not in WRITERS:
        raise ValueError(f"There is no writer of {file_format!r}; there are writers of {sorted(WRITERS)}.")
    resolve_name(WRITERS[file_format])(path, clips)


def held_at_random(space: gymnasium.Space[Any], steps: int, seed: int) -> Policy:
    """Random actions of a batched space, each held for so many steps."""
    space.seed(seed)
    count, action = 0, space.sample()

    def policy(observations: np.ndarray, infos: dict[str, Any]) -> np.ndarray:
        nonlocal count, action
        action = action if count % steps or not count else space.sample()
        count += 1
        return action

    return policy


def imagine_clips(
    environment: str, *, episodes: int, steps: int, seed: int = 0, policy: Policy | None = None, **options: Any
) -> list[Clip]:
    """Episodes of an id, all of them in one batch, each until its end or for so many steps.

    Args:
        environment: a key of `ENVIRONMENTS`.
        episodes: how many; episode i is what `gymnasium.make(environment)` imagines from seed + i.
        steps: most steps of an episode.
        seed: of the starts, the noise and, without a policy, the actions.
        policy: what acts; random actions, each held for three steps, if None.
        options: as `gymnasium.make_vec` takes them, such as ``world_model=``.

    Returns:
        Clips at the rate of the frames, with the poses to which the actions have led.
    """
    env: Any = gymnasium.make_vec(environment, episodes, "vector_entry_point", **options)
    worlds = env.unwrapped
    policy = policy or held_at_random(env.action_space, 3, seed)
    observations, infos = env.reset(seed=seed)
    told, taken, lengths = [infos], [], np.full(episodes, steps)
    for index in range(steps):
        actions = policy(observations, infos)
        taken.append(worlds.physical(actions, (episodes,)))
        observations, _, terminations, truncations, infos = env.step(actions)
        told.append(infos)
        lengths = np.where(terminations | truncations, np.minimum(lengths, index + 1), lengths)
        if (lengths <= index + 1).all():
            break
    clips = []
    for row, length in enumerate(lengths.tolist()):
        own = [_row(info, row) for info in told[: length + 1]]
        clips.append(clip_of(worlds, own, np.stack(taken)[:length, row], f"{environment}, world {row}"))
    return clips


def _row(info: Mapping[str, Any], row: int) -> dict[str, Any]:
    """What a clip needs of what is told of one of many worlds."""
    speed = {"speed": info["speed"][row]} if "speed" in info else {}
    return {"frames": info["frames"][row], "pose": info["pose"][row], **speed}


def clip_of(worlds: ImaginedWorlds, told: Sequence[Mapping[str, Any]], actions: np.ndarray, source: str) -> Clip:
    """The clip of one world from what was told of it at its start and after each of its actions.

    Args:
        worlds: the environment.
        told: N + 1 infos of one world, as `AstraEnv` gives them.
        actions: physical (N, A).
        source: what a message calls the clip.
    """
    modality, chunks = worlds.action_modality, [info["frames"] for info in told]
    held = len(chunks[1])  # frames in a chunk
    fps = modality.rate_hz * held / worlds.world_model.sampling.chunk_size
    shares = modality.split(actions, held).reshape(-1, modality.action_dim)
    speeds = None
    if "speed" in told[0]:
        ends = [float(info["speed"]) for info in told]
        speeds = np.interp(np.arange(len(shares) + 1) / held, np.arange(len(ends)), ends).astype(np.float32)
    start = told[0]["pose"].astype(np.float64)
    poses = modality.integrate(start, shares, speed=0.0 if speeds is None else float(speeds[0]), rate_hz=fps)
    return Clip(
        frames=np.concatenate([chunks[0][-1:], *chunks[1:]]),
        actions=shares,
        modality=modality.name,
        fps=fps,
        poses=poses.astype(np.float32),
        speeds=speeds,
        text=ENVIRONMENTS[worlds.environment].description,
        source=source,
    )
