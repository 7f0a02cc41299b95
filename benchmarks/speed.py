"""How fast imagined worlds go, as ratios: two sides of each comparison run in turns in one process, on one thread.

A ratio is the other side's time over ours unless it says otherwise, from the medians over all turns. It is processor
time, which other processes on the machine disturb least; milliseconds are context, not a claim.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from astra_env.models import WorldModel
from astra_env.models.checkpoint import fastest_dtype
from astra_env.writing import write_json
from benchmarks.runtime import machine, resident_mb
from benchmarks.speed_sides import (
    ENVIRONMENT,
    diamond_step,
    diffusers_forward,
    old_world,
    one_forward,
    one_step,
    reference_pass,
    reference_step,
    small_reference,
    small_world,
    small_worlds,
    stepping,
    vector_step,
)
from benchmarks.writing import rounded

STEPS, GUIDANCE = 50, 2.0
"""The reference's default: so many denoising steps, two passes each."""
PASSES = 5
"""How many passes of the network follow each other where single passes are timed."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How often each side runs, and how far the sweeps go."""

    rounds: int = 9
    horizons: tuple[int, int] = (5, 4096)
    worlds: tuple[int, ...] = (1, 4, 16, 64, 256)
    chunk_sizes: tuple[int, ...] = (1, 4, 9)
    histories: tuple[int, ...] = (1, 5, 20, 100)
    many: int = 16
    forks: int = 32
    steps: int = STEPS
    compiled: bool = True  # beside the plain side, one with `WorldModel.compile`; needs a C++ compiler


Sides = Mapping[str, Callable[[], Any]]
QUICK = Sizes(
    rounds=1,
    horizons=(1, 2),
    worlds=(1, 2),
    chunk_sizes=(1,),
    histories=(1, 2),
    many=2,
    forks=2,
    steps=2,
    compiled=False,
)
"""Enough to see that everything works."""


def alternate(sides: Sides, rounds: int, in_a_row: int = 1) -> dict[str, float]:
    """Median processor time of each side in ms, the sides taking turns after one turn to warm up.

    In its turn a side runs so often in a row, and the last run counts: a pass of the network follows another one, its
    weights still in the processor's cache.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, run in sides.items():
            for _ in range(in_a_row):
                begin = time.process_time()
                run()
                taken = 1000 * (time.process_time() - begin)
            if turn:
                times[name].append(taken)
    return {name: float(np.median(taken)) for name, taken in times.items()}


@torch.no_grad()
def speed(out: Path, sizes: Sizes) -> dict[str, Any]:
    """Measure all comparisons, write them to out, and return them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        demands = [*_against_the_reference(sizes), *_against_peers(sizes), *_many_worlds(sizes), *_long_horizons(sizes)]
        results = {"demands": demands, "sweep": _sweep(sizes), "sizes": dataclasses.asdict(sizes), "machine": machine()}
    finally:
        torch.set_num_threads(threads)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, rounded(results))
    return rounded(results)


def _demand(
    number: str, what: str, demanded: float, reached: float, *, most: bool = False, **context: Any
) -> dict[str, Any]:
    """One line: what was demanded (at least so much, or at most) and what was reached."""
    met = reached <= demanded if most else reached >= demanded
    sign = "≤" if most else "≥"
    return {"id": number, "what": what, "sign": sign, "demanded": demanded, "reached": reached, "met": met, **context}


def _ratio(times: Mapping[str, float], side: str = "ours") -> float:
    return times["theirs"] / times[side]


def _faster(number: str, what: str, demanded: float, times: Mapping[str, float], scale: float = 1.0) -> dict[str, Any]:
    """The line of a ratio to the other side; beside it that of our compiled side, where there is one."""
    compiled = scale * _ratio(times, "compiled") if "compiled" in times else None
    return _demand(number, what, demanded, scale * _ratio(times), compiled=compiled, ms=dict(times))


def _sides(ours: Callable[[bool], Callable[[], Any]], theirs: Callable[[], Any], sizes: Sizes) -> Sides:
    """Ours, plain and compiled, against theirs."""
    return {"ours": ours(False), "theirs": theirs} | ({"compiled": ours(True)} if sizes.compiled else {})


def _forward(worlds: Mapping[bool, WorldModel], chunk_size: int, compiled: bool) -> Callable[[], Any]:
    return one_forward(worlds[compiled], chunk_size)


def _against_the_reference(sizes: Sizes) -> list[dict[str, Any]]:
    dtype = fastest_dtype(torch.device("cpu"))
    ours, theirs = small_worlds(dtype, sizes.compiled), small_reference(dtype)
    rows = []
    for chunk_size, demanded in zip(sizes.chunk_sizes, (3.5, 3.0, 2.2), strict=False):
        forward = partial(_forward, ours, chunk_size)
        times = alternate(_sides(forward, reference_pass(theirs, chunk_size), sizes), sizes.rounds, PASSES)
        what = f"forward pass, {chunk_size} latents a chunk, against the reference's arithmetic"
        rows.append(_faster("C1", what, demanded, times))
    state, few = old_world(ours[False]), max(1, sizes.rounds // 3)
    default = WorldModel.from_pretrained("astra-tiny", "cpu").sampling.num_inference_steps

    def guided(compiled: bool) -> Callable[[], Any]:
        return one_step(ours[compiled], state, num_inference_steps=sizes.steps, guidance_scale=GUIDANCE)

    sides = {
        **_sides(guided, reference_step(theirs, sizes.steps, GUIDANCE), sizes),
        "default": one_step(ours[False], state, num_inference_steps=default),
    }
    times = alternate(sides, few)
    what = f"step, both with {sizes.steps} denoising steps and guidance"
    rows.append(_faster("C2", what, 4.0, times))
    what = f"step, the bundled world's {default} denoising steps against {sizes.steps} with guidance"
    rows.append(_demand("C3", what, 50.0, times["theirs"] / times["default"], ms=times))
    return rows


def _against_peers(sizes: Sizes) -> list[dict[str, Any]]:
    dtype = fastest_dtype(torch.device("cpu"))
    ours = small_worlds(dtype, sizes.compiled)
    times = alternate(_sides(partial(_forward, ours, 1), diffusers_forward(dtype, 56), sizes), sizes.rounds, PASSES)
    rows = [_faster("C4", "forward pass against diffusers' Wan transformer, history as tokens", 3.0, times)]
    alone, many = ({c: vector_step(num, compiled=c) for c in ours} for num in (1, sizes.many))
    for name, kind, once, frames in (("float32", torch.float32, 5.0, 50.0), ("bfloat16", torch.bfloat16, 3.0, 20.0)):
        times = alternate(_sides(alone.__getitem__, diamond_step(1, kind), sizes), sizes.rounds)
        rows.append(_faster("C5", f"env step against a DIAMOND-shaped one in {name}", once, times))
        sides = _sides(many.__getitem__, diamond_step(sizes.many, kind), sizes)
        times = alternate(sides, max(1, sizes.rounds // 3))
        what = f"frames a second in {sizes.many} worlds against DIAMOND's shape in {name}"
        rows.append(_faster("C5", what, frames, times, scale=4.0))
    return rows


def _many_worlds(sizes: Sizes) -> list[dict[str, Any]]:
    times = alternate({"one": vector_step(1), "many": vector_step(sizes.many)}, sizes.rounds)
    share = times["many"] / sizes.many / times["one"]
    rows = [_demand("C6", f"time per world of {sizes.many} against one", 0.4, share, most=True, ms=times)]
    rows.append(_demand("C10", "one env step, ms on one thread", 40.0, times["one"], most=True))
    slow = alternate({"one": vector_step(1, num_inference_steps=4)}, sizes.rounds)["one"]
    rows.append(_demand("C10", "the same with 4 denoising steps", 40.0, slow, most=True))
    world_model = WorldModel.from_pretrained("astra-tiny", "cpu")
    state = old_world(world_model)
    for steps, demanded in ((1, 2.5), (4, 1.4)):
        sides = {
            "ours": one_step(world_model, state.repeat(sizes.forks), num_inference_steps=steps),
            "theirs": one_step(world_model, state[[0] * sizes.forks], num_inference_steps=steps),
        }
        times = alternate(sides, sizes.rounds)
        what = f"{sizes.forks} forks against as many copies, {steps} denoising steps"
        rows.append(_demand("C8", what, demanded, _ratio(times), ms=times))
    for steps, demanded in ((4, 1.15), (1, 1.3)):
        sides = {name: vector_step(sizes.many, kind, steps) for name, kind in (("ours", "latent"), ("theirs", "frame"))}
        times = alternate(sides, sizes.rounds)
        what = f"latent against pixel observations, {sizes.many} worlds, {steps} denoising steps"
        rows.append(_demand("C9", what, demanded, _ratio(times), ms=times))
    return rows


def _long_horizons(sizes: Sizes) -> list[dict[str, Any]]:
    """Steps around an early and a late moment of one rollout, and the memory between them."""
    step, (early, late) = vector_step(1), sizes.horizons
    times: list[float] = []
    before = None
    for index in range(late + sizes.rounds):
        begin = time.process_time()
        step()
        times.append(1000 * (time.process_time() - begin))
        if index == early + sizes.rounds:
            before = resident_mb()
    ends = [float(np.median(times[start : start + sizes.rounds])) for start in (early, late)]
    after = resident_mb()
    growth = None if before is None or after is None else after - before
    what = f"time of step {late} against step {early}"
    return [_demand("C7", what, 1.05, ends[1] / ends[0], most=True, ms=ends, memory_growth_mb=growth)]


def _sweep(sizes: Sizes) -> dict[str, Any]:
    """Milliseconds a step and frames a second by number of worlds, with and without pictures; by chunk size (of
    latents alone) and by latents seen before; other vectorisations.
    """
    native: dict[str, Any] = {"worlds": list(sizes.worlds)}
    for observation in ("frame", "latent"):
        taken = [
            alternate({"step": vector_step(num, observation)}, max(1, sizes.rounds // 3))["step"]
            for num in sizes.worlds
        ]
        native[f"{observation}_ms"] = taken
        native[f"{observation}_frames_per_s"] = [4000 * num / ms for num, ms in zip(sizes.worlds, taken, strict=True)]
    world_model = small_world(fastest_dtype(torch.device("cpu")))
    few = max(1, sizes.rounds // 3)
    chunks = alternate(
        {str(n): one_step(world_model, old_world(world_model), chunk_size=n) for n in sizes.chunk_sizes}, few
    )
    histories = alternate(
        {str(seen): one_step(world_model, old_world(world_model, seen=seen)) for seen in sizes.histories}, few
    )
    num = min(4, sizes.many)
    sides: dict[str, Callable[[], Any]] = {"native": vector_step(num)}
    sync = gymnasium.make_vec(ENVIRONMENT, num, "sync", device="cpu")
    sides["sync"] = stepping(sync)
    wall = {name: _wall(step, sizes.rounds) for name, step in sides.items()}
    asynchronous = gymnasium.make_vec(ENVIRONMENT, num, "async", device="cpu")
    wall["async"] = _wall(stepping(asynchronous), sizes.rounds)
    asynchronous.close()
    return {
        "native": native,
        "chunk_ms": chunks,
        "history_ms": histories,
        "vectorisation": {"worlds": num, "wall_ms": wall},
    }


def _wall(step: Callable[[], Any], rounds: int) -> float:
    """Median time on the clock, in which other processes' work counts."""
    times = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        step()
        times.append(1000 * (time.perf_counter() - begin))
    return float(np.median(times[1:]))
