"""Recorded episodes as a world imagines them: its latents, with what really happened under the same actions."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from tqdm import tqdm

from astra_env.models import WorldModel
from astra_env.training.bundle import NUM_CHUNKS
from astra_env.training.episodes import FRAMES_PER_ACTION, Episodes

PART = 32
"""Episodes that are imagined in one batch."""


@torch.no_grad()
def imagine_episodes(world_model: WorldModel, episodes: Episodes, *, seed: int = 0) -> tuple[Tensor, Episodes]:
    """Imagine episodes (E, N chunks) open-loop after their first 4 chunks, each under its recorded actions.

    Returns:
        Latents (E, N - 4, C, h, w), and episodes without frames whose labels are those that were recorded at the same
        times. Speeds are those that the imagined kinematics tell, as they are when a policy acts there.

    Raises:
        ValueError: nothing is left after the first chunks, or the world imagines several latents for one action.
    """
    num_actions, per_action = episodes.actions.shape[1], world_model.sampling.chunk_size
    if num_actions <= NUM_CHUNKS or per_action != 1:
        raise ValueError(
            f"Episodes have {num_actions} actions, for each of which the world imagines {per_action} latents; expected "
            f"more than {NUM_CHUNKS} actions, and one latent each."
        )
    latents, speeds = [], []
    for first in tqdm(range(0, len(episodes), PART), desc=f"imagining {episodes.name}", unit="batch", mininterval=5):
        rows = slice(first, first + PART)
        frames, actions = episodes.frames[rows, : FRAMES_PER_ACTION * NUM_CHUNKS + 1], episodes.actions[rows]
        state = world_model.init_state(
            frames,
            episodes.modality,
            actions=actions[:, :NUM_CHUNKS],
            seeds=range(seed + first, seed + first + len(frames)),
            speeds=None if episodes.speeds is None else episodes.speeds[rows, NUM_CHUNKS],
        )
        newest, driven = [], []
        for action in actions[:, NUM_CHUNKS:].unbind(1):
            state = world_model.step(state, action)
            newest.append(state.newest.float().cpu())
            driven.append(state.speeds.float().cpu())
        latents.append(torch.stack(newest, 1))
        speeds.append(torch.stack(driven, 1))
    later = slice(NUM_CHUNKS + 1, None)
    labels = dataclasses.replace(
        episodes.without_frames(),
        actions=episodes.actions[:, NUM_CHUNKS:],
        rewards=episodes.rewards[:, later],
        success=episodes.success[:, later],
        failure=None if episodes.failure is None else episodes.failure[:, later],
        speeds=None if episodes.speeds is None else torch.cat(speeds),
    )
    return torch.cat(latents), labels
