"""What a checkpoint folder holds besides weights: start states from held-out episodes, one folder for each domain."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from astra_env.envs.start_states import StartStates
from astra_env.training.episodes import Episodes

NUM_CHUNKS = 4  # of known history before an episode begins


def domain_folder(checkpoint: str | os.PathLike[str], name: str) -> Path:
    """CHECKPOINT/domains/NAME, made where there is none."""
    folder = Path(checkpoint) / "domains" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_start_states(heldout: Episodes, folder: str | os.PathLike[str], *, count: int = 48) -> None:
    """Short clips with their actions, from evenly chosen held-out episodes at different times of them.

    None ends where the task is done or has failed already, if its episode has any other time.
    """
    count = min(count, len(heldout))
    latest = heldout.actions.shape[1] - NUM_CHUNKS
    over = heldout.success if heldout.failure is None else heldout.success | heldout.failure
    picked = []
    for index in range(count):
        episode, time = index * len(heldout) // count, index * 5 % (latest + 1)
        open_times = [t for t in range(latest + 1) if not over[episode, t + NUM_CHUNKS]] or [time]
        picked.append((episode, open_times[int(np.abs(np.array(open_times) - time).argmin())]))
    frames = [heldout.frames[e, 4 * t : 4 * (t + NUM_CHUNKS) + 1] for e, t in picked]
    actions = [heldout.actions[e, t : t + NUM_CHUNKS] for e, t in picked]
    speeds = torch.zeros(count)
    if heldout.speeds is not None:
        speeds = torch.stack([heldout.speeds[e, t + NUM_CHUNKS] for e, t in picked])
    StartStates(torch.stack(frames).numpy(), torch.stack(actions).numpy(), speeds.numpy()).save(Path(folder))
