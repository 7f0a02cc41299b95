"""Models that tell where a task's target is, learned from recordings."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from tiny import save_checkpoint, seeded, write_dataset

from astra_env import geometry
from astra_env.envs import SURE
from astra_env.envs.target_kit import load_target
from astra_env.models import WorldModel
from astra_env.simulators import TARGETS
from astra_env.training.fit_target import FitTargetConfig, fit_target, measure, read_examples, train_target_model

REACH = "Astra-RT1-Reach-v0"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return str(save_checkpoint(tmp_path_factory.mktemp("world"), domains=["robot"]))


def test_a_ball_is_told_as_the_camera_sees_it():
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[1, :3, :3], poses[1, :3, 3] = geometry.axis_angle_to_matrix([0, np.pi / 2, 0]), (1, 0, 0)  # looks along x
    told = TARGETS["Astra-Sekai-v0"].offsets({"measured_poses": poses, "goal": np.tile([3.0, 0.5, 0.0], (2, 1))})
    np.testing.assert_allclose(told, [[[3, 0.5, 0]], [[0, 0.5, 2]]], atol=1e-9)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), num_train=4, num_heldout=2, num_chunks=8)


def config(world, data, out="unused", **changes):
    quick = {"task": REACH, "num_steps": 5, "batch_size": 32, "num_heads": 1}
    return FitTargetConfig(str(data), out=str(out), world_model=world, **quick | changes)


def test_examples_tell_the_gripper_and_the_way_to_the_cube(world, data):
    latents, points, still = read_examples(config(world, data), WorldModel.from_pretrained(world), "heldout")
    assert latents.shape[0] == len(points) == 2 * 2 * 9 and still.sum() == 18
    arrays = np.load(sorted((data / "heldout").iterdir())[0])
    gripper = arrays["measured_poses"][::4, :3, 3]
    expected = np.stack([arrays["objects"][::4, 0] - gripper, gripper], axis=1)
    np.testing.assert_allclose(points[:9], expected, atol=1e-6)
    np.testing.assert_allclose(points[18:27], expected, atol=1e-6)


def test_recordings_that_do_not_tell_the_target_are_told(world, tmp_path):
    write_dataset(tmp_path, num_train=1, num_heldout=1, kind="camera")
    with pytest.raises(ValueError, match=r"has no goal, only frames.*; collect it again"):
        fit_target(config(world, tmp_path, task="Astra-Sekai-v0"))


def test_it_learns_what_latents_show(world, data):
    latents = torch.randn(512, 16, 4, 4, generator=seeded()) + torch.randn(512, 16, 1, 1, generator=seeded(1))
    offsets = 0.1 * latents[:, :3].mean((2, 3)) + 0.3
    examples = (latents[:400], offsets[:400, None], torch.zeros(400, dtype=torch.bool))
    model = train_target_model(examples, config(world, data, num_steps=150))
    with torch.no_grad():
        errors = (model(latents[400:]) - offsets[400:]).norm(dim=1)
    assert errors.mean() < 0.4 * (offsets[400:] - offsets.mean(0)).norm(dim=1).mean()


def test_it_learns_what_latents_show_and_where_they_show_nothing(world, data):
    """Half of the latents show the thing, the others do not."""
    latents, seen = torch.randn(1024, 16, 4, 4, generator=seeded()), torch.arange(1024) % 2 == 0
    points = 2 * torch.randn(1024, 3, generator=seeded(1))
    latents[seen, :3] = points[seen, :, None, None] + 0.1 * latents[seen, :3]
    latents[:, 3] = torch.where(seen, 2.0, -2.0)[:, None, None]
    examples = (latents[:800], points[:800, None], torch.zeros(800, dtype=torch.bool))
    settings = config(world, data, num_steps=300, batch_size=128, task="Astra-Sekai-v0")
    model = train_target_model(examples, settings)
    with torch.no_grad():
        metres, doubts = model.read(latents[800:])
    errors, shown = (metres - points[800:]).square().mean(1).sqrt(), seen[800:]
    assert doubts[shown].max() < 0.6 * doubts[~shown].min() and errors[shown].mean() < 0.3 * errors[~shown].mean()
    report = measure([model], (latents[800:], points[800:, None], ~shown), points[:1], TARGETS["Astra-Sekai-v0"])
    assert report["recorded_sure"] > 0.9 and report["still_sure"] == 0
    assert report["recorded_metres_error_where_sure"][0] < SURE and report["still_metres_error_where_sure"] is None


def test_a_fit_is_written_and_says_how_good_it_is(world, data, tmp_path):
    report = fit_target(config(world, data, tmp_path / "out", num_heads=2))
    assert json.loads((tmp_path / "out" / "targets.json").read_text()) == report
    assert len(load_target(tmp_path / "out").models) == 2
    assert report["num_latents"] == 36 and len(report["still_found"]) == 2  # the cube and the gripper
    assert all(0 <= share <= 1 for share in report["still_found"]) and min(report["recorded_metres_error"]) > 0


def test_wrong_input_is_told(world, data):
    with pytest.raises(ValueError, match="expected one of"):
        dataclasses.replace(config(world, data), task="Astra-MultiCam-v0")
    with pytest.raises(ValueError, match="at least 1 of each"):
        config(world, data, num_heads=0)
