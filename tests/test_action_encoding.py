"""Encodings of actions: what the network reads agrees with what the actions do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.models.action_encoding import bounds, matrix

RNG = np.random.default_rng(0)


def actions(name: str, num: int = 8) -> torch.Tensor:
    modality = ACTION_MODALITIES[name]
    return torch.from_numpy(RNG.uniform(modality.low, modality.high, (num, modality.action_dim)))


@pytest.mark.parametrize("name", ACTION_MODALITIES)
def test_bounds_become_minus_one_and_one(name):
    modality = ACTION_MODALITIES[name]
    for limit, value in ((modality.low, -1.0), (modality.high, 1.0)):
        encoded = bounds(torch.tensor(limit), modality)
        torch.testing.assert_close(encoded, torch.full_like(encoded, value))


def test_a_matrix_is_the_world_to_camera_motion_of_the_poses():
    modality, given = ACTION_MODALITIES["camera"], actions("camera")
    start = geometry.make_pose(geometry.rpy_to_matrix([0.3, -0.2, 0.9]), [1.0, 2.0, 3.0])
    poses = modality.integrate(start, given.numpy())
    extrinsics = geometry.inverse(poses)  # world to camera
    expected = extrinsics[1:] @ geometry.inverse(extrinsics[:-1])
    np.testing.assert_allclose(matrix(given, modality).reshape(-1, 3, 4), expected[:, :3], atol=1e-12)


def test_moving_forward_gives_a_negative_z():
    forward = torch.tensor([[0.0, 0.0, 0.1, 0.0, 0.0, 0.0]])
    encoded = matrix(forward, ACTION_MODALITIES["camera"]).reshape(3, 4)
    torch.testing.assert_close(encoded, torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -0.1]]))


def test_gradients_reach_the_actions():
    given = actions("camera").requires_grad_(True)
    matrix(given, ACTION_MODALITIES["camera"]).square().sum().backward()
    assert given.grad is not None and given.grad.abs().sum() > 0
