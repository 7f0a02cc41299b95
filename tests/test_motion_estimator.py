"""The estimator of motion: what it measures, and that it learns it from pairs of pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import SIZE, perturb, random_frames, seeded
from torch.nn import functional as F

from astra_env.actions import ACTION_MODALITIES
from astra_env.geometry import make_pose, rpy_to_matrix
from benchmarks.domain_table import CAMERA_MOTION, CAR_MOTION
from benchmarks.motion_estimator import MotionEstimator, fit_motion_estimator
from benchmarks.motion_following import pose_errors


def shifted_pictures(count, seed):
    """Pairs of one texture moved by up to 5 pixels (count, 2, 32, 32, 3) and the moves (count, 1, 2)."""
    generator = seeded(seed)
    texture = F.interpolate(torch.rand(count, 3, 11, 11, generator=generator), (44, 44), mode="bicubic").clamp(0, 1)
    moves = torch.randint(-5, 6, (count, 2), generator=generator)
    pairs = torch.zeros(count, 2, 3, SIZE, SIZE)
    for pair, picture, (x, y) in zip(pairs, texture, moves.tolist(), strict=True):
        pair[0], pair[1] = picture[:, 6:38, 6:38], picture[:, 6 + y : 38 + y, 6 + x : 38 + x]
    return (255 * pairs).to(torch.uint8).movedim(2, -1).contiguous(), moves[:, None].float()


def test_the_estimator_learns_how_a_picture_shifts():
    frames, moves = shifted_pictures(512, seed=0)
    shown, truth = shifted_pictures(64, seed=1)
    model = fit_motion_estimator(frames, moves, -moves, steps=120, batch_size=24)
    error = (model(shown) - truth[:, 0]).abs().mean(0)
    assert (error < 0.4 * truth.abs().mean((0, 1))).all()
    back = (model(shown.flip(1)) + truth[:, 0]).abs().mean(0)
    assert (back < 0.4 * truth.abs().mean((0, 1))).all(), "trained in both orders, it knows the way back"


def test_a_video_is_the_pairs_of_its_chunks_ends():
    model = MotionEstimator(2).eval().requires_grad_(False)
    perturb(model)
    video = random_frames(2, 13)
    for k in range(3):
        pair = video[:, [4 * k, 4 * k + 4]]
        torch.testing.assert_close(model.of_video(video)[:, k], model(pair))


@pytest.mark.parametrize("axis", range(6))
def test_camera_motion_is_the_action_that_was_carried_out(axis):
    action = np.zeros((3, 6))
    action[:, axis] = 0.15
    poses = ACTION_MODALITIES["camera"].integrate(make_pose(rpy_to_matrix([0.3, -0.2, 1.0]), [1, 2, 3]), action)
    np.testing.assert_allclose(CAMERA_MOTION.between(poses), action, atol=1e-6)
    assert CAMERA_MOTION.distance(action) == pytest.approx(0.45 if axis < 3 else 0)


@pytest.mark.parametrize(("speed", "steering"), [(4.0, 0.2), (3.4, 0.0), (-2.6, -0.3)])
def test_car_motion_is_speed_and_yaw_rate(speed, steering):
    poses = ACTION_MODALITIES["vehicle"].integrate(np.eye(4), np.array([[steering, 0.0]]), speed=speed)
    expected = [[speed, speed * np.tan(steering) / 2.7]]
    np.testing.assert_allclose(CAR_MOTION.between(poses), expected, rtol=2e-3, atol=1e-6)
    assert CAR_MOTION.distance(CAR_MOTION.between(poses)) == pytest.approx(abs(speed) / 5, rel=2e-3)


def test_pose_errors_of_a_known_difference():
    truth = make_pose(rpy_to_matrix([0.2, 0.1, -0.4]), [1, 2, 3])
    off = truth @ make_pose(rpy_to_matrix([0.0, np.pi / 6, 0.0]), [0.3, 0.0, 0.4])
    rotation, translation = pose_errors(off, truth)
    assert rotation == pytest.approx(30) and translation == pytest.approx(0.5)
