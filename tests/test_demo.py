from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from rrd import read
from tiny import DOMAINS, random_actions, random_frames, save_checkpoint

from astra_env.cli import main
from astra_env.demo import Demonstration, demonstrations, run_demo
from astra_env.models import WorldModel
from astra_env.video import read_video


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny world of four domains, with a recording of two still and three scripted chunks of each."""
    folder = save_checkpoint(tmp_path_factory.mktemp("world"))
    for domain, modality in DOMAINS.items():
        frames = random_frames(1, 21)[0].numpy()
        actions = random_actions(5, modality=modality).numpy()
        actions[:2] = 0
        goal = {"goal": frames[-1]} if domain == "robot" else {}
        path = folder / "domains" / domain / "demo.npz"
        np.savez_compressed(path, frames=frames, actions=actions, speed=7.5, **goal)
    return folder


def test_the_history_before_the_script_is_still(checkpoint):
    demonstration = Demonstration.load(checkpoint / "domains", "driving", (32, 32))
    assert demonstration.chunk_frames == 4
    assert demonstration.num_still == 2
    assert demonstration.goal is None
    history = demonstration.history
    assert history["frames"].shape == (9, 32, 32, 3) and history["actions"].shape == (2, 2) and history["speed"] == 7.5


def test_a_world_shows_the_domains_that_it_has(checkpoint, tmp_path):
    shown = demonstrations(WorldModel.from_pretrained(checkpoint))
    assert list(shown) == ["Astra-RT1-v0", "Astra-NuScenes-v0", "Astra-Sekai-v0", "Astra-MultiCam-v0"]
    save_checkpoint(tmp_path / "one", domains=["robot"])
    assert list(demonstrations(WorldModel.from_pretrained(tmp_path / "one"))) == ["Astra-RT1-v0"]


def test_a_domain_without_a_recording_takes_the_bundled_one(checkpoint, tmp_path):
    theirs = Demonstration.load(tmp_path, "robot", (32, 32))
    assert theirs.frames.shape[1:] == (32, 32, 3) and theirs.goal.shape == (32, 32, 3)


def test_the_demo_writes_a_video_and_recordings_and_tells_how_to_open_them(checkpoint, tmp_path, capsys):
    results = run_demo(tmp_path, world_model=str(checkpoint), num_plan_steps=2)
    assert results.keys() == {"video", *DOMAINS}
    for domain in DOMAINS:
        assert len(results[domain]["psnr"]) == 3
        assert all(np.isfinite(results[domain]["psnr"]))
        assert results[domain]["step_ms"] > 0
        assert results[domain]["recording"] == tmp_path / f"{domain}.rrd"
    assert len(results["robot"]["goal_distance"]) == 3 and "goal_distance" not in results["driving"]
    frames = read_video(results["video"])
    assert frames.shape == (4 * 13 + 9, 480, 772, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["demo.mp4", *(f"{d}.rrd" for d in DOMAINS)])
    shown = read(results["robot"]["recording"])
    assert len(shown["frames/recorded"]) == 13 + 1 and len(shown["frames/goal"]) == 1  # black while it plans
    assert len(shown["world/plans/chosen"]) == 2 and len(shown["reward/total"]) == 3 + 2
    printed = capsys.readouterr().out
    assert "ms a step" in printed
    assert "dB after 3 steps" in printed
    assert "demo.mp4" in printed
    assert f"{tmp_path / 'robot.rrd'} {tmp_path / 'driving.rrd'}" in printed


def test_the_seed_decides_the_demo(tmp_path):
    folder = save_checkpoint(tmp_path / "world", domains=["robot"])
    first, again = (run_demo(tmp_path / name, world_model=str(folder), num_plan_steps=1) for name in ("first", "again"))
    assert first["robot"]["psnr"] == again["robot"]["psnr"]
    assert first["robot"]["goal_distance"] == again["robot"]["goal_distance"]


def test_the_command_runs_the_demo(checkpoint, tmp_path, monkeypatch, capsys):
    called = []
    monkeypatch.setattr("astra_env.demo.run_demo", lambda out, **options: called.append((out, options)))
    main(["demo", "--out", str(tmp_path), "--seed", "3", "--world-model", str(checkpoint)])
    assert called == [(str(tmp_path), {"seed": 3, "world_model": str(checkpoint)})]


@pytest.mark.simulator
@pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="mujoco: make simulators")
def test_a_recorded_script_begins_still_and_then_moves(tmp_path):
    from astra_env.simulators.demonstration import HOLD, SCRIPTS, record_demonstration

    record_demonstration(tmp_path / "camera" / "demo.npz", "Astra-Sekai-v0")
    demonstration = Demonstration.load(tmp_path, "camera", (64, 64))
    assert demonstration.num_still == HOLD
    assert len(demonstration.actions) == HOLD + sum(chunks for _, _, chunks in SCRIPTS["Astra-Sekai-v0"].rows)
    still, moving = np.split(demonstration.frames, [1 + 4 * HOLD])
    assert (still == still[0]).all() and (moving[3] != still[0]).any()
