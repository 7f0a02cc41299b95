"""How fast PPO learns in imagined worlds: all in one call of the network, against one after another.

The same PPO (Stable-Baselines3, the recipe's sizes) collects and learns from the native vector environment and from
gymnasium's `SyncVectorEnv` over single ones, in turns; a step is one step of one world. The single worlds share the
weights, as environments of one process do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

import astra_env  # noqa: F401  registers the ids
from astra_env.writing import write_json
from benchmarks.runtime import machine
from benchmarks.writing import number, rounded, table
from policies.sb3 import ALGORITHMS, LatentFeatures, SB3VecEnv
from policies.train import HYPERPARAMETERS

ENVIRONMENT = "Astra-RT1-v0"


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    num_worlds: int = 16
    rollout_steps: int = 32  # of each world, before PPO learns from them
    rounds: int = 3


QUICK = Sizes(num_worlds=2, rollout_steps=4, rounds=1)


def learning(out: Path, sizes: Sizes | None = None, world_model: str = "astra-tiny") -> dict[str, Any]:
    """Measure both sides for latents and for pictures, on one thread, and write the figures as JSON."""
    sizes, threads = sizes or Sizes(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        told = {seen: measure(seen, sizes, world_model) for seen in ("latent", "frame")}
    finally:
        torch.set_num_threads(threads)
    results = rounded({**asdict(sizes), "environment": ENVIRONMENT, "machine": machine(), "observations": told})
    write_json(out, results)
    return results


def measure(observation: str, sizes: Sizes, world_model: str) -> dict[str, Any]:
    """Median steps per second of processor time of both sides, which take turns, after one turn to warm up."""
    options: dict[str, Any] = {"world_model": world_model, "observation": observation}

    def native() -> VectorEnv[Any, Any, Any]:
        mode: dict[str, Any] = {"vectorization_mode": "vector_entry_point", "autoreset_mode": AutoresetMode.SAME_STEP}
        return gymnasium.make_vec(ENVIRONMENT, num_envs=sizes.num_worlds, **mode, **options)

    def one_by_one() -> VectorEnv[Any, Any, Any]:
        worlds = [lambda: gymnasium.make(ENVIRONMENT, **options)] * sizes.num_worlds
        return SyncVectorEnv(worlds, autoreset_mode=AutoresetMode.SAME_STEP)

    sides = {"native": _learner(native, observation, sizes), "SyncVectorEnv": _learner(one_by_one, observation, sizes)}
    steps = sizes.num_worlds * sizes.rollout_steps
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(sizes.rounds + 1):
        for name, model in sides.items():
            begin = time.process_time()
            model.learn(steps, reset_num_timesteps=False)
            if turn:
                rates[name].append(steps / (time.process_time() - begin))
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    return {"steps_per_s": medians, "ratio": medians["native"] / medians["SyncVectorEnv"]}


def _learner(make: Callable[[], VectorEnv[Any, Any, Any]], observation: str, sizes: Sizes) -> Any:
    latents = observation == "latent"
    rollout = {"n_steps": sizes.rollout_steps, "batch_size": min(256, sizes.num_worlds * sizes.rollout_steps)}
    return ALGORITHMS["ppo"](
        "MlpPolicy" if latents else "CnnPolicy",
        SB3VecEnv(make()),
        seed=0,
        policy_kwargs={"features_extractor_class": LatentFeatures} if latents else {},
        **HYPERPARAMETERS["ppo"] | rollout,
    )


def render_learning(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = [
        [seen, *(number(rate, 0) for rate in told["steps_per_s"].values()), f"{number(told['ratio'], 1)}x"]
        for seen, told in results["observations"].items()
    ]
    return table(["PPO that sees", "native, steps/s", "`SyncVectorEnv`, steps/s", "ratio"], rows)
