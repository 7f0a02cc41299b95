"""The distance to a goal picture, learned from recordings: pairs, motions, and how good it is said to be."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny import save_checkpoint, seeded, write_dataset

from astra_env import geometry
from astra_env.models import WorldModel
from astra_env.models.goal_model import FILE_NAME, load_goal_model
from astra_env.training.episodes import load_episodes
from astra_env.training.fit_goal import (
    FitGoalConfig,
    Sights,
    Views,
    _some_mirrored,
    fit_goal,
    goal_report,
    motion_between,
    read_sights,
    train_goal_model,
)

QUICK = {"num_steps": 5, "batch_size": 32}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> str:
    """A tiny checkpoint."""
    return str(save_checkpoint(tmp_path_factory.mktemp("world"), domains=[]))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), num_train=3, num_heldout=2, num_chunks=9)


def config(world, data, out="unused", **changes) -> FitGoalConfig:
    return FitGoalConfig(str(data), out=str(out), world_model=world, **QUICK | changes)


def random_poses(count, seed):
    rng = np.random.default_rng(seed)
    turns = geometry.axis_angle_to_matrix(rng.normal(size=(count, 3)))
    return torch.from_numpy(geometry.make_pose(turns, rng.normal(size=(count, 3))))


@pytest.mark.parametrize("moving", [True, False])
def test_a_motion_leads_from_the_one_pose_to_the_other(moving):
    poses, goals = random_poses(5, 0), random_poses(5, 1)
    way, turn = motion_between(poses, goals, moving=moving).double().split(3, dim=1)
    turn = torch.from_numpy(geometry.axis_angle_to_matrix(turn.numpy()))
    if moving:
        led = poses @ torch.from_numpy(geometry.make_pose(turn.numpy(), way.numpy()))
    else:
        led = torch.from_numpy(geometry.make_pose((turn @ poses[:, :3, :3]).numpy(), (poses[:, :3, 3] + way).numpy()))
    torch.testing.assert_close(led, goals, atol=1e-5, rtol=1e-5)


def test_pairs_show_what_their_motions_tell(world, data):
    model = WorldModel.from_pretrained(world, device="cpu")
    sights = read_sights(config(world, data), model, "heldout")
    episodes = load_episodes(data, "heldout", frame_size=32)
    assert [len(views.shown) for views in sights.views] == [2 * 10, 2 * 4]
    assert sights.views[1].time.tolist() == 2 * [5, 6, 7, 8]  # four chunks are known of the eight of a piece
    index = torch.randint(8, (16,), generator=seeded())
    latents, goals, motions = sights.pairs(sights.views[1], index, torch.full((16,), 3))
    episode, time = sights.views[1].episode[index], sights.views[1].time[index]
    later = (time + 3).clamp(max=9)
    with torch.no_grad():
        stills = model.autoencoder.encode(episodes.frames[episode, 4 * later][:, None])[:, :, 0]
    torch.testing.assert_close(goals, stills, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        motions[:, :3], (sights.poses[episode, later] - sights.poses[episode, time])[:, :3, 3].float()
    )
    assert latents.shape == goals.shape


def test_cameras_are_read_off_pictures(world, tmp_path):
    data = write_dataset(tmp_path / "data", kind="camera", num_train=2, num_heldout=2, num_chunks=9)
    model = WorldModel.from_pretrained(world, device="cpu")
    train, heldout = (read_sights(config(world, data), model, split) for split in ("train", "heldout"))
    assert [len(views.shown) for views in train.views] == [2 * 37]  # nothing is dreamt to learn from
    assert [len(views.shown) for views in heldout.views] == [2 * 37, 2 * 4]
    assert heldout.views[1].time.tolist() == 2 * [20, 24, 28, 32] and heldout.span(2) == 8
    frames = load_episodes(data, "heldout", frame_size=32).frames
    here, goals, _ = heldout.pairs(heldout.views[0], torch.tensor([12, 45]), torch.tensor([8, 16]))
    for pictures, rows in ((here, (frames[0, 12], frames[1, 8])), (goals, (frames[0, 20], frames[1, 24]))):
        torch.testing.assert_close(pictures, torch.stack(rows).movedim(-1, 1).float() / 127.5 - 1)
    dreamt = heldout.views[1].shown
    assert dreamt.dtype == torch.uint8 and dreamt.shape[1:] == (32, 32, 3) and dreamt.float().std() > 1
    out = tmp_path / "goal"
    report = fit_goal(config(world, data, out))
    assert report["imagined_num_pairs"] == 8 and load_goal_model(out).reads_pictures


def test_cars_are_read_off_latents_as_their_poses_are_no_camera_s(world, tmp_path):
    data = write_dataset(tmp_path / "data", kind="vehicle", num_train=2, num_heldout=2, num_chunks=9)
    out = tmp_path / "goal"
    sights = read_sights(config(world, data), WorldModel.from_pretrained(world, device="cpu"), "train")
    assert sights.moving and not sights.pictures and len(sights.views) == 2
    fit_goal(config(world, data, out))
    assert not load_goal_model(out).reads_pictures


def test_a_mirror_shows_a_camera_that_moves_as_in_a_mirror():
    here, goals = torch.randn(2, 40, 3, 4, 4, generator=seeded())
    motions = torch.randn(40, 6, generator=seeded(1))
    shown, ahead, told = _some_mirrored(here, goals, motions, seeded(2))
    mirrored = (shown != here).flatten(1).any(1)
    assert 5 < mirrored.sum() < 35
    flipped = torch.where(mirrored[:, None, None, None], goals.flip(-1), goals)
    torch.testing.assert_close(ahead, flipped, atol=0, rtol=0)
    mirror = np.diag([-1.0, 1.0, 1.0])
    for motion, said, seen in zip(motions.double().numpy(), told.double().numpy(), mirrored.tolist(), strict=True):
        turn = geometry.axis_angle_to_matrix(motion[3:])
        if seen:
            motion[:3], turn = mirror @ motion[:3], mirror @ turn @ mirror
        np.testing.assert_allclose(said[:3], motion[:3])
        np.testing.assert_allclose(geometry.axis_angle_to_matrix(said[3:]), turn, atol=1e-6)


def test_what_latents_show_is_learned():
    """Each latent has its place in three of its channels."""
    poses = torch.eye(4, dtype=torch.float64).repeat(8, 10, 1, 1)
    poses[..., :3, 3] = 0.1 * torch.randn(8, 10, 3, generator=seeded())
    latents = 0.1 * torch.randn(8, 10, 4, 4, 4, generator=seeded(1))
    latents[:, :, :3] += 10 * poses[:, :, :3, 3, None, None].float()
    views = Views(latents.flatten(0, 1), torch.arange(8).repeat_interleave(10), torch.arange(10).repeat(8))
    sights = Sights((views, views), latents, poses, moving=False)
    learning = config("", "", num_steps=600, apart=4)
    report = goal_report(train_goal_model(sights, learning), sights, views, learning)
    assert report["metres_error"] < 0.3 * report["metres_guessing"] and report["metres_correlation"] > 0.9


def test_a_fit_writes_the_network_and_how_good_it_is(world, data, tmp_path):
    out = tmp_path / "goal"
    report = fit_goal(config(world, data, out))
    assert report == json.loads((out / "goals.json").read_text())
    assert {path.name for path in out.iterdir()} == {FILE_NAME, "goals.json"}
    assert report["recorded_num_pairs"] == 20 and report["imagined_num_pairs"] == 8
    assert 0 < report["recorded_metres_error"] < 1 and report["recorded_metres_guessing"] > 0.01
    assert report["recorded_radians_guessing"] < 1e-5 and report["imagined_radians_correlation"] == 0  # nothing turns
    latents = torch.zeros(1, 16, 4, 4)
    assert load_goal_model(out)(latents, latents).shape == (1, 6)


def test_the_seed_decides(world, data, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        fit_goal(config(world, data, tmp_path / name, num_steps=3, seed=seed))
    weights = [(tmp_path / name / FILE_NAME).read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]


def test_wrong_input_is_told(world, tmp_path):
    with pytest.raises(ValueError, match="num_steps is 0"):
        config(world, "data", num_steps=0)
    short = write_dataset(tmp_path / "short", num_chunks=6)
    with pytest.raises(ValueError, match="have 6 chunks, expected at least 8"):
        fit_goal(config(world, short, tmp_path / "out"))
