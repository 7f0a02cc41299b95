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
    np.testing.assert_allclose(steps[:, :3, 3], [[1.02, 0, 0], [1.04, 0, 0], [0.98, 0, 0]], atol=1e-12)
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


def test_speeds_of_the_car_may_be_given_or_left_out():
    actions = np.column_stack([RNG.uniform(-0.5, 0.5, 20), np.full(20, 1.5)])
    poses = CAR.integrate(START, actions, 0.2, 3.0)
    np.testing.assert_allclose(CAR.recover(poses, 0.2, None), actions, atol=1e-6)
    np.testing.assert_allclose(CAR.recover(poses, 0.2, 3.0 + 0.3 * np.arange(21)), actions, atol=1e-6)
    with pytest.raises(ValueError, match=r"expected one number or one a pose: \(21,\)"):
        CAR.recover(poses, 0.2, np.zeros(20))
    assert CAR.recover(poses[:1], 0.2, None).shape == (0, 2)
    np.testing.assert_allclose(CAR.recover(poses[:2], 0.2, None)[0], [actions[0, 0], 0.0], atol=1e-6)


def test_measured_poses_give_accelerations_near_the_true_ones():
    """Errors of 1 cm: estimated speeds keep them small, while from the first speed they would pile up."""
    actions = np.column_stack([np.zeros(60), 2 * np.sin(np.arange(60) / 8)])
    poses = CAR.integrate(START, actions, 0.2, 12.0)
    measured = poses.copy()
    measured[:, :2, 3] += RNG.normal(0, 0.01, (61, 2))
    estimated, exact = (CAR.recover(measured, 0.2, speed)[:, 1] - actions[:, 1] for speed in (None, 12.0))
    assert np.sqrt((estimated**2).mean()) < 0.5
    assert np.sqrt((exact**2).mean()) > 1.0


def test_a_car_that_stands_has_no_steering():
    poses = np.broadcast_to(START, (4, 4, 4))
    for speed in (None, 0.0):
        assert not CAR.recover(poses, 0.2, speed).any()


@pytest.mark.parametrize("motion", [RigidMotion(), RigidMotion(moving=True, turn_axes=(2, 0, 1)), CAR])
def test_parts_of_a_step_lead_where_it_leads(motion):
    actions = RNG.uniform(-0.3, 0.3, (5, motion.num_fields))
    parts = motion.divide(actions, 3)
    assert parts.shape == (5, 3, motion.num_fields)
    np.testing.assert_allclose(motion.join(parts), actions, atol=1e-9)
    whole = motion.integrate(START, actions, 0.3, 2.0)
    fine = motion.integrate(START, parts.reshape(15, -1), 0.1, 2.0)
    np.testing.assert_allclose(fine[::3], whole, atol=1e-9)


@pytest.mark.parametrize("motion", [RigidMotion(), RigidMotion(moving=True, turn_axes=(2, 0, 1))])
def test_joined_motions_end_where_the_parts_end(motion):
    parts = RNG.uniform(-0.3, 0.3, (4, 6))
    joined = motion.integrate(START, motion.join(parts)[None], 0.2, 0.0)
    np.testing.assert_allclose(joined[-1], motion.integrate(START, parts, 0.05, 0.0)[-1], atol=1e-9)


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
