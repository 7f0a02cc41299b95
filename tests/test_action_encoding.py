"""Encodings of actions: what the network reads agrees with what the actions do."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny import random_actions, random_frames, tiny_world_model

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.models.action_encoding import (
    LONGEST_ARC,
    WIDEST_TURN,
    arc,
    bounds,
    encoded_width,
    matrix,
    usual_encoding,
)
from astra_env.training.episodes import Episodes
from astra_env.training.world_model import make_tracks

RNG = np.random.default_rng(0)
STANDING = torch.zeros(())


def actions(name: str, num: int = 8) -> torch.Tensor:
    modality = ACTION_MODALITIES[name]
    return torch.from_numpy(RNG.uniform(modality.low, modality.high, (num, modality.action_dim)))


@pytest.mark.parametrize("name", ACTION_MODALITIES)
def test_bounds_become_minus_one_and_one(name):
    modality = ACTION_MODALITIES[name]
    for limit, value in ((modality.low, -1.0), (modality.high, 1.0)):
        encoded = bounds(torch.tensor(limit), modality, STANDING)
        torch.testing.assert_close(encoded, torch.full_like(encoded, value))


def test_a_matrix_is_the_world_to_camera_motion_of_the_poses():
    modality, given = ACTION_MODALITIES["camera"], actions("camera")
    start = geometry.make_pose(geometry.rpy_to_matrix([0.3, -0.2, 0.9]), [1.0, 2.0, 3.0])
    poses = modality.integrate(start, given.numpy())
    extrinsics = geometry.inverse(poses)  # world to camera
    expected = extrinsics[1:] @ geometry.inverse(extrinsics[:-1])
    np.testing.assert_allclose(matrix(given, modality, STANDING).reshape(-1, 3, 4), expected[:, :3], atol=1e-12)


def test_moving_forward_gives_a_negative_z():
    forward = torch.tensor([[0.0, 0.0, 0.1, 0.0, 0.0, 0.0]])
    encoded = matrix(forward, ACTION_MODALITIES["camera"], STANDING).reshape(3, 4)
    torch.testing.assert_close(encoded, torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -0.1]]))


def test_an_arc_is_the_relative_pose_of_the_kinematics():
    modality, given = ACTION_MODALITIES["vehicle"], actions("vehicle")
    poses = modality.integrate(np.eye(4), given.numpy(), speed=6.0)
    steps = geometry.relative(poses[:-1], poses[1:])
    turn = geometry.matrix_to_rpy(steps[:, :3, :3])[:, 2]
    chord = np.linalg.norm(steps[:, :3, 3], axis=-1) * np.sign(steps[:, 0, 3])
    encoded = arc(given, modality, torch.tensor(6.0))
    torch.testing.assert_close(encoded[:, :2], bounds(given, modality, STANDING))
    np.testing.assert_allclose(WIDEST_TURN * encoded[:, 3], turn, atol=1e-12)
    np.testing.assert_allclose(LONGEST_ARC * encoded[:, 2] * np.sinc(turn / 2 / np.pi), chord, atol=1e-12)


def test_an_arc_depends_on_the_speed_of_its_own_row():
    modality, given = ACTION_MODALITIES["vehicle"], actions("vehicle")
    both = arc(torch.stack([given, given]), modality, torch.tensor([2.0, 9.0]))
    for row, speed in zip(both, (2.0, 9.0), strict=True):
        torch.testing.assert_close(row, arc(given, modality, torch.tensor(speed)))
    torch.testing.assert_close(both[1, :, 2] - both[0, :, 2], torch.full_like(both[0, :, 2], 7 / 5 / LONGEST_ARC))


def test_every_modality_has_an_encoding_of_known_width():
    widths = {name: encoded_width(usual_encoding(modality), modality) for name, modality in ACTION_MODALITIES.items()}
    assert widths["vehicle"] == 4 and widths["camera"] == 6 and widths["end_effector"] == 7
    assert encoded_width("matrix", ACTION_MODALITIES["camera"]) == 12


@pytest.mark.parametrize(("encode", "name"), [(arc, "camera"), (matrix, "vehicle")])
def test_an_encoding_refuses_actions_of_another_kind(encode, name):
    with pytest.raises(ValueError, match=f"{name} actions are"):
        encode(actions(name), ACTION_MODALITIES[name], STANDING)


@pytest.mark.parametrize(("encode", "name"), [(arc, "vehicle"), (matrix, "camera")])
def test_gradients_reach_the_actions(encode, name):
    given = actions(name).requires_grad_(True)
    encode(given, ACTION_MODALITIES[name], torch.tensor(5.0)).square().sum().backward()
    assert given.grad is not None and (given.grad.abs().sum(0) > 0).all()


# What a world makes of it


@pytest.fixture(scope="module")
def driver():
    widths = {"vehicle": 4, "camera": 6}
    world_model = tiny_world_model(action_dims=widths, action_encodings={"vehicle": "arc", "camera": "bounds"})
    assert world_model.modalities["vehicle"].action_dim == 2
    return world_model


@torch.no_grad()
def test_a_world_at_another_speed_moves_otherwise(driver):
    frames, action = random_frames(1, 1).repeat(2, 1, 1, 1, 1), random_actions(1, modality="vehicle").repeat(2, 1)
    ends = [
        driver.step(driver.init_state(frames, "vehicle", seeds=[0, 0], speeds=[3.0, v]), action) for v in (3.0, 9.0)
    ]
    torch.testing.assert_close(ends[0].newest[0], ends[0].newest[1])
    assert (ends[1].newest[0] - ends[1].newest[1]).abs().max() > 1e-4


@torch.no_grad()
def test_recorded_actions_are_read_at_the_speeds_that_they_had(driver):
    """A world that is told of two actions reads them as one that has imagined them."""
    actions = random_actions(1, 2, modality="vehicle")
    imagined = driver.imagine(driver.init_state(random_frames(1, 1), "vehicle", speeds=[4.0]), actions)
    told = driver.init_state(random_frames(1, 9), "vehicle", actions=actions, speeds=imagined.speeds)
    torch.testing.assert_close(told.actions[:, -2:], imagined.actions[:, -2:])
    torch.testing.assert_close(driver.step(told, actions[:, 0]).speeds, driver.step(imagined, actions[:, 0]).speeds)


@torch.no_grad()
def test_training_reads_actions_at_the_recorded_speeds(driver):
    actions = random_actions(2, 3, modality="vehicle")
    frames, nothing = random_frames(2, 13), torch.zeros(2, 4)
    speeds = torch.tensor([[5.0], [1.0]]) + torch.cat([torch.zeros(2, 1), actions[..., 1].cumsum(1) / 5], dim=1)
    episodes = Episodes("driving", "vehicle", frames, actions, nothing, nothing > 0, speeds=speeds)
    (track,) = make_tracks(driver, [episodes], [torch.zeros(2, 4, 16, 8, 8)], torch.ones(1))
    expected = driver.normalise(actions, ("vehicle",) * 2, torch.tensor([5.0, 1.0]))
    torch.testing.assert_close(track.actions, expected)
    with pytest.raises(ValueError, match="driving has no speed"):
        make_tracks(driver, [dataclasses.replace(episodes, speeds=None)], [track.latents], torch.ones(1))
