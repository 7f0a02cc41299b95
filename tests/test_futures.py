"""Futures, their calibration, and plans that are judged in several of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from astra_env.envs.futures import Calibration, average, lower_bound, reliability, worst_case


def test_a_calibration_finds_what_error_a_measure_means():
    rng = np.random.default_rng(0)
    raw = rng.uniform(0, 2, 4000)
    error = raw**2 + rng.normal(0, 0.3, 4000)
    calibration = Calibration.fit(raw[::2], error[::2])
    predicted = calibration(raw[1::2])
    table = reliability(predicted, error[1::2])
    assert table.gap < 0.06 < reliability(raw[1::2], error[1::2]).gap
    assert sum(table.count) == 2000 and len(table.count) == 10
    assert (np.diff(table.predicted) > 0).all()


def test_a_calibration_never_falls_and_says_the_mean_where_nothing_is_told():
    raw = np.linspace(0, 1, 100)
    rising = Calibration.fit(raw, np.sin(6 * raw))
    assert (np.diff(rising.error) > 0).all() and (np.diff(rising(np.linspace(-1, 2, 50))) >= 0).all()
    falling = Calibration.fit(raw, 1 - raw)
    assert falling.error == pytest.approx((0.5,)) and falling.raw == pytest.approx((0.5,))


def test_a_saved_calibration_is_the_same(tmp_path):
    calibration = Calibration((0.1, 0.25), (0.3, 1 / 3))
    calibration.save(tmp_path)
    assert Calibration.load(tmp_path) == calibration
    assert [file.name for file in tmp_path.iterdir()] == ["uncertainty.json"]


def test_a_missing_or_damaged_calibration_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="astra-bench uncertainty"):
        Calibration.load(tmp_path)
    (tmp_path / "uncertainty.json").write_text(json.dumps({"raw": [1.0]}))
    with pytest.raises(ValueError, match="is no calibration"):
        Calibration.load(tmp_path)
    with pytest.raises(ValueError, match="expected 10 or more"):
        Calibration.fit(np.zeros(3), np.zeros(3))


def test_the_worst_future_decides_and_doubt_costs():
    """A bold plan is best in most futures and fails in one; a safe one is always fair."""
    plans = torch.tensor([1.0, 0.5]).reshape(2, 1, 1).expand(2, 3, 2)
    asked = []

    def objective(sequences):
        asked.append(sequences.shape)
        values = sequences[:, 0, 0].clone()
        values[2 * 2] = 0.0  # the bold plan in the third future
        return values

    assert worst_case(objective, 4)(plans).tolist() == [0.0, 0.5]
    assert worst_case(objective, 4, quantile=0.34)(plans).tolist() == [1.0, 0.5]
    assert average(objective, 4)(plans).tolist() == [0.75, 0.5]
    assert lower_bound(objective, 4)(plans).tolist() == pytest.approx([0.75 - 0.1875**0.5, 0.5])
    assert lower_bound(objective, 4, penalty=0.0)(plans).argmax() == 0
    assert asked == [(8, 3, 2)] * 5
    with pytest.raises(ValueError, match="num_futures is 0"):
        worst_case(objective, 0)(plans)
