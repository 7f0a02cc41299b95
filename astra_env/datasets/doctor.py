"""What may be wrong with recordings, told before anything is trained on them; and the statistics of each field."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from astra_env.actions import ACTION_MODALITIES, ActionModality
from astra_env.datasets.clip import Clip
from astra_env.video import resize_frames

LOOK = (64, 64)
"""Size at which pictures are compared."""
LEFTWARD = {"vehicle": ("steering", 1.0), "camera": ("dyaw", -1.0)}
"""Modality -> the field that turns it to the left, which moves the picture to the right, and the sign that does."""


@dataclass(frozen=True)
class Report:
    """Findings, one sentence each, and by field what its values are."""

    num_clips: int
    num_frames: int
    findings: tuple[str, ...]
    fields: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For a file beside the data."""
        return {
            "clips": self.num_clips,
            "frames": self.num_frames,
            "findings": list(self.findings),
            "fields": self.fields,
        }


def examine(clips: Iterable[Clip]) -> Report:
    """Look at clips of one modality and rate, one at a time.

    Raises:
        ValueError: when the clips have different modalities or rates, naming one of each.
    """
    actions, findings, frames, first = [], [], 0, None
    turns: list[np.ndarray] = []
    for clip in clips:
        first = clip if first is None else first
        if (clip.modality, clip.fps) != (first.modality, first.fps):
            raise ValueError(
                f"{clip.source} has {clip.modality} actions at {clip.fps:g} Hz, {first.source} {first.modality} at "
                f"{first.fps:g} Hz; expected one kind at one rate: import them one after the other."
            )
        frames += len(clip.frames)
        actions.append(_per_action(clip))
        small = np.stack([cv2.cvtColor(resize_frames(frame, LOOK), cv2.COLOR_RGB2GRAY) for frame in clip.frames])
        findings += [f"{clip.source}: {text}" for text in (*_pictures(small, clip), *_jumps(clip), *_axes(clip))]
        turns.append(_turning(small, clip))
    if first is None:
        return Report(0, 0, ("There are no clips.",))
    values = np.concatenate(actions)
    modality = ACTION_MODALITIES[first.modality]
    findings += [*_values(values, modality), *_sense_of_turning(np.concatenate(turns), modality)]
    names = modality.fields
    return Report(
        len(actions), frames, tuple(findings), {n: _statistics(v) for n, v in zip(names, values.T, strict=True)}
    )


def _per_action(clip: Clip) -> np.ndarray:
    """Actions (T - 1, A), the motions as far as they would go in an action of the modality's length."""
    modality = ACTION_MODALITIES[clip.modality]
    if clip.modality == "vehicle":
        return clip.actions
    scale = np.ones(modality.action_dim, np.float32)
    scale[: modality.kinematics.num_fields] = clip.fps / modality.rate_hz
    return clip.actions * scale


def _statistics(values: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(values, (0.01, 0.99))
    summary = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
    return {name: float(value) for name, value in (summary | {"q01": low, "q99": high}).items()}


def _values(values: np.ndarray, modality: ActionModality) -> list[str]:
    """Constant, saturated and out-of-range fields; values of a wrong unit."""
    found = []
    bounds = zip(modality.fields, modality.units, modality.low, modality.high, values.T, strict=True)
    for name, unit, low, high, column in bounds:
        extent = max(abs(low), abs(high))
        if np.ptp(column) < 1e-9:
            found.append(f"{name} is always {column[0]:g}; nothing can be learned of it.")
            continue
        outside = float(np.mean((column < low - 1e-6) | (column > high + 1e-6)))
        typical = float(np.median(np.abs(column[np.abs(column) > 1e-9])))
        if typical > 5 * extent:
            found.append(
                f"{name} is typically {typical:.3g} where {extent:g} {unit} is the most that an action does: is it in "
                f"another unit ({'mm or cm' if unit == 'm' else 'degrees' if unit == 'rad' else 'percent'}) or is the "
                "rate another?"
            )
        elif outside > 0.01:
            often = f"{100 * outside:.0f} % of the actions"
            found.append(f"{name} leaves the bounds [{low:g}, {high:g}] {unit} in {often}.")
        for edge in (column.min(), column.max()):
            share = float(np.mean(column == edge))
            if name not in modality.absolute and share > 0.05 and edge != 0:
                found.append(f"{name} is exactly {edge:.4g} in {100 * share:.0f} % of the actions: clipped there?")
    return found


def _pictures(small: np.ndarray, clip: Clip) -> list[str]:
    """Frames that are shown twice though something moves, cuts, and frames torn into two."""
    changes = np.abs(np.diff(small.astype(np.float32), axis=0)).mean(axis=(1, 2))
    found, usual = [], float(np.quantile(changes, 0.9))
    moving = np.abs(clip.actions[:, : ACTION_MODALITIES[clip.modality].kinematics.num_fields]).max(axis=1) > 1e-4
    doubled = np.flatnonzero((changes == 0) & moving)
    if len(doubled) > 0.02 * len(changes) and usual > 0:
        found.append(f"{len(doubled)} of {len(small)} frames repeat the one before, frame {doubled[0] + 1} first.")
    cuts = np.flatnonzero(changes > max(15.0, 4 * usual))
    if len(cuts):
        found.append(f"the picture is another one from frame {cuts[0] + 1} on: a cut or a time gap; split it there.")
    edges = np.abs(np.diff(small.astype(np.float32), axis=1)).mean(axis=2)  # between rows, (T, H - 1)
    if len(edges) > 2:
        spikes = (edges[1:-1] - np.maximum(edges[:-2], edges[2:])).max(axis=1)
        torn = np.flatnonzero(spikes > 40) + 1
        if len(torn):
            found.append(f"frame {torn[0]} looks torn into two pictures ({len(torn)} such frames).")
    return found


def _jumps(clip: Clip) -> list[str]:
    """Places where the measured pose leaps: a time gap or lost tracking."""
    if clip.poses is None or len(clip.poses) < 4:
        return []
    steps = np.linalg.norm(np.diff(clip.poses[:, :3, 3], axis=0), axis=1)
    far = np.flatnonzero(steps > np.maximum(20 * np.median(steps), 1e-3))
    return [f"the pose leaps by {steps[far[0]]:.3g} m at frame {far[0] + 1}: a time gap?"] if len(far) else []


def _axes(clip: Clip) -> list[str]:
    """Axes of commands that follow another axis of the measured motion, or run against it."""
    if clip.poses is None or clip.modality == "vehicle" or len(clip.actions) < 20:
        return []
    measured = ACTION_MODALITIES[clip.modality].from_poses(
        clip.poses, np.zeros((len(clip.poses), len(ACTION_MODALITIES[clip.modality].absolute)))
    )
    paths = (np.cumsum(side[:, :3] - side[:, :3].mean(axis=0), axis=0) for side in (clip.actions, measured))
    commanded, driven = (path - path.mean(axis=0) for path in paths)
    norms = np.linalg.norm(commanded, axis=0)[:, None] * np.linalg.norm(driven, axis=0)
    table = (commanded.T @ driven) / np.maximum(norms, 1e-12)
    orders = itertools.permutations(range(3))
    best = max(orders, key=lambda order: sum(abs(table[i, j]) for i, j in enumerate(order)))
    wrong = [(i, j) for i, j in enumerate(best) if abs(table[i, j]) > 0.8 and (i != j or table[i, j] < 0)]
    return [
        f"{'xyz'[i]} of the actions follows {'-' if table[i, j] < 0 else ''}{'xyz'[j]} of the measured poses "
        f"(correlation {table[i, j]:.2f}): axes are swapped or have another sign."
        for i, j in wrong
    ]


def _turning(small: np.ndarray, clip: Clip) -> np.ndarray:
    """Pairs (T - 1, 2): how far each action turns to the left, and by how many pixels the picture moves right."""
    if clip.modality not in LEFTWARD:
        return np.zeros((0, 2))
    name, sign = LEFTWARD[clip.modality]
    turned = sign * clip.actions[:, ACTION_MODALITIES[clip.modality].fields.index(name)]
    window = cv2.createHanningWindow(LOOK[::-1], cv2.CV_32F)
    pictures = small.astype(np.float32)
    shifts = [cv2.phaseCorrelate(old, new, window)[0][0] for old, new in itertools.pairwise(pictures)]
    return np.stack([turned, shifts], axis=-1)


def _sense_of_turning(pairs: np.ndarray, modality: ActionModality) -> list[str]:
    if len(pairs) < 20 or min(pairs.std(axis=0)) < 1e-6:
        return []
    correlation = float(np.corrcoef(pairs.T)[0, 1])
    if correlation > -0.3:
        return []
    name = LEFTWARD[modality.name][0]
    return [f"the picture turns against {name} (correlation {correlation:.2f}): its sign or its axis is another one."]
