"""The environment at work: time of a step, memory and picture quality of long episodes, and the machine."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from benchmarks.metrics import PerceptualFeatures, nearest_distance, sharpness

ENVIRONMENT = "Astra-RT1-v0"
HISTORY_FRAMES = 17
QUALITY_STEPS = (1, 50, 100, 200)
MEMORY_START = 20
"""Step from which the growth of memory counts: buffers have their size by then."""


def machine() -> dict[str, Any]:
    """What figures of time and rounding depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def latency(
    world_model: str, num_steps: int, warm_up: int, threads: int | None = None, **sampling: Any
) -> dict[str, float]:
    """Milliseconds of `env.step()`, decoder and reward included, under random actions after a warm-up."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    env = gymnasium.make(ENVIRONMENT, world_model=world_model, **sampling)
    env.action_space.seed(0)
    env.reset(seed=0)
    times = []
    for _ in range(warm_up + num_steps):
        action = env.action_space.sample()
        begin = time.perf_counter()
        _, _, terminated, truncated, _ = env.step(action)
        times.append(1000 * (time.perf_counter() - begin))
        if terminated or truncated:
            env.reset()
    env.close()
    torch.set_num_threads(before)
    return {
        "median_ms": float(np.median(times[warm_up:])),
        "p95_ms": float(np.percentile(times[warm_up:], 95)),
        "num_steps": num_steps,
    }


def smooth_actions(num_steps: int, seed: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Random actions (num_steps, A) within the bounds that change slowly."""
    rng = np.random.default_rng(seed)
    values, value = [], rng.normal(size=low.shape)
    for _ in range(num_steps):
        value = 0.8 * value + 0.6 * rng.normal(size=low.shape)
        values.append(np.tanh(value))
    return (low + (np.stack(values) + 1) / 2 * (high - low)).astype(np.float32)


def resident_mb(process: int | str = "self") -> float | None:
    """Memory of a process in MB, by its number, where the system tells."""
    statm = Path(f"/proc/{process}/statm")
    if not statm.is_file():
        return None
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def long_rollout(world_model: str, starts: Tensor, num_steps: int) -> dict[str, Any]:
    """One episode of num_steps from each start, uint8 (K, 17, H, W, 3).

    Frames of the steps in QUALITY_STEPS (four each), spread of latents, growth of memory, and whether all is finite.
    """
    env = gymnasium.make(ENVIRONMENT, world_model=world_model, max_episode_steps=num_steps + 1)
    box = env.action_space
    assert isinstance(box, gymnasium.spaces.Box)
    chosen = [step for step in QUALITY_STEPS if step <= num_steps]
    frames: dict[int, list[np.ndarray]] = {step: [] for step in chosen}
    spread: dict[int, list[float]] = {step: [] for step in chosen}
    finite, growth = True, []
    for index, start in enumerate(starts):
        env.reset(seed=index, options={"frames": start.numpy()})
        memory = resident_mb()
        for step, action in enumerate(smooth_actions(num_steps, index, box.low, box.high), start=1):
            info = env.step(action)[-1]  # an episode goes on after a success, so that it has its full length
            newest = env.unwrapped.save_state().newest  # type: ignore[attr-defined]
            finite = finite and bool(torch.isfinite(newest).all())
            if step == MEMORY_START:
                memory = resident_mb()
            if step in frames:
                frames[step].append(info["frames"])
                spread[step].append(float(newest.float().std()))
        after = resident_mb()
        growth.append(None if memory is None or after is None else after - memory)
    env.close()
    return {
        "frames": {step: torch.from_numpy(np.concatenate(shown)) for step, shown in frames.items()},
        "latent_std": {step: float(np.mean(values)) for step, values in spread.items()},
        "finite": finite,
        "memory_growth_mb": growth,
    }


def rollout_report(
    world_model: str, features: PerceptualFeatures, recorded: Tensor, num_rollouts: int, num_steps: int
) -> dict[str, Any]:
    """Long episodes against the held-out recordings (E, 4 N + 1, H, W, 3), without a frame-by-frame reference.

    Even episodes give the starts and the real frames that are compared; odd ones are what both are compared with.
    """
    bank = features.describe(recorded[1::2, ::12][:50].flatten(0, 1))
    real = recorded[0::2, 8::16][:25].flatten(0, 1)
    starts = recorded[0::2, :HISTORY_FRAMES][:num_rollouts]
    rollout = long_rollout(world_model, starts, num_steps)

    def quality(frames: Tensor) -> dict[str, float]:
        return {
            "sharpness": float(sharpness(frames).mean()),
            "feature_distance": nearest_distance(features.describe(frames), bank),
        }

    return {
        "num_rollouts": len(starts),
        "num_steps": num_steps,
        "actions": "smooth random between the bounds",
        "finite": rollout["finite"],
        "memory_growth_mb": rollout["memory_growth_mb"],
        "memory_measured": f"resident memory of the process, step {MEMORY_START} to the last, for each rollout",
        "feature_distance": "mean distance to the nearest real frame of other held-out episodes",
        "real": quality(real),
        "imagined": [
            {"step": step, **quality(frames), "latent_std": rollout["latent_std"][step]}
            for step, frames in rollout["frames"].items()
        ],
    }
