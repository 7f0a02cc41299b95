"""Obedience and quality against the length of history, on toy recordings and tiny worlds."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from test_domains import bench_of, recorded
from tiny import tiny_world_model

from benchmarks.cli import main
from benchmarks.domain_table import CAMERA_MOTION, DOMAINS
from benchmarks.imagination import START, begin, known_frames, recorded_frames
from benchmarks.inertia import (
    QUICK,
    decibels,
    errors,
    margin_interval,
    measure,
    measured_before,
    render_inertia,
    started_late,
)
from benchmarks.metrics import psnr
from benchmarks.motion_following import MotionFollower

LENGTHS = (1, 2, 9)


@pytest.fixture(scope="module")
def bench():
    world_model = tiny_world_model(action_dims={"camera": 6})
    return started_late(bench_of("camera", world_model, [recorded("camera", seed) for seed in range(4)]), LENGTHS)


@pytest.mark.parametrize("length", LENGTHS)
def test_worlds_begin_at_one_moment_with_histories_of_a_length(bench, length):
    told = dataclasses.replace(bench, known=length - 1)
    starts = [(2, told.first), (0, told.first + 3)]
    state = begin(told, starts)
    assert bench.first == 8 and state.lengths.tolist() == [length, length]
    frames = known_frames(told, starts)
    assert frames.shape[1] == 4 * (length - 1) + 1
    assert torch.equal(frames[0, -1], bench.heldout.frames[2, 32])
    assert torch.equal(recorded_frames(told, torch.tensor([2]))[0, 0], bench.heldout.frames[2, 33])


def test_short_episodes_are_refused(bench):
    with pytest.raises(ValueError, match="Episodes have 15 chunks, expected at least 20 for a history of 16 latents"):
        started_late(bench, (1, 16))
    assert started_late(bench, (1, 2)).first == START


def test_errors_and_decibels_are_those_of_psnr():
    shown, truth = (torch.randint(256, (3, 8, 4, 4, 3), dtype=torch.uint8) for _ in range(2))
    found = errors(shown, truth)
    assert found.shape == (3, 2)
    for step in range(2):
        part = slice(4 * step, 4 * step + 4)
        assert decibels(found[:, step].mean()) == pytest.approx(psnr(shown[:, part], truth[:, part]), abs=1e-4)


def test_margins_are_of_pairs():
    error = np.array([1.0, 10.0, 100.0])
    assert margin_interval(error, 10 * error) == pytest.approx([10, 10])
    low, high = margin_interval(error, error[::-1])
    assert low < 0 < high


def test_what_ignores_its_actions_gains_nothing_by_them(bench, monkeypatch):
    """Obedience is counted over all starts of all actions, quality under both kinds of actions."""
    rng = np.random.default_rng(0)
    shown = torch.from_numpy(rng.integers(256, size=(4, 28, 32, 32, 3), dtype=np.uint8))
    monkeypatch.setattr("benchmarks.inertia.open_loop_frames", lambda *_: shown)
    away = dataclasses.replace(bench, known=0)
    probes = {name: DOMAINS["camera"].probes[name] for name in ("+dz", "-dz")}
    forward = torch.tensor([0, 0, 1.0, 0, 0, 0])
    follower = MotionFollower(probes, CAMERA_MOTION, lambda video: forward.expand(len(video), video.shape[1] // 4, 6))
    told = measure(away, follower, 3)
    assert told["margin_1"] == told["margin_5"] == 0 and told["margin_5_interval"] == [0, 0]
    assert told["psnr_1"] == pytest.approx(psnr(shown[:, :4], recorded_frames(away, torch.arange(4))[:, :4]), abs=1e-4)
    assert told["psnr_1_interval"][0] <= told["psnr_1"] <= told["psnr_1_interval"][1]
    counts = [follower.follow(away, name, 3)["num_starts"] for name in probes]
    assert told["num_followed"] == sum(counts) and told["followed"] == pytest.approx(counts[0] / sum(counts))
    assert told["followed_interval"][0] < told["followed"] < told["followed_interval"][1]


def test_the_command_writes_every_length(tmp_path, capsys):
    (tmp_path / "robot").mkdir()
    from test_first_light import HIGH, LOW, toy_episode

    for split, count in (("train", 4), ("heldout", 3)):
        (tmp_path / "robot" / split).mkdir()
        for index in range(count):
            np.savez(tmp_path / "robot" / split / f"episode_{index:05d}.npz", **toy_episode(index, split))
    manifest = {"workspace_m": [LOW.tolist(), HIGH.tolist()], "max_tilt_rad": 0.4, "max_yaw_rad": 0.8}
    (tmp_path / "robot" / "dataset.json").write_text(json.dumps(manifest))
    world = tiny_world_model(size=64)
    world.save_pretrained(tmp_path / "world")
    out = tmp_path / "inertia.json"
    command = ["inertia", "--data", f"robot={tmp_path / 'robot'}", "--world-model", str(tmp_path / "world")]
    main([*command, "--out", str(out), "--quick"])
    results = json.loads(out.read_text())
    assert results["lengths"] == list(QUICK.lengths) == [1, 3] and results["window"] == 8
    entry = results["domains"]["robot"]
    assert all(len(values) == 2 for key, values in entry.items() if isinstance(values, list))
    results["domains"] = {"driving": entry}
    out.write_text(json.dumps(results))  # which stays, since all else is the same
    assert measured_before(out, results) == {"driving": entry}
    assert measured_before(out, results | {"world_model": "another"}) == {}
    assert measured_before(tmp_path / "nothing.json", results) == {}
    results["domains"] = {"robot": entry}
    printed = capsys.readouterr().out
    assert render_inertia(results) in printed and "| robot: PSNR, dB, 5 ahead |" in printed
