"""Does a world know when it is wrong? Measures of uncertainty against the true error on held-out recordings.

Recorded episodes are imagined open-loop under their own actions. At every step each measure is taken, and so is the
error: the root mean square of the difference between the imagined latent and that of the recording. One half of the
episodes calibrates the measure that the library uses, the other half tests whether its predictions come true.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from astra_env.envs.domains import domain_folder
from astra_env.envs.futures import Calibration, futures_of, reliability
from astra_env.envs.reward_kit import LearnedReward
from astra_env.models import WorldModel, WorldState
from astra_env.models.reward_model import FILE_NAME as REWARD_FILE
from astra_env.models.reward_model import RewardModel
from astra_env.training.episodes import Episodes, load_episodes
from astra_env.writing import write_json
from benchmarks.plots import PLOTS
from benchmarks.runtime import machine
from benchmarks.writing import number, rounded, table

START = 4
"""Chunks that a world is told before it imagines."""
PART = 25
"""Episodes that are imagined in one batch."""
DECODED = 4
"""Newest latents that are decoded and encoded again."""
NOTES = {
    "futures": "root mean squared distance of the latent from those of K futures that began with the episode, under "
    "other noise: what the wrapper Uncertainty tells",
    "next step": "standard deviation of the newest latent over K noises of the last step alone",
    "denoising steps": "root mean squared difference between one denoising step more and the world's own number",
    "re-encoded": "root mean squared difference of the latent and what the autoencoder makes of its own picture of it",
    "change": "root mean squared difference of the latent and the one before: motion, no doubt",
    "time": "steps that were imagined so far",
    "reward, futures": "root mean squared distance of the reward from those of the futures",
    "reward, heads": "standard deviation of the reward over heads that began from different weights",
}
LATENT_MEASURES = ("futures", "next step", "denoising steps", "re-encoded", "change", "time")
REWARD_MEASURES = ("reward, futures", "reward, heads")


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    episodes: int = 100
    horizon: int = 12
    num_samples: int = 4


QUICK = Sizes(episodes=4, horizon=2, num_samples=2)


def uncertainty(
    data: Mapping[str, str],
    world_model: str,
    out: Path,
    sizes: Sizes | None = None,
    *,
    heads: Mapping[str, str] | None = None,
    save: bool = False,
) -> dict[str, Any]:
    """Measure every domain, write the results to out and a reliability plot beside it, and return them.

    Args:
        data: domain -> folder of its recorded episodes.
        world_model: bundled name or checkpoint folder.
        out: results file.
        sizes: how much is measured.
        heads: domain -> folder of heads that `astra-env fit-reward` wrote, whose disagreement is measured as well.
        save: whether each domain's calibration, on all episodes, is written into the checkpoint.
    """
    sizes, model = sizes or Sizes(), WorldModel.from_pretrained(world_model)
    results: dict[str, Any] = {
        "world_model": str(world_model),
        "num_inference_steps": model.sampling.num_inference_steps,
        **dataclasses.asdict(sizes),
        "notes": NOTES,
        "machine": machine(),
        "domains": {},
    }
    for name, root in data.items():
        episodes = load_episodes(root, "heldout", sizes.episodes, frame_size=model.frame_size[0])
        found = judges(model, episodes, (heads or {}).get(name))
        measured = measure(model, episodes, found, sizes)
        results["domains"][name] = judged(measured)
        if save:
            folder = domain_folder(model.folder, name, episodes.modality)
            if folder is None:
                raise ValueError(f"{world_model} has no folder of {name!r} to write a calibration into.")
            Calibration.fit(measured["futures"].ravel(), measured["error"].ravel()).save(folder)
        write_json(out, rounded(results))
    PLOTS["uncertainty"].write(out.with_suffix(".png"), results)
    return rounded(results)


def judges(world_model: WorldModel, episodes: Episodes, heads: str | None) -> list[RewardModel]:
    """The heads given, whose mean is the reward, else the world's own, else none."""
    folder = domain_folder(world_model.folder, episodes.name, episodes.modality) if heads is None else Path(heads)
    if folder is None or (heads is None and not (folder / REWARD_FILE).is_file()):
        return []
    return LearnedReward.load(folder, world_model.device).heads


@torch.no_grad()
def measure(
    world_model: WorldModel, episodes: Episodes, heads: Sequence[RewardModel], sizes: Sizes
) -> dict[str, np.ndarray]:
    """Arrays (steps, E) by name: "error", the measures, and of rewards "reward error" and theirs."""
    horizon = min(sizes.horizon, episodes.actions.shape[1] - START)
    if horizon < 1:
        raise ValueError(f"Episodes have {episodes.actions.shape[1]} chunks, expected more than {START}.")
    columns: list[list[dict[str, Tensor]]] = []
    parts = torch.arange(len(episodes)).split(PART)
    for rows in tqdm(parts, desc=f"doubting {episodes.name}", unit="part", mininterval=5):
        columns.append(_rollout(world_model, episodes, rows, heads, (horizon, sizes.num_samples)))
    return {
        name: np.stack([torch.cat([column[step][name] for column in columns]).numpy() for step in range(horizon)])
        for name in columns[0][0]
    }


def _rollout(
    world_model: WorldModel, episodes: Episodes, rows: Tensor, heads: Sequence[RewardModel], counts: tuple[int, int]
) -> list[dict[str, Tensor]]:
    """All measures (B,) of some episodes, one dictionary a step."""
    horizon, num = counts
    state = world_model.init_state(
        episodes.frames[rows, : 4 * START + 1],
        episodes.modality,
        actions=episodes.actions[rows, :START],
        seeds=rows.tolist(),
        speeds=None if episodes.speeds is None else episodes.speeds[rows, START],
    )
    truth = world_model.autoencoder.encode(episodes.frames[rows, : 4 * (START + horizon) + 1].to(world_model.device))
    futures, steps = futures_of(state, num), []
    for step in range(horizon):
        actions = episodes.actions[rows, START + step]
        repeated = actions.repeat_interleave(num, 0)
        next_noises = world_model.step(futures_of(state, num), repeated).newest.unflatten(0, (-1, num))
        more = world_model.step(state, actions, num_inference_steps=world_model.sampling.num_inference_steps + 1)
        before, state = state, world_model.step(state, actions)
        futures = world_model.step(futures, repeated)
        away = futures.newest.unflatten(0, (-1, num))
        measures = {
            "error": _rms(state.newest - truth[:, :, START + step + 1]),
            "futures": _rms(away - state.newest[:, None]),
            "next step": next_noises.var(1).mean((1, 2, 3)).sqrt(),
            "denoising steps": _rms(more.newest - state.newest),
            "re-encoded": _rms(_reencoded(world_model, state) - state.newest),
            "change": _rms(state.newest - before.newest),
            "time": torch.full((len(rows),), step + 1.0),
        }
        if heads:
            values, other = _rewards(heads, state), _rewards(heads, futures).mean(0).unflatten(0, (-1, num))
            reward = values.mean(0)
            measures["reward error"] = (reward.cpu() - episodes.rewards[rows, START + step + 1]).abs()
            measures["reward, futures"] = (other - reward[:, None]).square().mean(1).sqrt()
            if len(heads) > 1:
                measures["reward, heads"] = values.std(0, correction=0)
        steps.append({name: value.double().cpu() for name, value in measures.items()})
    return steps


def _rewards(heads: Sequence[RewardModel], state: WorldState) -> Tensor:
    """What each head says of B worlds: (heads, B)."""
    return torch.stack([head(state.newest, state.speeds)[0] for head in heads])


def _reencoded(world_model: WorldModel, state: WorldState) -> Tensor:
    """What the autoencoder makes of its own picture of the newest latents: (B, C, h, w)."""
    frames = world_model.autoencoder.decode_video(state.latents[:, :, -DECODED:].float())
    return world_model.autoencoder.encode(frames)[:, :, -1]


def _rms(difference: Tensor) -> Tensor:
    """Root mean square of each row."""
    return difference.float().flatten(1).square().mean(1).sqrt()


# What the measures are worth


def judged(measured: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Correlations of every measure with its error, and the library's, calibrated, on the half not seen."""
    num = measured["error"].shape[1]
    report: dict[str, Any] = {
        "num_episodes": num,
        "error_by_step": measured["error"].mean(1).tolist(),
        "latent": {name: correlations(measured[name], measured["error"]) for name in LATENT_MEASURES},
    }
    if "reward error" in measured:
        names = [name for name in (*REWARD_MEASURES, "futures") if name in measured]
        report["reward"] = {name: correlations(measured[name], measured["reward error"]) for name in names}
        report["reward_error"] = float(measured["reward error"].mean())
    raw, error = measured["futures"], measured["error"]
    calibration = Calibration.fit(raw[:, ::2].ravel(), error[:, ::2].ravel(), min(10, raw[:, ::2].size))
    predicted = calibration(raw[:, 1::2].ravel())
    lines = reliability(predicted, error[:, 1::2].ravel())
    constant = np.abs(error[:, 1::2] - error[:, ::2].mean()).mean()
    report["calibration"] = {
        "reliability": dataclasses.asdict(lines),
        "gap": lines.gap,
        "mean_absolute_error": float(np.abs(predicted - error[:, 1::2].ravel()).mean()),
        "mean_absolute_error_of_a_constant": float(constant),
        "worst_tenth_found": worst_found(predicted, error[:, 1::2].ravel()),
    }
    return report


def correlations(measure: np.ndarray, error: np.ndarray) -> dict[str, float]:
    """Spearman and Pearson over all (steps, E), and Spearman among the episodes of one step, on average over steps.

    The last one is what time alone cannot tell.
    """
    within = [spearman(a, b) for a, b in zip(measure, error, strict=True)]
    return {
        "spearman": spearman(measure.ravel(), error.ravel()),
        "pearson": pearson(measure.ravel(), error.ravel()),
        "spearman_within_step": float(np.mean(within)),
    }


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of (N,) and (N,); 0 where one of them is constant."""
    if first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of ranks, where equal values share the mean of theirs."""
    return pearson(_ranks(first), _ranks(second))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[inverse]


def worst_found(predicted: np.ndarray, error: np.ndarray, share: float = 0.1) -> float:
    """Share of the worst errors that are among as many of the highest predictions; ``share`` by chance."""
    count = max(1, round(share * len(error)))
    return len(set(np.argsort(error)[-count:]) & set(np.argsort(predicted)[-count:])) / count


# Showing


def render_uncertainty(results: Mapping[str, Any]) -> str:
    """Markdown: Spearman of every measure with the true error, and what the calibrated one predicts."""
    domains = results["domains"]

    def row(title: str, *keys: str) -> list[str]:
        cells = []
        for entry in domains.values():
            for key in keys:
                entry = None if entry is None else entry.get(key)  # a domain may have no reward
            cells.append(number(entry))
        return [title, *cells]

    rows = [row(name, "latent", name, "spearman") for name in LATENT_MEASURES]
    rows.append(row("futures, within a step", "latent", "futures", "spearman_within_step"))
    for name in REWARD_MEASURES:
        rows.append(row(f"{name}, with its error", "reward", name, "spearman"))
    rows.append(row("calibrated: mean gap", "calibration", "gap"))
    rows.append(row("calibrated: mean absolute error", "calibration", "mean_absolute_error"))
    rows.append(row("of a constant guess", "calibration", "mean_absolute_error_of_a_constant"))
    rows.append(row("share of the worst tenth found (0.10 by chance)", "calibration", "worst_tenth_found"))
    return table(["Spearman with the true error", *domains], rows)
