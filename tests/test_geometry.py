"""Rigid motions: the conversions are inverse to one another and turn the right way."""

from __future__ import annotations

import numpy as np
import pytest

from astra_env import geometry

RNG = np.random.default_rng(0)


def random_poses(*batch: int) -> np.ndarray:
    rotation = geometry.quaternion_to_matrix(RNG.normal(size=(*batch, 4)))
    return geometry.make_pose(rotation, RNG.normal(size=(*batch, 3)))


def test_composing_with_the_inverse_gives_the_identity():
    poses = random_poses(3, 5)
    np.testing.assert_allclose(
        geometry.compose(poses, geometry.inverse(poses)), np.broadcast_to(np.eye(4), (3, 5, 4, 4)), atol=1e-12
    )


def test_relative_leads_from_start_to_end():
    start, end = random_poses(7), random_poses(7)
    np.testing.assert_allclose(geometry.compose(start, geometry.relative(start, end)), end, atol=1e-12)


@pytest.mark.parametrize(
    ("to_matrix", "from_matrix"),
    [
        (geometry.rpy_to_matrix, geometry.matrix_to_rpy),
        (geometry.axis_angle_to_matrix, geometry.matrix_to_axis_angle),
        (geometry.quaternion_to_matrix, geometry.matrix_to_quaternion),
    ],
    ids=["rpy", "axis_angle", "quaternion"],
)
def test_conversions_are_inverse_to_one_another(to_matrix, from_matrix):
    rotation = random_poses(200)[:, :3, :3]
    np.testing.assert_allclose(to_matrix(from_matrix(rotation)), rotation, atol=1e-9)


@pytest.mark.parametrize("axis", range(3))
def test_a_quarter_turn_is_right_handed(axis):
    vector = np.zeros(3)
    vector[axis] = np.pi / 2
    following, last = np.eye(3)[(axis + 1) % 3], np.eye(3)[(axis + 2) % 3]
    for rotation in (geometry.rpy_to_matrix(vector), geometry.axis_angle_to_matrix(vector)):
        np.testing.assert_allclose(rotation @ following, last, atol=1e-12)


def test_roll_pitch_yaw_turn_about_fixed_axes_in_this_order():
    roll, pitch, yaw = (geometry.rpy_to_matrix(np.eye(3)[i] * angle) for i, angle in enumerate((0.3, -0.5, 0.9)))
    np.testing.assert_allclose(geometry.rpy_to_matrix([0.3, -0.5, 0.9]), yaw @ pitch @ roll, atol=1e-12)


@pytest.mark.parametrize("axis", np.concatenate([np.eye(3), [[0.6, 0.8, 0.0], [0.48, 0.6, 0.64]]]))
@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-6, 1.0, np.pi - 1e-6, np.pi])
def test_the_logarithm_holds_at_its_ends(axis, angle):
    vector = geometry.matrix_to_axis_angle(geometry.axis_angle_to_matrix(axis * angle))
    assert np.linalg.norm(vector) == pytest.approx(angle, abs=1e-9)
    # a half turn about an axis is one about the opposite axis as well
    near = min(np.abs(vector - axis * angle).max(), np.abs(vector + axis * angle).max() if angle == np.pi else np.inf)
    assert near < 1e-6


def test_quaternions_have_a_positive_scalar_part_last():
    quaternion = geometry.matrix_to_quaternion(random_poses(50)[:, :3, :3])
    assert (quaternion[:, 3] >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(quaternion, axis=-1), 1.0)
    np.testing.assert_allclose(geometry.matrix_to_quaternion(np.eye(3)), [0, 0, 0, 1])


@pytest.mark.parametrize("scalar_first", [False, True])
def test_poses_become_translations_and_quaternions_and_back(scalar_first):
    poses = random_poses(3, 40)
    vectors = geometry.pose_to_vector7(poses, scalar_first=scalar_first)
    assert vectors.shape == (3, 40, 7)
    np.testing.assert_allclose(geometry.vector7_to_pose(vectors, scalar_first=scalar_first), poses, atol=1e-9)
    opposite = vectors * np.array([1, 1, 1, -1, -1, -1, -1])  # the same rotation
    np.testing.assert_allclose(geometry.vector7_to_pose(opposite, scalar_first=scalar_first), poses, atol=1e-9)
    assert (vectors[..., 3 if scalar_first else 6] >= 0).all()
    np.testing.assert_allclose(
        geometry.pose_to_vector7(geometry.vector7_to_pose(opposite, scalar_first=scalar_first)),
        geometry.pose_to_vector7(poses),
        atol=1e-9,
    )


def test_the_orders_of_a_quaternion_are_those_of_the_data_sets():
    pose = geometry.make_pose(geometry.rpy_to_matrix([0, 0, np.pi / 2]), [1, 2, 3])
    half = np.sqrt(0.5)
    np.testing.assert_allclose(geometry.pose_to_vector7(pose), [1, 2, 3, 0, 0, half, half], atol=1e-12)
    np.testing.assert_allclose(
        geometry.pose_to_vector7(pose, scalar_first=True), [1, 2, 3, half, 0, 0, half], atol=1e-12
    )


def test_relative_poses_become_rows_of_twelve_and_back():
    steps = geometry.relative(random_poses(5, 8), random_poses(5, 8))
    rows = geometry.pose_to_vector12(steps)
    np.testing.assert_array_equal(rows[2, 3, [3, 7, 11]], steps[2, 3, :3, 3])
    np.testing.assert_array_equal(rows[2, 3, 4:7], steps[2, 3, 1, :3])
    np.testing.assert_array_equal(geometry.vector12_to_pose(rows), steps)


@pytest.mark.parametrize(("to_pose", "size"), [(geometry.vector7_to_pose, 7), (geometry.vector12_to_pose, 12)])
def test_a_pose_vector_of_another_length_is_refused(to_pose, size):
    for vector in (np.zeros((2, size + 1)), np.float64(0)):
        with pytest.raises(ValueError, match=rf"expected \(..., {size}\)"):
            to_pose(vector)
