"""What a checkpoint folder holds besides weights: start states from held-out episodes, one folder for each domain."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from astra_env.envs.start_states import StartStates
from astra_env.training.episodes import FRAMES_PER_ACTION, Episodes

NUM_CHUNKS = 4
"""Actions of known history before an episode begins."""


def domain_folder(checkpoint: str | os.PathLike[str], name: str) -> Path:
    """CHECKPOINT/domains/NAME, made where there is none."""
    folder = Path(checkpoint) / "domains" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_start_states(heldout: Episodes, folder: str | os.PathLike[str], *, count: int = 48) -> None:
    """The `start_states` of held-out episodes, one of each at most, into a domain's folder of a checkpoint."""
    start_states(heldout, min(count, len(heldout))).save(folder)


def start_states(episodes: Episodes, count: int) -> StartStates:
    """Short clips with their actions, at most ``count``, from evenly chosen episodes at different times of them.

    None ends where the task is done or has failed already, if its episode has any other time.

    Raises:
        ValueError: ``count`` is below 1, or episodes are shorter than a clip.
    """
    num_times = episodes.actions.shape[1] - NUM_CHUNKS + 1
    if count < 1 or num_times < 1:
        raise ValueError(
            f"{count} start states were asked for, of episodes of {episodes.actions.shape[1]} actions; expected at "
            f"least 1, and {NUM_CHUNKS} actions or more, which a clip lasts."
        )
    count = min(count, len(episodes) * num_times)
    over = episodes.success if episodes.failure is None else episodes.success | episodes.failure
    picked: dict[int, list[int]] = {}
    for index in range(count):
        episode, time = index * len(episodes) // count, index * 5 % num_times
        times = picked.setdefault(episode, [])
        open_times = [t for t in range(num_times) if not over[episode, t + NUM_CHUNKS]] or times[:1] or [time]
        if free := [t for t in open_times if t not in times]:
            times.append(free[int(np.abs(np.array(free) - time).argmin())])
    clips = [(episode, time) for episode, times in picked.items() for time in times]
    frames = [episodes.frames[e, FRAMES_PER_ACTION * t : FRAMES_PER_ACTION * (t + NUM_CHUNKS) + 1] for e, t in clips]
    actions = [episodes.actions[e, t : t + NUM_CHUNKS] for e, t in clips]
    speeds = None
    if episodes.speeds is not None:
        speeds = torch.stack([episodes.speeds[e, t + NUM_CHUNKS] for e, t in clips]).numpy()
    return StartStates(torch.stack(frames).numpy(), torch.stack(actions).numpy(), speeds)
