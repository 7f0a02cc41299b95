"""A world model against held-out recordings of any domain: open-loop rollouts, and what they are compared with."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from astra_env.datasets.recorded import RecordedDataset
from astra_env.models import WorldModel, WorldState
from astra_env.training.episodes import Episodes, load_episodes
from benchmarks.metrics import PerceptualFeatures, psnr, ssim

START, HORIZON = 4, 10
"""Chunks that are usually known at a start, and chunks that are imagined from there."""
CHUNK_FRAMES = 4
PERCEPTUAL_HORIZONS = (1, 5, 10)
PART = 50
"""Worlds that are imagined in one batch."""
Starts = Sequence[tuple[int, int]]
"""Moments that worlds begin from: held-out episode and chunk."""


@dataclass(frozen=True)
class Bench:
    """What all measurements of a domain share: the world, and held-out episodes with what was recorded beside them."""

    world_model: WorldModel
    heldout: Episodes
    poses: np.ndarray  # float64 (E, 4 N + 1, 4, 4): of the gripper, the rear axle or the camera
    blocked: np.ndarray  # bool (E, N): whether the pose missed the commanded one in a chunk
    speeds: np.ndarray  # float32 (E, 4 N + 1): m/s, zeros where the domain has none
    behaviours: tuple[str, ...]  # what led each episode
    known: int = START
    """Chunks before a start that a world is told; none leaves it one picture."""
    first: int = START
    """Chunk of an episode from which on worlds may begin, at least `known`."""

    @property
    def horizon(self) -> int:
        """Chunks that can be compared with a recording."""
        return min(HORIZON, self.heldout.actions.shape[1] - self.first)


def load_tracks(root: str | os.PathLike[str], split: str, count: int, *names: str) -> list[dict[str, np.ndarray]]:
    """Some arrays of the first count episodes, without the frames; names that a file lacks are left out."""
    tracks = []
    for path in RecordedDataset(root, split).paths[:count]:
        with np.load(path, allow_pickle=False) as file:
            tracks.append({name: file[name] for name in names if name in file.files})
    return tracks


def load_bench(data: str | os.PathLike[str], world_model: WorldModel, episodes: int) -> Bench:
    """Read the held-out split; ValueError when episodes are too few or too short, or the world lacks their modality."""
    heldout = load_episodes(data, "heldout", episodes)
    if len(heldout) < 2 or heldout.actions.shape[1] <= START:
        raise ValueError(
            f"{data} has {len(heldout)} held-out episodes of {heldout.actions.shape[1]} chunks, "
            f"expected at least 2 of more than {START}; collect more."
        )
    if heldout.modality not in world_model.modalities:
        raise ValueError(
            f"{data} has {heldout.modality!r} actions, but the world model knows {sorted(world_model.modalities)}; "
            "train it on such data."
        )
    tracks = load_tracks(data, "heldout", len(heldout), "measured_poses", "commanded_poses", "speed", "meta")
    poses, commanded = (np.stack([t[name] for t in tracks]) for name in ("measured_poses", "commanded_poses"))
    if poses.shape[:2] != heldout.frames.shape[:2]:
        raise ValueError(f"{data} has {poses.shape[1]} poses an episode, expected {heldout.frames.shape[1]}.")
    missed = np.abs(poses - commanded).max((-2, -1)) > 0.01
    speeds = [t.get("speed", np.zeros(poses.shape[1], np.float32)) for t in tracks]
    return Bench(
        world_model,
        heldout,
        poses.astype(np.float64),
        missed[:, 1:].reshape(len(heldout), -1, CHUNK_FRAMES).any(-1),
        np.stack(speeds),
        tuple(json.loads(str(t["meta"]))["behaviour"] for t in tracks),
    )


def rollout(bench: Bench, starts: Starts, actions: Tensor, **sampling: Any) -> Tensor:
    """Imagine from starts under actions (B, k, A): uint8 (B, 4 k, H, W, 3)."""
    videos = []
    for part, follow in zip(_parts(starts), actions.split(PART), strict=True):
        state = begin(bench, part)
        chunks = []
        for action in follow.unbind(1):
            state, frames = bench.world_model.decode(bench.world_model.step(state, action, **sampling))
            chunks.append(frames.cpu())
        videos.append(torch.cat(chunks, dim=1))
    return torch.cat(videos)


def begin(bench: Bench, starts: Starts) -> WorldState:
    """Worlds at their starts, with what was recorded before."""
    past = torch.stack([bench.heldout.actions[e, c - bench.known : c] for e, c in starts])
    speeds = [float(bench.speeds[e, CHUNK_FRAMES * c]) for e, c in starts]
    return bench.world_model.init_state(
        known_frames(bench, starts), bench.heldout.modality, actions=past, speeds=speeds
    )


def known_frames(bench: Bench, starts: Starts) -> Tensor:
    """What a world is told before it imagines: the recorded uint8 (B, 4 known + 1, H, W, 3)."""
    return torch.stack([bench.heldout.frames[e, 4 * (c - bench.known) : 4 * c + 1] for e, c in starts])


def decoded_start(bench: Bench, starts: Starts) -> Tensor:
    """The last chunk before as the autoencoder shows it, with the frame before: uint8 (B, 5, H, W, 3)."""
    autoencoder, shown, told = bench.world_model.autoencoder, [], replace(bench, known=START)
    for part in _parts(starts):
        latents = autoencoder.encode(known_frames(told, part).to(bench.world_model.device))
        shown.append(autoencoder.decode_video(latents).cpu()[:, -CHUNK_FRAMES - 1 :])
    return torch.cat(shown)


def _parts(starts: Starts) -> list[Starts]:
    return [starts[index : index + PART] for index in range(0, len(starts), PART)]


def open_loop_frames(bench: Bench, rows: Tensor, order: Tensor, **sampling: Any) -> Tensor:
    """Imagine held-out episodes `rows` under the actions of episodes `order`: uint8 (B, 4 horizon, H, W, 3)."""
    actions = bench.heldout.actions[order, bench.first : bench.first + bench.horizon]
    return rollout(bench, [(row, bench.first) for row in rows.tolist()], actions, **sampling)


def recorded_frames(bench: Bench, rows: Tensor) -> Tensor:
    """What really happened: uint8 (B, 4 horizon, H, W, 3)."""
    return bench.heldout.frames[rows, 4 * bench.first + 1 : 4 * (bench.first + bench.horizon) + 1]


def autoencoded_frames(bench: Bench, rows: Tensor) -> Tensor:
    """What the decoder could show at best, as `recorded_frames`."""
    autoencoder, end = bench.world_model.autoencoder, 4 * (bench.first + bench.horizon) + 1
    videos = []
    for part in rows.split(16):
        latents = autoencoder.encode(bench.heldout.frames[part, :end].to(bench.world_model.device))
        videos.append(autoencoder.decode_video(latents).cpu()[:, 4 * bench.first + 1 :])
    return torch.cat(videos)


def open_loop(bench: Bench, features: PerceptualFeatures | None = None, perceptual_episodes: int = 0) -> dict[str, Any]:
    """PSNR, SSIM and, where features are given, perceptual distance at every horizon: true actions and their rivals."""
    rows = torch.arange(len(bench.heldout))
    truth = recorded_frames(bench, rows)
    videos = {
        "true": open_loop_frames(bench, rows, rows),
        "shuffled": open_loop_frames(bench, rows, rows.roll(1)),
        "still": bench.heldout.frames[:, 4 * bench.first : 4 * bench.first + 1].expand_as(truth),
        "ceiling": autoencoded_frames(bench, rows),
    }
    horizons = list(range(1, bench.horizon + 1))
    chosen = [k for k in PERCEPTUAL_HORIZONS if k <= bench.horizon]
    report: dict[str, Any] = {
        "num_episodes": len(rows),
        "frames": "all four frames of each chunk; PSNR of the mean squared error over episodes",
        "shuffled": "the actions of the episode before in the held-out split",
        "ceiling": "the recording, encoded and decoded",
        "horizons": horizons,
        "perceptual_horizons": chosen,
        "perceptual_frames": f"the last frame of the chunk, first {min(perceptual_episodes, len(rows))} episodes",
        **{measure: {} for measure in ("psnr", "psnr_last_frame", "ssim", "perceptual")},
    }
    for name, video in videos.items():
        chunks = [(video[:, 4 * k - 4 : 4 * k], truth[:, 4 * k - 4 : 4 * k]) for k in horizons]
        report["psnr"][name] = [psnr(shown, real) for shown, real in chunks]
        report["psnr_last_frame"][name] = [psnr(shown[:, -1], real[:, -1]) for shown, real in chunks]
        report["ssim"][name] = [
            float(torch.stack([ssim(*pair).mean() for pair in zip(shown, real, strict=True)]).mean())
            for shown, real in chunks
        ]
        if features is not None:
            pairs = [(video[:perceptual_episodes, 4 * k - 1], truth[:perceptual_episodes, 4 * k - 1]) for k in chosen]
            report["perceptual"][name] = [features.distance(*pair) for pair in pairs]
    return report
