"""What the bundled world must show: it predicts recorded episodes, follows each action, is fast and stays whole.

Everything is measured on held-out episodes, with fixed seeds, and written to one JSON file.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from astra_env.models import WorldModel
from astra_env.writing import write_json
from benchmarks.imagination import START, Bench, load_bench, open_loop, open_loop_frames, recorded_frames
from benchmarks.metrics import PerceptualFeatures, psnr
from benchmarks.pose_estimator import estimator_report, trained_pose_estimator
from benchmarks.robot_following import DIRECTIONS, RobotFollower, load_workspace
from benchmarks.runtime import latency, machine, rollout_report
from benchmarks.writing import rounded

GUIDANCE_DIRECTIONS = tuple(name for name, (axis, _) in DIRECTIONS.items() if axis in (0, 1, 2, 6))
GUIDANCE_SCALES, STEP_COUNTS = (1.0, 1.5, 2.0, 3.0), (1, 2, 4, 8)


@dataclass(frozen=True)
class Sizes:
    """How much is measured; the defaults take about ten minutes on two cores."""

    episodes: int = 200
    perceptual_episodes: int = 64
    starts: int = 50
    guidance_starts: int = 20
    guidance_episodes: int = 50
    latency_steps: int = 200
    warm_up_steps: int = 20
    rollouts: int = 4
    rollout_steps: int = 200
    estimator_steps: int = 3000
    estimator_episodes: int = 600


QUICK = Sizes(
    episodes=8,
    perceptual_episodes=4,
    starts=3,
    guidance_starts=2,
    guidance_episodes=2,
    latency_steps=3,
    warm_up_steps=1,
    rollouts=1,
    rollout_steps=12,
    estimator_steps=4,
    estimator_episodes=4,
)
"""Enough to see that everything works."""


def sampling_table(bench: Bench, follower: RobotFollower, name: str, sizes: Sizes) -> list[dict[str, Any]]:
    """Quality, obedience and time of every guidance scale at the default steps, and of every number of steps."""
    default = bench.world_model.sampling
    scales = [(default.num_inference_steps, scale) for scale in (default.guidance_scale, *GUIDANCE_SCALES)]
    settings = sorted({*scales, *((num_steps, 1.0) for num_steps in STEP_COUNTS)})
    timed = {"num_steps": max(3, sizes.latency_steps // 4), "warm_up": sizes.warm_up_steps}
    rows = torch.arange(min(sizes.guidance_episodes, len(bench.heldout)))
    truth, table = recorded_frames(bench, rows), []
    for num_steps, scale in tqdm(settings, desc="guidance and steps", unit="setting"):
        sampling = {"num_inference_steps": num_steps, "guidance_scale": scale}
        video = open_loop_frames(bench, rows, rows, **sampling)
        followed = [follower.follow(bench, entry, sizes.guidance_starts, **sampling) for entry in GUIDANCE_DIRECTIONS]
        measured = [entry for entry in followed if entry["num_starts"]]
        table.append(
            {
                **sampling,
                "right_way": float(np.mean([entry["right_way"] for entry in measured])),
                "half_way": float(np.mean([entry["half_way"] for entry in measured])),
                "psnr_1": psnr(video[:, :4], truth[:, :4]),
                f"psnr_{bench.horizon}": psnr(video[:, -4:], truth[:, -4:]),
                "ms_per_env_step": latency(name, **timed, **sampling)["median_ms"],
            }
        )
    return table


@torch.no_grad()
def contact_frames(bench: Bench, count: int = 6) -> tuple[Tensor, Tensor]:
    """Evenly spaced held-out episodes, recorded and imagined: uint8 (K, 1 + horizon, H, W, 3), one frame a step."""
    rows = torch.linspace(0, len(bench.heldout) - 1, min(count, len(bench.heldout))).long()
    start = bench.heldout.frames[rows, 4 * START, None]
    real, imagined = recorded_frames(bench, rows), open_loop_frames(bench, rows, rows)
    return torch.cat([start, real[:, 3::4]], dim=1), torch.cat([start, imagined[:, 3::4]], dim=1)


@torch.no_grad()
def first_light(
    data: str | os.PathLike[str], world_model: str, out: Path, sizes: Sizes
) -> tuple[dict[str, Any], Bench]:
    """Measure everything, write the results to out, and return them with what they were measured on."""
    features = PerceptualFeatures()
    bench = load_bench(data, WorldModel.from_pretrained(world_model), sizes.episodes)
    workspace = load_workspace(data, len(bench.heldout))
    out.parent.mkdir(parents=True, exist_ok=True)
    with torch.enable_grad():
        estimator = trained_pose_estimator(
            data,
            bench.world_model.autoencoder,
            out.with_name(f"pose_estimator_{sizes.estimator_steps}.safetensors"),
            steps=sizes.estimator_steps,
            episodes=sizes.estimator_episodes,
        )
    follower = RobotFollower(workspace, estimator)
    parts = {
        "latency": lambda: {
            str(threads): latency(world_model, sizes.latency_steps, sizes.warm_up_steps, threads) for threads in (2, 1)
        },
        "open_loop": lambda: open_loop(bench, features, sizes.perceptual_episodes),
        "pose_estimator": lambda: estimator_report(
            estimator, bench.heldout.frames[:100], workspace.vectors[:100], bench.world_model.autoencoder
        ),
        "action_following": lambda: follower.report(bench, sizes.starts),
        "sampling": lambda: sampling_table(bench, follower, world_model, sizes),
        "long_rollout": lambda: rollout_report(
            world_model, features, bench.heldout.frames, sizes.rollouts, sizes.rollout_steps
        ),
    }
    results: dict[str, Any] = {
        "world_model": Path(world_model).name,
        "default_sampling": dataclasses.asdict(bench.world_model.sampling),
        "dtype": str(bench.world_model.transformer.head.weight.dtype).removeprefix("torch."),
        "data": "held-out episodes, never trained on",
        "machine": machine(),
        "sizes": dataclasses.asdict(sizes),
    }
    for name, measure in tqdm(parts.items(), desc="first light", unit="part"):
        results[name] = measure()
    results = rounded(results)
    write_json(out, results)
    return results, bench
