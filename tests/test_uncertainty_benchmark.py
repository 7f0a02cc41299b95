"""The uncertainty benchmark finds the doubt that is there, and writes what it found."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny import save_checkpoint, write_dataset

from astra_env.envs.futures import Calibration
from benchmarks.uncertainty import (
    LATENT_MEASURES,
    REWARD_MEASURES,
    Sizes,
    correlations,
    judged,
    render_uncertainty,
    spearman,
    uncertainty,
    worst_found,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("uncertainty")
    checkpoint = save_checkpoint(root / "world", domains=["robot"])
    data = write_dataset(root / "robot", num_heldout=4, num_chunks=7, size=32)
    out = root / "uncertainty.json"
    results = uncertainty({"robot": str(data)}, str(checkpoint), out, Sizes(4, 3, 2), save=True)
    return results, out, checkpoint


def test_every_measure_is_compared_with_the_truth(run):
    results, out, _ = run
    assert json.loads(out.read_text()) == results
    entry = results["domains"]["robot"]
    assert entry["num_episodes"] == 4 and len(entry["error_by_step"]) == 3
    assert entry["latent"].keys() == set(LATENT_MEASURES) and entry["reward"].keys() == {"reward, futures", "futures"}
    for measure in entry["latent"].values():
        assert all(-1 <= value <= 1 for value in measure.values())
    assert entry["latent"]["time"]["spearman_within_step"] == 0
    assert entry["latent"]["change"]["spearman"] != 0
    text = render_uncertainty(results)
    assert "| reward, heads, with its error | – |" in text, "one head cannot differ from itself"
    assert text.startswith("| Spearman with the true error | robot |")
    assert text.count("\n") == len(LATENT_MEASURES) + len(REWARD_MEASURES) + 6


def test_the_plot_and_the_calibration_are_written(run):
    results, out, checkpoint = run
    assert out.with_suffix(".png").stat().st_size > 1000
    errors = Calibration.load(checkpoint / "domains" / "robot").error
    assert min(errors) >= 0.5 * min(results["domains"]["robot"]["error_by_step"])
    assert max(errors) <= 2 * max(results["domains"]["robot"]["error_by_step"])


def test_a_measure_that_knows_is_told_from_one_that_does_not():
    rng = np.random.default_rng(0)
    error = rng.uniform(0.1, 1, (5, 40)) + 0.1 * np.arange(5)[:, None]
    measured = {name: rng.uniform(size=(5, 40)) for name in LATENT_MEASURES}
    measured |= {"error": error, "futures": error**3}
    report = judged(measured)
    assert report["latent"]["futures"]["spearman"] == pytest.approx(1)
    assert abs(report["latent"]["next step"]["spearman"]) < 0.3
    calibration = report["calibration"]
    assert calibration["gap"] < 0.05 and calibration["worst_tenth_found"] > 0.5
    assert calibration["mean_absolute_error"] < calibration["mean_absolute_error_of_a_constant"] / 3
    assert "reward" not in report


def test_ranks_of_equal_values_are_shared():
    values = np.array([1.0, 1.0, 2.0, 5.0])
    assert spearman(values, values) == pytest.approx(1)
    assert spearman(values, np.array([4.0, 3.0, 2.0, 1.0])) == pytest.approx(-0.9486833)
    assert spearman(values, np.ones(4)) == 0


def test_time_says_nothing_within_a_step():
    error = np.arange(12.0).reshape(3, 4)
    time = np.repeat(np.arange(3.0), 4).reshape(3, 4)
    told = correlations(time, error)
    assert told["spearman"] > 0.9 and told["spearman_within_step"] == 0


def test_the_worst_are_found_or_not():
    error = np.arange(20.0)
    assert worst_found(error, error) == 1 and worst_found(-error, error) == 0
