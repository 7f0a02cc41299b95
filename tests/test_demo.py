from __future__ import annotations

import numpy as np
import pytest
from tiny import random_actions, random_frames, save_checkpoint

from astra_env.cli import main
from astra_env.demo import Demonstration, run_demo
from astra_env.video import read_video


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny world with a recording of two still and three scripted chunks."""
    folder = save_checkpoint(tmp_path_factory.mktemp("world"))
    frames = random_frames(1, 21)[0].numpy()
    actions = random_actions(5).numpy()
    actions[:2] = 0
    np.savez_compressed(folder / "demo.npz", frames=frames, actions=actions, goal=frames[-1])
    return folder


def test_the_history_before_the_script_is_still(checkpoint):
    demonstration = Demonstration.load(checkpoint)
    assert demonstration.chunk_frames == 4
    assert demonstration.num_still == 2


def test_the_demo_writes_a_video_and_a_recording_and_tells_how_to_open_them(checkpoint, tmp_path, capsys):
    figures = run_demo(tmp_path, world_model=str(checkpoint), num_plan_steps=2)
    assert len(figures["psnr"]) == 3
    assert all(np.isfinite(figures["psnr"]))
    assert len(figures["goal_distance"]) == 3
    assert figures["step_ms"] > 0
    frames = read_video(tmp_path / "demo.mp4")
    assert frames.shape == (13 + 9, 480, 772, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.mp4", "demo.rrd"]
    printed = capsys.readouterr().out
    assert "ms a step" in printed
    assert "dB after 3 steps" in printed
    assert "demo.mp4" in printed
    assert f"rerun {tmp_path / 'demo.rrd'}" in printed


def test_the_seed_decides_the_demo(checkpoint, tmp_path):
    first, again = (
        run_demo(tmp_path / name, world_model=str(checkpoint), num_plan_steps=1) for name in ("first", "again")
    )
    assert first["psnr"] == again["psnr"]
    assert first["goal_distance"] == again["goal_distance"]


def test_the_command_runs_the_demo(checkpoint, tmp_path, monkeypatch, capsys):
    called = []
    monkeypatch.setattr("astra_env.demo.run_demo", lambda out, **options: called.append((out, options)))
    main(["demo", "--out", str(tmp_path), "--seed", "3", "--world-model", str(checkpoint)])
    assert called == [(str(tmp_path), {"seed": 3, "world_model": str(checkpoint)})]
