"""Motions: arcs of a car by hand, inverses, and poses between poses."""

from __future__ import annotations

import numpy as np
import pytest

from astra_env import geometry
from astra_env.kinematics import BicycleMotion, RigidMotion, interpolate_poses

RNG = np.random.default_rng(0)
START = geometry.make_pose(geometry.rpy_to_matrix([0.0, 0.0, 0.7]), [5.0, 1.0, 0.0])
CAR = BicycleMotion(wheelbase=2.5)


def test_a_car_drives_straight_without_steering():
    poses = CAR.integrate(START, np.array([[0.0, 1.0], [0.0, 0.0], [0.0, -3.0]]), 0.2, 5.0)
    steps = geometry.relative(poses[:-1], poses[1:])
    np.testing.assert_allclose(steps[:, :3, 3], [[1.04, 0, 0], [1.04, 0, 0], [0.92, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(steps[:, :3, :3], np.broadcast_to(np.eye(3), (3, 3, 3)), atol=1e-12)


@pytest.mark.parametrize("side", [1, -1])
def test_a_car_that_steers_stays_on_a_circle(side):
    steering = side * 0.3
    radius = CAR.wheelbase / np.tan(steering)
    poses = CAR.integrate(START, np.tile([steering, 0.0], (20, 1)), 0.2, 4.0)
    centre = geometry.compose(START, geometry.make_pose(np.eye(3), [0, radius, 0]))[:3, 3]
    np.testing.assert_allclose(np.linalg.norm(poses[:, :3, 3] - centre, axis=1), abs(radius), atol=1e-9)
    turned = geometry.matrix_to_rpy(geometry.relative(poses[0], poses[1])[:3, :3])[2]
    np.testing.assert_allclose(turned, 0.8 / radius, atol=1e-12)  # left is positive; arc over radius


def test_reversing_turns_the_other_way():
    forward, back = (CAR.integrate(np.eye(4), np.array([[0.2, 0.0]]), 0.2, v)[1] for v in (3.0, -3.0))
    assert back[0, 3] < 0 < forward[0, 3]
    np.testing.assert_allclose(geometry.matrix_to_rpy(back[:3, :3])[2], -geometry.matrix_to_rpy(forward[:3, :3])[2])


def test_steering_and_acceleration_are_recovered():
    actions = np.stack([RNG.uniform(-0.5, 0.5, 40), RNG.uniform(-2, 2, 40)], axis=-1)
    poses = CAR.integrate(START, actions, 0.2, 8.0)
    np.testing.assert_allclose(CAR.recover(poses, 0.2, 8.0), actions, atol=1e-6)


def test_a_car_that_stands_has_no_steering():
    poses = np.broadcast_to(START, (4, 4, 4))
    assert not CAR.recover(poses, 0.2, 0.0).any()


@pytest.mark.parametrize("motion", [RigidMotion(), RigidMotion(moving=True, turn_axes=(2, 0, 1))])
def test_rigid_motions_are_recovered(motion):
    actions = RNG.uniform(-0.3, 0.3, (12, 6))
    poses = motion.integrate(START, actions, 0.2, 0.0)
    np.testing.assert_allclose(motion.recover(poses, 0.2, 0.0), actions, atol=1e-9)


def test_poses_between_poses_move_and_turn_evenly():
    end = geometry.compose(START, geometry.make_pose(geometry.rpy_to_matrix([0.0, 0.0, 0.8]), [2.0, 0.0, 0.0]))
    between = interpolate_poses(np.stack([START, end]), [10.0, 12.0], [10.0, 10.5, 12.0])
    np.testing.assert_allclose(between[[0, 2]], [START, end], atol=1e-9)
    quarter = geometry.relative(START, between[1])
    np.testing.assert_allclose(quarter[:3, 3], [0.5, 0, 0], atol=1e-9)
    np.testing.assert_allclose(geometry.matrix_to_rpy(quarter[:3, :3]), [0, 0, 0.2], atol=1e-9)


def test_poses_outside_the_known_times_are_refused():
    poses = np.stack([START, START])
    with pytest.raises(ValueError, match=r"wanted from 0.0 to 3.0, but known in \[1.0, 2.0\]"):
        interpolate_poses(poses, [1.0, 2.0], [0.0, 3.0])
    with pytest.raises(ValueError, match="two that increase"):
        interpolate_poses(poses, [1.0, 1.0], [1.0])
