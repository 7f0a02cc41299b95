"""How far a dream can be trusted: by futures that differ from it in nothing but noise.

K futures begin where an episode does and go along under the same actions, each under noise of its own. How far their
latents have come from the episode's tells how far the episode has come from the truth, which a `Calibration` on
held-out recordings puts into numbers: the expected root mean squared error of the latent, whose variance is about 1.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from astra_env.envs.rewards import RewardFunction
from astra_env.envs.worlds import ImaginedWorlds
from astra_env.models import WorldState
from astra_env.writing import write_json

FILE_NAME = "uncertainty.json"
SEED_STEP = 2**31
"""Between the seeds of a world's futures: those of episodes are smaller, so that no two worlds draw the same noise."""

HEADS = "reward_spread"
"""The term by which a reward of several heads tells how far they differ."""

Objective = Callable[[Tensor], Tensor]
"""Plans (N, horizon, A) -> values (N,), larger is better."""


@dataclass(frozen=True)
class Spread:
    """How far the futures of B worlds have come from them: root mean squares over the futures, 0 where none has."""

    latent: Tensor  # (B,), of the newest latents
    reward: Tensor  # (B,), in the reward's units; the standard deviation of the judge's heads adds to its square


def futures_of(state: WorldState, num_samples: int) -> WorldState:
    """(B K) worlds: each of B as it is, K times in a row, under noise of its own from now on."""
    seeds = state.seeds[:, None] + SEED_STEP * torch.arange(1, num_samples + 1, device=state.seeds.device)
    return dataclasses.replace(state.repeat(num_samples), seeds=seeds.flatten())


class Futures:
    """K futures of B worlds, which go along with them; see the module."""

    def __init__(self, worlds: ImaginedWorlds, num_samples: int = 4) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples is {num_samples}, expected at least 1 future of each world.")
        self.worlds, self.num_samples = worlds, num_samples
        self.states: WorldState | None = None  # (B K): the futures of a world are neighbours

    def begin(self, state: WorldState, rows: Sequence[int] | None = None) -> None:
        """Fork the futures of all worlds of a state, or of some rows of it, which then go on from there."""
        num, chosen = self.num_samples, state if rows is None else state[list(rows)]
        forked = futures_of(chosen, num)
        if rows is None or self.states is None:
            self.states = forked
        else:
            self.states = self.states.replaced([num * row + k for row in rows for k in range(num)], forked)

    def step(self, actions: np.ndarray, state: WorldState, judge: RewardFunction) -> Spread:
        """Take the step that has led the worlds to state, under physical actions (B, A), and compare."""
        assert self.states is not None, "begin() comes first"
        num, held = self.num_samples, torch.from_numpy(actions).repeat_interleave(self.num_samples, 0)
        self.states = self.worlds.world_model.step(self.states, held, **self.worlds.sampling)
        away = self.states.newest.unflatten(0, (-1, num)) - state.newest[:, None]
        reward = judge(state)
        # a judge of B worlds may have a task for each of them
        values = torch.stack([judge(self.states[k::num]).value for k in range(num)])
        doubt = (values - reward.value).square().mean(0)
        if HEADS in reward.terms:  # what the judge's own heads make of the same latent
            doubt = doubt + reward.terms[HEADS].square()
        return Spread(away.float().square().mean((1, 2, 3, 4)).sqrt(), doubt.sqrt())


@dataclass(frozen=True)
class Calibration:
    """Expected error of a measure of uncertainty: straight between the given points, constant beyond, never falling."""

    raw: tuple[float, ...]
    error: tuple[float, ...]

    @classmethod
    def fit(cls, raw: np.ndarray, error: np.ndarray, num_bins: int = 10) -> Calibration:
        """Mean error in bins of as many pairs (N,) each, from the smallest measure up; neighbours that fall are merged.

        Merging is isotonic regression on the bins (the pool-adjacent-violators algorithm).
        """
        if raw.shape != error.shape or raw.ndim != 1 or len(raw) < num_bins or num_bins < 1:
            raise ValueError(f"There are {raw.shape} measures and {error.shape} errors, expected {num_bins} or more.")
        order = np.argsort(raw, kind="stable")
        pools: list[tuple[float, float, int]] = []  # mean measure, mean error, pairs
        for part in np.array_split(order, num_bins):
            pools.append((float(raw[part].mean()), float(error[part].mean()), len(part)))
            while len(pools) > 1 and pools[-2][1] >= pools[-1][1]:
                (x, y, n), (u, v, m) = pools.pop(-2), pools.pop()
                pools.append(((n * x + m * u) / (n + m), (n * y + m * v) / (n + m), n + m))
        return cls(tuple(pool[0] for pool in pools), tuple(pool[1] for pool in pools))

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """Expected errors of measures of any shape."""
        return np.interp(raw, self.raw, self.error)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write uncertainty.json, beside what a checkpoint holds of a domain."""
        write_json(Path(folder) / FILE_NAME, {"raw": self.raw, "error": self.error})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Calibration:
        """Read what `save` wrote."""
        path = Path(folder) / FILE_NAME
        try:
            told = json.loads(path.read_text())
            return cls(tuple(map(float, told["raw"])), tuple(map(float, told["error"])))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"There is no calibration at {path}; astra-bench uncertainty --save writes it."
            ) from None
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no calibration ({error!r}); write it again.") from error


@dataclass(frozen=True)
class Reliability:
    """Predicted and true errors in bins of as many pairs each, from the smallest prediction up."""

    predicted: tuple[float, ...]
    true: tuple[float, ...]
    count: tuple[int, ...]

    @property
    def gap(self) -> float:
        """Mean absolute difference of the two over all pairs."""
        gaps = np.abs(np.array(self.predicted) - np.array(self.true))
        return float(np.average(gaps, weights=self.count))


def reliability(predicted: np.ndarray, error: np.ndarray, num_bins: int = 10) -> Reliability:
    """The reliability table of predictions (N,) of errors (N,): calibrated ones are right in every bin, on average."""
    parts = np.array_split(np.argsort(predicted, kind="stable"), min(num_bins, len(predicted)))
    return Reliability(
        tuple(float(predicted[part].mean()) for part in parts),
        tuple(float(error[part].mean()) for part in parts),
        tuple(len(part) for part in parts),
    )


def worst_case(objective: Objective, num_futures: int, *, quantile: float = 0.0) -> Objective:
    """What a plan is worth in the worst of several futures, or in that at a low quantile of them.

    The objective is called with each plan once a future, (num_futures N, horizon, A): first all plans for the first
    future, then all for the second. It gives every future noise of its own, the same for all plans.
    """
    return lambda plans: _in_futures(objective, plans, num_futures).quantile(quantile, 0, interpolation="lower")


def average(objective: Objective, num_futures: int) -> Objective:
    """What a plan is worth on average over several futures; as `worst_case`."""
    return lambda plans: _in_futures(objective, plans, num_futures).mean(0)


def lower_bound(objective: Objective, num_futures: int, *, penalty: float = 1.0) -> Objective:
    """What a plan is worth on average over several futures, less ``penalty`` standard deviations; as `worst_case`."""

    def bound(plans: Tensor) -> Tensor:
        values = _in_futures(objective, plans, num_futures)
        return values.mean(0) - penalty * values.std(0, correction=0)

    return bound


def _in_futures(objective: Objective, plans: Tensor, num_futures: int) -> Tensor:
    """Values (num_futures, N)."""
    if num_futures < 1:
        raise ValueError(f"num_futures is {num_futures}, expected at least 1.")
    return objective(plans.repeat(num_futures, 1, 1)).reshape(num_futures, -1)
