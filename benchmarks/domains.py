"""Every domain of one world model: prediction, obedience, experts, rare situations, and what joint training costs.

Everything is measured on held-out episodes, with fixed seeds, and written to one JSON file; pictures lie beside it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astra_env.actions import ACTION_MODALITIES
from astra_env.models import WorldModel
from astra_env.writing import write_json
from benchmarks.domain_pictures import save_strips
from benchmarks.domain_table import DOMAINS, Domain, EstimatorSizes, Follower, make_follower
from benchmarks.imagination import (
    CHUNK_FRAMES,
    START,
    Bench,
    load_bench,
    load_tracks,
    open_loop,
    open_loop_frames,
    recorded_frames,
)
from benchmarks.metrics import psnr, sharpness
from benchmarks.motion_following import MotionFollower, chain_errors
from benchmarks.rare import (
    Strip,
    foreign_starts,
    probe_strips,
    procedural_picture,
    rare_probes,
    round_trips,
    stopped,
    there_and_back,
)
from benchmarks.routing import expert_use, wrong_routing
from benchmarks.runtime import machine
from benchmarks.writing import rounded

HORIZONS = (1, 2, 5, 10)
STEP_COUNTS = (1, 2, 4)
MARGIN = 0.5
"""Decibels that joint training may cost a domain."""

NOTES = {
    "following": "A single action is held from held-out starts that allow it; the others are 0. Motion is estimated "
    "from decoded frames, ideal is what the kinematics say of the same actions. right_way: share of starts with the "
    "sign asked for; half_way: share that move more than half the ideal. Car: mean yaw rate, or speed of the last "
    "step less that before the start; 'not coast': less that of a world which coasts from the same start with the same "
    "noise, so that what soft pictures hide from the estimator counts on both sides. Camera: the pose after all steps, "
    "along one field of the action.",
    "starts": "Car: by the recorded speed. Camera: where the recorded camera itself went that way. Robot: by the "
    "workspace. Car and camera do not begin where something has just stopped the recording.",
    "routing": "as X: the normalised actions, also those of the history, pass through X's projector. expert N: the "
    "router is overruled, all actions take that one.",
    "joint": "PSNR of all frames of a chunk over the same held-out episodes; each world model has its own autoencoder.",
    "teacher": "The same episodes, starts and noise; both with their own default number of denoising steps.",
    "stopped": "Metres along the way where at least 3 of the next 5 recorded chunks were not carried out as commanded.",
    "foreign": "One picture that the domain never shows begins the world, and one action is held.",
}


@dataclass(frozen=True)
class Sizes:
    """How much is measured in each domain: some ten minutes on one core, a third of them for the estimator."""

    episodes: int = 160
    starts: int = 50
    chain_windows: int = 50
    wrong_episodes: int = 40
    wrong_starts: int = 15
    rare_starts: int = 20
    estimators: EstimatorSizes = field(default_factory=EstimatorSizes)


QUICK = Sizes(
    episodes=6,
    starts=2,
    chain_windows=2,
    wrong_episodes=2,
    wrong_starts=1,
    rare_starts=2,
    estimators=EstimatorSizes(motion_steps=3, motion_episodes=3, pose_steps=3, pose_episodes=3),
)
"""Enough to see that everything works."""


@dataclass(frozen=True)
class Checkpoints:
    """Names or folders of world models."""

    world_model: str
    joint: str | None = None
    """Trained on all domains at the budget of the single ones; the world model itself, if None."""
    single: Mapping[str, str] = field(default_factory=dict)
    """Domain -> world model that was trained on it alone."""
    teacher: str | None = None
    """What the world model was distilled from, to stand beside it."""


@torch.no_grad()
def domains(
    data: Mapping[str, str | os.PathLike[str]], checkpoints: Checkpoints, out: Path, sizes: Sizes
) -> dict[str, Any]:
    """Measure the domains of data (domain -> folder of episodes), write the results to out, and return them."""
    _check_names(data, checkpoints.single)
    world_model = WorldModel.from_pretrained(checkpoints.world_model)
    out.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "world_model": Path(checkpoints.world_model).name,
        "default_sampling": dataclasses.asdict(world_model.sampling),
        "dtype": str(world_model.transformer.head.weight.dtype).removeprefix("torch."),
        "data": "held-out episodes, never trained on",
        "notes": NOTES,
        "machine": machine(),
        "sizes": dataclasses.asdict(sizes),
        "domains": {},
    }
    for name, folder in data.items():
        bench = load_bench(folder, world_model, sizes.episodes)
        if bench.heldout.name != name:
            raise ValueError(f"{folder} holds episodes of {bench.heldout.name!r}, expected {name!r}; name its domain.")
        foreign = foreign_pictures(name, data, world_model.frame_size)
        report = measure_domain(bench, folder, out, sizes, foreign, checkpoints.teacher)
        if name in checkpoints.single:
            joint = checkpoints.joint or checkpoints.world_model
            report["joint"] = compare(bench, joint, checkpoints.single[name])
        results["domains"][name] = report
        write_json(out, rounded(results))
    return rounded(results)


def foreign_pictures(
    name: str, data: Mapping[str, str | os.PathLike[str]], frame_size: tuple[int, int]
) -> dict[str, Tensor]:
    """Pictures uint8 (H, W, 3) that a domain never shows: a drawn one, and one of the next domain that is given."""
    names = list(data)
    other = names[(names.index(name) + 1) % len(names)]
    pictures = {"drawn picture": procedural_picture(frame_size)}
    if other != name:
        recorded = load_tracks(data[other], "heldout", 1, "frames")[0]["frames"]
        pictures[f"{other} picture"] = torch.from_numpy(recorded[4 * START])
    return pictures


def _check_names(*given: Mapping[str, Any]) -> None:
    unknown = sorted({name for entry in given for name in entry} - DOMAINS.keys())
    if unknown:
        raise ValueError(f"There is no domain {unknown[0]!r}; the domains are {sorted(DOMAINS)}.")


def measure_domain(
    bench: Bench,
    data: str | os.PathLike[str],
    out: Path,
    sizes: Sizes,
    foreign: Mapping[str, Tensor],
    teacher: str | None = None,
) -> dict[str, Any]:
    """All figures of one domain; its contact sheet and the picture of its rare cases are written beside out."""
    name = bench.heldout.name
    domain = DOMAINS[name]
    with torch.enable_grad():
        follower, trust = make_follower(data, bench, out.parent, sizes.estimators)
    use = expert_use(bench)
    rare, strips = _rare(bench, domain, follower, sizes, foreign)
    pictures = {"contact_sheet": f"contact_{name}.png", "rare": f"rare_{name}.png"}
    save_strips(out.with_name(pictures["contact_sheet"]), contact_strips(bench))
    save_strips(out.with_name(pictures["rare"]), strips)
    report: dict[str, Any] = {
        "modality": bench.heldout.modality,
        "num_episodes": len(bench.heldout),
        "open_loop": open_loop(bench),
        "denoising": by_denoising_steps(bench, torch.arange(min(sizes.wrong_episodes, len(bench.heldout)))),
        "estimator": trust,
        "following": {action: follower.follow(bench, action, sizes.starts) for action in follower.names},
        "experts": use,
        "routing": wrong_routing(
            bench, follower, follower.names, episodes=sizes.wrong_episodes, starts=sizes.wrong_starts, use=use
        ),
        "rare": rare,
        "pictures": pictures,
    }
    if isinstance(follower, MotionFollower) and bench.heldout.modality == "camera":
        report["chains"] = chain_errors(bench, follower, sizes.chain_windows)
    if teacher is not None:
        taught = dataclasses.replace(bench, world_model=WorldModel.from_pretrained(teacher))
        report["teacher"] = {
            "student": in_short(bench, report["following"]),
            "teacher": in_short(taught, {name: follower.follow(taught, name, sizes.starts) for name in follower.names}),
        }
    return report


def in_short(bench: Bench, following: Mapping[str, Any]) -> dict[str, Any]:
    """PSNR at the horizons, sharpness of the last chunk, and how actions are followed, over all that have starts."""
    rows, horizons = torch.arange(len(bench.heldout)), [k for k in HORIZONS if k <= bench.horizon]
    truth, video = recorded_frames(bench, rows), open_loop_frames(bench, rows, rows)
    chunks = [slice(CHUNK_FRAMES * (k - 1), CHUNK_FRAMES * k) for k in horizons]
    report: dict[str, Any] = {
        "num_inference_steps": bench.world_model.sampling.num_inference_steps,
        "horizons": horizons,
        "psnr": [psnr(video[:, chunk], truth[:, chunk]) for chunk in chunks],
        "sharpness": float(sharpness(video[:, -CHUNK_FRAMES:].flatten(0, 1)).mean()),
    }
    entries = [entry for entry in following.values() if entry["num_starts"]]
    for key in ("right_way", "half_way"):
        report[key] = sum(entry[key] for entry in entries) / max(1, len(entries))
    return report


def _rare(
    bench: Bench, domain: Domain, follower: Follower, sizes: Sizes, foreign: Mapping[str, Tensor]
) -> tuple[dict[str, Any], list[Strip]]:
    modality = ACTION_MODALITIES[bench.heldout.modality]
    actions = {f"key {key}": torch.from_numpy(modality.from_keys([key])) for key in domain.keys}
    report: dict[str, Any] = {"there_and_back": there_and_back(bench, domain.round_trips, sizes.rare_starts)}
    if isinstance(follower, MotionFollower):
        report["actions"] = rare_probes(bench, follower, domain, sizes.rare_starts)
        report["stopped"] = stopped(bench, follower, sizes.rare_starts)
    report["foreign"], foreign_strips = foreign_starts(bench, foreign, actions)
    alone = {name: probe for name, probe in domain.rare.items() if probe.instead is None}
    shown = alone | dict(list(round_trips(bench, domain.round_trips).items())[::2])
    return report, [*probe_strips(bench, shown), *foreign_strips]


def by_denoising_steps(bench: Bench, rows: Tensor) -> dict[str, Any]:
    """PSNR at the horizons and sharpness of the last chunk, by number of denoising steps; more is not always more."""
    truth, horizons = recorded_frames(bench, rows), [k for k in HORIZONS if k <= bench.horizon]
    report: dict[str, Any] = {
        "horizons": horizons,
        "sharpness_recorded": float(sharpness(truth[:, -CHUNK_FRAMES:].flatten(0, 1)).mean()),
    }
    for num in STEP_COUNTS:
        video = open_loop_frames(bench, rows, rows, num_inference_steps=num)
        chunks = [slice(CHUNK_FRAMES * (k - 1), CHUNK_FRAMES * k) for k in horizons]
        report[str(num)] = {
            "psnr": [psnr(video[:, chunk], truth[:, chunk]) for chunk in chunks],
            "sharpness": float(sharpness(video[:, -CHUNK_FRAMES:].flatten(0, 1)).mean()),
        }
    return report


def contact_strips(bench: Bench, count: int = 6) -> list[Strip]:
    """Held-out episodes, recorded and imagined, one of each behaviour in turn, the rarest behaviour first."""
    by_behaviour: dict[str, list[int]] = {}
    for index, behaviour in enumerate(bench.behaviours):
        by_behaviour.setdefault(behaviour, []).append(index)
    groups = sorted(by_behaviour.values(), key=len)
    rounds = [group[turn] for turn in range(count) for group in groups if turn < len(group)]
    rows = torch.tensor(rounds[:count])
    start = bench.heldout.frames[rows, 4 * START, None]
    real, imagined = recorded_frames(bench, rows), open_loop_frames(bench, rows, rows)
    strips = []
    for row, (first, truth, shown) in zip(rows.tolist(), zip(start, real, imagined, strict=True), strict=True):
        strips.append(Strip(f"real, {bench.behaviours[row]}", torch.cat([first, truth[3::4]])))
        strips.append(Strip("imagined", torch.cat([first, shown[3::4]])))
    return strips


def compare(bench: Bench, joint: str, single: str) -> dict[str, Any]:
    """PSNR of two world models on the same held-out episodes, and whether joint training costs more than `MARGIN`."""
    horizons = [k for k in HORIZONS if k <= bench.horizon]
    rows = torch.arange(len(bench.heldout))
    truth = recorded_frames(bench, rows)
    report: dict[str, Any] = {"horizons": horizons}
    for name, checkpoint in (("joint", joint), ("single", single)):
        video = open_loop_frames(
            dataclasses.replace(bench, world_model=WorldModel.from_pretrained(checkpoint)), rows, rows
        )
        report[name] = [psnr(video[:, 4 * k - 4 : 4 * k], truth[:, 4 * k - 4 : 4 * k]) for k in horizons]
    report["difference"] = [a - b for a, b in zip(report["joint"], report["single"], strict=True)]
    report["margin_db"] = MARGIN
    report["not_worse"] = min(report["difference"]) >= -MARGIN
    return report
