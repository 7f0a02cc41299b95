"""A world model against held-out recordings: open-loop rollouts, and the motion that single actions lead to."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astra_env.models import WorldModel
from astra_env.training.episodes import Episodes, load_episodes
from benchmarks.metrics import PerceptualFeatures, psnr, ssim
from benchmarks.pose_estimator import PoseEstimator, displacement, load_poses

START, HORIZON = 4, 10
"""Chunks that are known at a start, and chunks that are imagined from there."""
FOLLOW_STEPS, FOLLOW_SHARE = 5, 0.8
"""A single-axis action is held for so many steps, at this share of its bound."""
ROOM = (0.04, 0.04, 0.04, 0.2, 0.2, 0.2, 0.7)
"""How far a start is from the workspace's end in the direction of the action: metres, radians, gripper."""
DIRECTIONS = tuple((axis, sign) for axis in range(7) for sign in (1, -1))
PERCEPTUAL_HORIZONS = (1, 5, 10)


@dataclass(frozen=True)
class Bench:
    """What all measurements share: the world, held-out episodes with poses (E, 4 N + 1, 7), and the room to move."""

    world_model: WorldModel
    heldout: Episodes
    poses: Tensor
    low: Tensor  # (7,) ends of the workspace in the fields of a pose
    high: Tensor

    @property
    def horizon(self) -> int:
        """Chunks that can be compared with a recording."""
        return min(HORIZON, self.heldout.actions.shape[1] - START)


def load_bench(data: str | os.PathLike[str], world_model: str, episodes: int) -> Bench:
    """Read the checkpoint and the held-out split; ValueError when episodes are too few or too short."""
    manifest = json.loads((Path(data) / "dataset.json").read_text())
    heldout = load_episodes(data, "heldout", episodes)
    if len(heldout) < 2 or heldout.actions.shape[1] <= START:
        raise ValueError(
            f"{data} has {len(heldout)} held-out episodes of {heldout.actions.shape[1]} chunks, "
            f"expected at least 2 of more than {START}; collect more."
        )
    turn = [manifest["max_tilt_rad"], manifest["max_tilt_rad"], manifest["max_yaw_rad"]]
    low = torch.tensor([*manifest["workspace_m"][0], *(-angle for angle in turn), 0.0])
    high = torch.tensor([*manifest["workspace_m"][1], *turn, 1.0])
    poses = load_poses(data, "heldout", episodes)
    return Bench(WorldModel.from_pretrained(world_model), heldout, poses, low, high)


# 1. Open loop


def open_loop_frames(bench: Bench, rows: Tensor, order: Tensor, **sampling: Any) -> Tensor:
    """Imagine held-out episodes `rows` under the actions of episodes `order`: uint8 (B, 4 horizon, H, W, 3)."""
    heldout, videos = bench.heldout, []
    for part, other in zip(rows.split(50), order.split(50), strict=True):
        state = bench.world_model.init_state(
            heldout.frames[part, : 4 * START + 1], heldout.modality, actions=heldout.actions[part, :START]
        )
        chunks = []
        for action in heldout.actions[other, START : START + bench.horizon].unbind(1):
            state, frames = bench.world_model.decode(bench.world_model.step(state, action, **sampling))
            chunks.append(frames.cpu())
        videos.append(torch.cat(chunks, dim=1))
    return torch.cat(videos)


def recorded_frames(bench: Bench, rows: Tensor) -> Tensor:
    """What really happened: uint8 (B, 4 horizon, H, W, 3)."""
    return bench.heldout.frames[rows, 4 * START + 1 : 4 * (START + bench.horizon) + 1]


def autoencoded_frames(bench: Bench, rows: Tensor) -> Tensor:
    """What the decoder could show at best, as `recorded_frames`."""
    autoencoder, end = bench.world_model.autoencoder, 4 * (START + bench.horizon) + 1
    videos = []
    for part in rows.split(16):
        latents = autoencoder.encode(bench.heldout.frames[part, :end].to(bench.world_model.device))
        videos.append(autoencoder.decode_video(latents).cpu()[:, 4 * START + 1 :])
    return torch.cat(videos)


def open_loop(bench: Bench, features: PerceptualFeatures, perceptual_episodes: int) -> dict[str, Any]:
    """PSNR, SSIM and perceptual distance at every horizon, for the true actions and what they must beat."""
    rows = torch.arange(len(bench.heldout))
    truth = recorded_frames(bench, rows)
    videos = {
        "true": open_loop_frames(bench, rows, rows),
        "shuffled": open_loop_frames(bench, rows, rows.roll(1)),
        "still": bench.heldout.frames[:, 4 * START : 4 * START + 1].expand_as(truth),
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
        pairs = [(video[:perceptual_episodes, 4 * k - 1], truth[:perceptual_episodes, 4 * k - 1]) for k in chosen]
        report["perceptual"][name] = [features.distance(*pair) for pair in pairs]
    return report


# 2. Action following


def choose_starts(bench: Bench, axis: int, sign: int, count: int) -> list[tuple[int, int]]:
    """Up to count (episode, chunk) of the held-out split with room in a direction, in a fixed random order."""
    num_episodes, num_chunks = bench.heldout.actions.shape[:2]
    candidates = [(episode, chunk) for episode in range(num_episodes) for chunk in range(START, num_chunks, 5)]
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(0)).tolist()
    room = (bench.high - bench.poses if sign > 0 else bench.poses - bench.low)[..., axis]
    chosen = [candidates[index] for index in order]
    return [start for start in chosen if room[start[0], 4 * start[1]] >= ROOM[axis]][:count]


def follow(
    bench: Bench, estimator: PoseEstimator, direction: tuple[int, int], count: int, **sampling: Any
) -> dict[str, Any]:
    """Hold one axis of the action from several starts and measure how far the imagined gripper goes that way."""
    axis, sign = direction
    starts = choose_starts(bench, axis, sign, count)
    if not starts:
        return {"num_starts": 0}
    heldout, modality = bench.heldout, bench.world_model.modalities[bench.heldout.modality]
    frames = torch.stack([heldout.frames[e, 4 * (k - START) : 4 * k + 1] for e, k in starts])
    past = torch.stack([heldout.actions[e, k - START : k] for e, k in starts])
    state = bench.world_model.init_state(frames, heldout.modality, actions=past)
    state, shown = bench.world_model.decode(state)
    action = torch.zeros(len(starts), modality.action_dim)
    action[:, 6] = past[:, -1, 6]
    action[:, axis] = float(sign > 0) if axis == 6 else sign * FOLLOW_SHARE * modality.high[axis]
    held = action[:, None].expand(-1, FOLLOW_STEPS, -1)
    _, after = bench.world_model.decode(bench.world_model.imagine(state, held, **sampling))
    moved = sign * displacement(estimator(shown[:, -1].cpu()), estimator(after[:, -1].cpu()))[:, axis]
    now = torch.stack([bench.poses[e, 4 * k, axis] for e, k in starts])
    ideal = bench.high[axis] - now if sign > 0 else now - bench.low[axis]
    if axis != 6:
        ideal = ideal.clamp(max=FOLLOW_STEPS * FOLLOW_SHARE * modality.high[axis])
    return {
        "num_starts": len(starts),
        "right_way": float((moved > 0).float().mean()),
        "half_way": float((moved > 0.5 * ideal).float().mean()),
        "mean_displacement": float(moved.mean()),
        "ideal_displacement": float(ideal.mean()),
    }


def name_of(bench: Bench, direction: tuple[int, int]) -> str:
    """+dx, -dx and so on; +gripper closes."""
    fields = bench.world_model.modalities[bench.heldout.modality].fields
    return ("+" if direction[1] > 0 else "-") + fields[direction[0]]


def action_following(bench: Bench, estimator: PoseEstimator, count: int) -> dict[str, Any]:
    """Every single-axis action from count starts."""
    return {
        "method": (
            f"Each axis is held at {FOLLOW_SHARE:g} of its bound (gripper: its end) for {FOLLOW_STEPS} steps, the "
            "other axes at 0, the gripper at its last recorded command. Motion is the estimated pose in the last "
            "imagined frame minus that in the decoded start frame; rotations are rotation vectors about base axes."
        ),
        "starts": (
            f"Held-out chunks whose measured pose is at least {ROOM[0]:g} m, {ROOM[3]:g} rad or {ROOM[6]:g} of the "
            "gripper's way from the workspace's end in that direction."
        ),
        "right_way": "share of starts whose motion has the commanded sign",
        "half_way": "share of starts that move more than half the ideal displacement, which ends at the workspace",
        "directions": {name_of(bench, entry): follow(bench, estimator, entry, count) for entry in DIRECTIONS},
    }
