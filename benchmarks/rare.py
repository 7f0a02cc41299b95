"""Rare situations: there and back, into a wall, hard driving, and worlds that begin from a picture of another kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from astra_env.actions import ACTION_MODALITIES
from benchmarks.domain_table import Domain
from benchmarks.imagination import START, Bench, Starts, decoded_start, rollout
from benchmarks.metrics import psnr, sharpness
from benchmarks.motion_following import MotionFollower, Probe, Start, choose_starts

TURN = 3
"""Steps there, and as many back."""
TURN_SHARE = 0.6
RETURNED, AWAY = 0.1, 1.0
"""A recording returns when its pose is within so many bounds of where it began, after having been so many away."""
STOPPED = 3
"""A recording is stopped where so many of HITS successive chunks were not carried out."""
HITS = 5
FOREIGN_STEPS = 10


@dataclass(frozen=True)
class Strip:
    """Pictures of one case in a row, one a step: uint8 (K, H, W, 3)."""

    label: str
    frames: Tensor


def rare_probes(bench: Bench, follower: MotionFollower, domain: Domain, count: int) -> dict[str, Any]:
    """The domain's rare actions, measured as the others are."""
    rare = MotionFollower(domain.rare, follower.motion, follower.estimate)
    return {name: rare.follow(bench, name, count) for name in rare.names}


def probe_strips(bench: Bench, probes: Mapping[str, Probe]) -> list[Strip]:
    """The first start of each probe, and what is imagined from it."""
    strips = []
    for name, probe in probes.items():
        for start, actions in choose_starts(bench, probe, 1):
            strips.append(_strip(bench, name, [(start.episode, start.chunk)], torch.from_numpy(actions)[None]))
    return strips


def _strip(bench: Bench, label: str, starts: Starts, actions: Tensor) -> Strip:
    video = torch.cat([decoded_start(bench, starts)[:, -1:], rollout(bench, starts, actions)[:, 3::4]], dim=1)
    return Strip(label, video[0])


# 1. There and back


def round_trip(field: str, sign: int, modality: str) -> Probe:
    """Move along one field of the action for some steps and back again; measures nothing by itself."""
    entry = ACTION_MODALITIES[modality]
    axis = entry.fields.index(field)
    reach = TURN_SHARE * entry.high[axis]

    def plan(start: Start) -> np.ndarray | None:
        actions = start.rest(2 * TURN)
        actions[:TURN, axis], actions[TURN:, axis] = sign * reach, -sign * reach
        return actions if start.room(axis, sign) >= 0.7 * TURN * reach else None

    return Probe(plan, lambda motions: 0.0, "")


def recorded_returns(bench: Bench, count: int) -> dict[int, list[tuple[int, int]]]:
    """Half of its length -> starts of recorded stretches that end where they began, up to count in all."""
    modality, found = ACTION_MODALITIES[bench.heldout.modality], {}
    bounds = np.array(modality.high[: modality.kinematics.num_fields])
    left = count
    for half in (4, 3, 2):
        starts = []
        for episode, poses in enumerate(bench.poses[:, ::4]):
            for chunk in range(START, len(poses) - 2 * half):
                ways = poses[[chunk, chunk + half, chunk, chunk + 2 * half]]
                away, _, home = np.abs(modality.kinematics.recover(ways, 1 / modality.rate_hz, 0.0)) / bounds
                if home.max() <= RETURNED and away.max() >= AWAY:
                    starts.append((episode, chunk))
                    break
        found[half] = starts[:left]
        left -= len(found[half])
    return found


def there_and_back(bench: Bench, fields: Sequence[str], count: int) -> dict[str, Any]:
    """How like the first picture the last one is: where the recording returns, and after actions of our own.

    The farthest picture tells what a world would show that did not come back.
    """
    report: dict[str, Any] = {"recorded": [], "held": {}}
    for half, starts in recorded_returns(bench, count).items():
        if not starts:
            continue
        actions = torch.stack([bench.heldout.actions[e, c : c + 2 * half] for e, c in starts])
        first, video = decoded_start(bench, starts)[:, -1], rollout(bench, starts, actions)
        real = [torch.stack([bench.heldout.frames[e, 4 * (c + k)] for e, c in starts]) for k in (0, half, 2 * half)]
        report["recorded"].append(
            {
                "num_starts": len(starts),
                "steps": 2 * half,
                "imagined_end": psnr(first, video[:, -1]),
                "imagined_farthest": psnr(first, video[:, 4 * half - 1]),
                "real_end": psnr(real[0], real[2]),
                "real_farthest": psnr(real[0], real[1]),
            }
        )
    for name, probe in round_trips(bench, fields).items():
        chosen = choose_starts(bench, probe, count)
        if not chosen:
            report["held"][name] = {"num_starts": 0}
            continue
        places = [(start.episode, start.chunk) for start, _ in chosen]
        actions = torch.from_numpy(np.stack([entry for _, entry in chosen]))
        first, video = decoded_start(bench, places)[:, -1], rollout(bench, places, actions)
        report["held"][name] = {
            "num_starts": len(chosen),
            "steps": 2 * TURN,
            "imagined_end": psnr(first, video[:, -1]),
            "imagined_farthest": psnr(first, video[:, 4 * TURN - 1]),
        }
    return report


def round_trips(bench: Bench, fields: Sequence[str]) -> dict[str, Probe]:
    """Name -> probe of every field in either direction."""
    return {
        f"{'+' if sign > 0 else '-'}{name} and back": round_trip(name, sign, bench.heldout.modality)
        for name in fields
        for sign in (1, -1)
    }


# 2. Stopped by a wall, another car or the end of the room


def stopped_starts(bench: Bench, count: int) -> list[tuple[int, int]]:
    """Up to count starts, one an episode, that go on freely and are soon stopped for several chunks."""
    found = []
    for episode, blocked in enumerate(bench.blocked):
        chunks = range(START, len(blocked) - HITS + 1)
        hits = [c for c in chunks if not blocked[c - 1] and blocked[c : c + HITS].sum() >= STOPPED]
        found += [(episode, hits[0])] if hits else []
    return found[:count]


def stopped(bench: Bench, follower: MotionFollower, count: int) -> dict[str, Any]:
    """Metres that are gone in `HITS` steps where the recording is stopped: really, as commanded, and as imagined."""
    starts = stopped_starts(bench, count)
    if not starts:
        return {"num_starts": 0}
    actions = torch.stack([bench.heldout.actions[e, c : c + HITS] for e, c in starts])
    places = [Start(bench, *start) for start in starts]
    commanded = [p.modality.integrate(p.poses[p.chunk], a, speed=p.speed) for p, a in zip(places, actions, strict=True)]
    real = torch.stack([bench.heldout.frames[e, 4 * c : 4 * (c + HITS) + 1] for e, c in starts])

    def metres(motions: np.ndarray) -> float:
        return float(np.mean([follower.motion.distance(entry) for entry in motions]))

    return {
        "num_starts": len(starts),
        "steps": HITS,
        "really": _path(np.stack([p.poses[p.chunk : p.chunk + HITS + 1] for p in places])),
        "commanded": _path(np.stack(commanded)),
        "imagined": metres(follower.motions(bench, starts, actions)[:, 1:]),
        "estimated_on_real_frames": metres(follower.estimate(real).double().numpy()),
    }


def _path(poses: np.ndarray) -> float:
    return float(np.linalg.norm(np.diff(poses[..., :3, 3], axis=1), axis=-1).sum(1).mean())


# 3. Pictures of another kind


def procedural_picture(size: tuple[int, int]) -> Tensor:
    """A picture like none of the recordings: coloured discs on a chequered slope, uint8 (H, W, 3)."""
    height, width = size
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    chequer = ((8 * x).floor() + (8 * y).floor()) % 2
    picture = torch.stack([0.3 + 0.5 * x, 0.3 + 0.4 * y, 0.4 + 0.2 * chequer], dim=-1)
    for column, row, radius, colour in (
        (0.3, 0.35, 0.18, (0.9, 0.2, 0.1)),
        (0.7, 0.6, 0.14, (0.95, 0.9, 0.2)),
        (0.55, 0.2, 0.08, (0.1, 0.8, 0.3)),
    ):
        picture[(x - column) ** 2 + (y - row) ** 2 < radius**2] = torch.tensor(colour)
    return (255 * picture).round().to(torch.uint8)


def foreign_starts(
    bench: Bench, pictures: Mapping[str, Tensor], actions: Mapping[str, Tensor]
) -> tuple[dict[str, Any], list[Strip]]:
    """Worlds that begin from one picture (H, W, 3) of another kind, under actions (A,) that are held.

    Sharpness of the picture and of imagined ones: what falls to 0 has dissolved into fog. The likeness to the recorded
    domain is for the eye: see the strips.
    """
    report, strips = {}, []
    for source, picture in pictures.items():
        for name, action in actions.items():
            model = bench.world_model
            state = model.init_state(picture[None, None], bench.heldout.modality)
            shown = [picture]
            for _ in range(FOREIGN_STEPS):
                state, frames = model.decode(model.step(state, action[None]))
                shown.append(frames[0, -1].cpu())
            video = torch.stack(shown)
            sharp = sharpness(video)
            report[f"{source}, {name}"] = {
                "sharpness_picture": float(sharp[0]),
                "steps": [1, 5, FOREIGN_STEPS],
                "sharpness": [float(sharp[k]) for k in (1, 5, FOREIGN_STEPS)],
                "psnr_to_picture": [psnr(video[k], video[0]) for k in (1, 5, FOREIGN_STEPS)],
            }
            strips.append(Strip(f"{source}, {name}", video))
    return report, strips
