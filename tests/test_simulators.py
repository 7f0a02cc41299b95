"""The robot simulator and how its arm is moved; parts that need robosuite skip where it is missing."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
from simulator_contract import check_contract, check_state

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.simulators import arm, make_simulator
from astra_env.simulators import robot_behaviours as behaviours

MODALITY = ACTION_MODALITIES["end_effector"]
CENTRE = geometry.make_pose(arm.HOME_ROTATION, (arm.WORKSPACE_LOW + arm.WORKSPACE_HIGH) / 2)
STILL = np.zeros(7, np.float32)

needs_robosuite = [
    pytest.mark.simulator,
    pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="robosuite: make simulators"),
]


class PointRobot:
    """A gripper that goes exactly where it is told and carries a cube it closes on: a stand-in for the physics."""

    def __init__(self) -> None:
        self.pose, self.closed = CENTRE.copy(), 0.0
        self.cube = np.array([0.5, 0.05, arm.TABLE_Z + 0.025])

    def info(self):
        return {"pose": self.pose, "objects": self.cube[None]}

    def step(self, action):
        held = self.closed > 0.5 and np.linalg.norm(self.cube - self.pose[:3, 3]) < 0.02
        self.pose = arm.inside_workspace(MODALITY.integrate(self.pose, action[None])[1])
        self.closed = float(action[6])
        if held:
            self.cube = self.pose[:3, 3].copy()


@pytest.fixture(scope="module")
def lift():
    simulator = make_simulator("Astra-RT1-v0")
    yield simulator
    simulator.close()


@pytest.fixture(scope="module")
def stack():
    simulator = make_simulator("Astra-RT1-v0", task="stack")
    yield simulator
    simulator.close()


def to_centre(simulator, seed=0):
    """Bring the gripper upright over the middle of the table."""
    _, info = simulator.reset(seed=seed)
    for _ in range(8):
        error = MODALITY.from_poses(np.stack([info["commanded_pose"], CENTRE]), np.zeros(2))[0]
        info = simulator.step(MODALITY.validate(error, clip=True))[4]
    return simulator.step(STILL)[4]


def test_unknown_ids_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="Astra-RT1-v0"):
        make_simulator("Astra-Nowhere-v0")


def test_a_missing_simulator_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "robosuite", None)
    for name in ("robot", "robot_scene"):
        monkeypatch.delitem(sys.modules, f"astra_env.simulators.{name}", raising=False)
    with pytest.raises(ImportError, match="make simulators"):
        make_simulator("Astra-RT1-v0")


def test_commanded_poses_stay_in_the_workspace():
    rng = np.random.default_rng(0)
    pose = CENTRE
    for _ in range(300):
        action = rng.uniform(MODALITY.low, MODALITY.high) * np.array([3] * 6 + [1])
        pose = arm.inside_workspace(MODALITY.integrate(pose, action[None])[1])
        assert (pose[:3, 3] >= arm.WORKSPACE_LOW).all()
        assert (pose[:3, 3] <= arm.WORKSPACE_HIGH).all()
        assert (np.abs(arm.wrist_rpy(pose)) <= np.array([arm.MAX_TILT, arm.MAX_TILT, arm.MAX_YAW]) + 1e-9).all()


def test_the_leash_shortens_long_errors_only():
    near = geometry.make_pose(CENTRE[:3, :3], CENTRE[:3, 3] + [0.02, 0, 0])
    np.testing.assert_allclose(arm.leashed(near, CENTRE), near, atol=1e-12)
    far = geometry.make_pose(geometry.rpy_to_matrix([0, 0, 0.5]) @ CENTRE[:3, :3], CENTRE[:3, 3] + [0.3, 0, 0.4])
    error = arm.pose_error(CENTRE, arm.leashed(far, CENTRE))
    np.testing.assert_allclose(error, [0.018, 0, 0.024, 0, 0, arm.LEASH[1]], atol=1e-9)


@pytest.mark.parametrize("name", behaviours.BEHAVIOURS)
def test_behaviours_follow_their_seed_and_are_not_alike(name):
    def play(seed):
        robot, actions = PointRobot(), []
        behaviour = behaviours.make_behaviour(name, np.random.default_rng(seed), num_cubes=1)
        for _ in range(20):
            actions.append(MODALITY.validate(behaviour(robot.info()), clip=True))
            robot.step(actions[-1])
        return np.stack(actions)

    np.testing.assert_array_equal(play(1), play(1))
    assert np.abs(play(1) - play(2)).max() > 0.01


def test_random_behaviour_moves_every_axis_both_ways_and_uses_the_gripper():
    behaviour = behaviours.random_behaviour(np.random.default_rng(0))
    actions = np.stack([behaviour({}) for _ in range(600)])
    assert (actions.max(axis=0) > 0.9 * np.array(MODALITY.high)).all()
    assert (actions[:, :6].min(axis=0) < 0.9 * np.array(MODALITY.low[:6])).all()
    assert (actions[:, 6].min(), actions[:, 6].max()) == (0.0, 1.0)
    alone = (np.abs(actions[:, :6]) > 0).sum(axis=1) == 1
    assert alone.mean() > 0.1, "some stretches hold one axis alone"


def test_the_script_lifts_the_cube():
    for seed in range(10):
        robot, behaviour = PointRobot(), behaviours.scripted_behaviour(np.random.default_rng(seed))
        heights = []
        for _ in range(20):
            robot.step(MODALITY.validate(behaviour(robot.info()), clip=True))
            heights.append(robot.cube[2])
        assert max(heights) > arm.TABLE_Z + 0.025 + 0.04


class TestRobotSimulator:
    pytestmark = needs_robosuite

    def test_it_has_the_spaces_and_timing_of_its_id(self, lift):
        check_contract(lift, MODALITY)

    def test_actions_out_of_bounds_are_refused(self, lift):
        lift.reset(seed=0)
        with pytest.raises(ValueError, match="dz"):
            lift.step(np.array([0, 0, 0.2, 0, 0, 0, 0], np.float32))

    @pytest.mark.parametrize("sign", [1, -1])
    @pytest.mark.parametrize("axis", range(6), ids=MODALITY.fields[:6])
    def test_the_gripper_does_what_it_is_told(self, lift, axis, sign):
        start = to_centre(lift)["pose"]
        action = STILL.copy()
        action[axis] = sign * MODALITY.high[axis]
        after = lift.step(action)[4]["pose"]
        settled = lift.step(STILL)[4]["pose"]
        for pose, tolerance in ((after, 0.15), (settled, 0.08)):
            moved = MODALITY.from_poses(np.stack([start, pose]), np.zeros(2))[0, :6]
            np.testing.assert_allclose(moved / MODALITY.high[:6], action[:6] / MODALITY.high[:6], atol=tolerance)

    def test_the_gripper_closes_and_opens(self, lift):
        to_centre(lift)
        for command in (1.0, 0.0):
            for _ in range(3):
                info = lift.step(np.array([0, 0, 0, 0, 0, 0, command], np.float32))[4]
            assert info["gripper"] == pytest.approx(command, abs=0.05)

    def test_pressing_on_the_table_and_the_walls_stays_bounded(self, lift):
        to_centre(lift)
        for direction in ([0.05, 0.05, -0.05], [-0.05, -0.05, 0.05]):
            for _ in range(8):
                info = lift.step(np.array([*direction, 0, 0, 0, 1], np.float32))[4]
            assert (info["pose"][:3, 3] > arm.WORKSPACE_LOW - 0.02).all()
            assert (info["pose"][:3, 3] < arm.WORKSPACE_HIGH + 0.02).all()

    def test_a_seed_and_actions_reproduce_poses_and_pixels(self, stack):
        rng = np.random.default_rng(0)
        actions = rng.uniform(MODALITY.low, MODALITY.high, (6, 7)).astype(np.float32)

        def play(seed):
            infos = [stack.reset(seed=seed)[1]] + [stack.step(action)[4] for action in actions]
            return [np.concatenate([info[key] for info in infos]) for key in ("frames", "poses", "object_tracks")]

        first, second, other = play(5), play(5), play(6)
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a, b)
        assert all(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))

    def test_a_state_can_be_left_and_taken_up_again(self, stack):
        check_state(stack, np.array([0.03, -0.02, -0.04, 0.1, 0, 0.2, 0.7], np.float32), atol=1e-9)

    def test_the_script_lifts_the_cube_and_earns_the_full_reward(self, lift):
        lifted = []
        for seed in range(5):
            _, info = lift.reset(seed=seed)
            behaviour, success = behaviours.scripted_behaviour(np.random.default_rng([seed, 1])), []
            for _ in range(20):
                _, reward, _, _, info = lift.step(MODALITY.validate(behaviour(info), clip=True))
                success.append(info["success"])
                assert (reward == 1.0) == info["success"]
            lifted.append(any(success))
        assert np.mean(lifted) >= 0.8

    def test_the_red_cube_is_in_the_picture_unless_the_hand_hides_it(self, stack):
        seen = []
        for seed in range(12):
            frame = stack.reset(seed=seed)[0].astype(int)
            red = (frame[..., 0] > 90) & (frame[..., 0] > 2 * frame[..., 1]) & (frame[..., 0] > 2 * frame[..., 2])
            seen.append(red.sum() >= 8)
        assert np.mean(seen) > 0.8
