"""Whether imagined cars and cameras do what they are told, measured by an estimator of each chunk's motion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from astra_env import geometry
from astra_env.actions import ActionModality
from benchmarks.imagination import CHUNK_FRAMES, START, Bench, Starts, decoded_start, rollout
from benchmarks.motion_estimator import Motion

CHAIN_LENGTHS = (5, 10)
REACH = 1.5
"""Room is where the recorded pose came while its other axes were off by at most so many bounds of the action."""


@dataclass(frozen=True)
class Start:
    """A moment of a held-out episode at which a chunk ends."""

    bench: Bench
    episode: int
    chunk: int

    @property
    def modality(self) -> ActionModality:
        """Meaning of the actions."""
        return self.bench.world_model.modalities[self.bench.heldout.modality]

    @property
    def speed(self) -> float:
        """Metres in a second."""
        return float(self.bench.speeds[self.episode, CHUNK_FRAMES * self.chunk])

    @property
    def poses(self) -> np.ndarray:
        """The episode's poses (N + 1, 4, 4), one a chunk."""
        return self.bench.poses[self.episode, ::CHUNK_FRAMES]

    def rest(self, steps: int) -> np.ndarray:
        """Actions (steps, A) of rest: changes 0, absolute fields as last commanded."""
        action = np.zeros(self.modality.action_dim, np.float32)
        last = self.bench.heldout.actions[self.episode, self.chunk - 1]
        for name in self.modality.absolute:
            action[self.modality.fields.index(name)] = last[self.modality.fields.index(name)]
        return np.tile(action, (steps, 1))

    def room(self, axis: int, sign: int) -> float:
        """How far the pose can certainly move along one field, since in the recording it was there."""
        here, modality = self.poses[self.chunk], self.modality
        ways = np.stack([np.broadcast_to(here, self.poses.shape), self.poses], axis=1).reshape(-1, 4, 4)
        moves = modality.kinematics.recover(ways, 1 / modality.rate_hz, 0.0)[::2]  # (N + 1, fields)
        others = np.delete(np.arange(moves.shape[1]), axis)
        near = (np.abs(moves) <= REACH * np.array(modality.high[: moves.shape[1]]))[:, others].all(axis=1)
        return float(np.max(sign * moves[near, axis], initial=0.0))


@dataclass(frozen=True)
class Probe:
    """Actions that are held from starts which allow it, and what becomes of them."""

    plan: Callable[[Start], np.ndarray | None]
    """Actions (k, A), always as many; None where the start does not allow them."""
    measure: Callable[[np.ndarray], float]
    """Motions (1 + k, n), the first that before the start -> the change that is asked for."""
    unit: str
    instead: Callable[[Start], np.ndarray | None] | None = None
    """Other actions (k, A) from the same starts, where what counts is the difference to those."""


def choose_starts(bench: Bench, probe: Probe, count: int) -> list[tuple[Start, np.ndarray]]:
    """Up to count starts with their actions, in a fixed random order; none where the pose has just been stopped."""
    num_episodes, num_chunks = bench.heldout.actions.shape[:2]
    candidates = [(episode, chunk) for episode in range(num_episodes) for chunk in range(bench.first, num_chunks)]
    chosen: list[tuple[Start, np.ndarray]] = []
    for index in torch.randperm(len(candidates), generator=torch.Generator().manual_seed(0)).tolist():
        start = Start(bench, *candidates[index])
        if len(chosen) == count:
            break
        actions = None if bench.blocked[start.episode, start.chunk - 1] else probe.plan(start)
        if actions is not None:
            chosen.append((start, np.asarray(actions, np.float32)))
    return chosen


@dataclass(frozen=True)
class MotionFollower:
    """Holds actions from many starts and compares the imagined motion with what the kinematics say."""

    probes: Mapping[str, Probe]
    motion: Motion
    estimate: Callable[[Tensor], Tensor]  # videos (B, 4 k + 1, H, W, 3) -> motions (B, k, n)

    @property
    def names(self) -> tuple[str, ...]:
        """The probes."""
        return tuple(self.probes)

    def motions(self, bench: Bench, starts: Starts, actions: Tensor, **sampling: Any) -> np.ndarray:
        """Motions (B, 1 + k, n) of the chunk before the start and of those imagined under actions (B, k, A)."""
        video = torch.cat([decoded_start(bench, starts), rollout(bench, starts, actions, **sampling)], dim=1)
        return self.estimate(video).double().numpy()

    def ideal(self, start: Start, actions: np.ndarray) -> np.ndarray:
        """Motions (1 + k, n) as `motions`, recorded before the start and by the kinematics after it."""
        before = start.poses[start.chunk - 1 : start.chunk + 1]
        after = start.modality.integrate(before[1], actions, speed=start.speed)
        return self.motion.between(np.concatenate([before[:1], after]))

    def follow(self, bench: Bench, name: str, count: int, **sampling: Any) -> dict[str, Any]:
        """Hold a probe's actions from up to count starts: share of the right sign, and the mean change."""
        probe = self.probes[name]
        chosen = choose_starts(bench, probe, count)
        if not chosen:
            return {"num_starts": 0}
        starts = [(start.episode, start.chunk) for start, _ in chosen]
        actions = torch.from_numpy(np.stack([entry for _, entry in chosen]))
        moved = np.array([probe.measure(entry) for entry in self.motions(bench, starts, actions, **sampling)])
        ideal = np.array([probe.measure(self.ideal(*entry)) for entry in chosen])
        if probe.instead is not None:
            others = [(start, np.asarray(probe.instead(start), np.float32)) for start, _ in chosen]
            rival = torch.from_numpy(np.stack([entry for _, entry in others]))
            moved -= [probe.measure(entry) for entry in self.motions(bench, starts, rival, **sampling)]
            ideal -= [probe.measure(self.ideal(*entry)) for entry in others]
        moved = moved * np.sign(ideal)
        return {
            "num_starts": len(chosen),
            "right_way": float((moved > 0).mean()),
            "half_way": float((moved > 0.5 * np.abs(ideal)).mean()),
            "mean_displacement": float(moved.mean()),
            "ideal_displacement": float(np.abs(ideal).mean()),
            "unit": probe.unit,
        }


def free_windows(bench: Bench, length: int, count: int) -> list[tuple[int, int]]:
    """Up to count starts, one an episode, after which nothing stopped the recorded pose for length chunks."""
    found = []
    for episode in range(len(bench.heldout)):
        chunks = range(START, bench.heldout.actions.shape[1] - length + 1)
        free = [chunk for chunk in chunks if not bench.blocked[episode, chunk : chunk + length].any()]
        found += [(episode, free[0])] if free else []
    return found[:count]


def chain_errors(bench: Bench, follower: MotionFollower, count: int) -> dict[str, Any]:
    """How far the estimated poses are from the commanded ones after several steps of held-out action sequences.

    RotErr in degrees and TransErr in metres, for the imagined frames, for the real ones and the same autoencoded,
    which tell the estimator's own error, and for a camera that stands still.
    """
    length = min(CHAIN_LENGTHS[-1], bench.horizon)
    starts = free_windows(bench, length, count)
    report: dict[str, Any] = {
        "num_windows": len(starts),
        "windows": f"held-out starts after which nothing stopped the recorded camera for {length} steps",
        "rotation_unit": "degrees",
        "translation_unit": "m",
        "steps": [k for k in CHAIN_LENGTHS if k <= length],
    }
    if not starts:
        return report
    modality = bench.world_model.modalities[bench.heldout.modality]
    actions = torch.stack([bench.heldout.actions[e, c : c + length] for e, c in starts])
    real = torch.stack([bench.heldout.frames[e, 4 * c : 4 * (c + length) + 1] for e, c in starts])
    motions = {
        "imagined": follower.motions(bench, starts, actions)[:, 1:],
        "real": follower.estimate(real).double().numpy(),
        "autoencoded": follower.estimate(_autoencoded(bench, starts, length)).double().numpy(),
        "standing_still": np.zeros((len(starts), length, len(follower.motion.fields))),
    }
    commanded = np.stack([modality.integrate(np.eye(4), part) for part in actions.numpy()])
    for name, entries in motions.items():
        poses = np.stack([modality.integrate(np.eye(4), part) for part in entries])
        errors = [pose_errors(poses[:, k], commanded[:, k]) for k in report["steps"]]
        report[name] = {
            "rotation": [float(rotation.mean()) for rotation, _ in errors],
            "translation": [float(translation.mean()) for _, translation in errors],
        }
    return report


def pose_errors(poses: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Angle in degrees and distance in metres (...,) between poses (..., 4, 4)."""
    turn = geometry.matrix_to_axis_angle(np.swapaxes(truth[..., :3, :3], -1, -2) @ poses[..., :3, :3])
    return np.rad2deg(np.linalg.norm(turn, axis=-1)), np.linalg.norm(poses[..., :3, 3] - truth[..., :3, 3], axis=-1)


def _autoencoded(bench: Bench, starts: Starts, length: int) -> Tensor:
    """The recording from each start on, as the autoencoder shows it: uint8 (B, 4 length + 1, H, W, 3)."""
    autoencoder, videos = bench.world_model.autoencoder, []
    for episode, chunk in starts:
        clip = bench.heldout.frames[episode, None, 4 * (chunk - START) : 4 * (chunk + length) + 1]
        decoded = autoencoder.decode_video(autoencoder.encode(clip.to(bench.world_model.device)))
        videos.append(decoded.cpu()[:, 4 * START :])
    return torch.cat(videos)
