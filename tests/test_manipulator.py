from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from policies.manipulator import Manipulator, imagine, minimum_jerk

pytest.importorskip("ikpy")

DOWN = np.diag([1.0, -1.0, -1.0])
MODALITY = ACTION_MODALITIES["end_effector"]
DENAVIT_HARTENBERG = [  # a, alpha of the link before, d: the manufacturer's table
    (0.0, 0.0, 0.333),
    (0.0, -np.pi / 2, 0.0),
    (0.0, np.pi / 2, 0.316),
    (0.0825, np.pi / 2, 0.0),
    (-0.0825, -np.pi / 2, 0.384),
    (0.0, np.pi / 2, 0.0),
    (0.088, np.pi / 2, 0.0),
]


@pytest.fixture(scope="module")
def arm() -> Manipulator:
    return Manipulator()


def at(x: float, y: float, z: float, rpy: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    """A pose of the tool, turned by rpy from pointing down."""
    return geometry.make_pose(geometry.rpy_to_matrix(rpy) @ DOWN, [x, y, z])


def missed(pose: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(pose - other).max())


def test_forward_kinematics_are_those_of_the_table(arm):
    joints = np.random.default_rng(0).uniform(arm.low, arm.high)
    pose = np.eye(4)
    for (a, alpha, d), joint in zip(DENAVIT_HARTENBERG, joints, strict=True):
        pose = pose @ geometry.make_pose(geometry.rpy_to_matrix([alpha, 0, 0]), [a, 0, 0])
        pose = pose @ geometry.make_pose(geometry.rpy_to_matrix([0, 0, joint]), [0, 0, d])
    pose = pose @ geometry.make_pose(geometry.rpy_to_matrix([0, 0, -0.75 * np.pi]), [0, 0, 0.2035])
    assert missed(arm.forward(joints), pose) < 1e-12
    assert arm.joint_names == tuple(f"joint{number}" for number in range(1, 8))
    assert arm.max_speeds[0] == 2.175


def test_inverse_kinematics_find_reachable_poses_within_the_limits(arm):
    rng = np.random.default_rng(0)
    for _ in range(10):
        pose = at(*rng.uniform([0.4, -0.2, -0.1], [0.65, 0.2, 0.3]), rpy=tuple(rng.uniform(-0.4, 0.4, 3)))
        joints = arm.inverse(pose)
        assert missed(arm.forward(joints), pose) < 1e-3
        assert ((joints >= arm.low) & (joints <= arm.high)).all()
        again = arm.inverse(pose, joints + 0.01)
        assert np.abs(again - joints).max() < 0.05


def test_a_motion_keeps_to_the_straight_line_the_bounds_and_the_limits(arm):
    start, end = at(0.5, 0.0, 0.1), at(0.6, 0.15, -0.05, rpy=(0.2, -0.1, 0.6))
    motion = arm.plan([start, end], grippers=[0.0, 1.0])
    MODALITY.validate(motion.actions)
    assert missed(motion.poses[0], start) < 1e-9
    assert missed(motion.poses[-1], end) < 1e-9
    led = MODALITY.integrate(start, motion.actions)
    for pose, joints, followed in zip(motion.poses, motion.joints, led, strict=True):
        assert missed(arm.forward(joints), pose) < 1e-3
        assert missed(followed, pose) < 1e-5
        assert ((joints >= arm.low) & (joints <= arm.high)).all()
    way, whole = motion.poses[:, :3, 3] - start[:3, 3], end[:3, 3] - start[:3, 3]
    assert np.linalg.norm(np.cross(way, whole / np.linalg.norm(whole)), axis=-1).max() < 1e-9
    assert (motion.actions[:, 6] == 1.0).all()
    np.testing.assert_allclose(np.diff(motion.times), 0.2)
    # one action less would leave the bounds
    shorter = MODALITY.from_poses(minimum_jerk(start, end, len(motion.actions) - 1), np.zeros(len(motion.actions)))
    assert (np.abs(shorter[:, :6]) > MODALITY.high[:6]).any()


def test_joints_that_would_turn_too_fast_take_more_time(arm):
    start, end = at(0.5, 0.0, 0.1), at(0.6, 0.1, 0.0)
    quick = arm.plan([start, end])
    slow = Manipulator()
    slow.max_speeds = arm.max_speeds / 10
    motion = slow.plan([start, end])
    assert len(motion.actions) > len(quick.actions)
    assert (np.abs(np.diff(motion.joints, axis=0)) * 5 <= slow.max_speeds + 1e-9).all()


def test_it_rests_at_each_way_point_and_moves_the_gripper_in_place(arm):
    middle = at(0.55, 0.05, 0.0)
    motion = arm.plan([at(0.5, 0, 0.1), middle, middle, at(0.5, 0, 0.1)], grippers=[0, 0, 1, 1])
    still = np.flatnonzero(np.abs(motion.actions[:, :6]).max(1) < 1e-9)
    assert len(still) == 1
    assert motion.actions[still[0], 6] == 1
    assert motion.actions[still[0] - 1, 6] == 0
    assert missed(motion.poses[still[0]], middle) < 1e-9


def test_a_way_point_out_of_reach_is_named(arm):
    with pytest.raises(ValueError, match=r"Way point 2 of 3 is out of reach\. The arm does not reach .*1\.400, 0\.000"):
        arm.plan([at(0.5, 0, 0.1), at(1.4, 0, 0.1), at(0.5, 0, 0.1)])
    with pytest.raises(ValueError, match=r"expected at least two \(4, 4\)"):
        arm.plan([at(0.5, 0, 0.1)])
    with pytest.raises(ValueError, match=r"joints have shape \(3,\), expected \(7,\)"):
        arm.forward(np.zeros(3))


def test_files_are_checked(tmp_path):
    with pytest.raises(ValueError, match="cannot be read as a URDF file"):
        Manipulator(tmp_path / "missing.urdf")
    with pytest.raises(ValueError, match="no joint that leads to a link 'hand'"):
        Manipulator(tool="hand")
    assert len(Manipulator(tool="link5").joint_names) == 5


def test_a_motion_is_imagined_before_it_is_made(arm, make):
    env: gymnasium.Env = make()
    env.reset(seed=0)
    before = env.unwrapped.save_state()
    motion = arm.plan([at(0.5, 0, 0.1), at(0.55, 0, 0.1)], grippers=1.0)
    predicted = imagine(env, motion.actions)
    assert env.unwrapped.save_state() is before
    seen = [env.step(action)[4]["frames"] for action in motion.actions]
    np.testing.assert_array_equal(predicted, np.concatenate(seen))
