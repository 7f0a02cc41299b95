"""PPO in native worlds against worlds one by one: the same learning, timed in turns."""

from __future__ import annotations

import json

import numpy as np
import torch

from benchmarks import learning as bench
from benchmarks.learning import QUICK, Sizes, learning, measure, render_learning


def test_both_sides_learn_from_as_many_steps(checkpoint, monkeypatch):
    learners, make = [], bench._learner

    def remembered(*given):
        learners.append(make(*given))
        return learners[-1]

    monkeypatch.setattr(bench, "_learner", remembered)
    told = measure("latent", QUICK, checkpoint)
    assert told["steps_per_s"].keys() == {"native", "SyncVectorEnv"} and min(told["steps_per_s"].values()) > 0
    assert told["ratio"] == told["steps_per_s"]["native"] / told["steps_per_s"]["SyncVectorEnv"]
    steps = QUICK.num_worlds * QUICK.rollout_steps
    assert [model.num_timesteps for model in learners] == [steps * (QUICK.rounds + 1)] * 2  # one turn warms up
    native, one_by_one = learners
    for first, second in zip(native.policy.parameters(), one_by_one.policy.parameters(), strict=True):
        assert first.shape == second.shape and torch.isfinite(first).all() and torch.isfinite(second).all()


def test_figures_are_written_and_threads_given_back(tmp_path, monkeypatch):
    seen, before = [], torch.get_num_threads()

    def measured(observation, sizes, world_model):
        seen.append((observation, torch.get_num_threads(), world_model))
        return {"steps_per_s": {"native": 300.0, "SyncVectorEnv": 75.0}, "ratio": 4.0}

    monkeypatch.setattr(bench, "measure", measured)
    torch.set_num_threads(2)
    try:
        results = learning(tmp_path / "learning.json", Sizes(rounds=7), "a-world")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [("latent", 1, "a-world"), ("frame", 1, "a-world")]
    assert results == json.loads((tmp_path / "learning.json").read_text()) and results["rounds"] == 7
    lines = render_learning(results).splitlines()
    assert lines[2:] == ["| latent | 300 | 75 | 4.0x |", "| frame | 300 | 75 | 4.0x |"]
    assert np.isfinite(results["observations"]["latent"]["ratio"])
