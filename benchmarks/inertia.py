"""Visual inertia: what a longer memory of clean recordings does to quality and to obedience.

A world that has seen much may go on as it looked and heed its actions less: the more so, the longer its history.
Worlds begin at the same moments of held-out episodes and differ in how many recorded latents they are told before.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from astra_env.models import WorldModel
from astra_env.writing import write_json
from benchmarks.domain_table import EstimatorSizes, Follower, make_follower
from benchmarks.imagination import CHUNK_FRAMES, START, Bench, load_bench, open_loop_frames, recorded_frames
from benchmarks.runtime import machine
from benchmarks.writing import number, percent, rounded, table
from policies.evaluate import bootstrap_interval, share_interval

STEPS = (1, 5)
"""Imagined steps that are compared with the recording."""
NOTES = {
    "lengths": "recorded latents that a world is told: the first is one picture, each other four frames and the action "
    "that led through them; the starts are the same for all lengths",
    "psnr": "all four frames of the chunk that many steps ahead; of the mean squared error over episodes, whose "
    "interval is that of episodes drawn with replacement",
    "margin": "PSNR under the recorded actions less that under another episode's from the same start: what the actions "
    "are worth; the interval is that of episodes drawn with replacement, both errors of each together",
    "followed": "share of single actions, held from starts that allow them, whose motion in the decoded frames has the "
    "sign asked for; all actions of the domain together, as in domains.json",
    "interval": "95 %",
}


@dataclass(frozen=True)
class Sizes:
    """How much is measured: some four minutes a domain on one thread, once its estimator is there."""

    episodes: int = 100
    starts: int = 20
    lengths: tuple[int, ...] = (1, 2, 4, 8, 16, 20)
    estimators: EstimatorSizes = field(default_factory=EstimatorSizes)


QUICK = Sizes(
    episodes=4,
    starts=2,
    lengths=(1, 3),
    estimators=EstimatorSizes(motion_steps=3, motion_episodes=3, pose_steps=3, pose_episodes=3),
)
"""Enough to see that everything works."""


@torch.no_grad()
def inertia(
    data: Mapping[str, str | os.PathLike[str]], world_model: str, out: Path, sizes: Sizes | None = None
) -> dict[str, Any]:
    """Measure the domains of data (domain -> folder of episodes), write the results to out, and return them.

    Other domains that out already holds of the same world at the same sizes stay there.
    """
    sizes, model = sizes or Sizes(), WorldModel.from_pretrained(world_model)
    out.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "world_model": Path(world_model).name,
        "window": model.transformer.config.history.size,
        "lengths": sizes.lengths,
        "steps": STEPS,
        "notes": NOTES,
        "machine": machine(),
        "sizes": dataclasses.asdict(sizes),
        "domains": {},
    }
    results["domains"] |= measured_before(out, rounded(results))
    for name, folder in data.items():
        bench = started_late(load_bench(folder, model, sizes.episodes), sizes.lengths)
        with torch.enable_grad():
            follower, _ = make_follower(folder, bench, out.parent, sizes.estimators)
        told = [
            measure(dataclasses.replace(bench, known=length - 1), follower, sizes.starts)
            for length in tqdm(sizes.lengths, desc=f"inertia of {name}", unit="length")
        ]
        results["domains"][name] = {"num_episodes": len(bench.heldout), "start_chunk": bench.first} | {
            key: [entry[key] for entry in told] for key in told[0]
        }
        write_json(out, rounded(results))
    return rounded(results)


def measured_before(out: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """The domains of a results file whose world and sizes are those of these results; none where there is no file."""
    if not out.is_file():
        return {}
    before = json.loads(out.read_text())
    alike = all(before.get(key) == results[key] for key in ("world_model", "window", "lengths", "steps", "sizes"))
    return dict(before["domains"]) if alike else {}


def started_late(bench: Bench, lengths: tuple[int, ...]) -> Bench:
    """The same episodes, begun where even the longest history has been recorded; ValueError where they are too short.

    A start's own motion is read off the usual history, so that none begins before it.
    """
    first, num = max(START, *(length - 1 for length in lengths)), bench.heldout.actions.shape[1]
    if num < first + max(STEPS):
        raise ValueError(
            f"Episodes have {num} chunks, expected at least {first + max(STEPS)} for a history of {max(lengths)} "
            f"latents and {max(STEPS)} steps; record longer ones."
        )
    return dataclasses.replace(bench, first=first)


def measure(bench: Bench, follower: Follower, starts: int) -> dict[str, Any]:
    """Quality and obedience with one length of history; of every measure the value and its interval."""
    rows = torch.arange(len(bench.heldout))
    truth = recorded_frames(bench, rows)
    own = errors(open_loop_frames(bench, rows, rows), truth)
    other = errors(open_loop_frames(bench, rows, rows.roll(1)), truth)
    report: dict[str, Any] = {}
    for step in STEPS:
        mine, theirs = own[:, step - 1], other[:, step - 1]
        report[f"psnr_{step}"] = decibels(mine.mean())
        report[f"psnr_{step}_interval"] = sorted(map(decibels, bootstrap_interval(mine)))
        report[f"margin_{step}"] = decibels(mine.mean()) - decibels(theirs.mean())
        report[f"margin_{step}_interval"] = margin_interval(mine, theirs)
    entries = [follower.follow(bench, name, starts) for name in follower.names]
    flags = np.concatenate([_flags(entry) for entry in entries])
    report["num_followed"] = len(flags)
    report["followed"] = float(flags.mean()) if len(flags) else None
    report["followed_interval"] = share_interval(flags) if len(flags) else None
    return report


def errors(video: Tensor, truth: Tensor) -> np.ndarray:
    """Mean squared error of every chunk of videos (E, 4 k, H, W, 3): (E, k)."""
    squared = (video.float() - truth.float()).square().flatten(2).mean(-1)
    return squared.unflatten(1, (-1, CHUNK_FRAMES)).mean(-1).numpy()


def decibels(error: float) -> float:
    """PSNR of a mean squared error of grey levels."""
    return float(10 * np.log10(255**2 / max(error, 1e-5)))


def margin_interval(mine: np.ndarray, theirs: np.ndarray, num_samples: int = 10_000) -> list[float]:
    """95 % interval of the PSNR by which errors (E,) are smaller than others of the same episodes."""
    drawn = np.random.default_rng(0).integers(len(mine), size=(num_samples, len(mine)))
    gains = 10 * np.log10(theirs[drawn].mean(1) / mine[drawn].mean(1))
    low, high = np.quantile(gains, [0.025, 0.975])
    return [float(low), float(high)]


def _flags(entry: Mapping[str, Any]) -> np.ndarray:
    """Whether each start of one action went the right way."""
    num = entry["num_starts"]
    return np.arange(num) < round(entry.get("right_way", 0.0) * num)


def render_inertia(results: Mapping[str, Any]) -> str:
    """Markdown: one table, the lengths of history beside each other."""
    rows = []
    for name, entry in results["domains"].items():
        for step in results["steps"]:
            rows.append([f"{name}: PSNR, dB, {step} ahead", *map(number, entry[f"psnr_{step}"])])
            title = f"{name}: more than under another episode's actions"
            rows.append([title, *map(number, entry[f"margin_{step}"])])
        rows.append([f"{name}: actions followed the right way", *map(percent, entry["followed"])])
    return table(["recorded latents in memory", *map(str, results["lengths"])], rows)
