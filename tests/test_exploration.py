"""The exploration simulator: exact motion of the camera, what stops it, the goal, and what a seed decides."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from simulator_contract import check_contract, check_state

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES

MODALITY = ACTION_MODALITIES["camera"]
HIGH = np.array(MODALITY.high, np.float32)

pytestmark = [
    pytest.mark.simulator,
    pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="mujoco: make simulators"),
]

if importlib.util.find_spec("mujoco") is not None:
    from astra_env.simulators import exploration, exploration_rooms
    from astra_env.simulators import exploration_behaviours as behaviours
    from astra_env.simulators.exploration_rooms import camera_angles, camera_pose


@pytest.fixture(scope="module")
def rooms():
    simulator = exploration.ExplorationSimulator()
    yield simulator
    simulator.close()


def put(simulator, pose):
    """Move the camera to a pose in the same rooms."""
    return simulator.set_state(simulator.get_state() | {"pose": pose})[1]


def free_pose(simulator):
    """A level pose with room on all sides."""
    for seed in range(50):
        _, info = simulator.reset(seed=seed)
        place = info["pose"][:3, 3] * [1, 1, 0] + [0, 0, 1.2]
        if simulator._rooms.clearance(place) > exploration_rooms.RADIUS + 0.2:
            return camera_pose(place, camera_angles(info["pose"])[0])
    raise AssertionError("no seed begins with room on all sides")


def play(simulator, seed, actions):
    infos = [simulator.reset(seed=seed)[1]] + [simulator.step(action)[4] for action in actions]
    return [np.concatenate([info[key] for info in infos]) for key in ("frames", "poses", "commanded_poses")]


def some_actions(count=5):
    return np.random.default_rng(0).uniform(-HIGH, HIGH, (count, 6)).astype(np.float32)


def test_it_has_the_spaces_and_timing_of_a_simulator(rooms):
    check_contract(rooms, MODALITY)
    with pytest.raises(ValueError, match="dz"):
        rooms.step(np.array([0, 0, 0.5, 0, 0, 0], np.float32))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("axis", range(6), ids=MODALITY.fields)
def test_the_camera_does_exactly_what_it_is_told(rooms, axis, sign):
    info = put(rooms, start := free_pose(rooms))
    action = np.zeros(6, np.float32)
    action[axis] = sign * HIGH[axis]
    after = rooms.step(action)[4]
    np.testing.assert_allclose(info["pose"], start)
    np.testing.assert_allclose(after["pose"], MODALITY.integrate(start, action[None])[1], atol=1e-9)
    np.testing.assert_allclose(after["pose"], after["commanded_pose"], atol=1e-12)
    quarter = MODALITY.integrate(start, action[None] / 4)[1]
    np.testing.assert_allclose(after["poses"][0], quarter, atol=1e-9)


def test_what_is_above_appears_when_looking_up_and_what_is_right_when_turning_right(rooms):
    put(rooms, free_pose(rooms))
    before = rooms.render().astype(float)
    for axis, shift in ((4, (1, 0)), (5, (0, -1))):
        put(rooms, free_pose(rooms))
        action = np.zeros(6, np.float32)
        action[axis] = 0.1
        after = rooms.step(action)[0].astype(float)
        pixels = round(32 / np.tan(np.radians(35)) * np.tan(0.1))
        moved = np.roll(before, np.multiply(shift, pixels), (0, 1))
        wrong = np.roll(before, np.multiply(shift, -pixels), (0, 1))
        inner = (slice(16, 48), slice(16, 48))
        assert np.abs(after - moved)[inner].mean() < 0.6 * np.abs(after - wrong)[inner].mean()


def test_angles_and_poses_agree():
    angles = np.array([2.5, -0.4, 0.2])
    np.testing.assert_allclose(camera_angles(camera_pose(np.zeros(3), *angles)), angles, atol=1e-12)
    level = camera_pose(np.zeros(3), 0.0)
    np.testing.assert_allclose(level[:3, :3].T, [[0, -1, 0], [0, 0, -1], [1, 0, 0]], atol=1e-12)
    up, right = (MODALITY.integrate(level, [action])[1] for action in ([0, 0, 0, 0, 0.1, 0], [0, 0, 0, 0, 0, 0.1]))
    np.testing.assert_allclose(camera_angles(up), [0, 0.1, 0], atol=1e-12)
    np.testing.assert_allclose(camera_angles(right), [-0.1, 0, 0], atol=1e-12)


def test_walls_and_furniture_stop_the_camera_and_let_it_slide(rooms):
    stopped = 0
    for seed in range(4):
        rooms.reset(seed=seed)
        for _ in range(45):
            info = rooms.step(np.array([0.05, 0, 0.2, 0, 0, 0], np.float32))[4]
            for pose in info["poses"]:
                assert rooms._rooms.clearance(pose[:3, 3]) >= exploration_rooms.RADIUS - 1e-6
        moved = np.linalg.norm(info["pose"][:3, 3] - info["commanded_pose"][:3, 3])
        stopped += moved > 0.05
    assert stopped == 4, "nine metres ahead there is always something in the way"


def test_heights_and_angles_stay_within_their_limits(rooms):
    rooms.reset(seed=1)
    for sign in (1, -1):
        for _ in range(15):
            info = rooms.step(sign * np.array([0, 0.2, 0, 0.2, 0.2, 0], np.float32))[4]
        _, pitch, roll = camera_angles(info["pose"])
        assert abs(pitch) <= exploration.MAX_PITCH + 1e-9
        assert abs(roll) <= exploration.MAX_ROLL + 1e-9
        assert exploration_rooms.LOWEST <= info["pose"][2, 3] <= exploration_rooms.HIGHEST


def test_reaching_the_goal_while_looking_at_it_succeeds(rooms):
    _, info = rooms.reset(seed=0)
    goal = info["goal"]
    far, near = (camera_pose(goal - [distance, 0, 0], 0.0) for distance in (1.5, 0.6))
    away = camera_pose(goal - [0.6, 0, 0], np.pi / 2)
    assert [put(rooms, pose)["success"] for pose in (far, near, away)] == [False, True, False]
    rewards = [(put(rooms, pose), rooms.reward())[1] for pose in (far, away, near)]
    assert 0 < rewards[0] < rewards[1] < rewards[2] == 1


def test_the_goal_is_found_by_flying_to_it(rooms):
    found = []
    for seed in range(4):
        _, info = rooms.reset(seed=seed)
        behaviour = behaviours.visit_behaviour(np.random.default_rng(seed), goal=True)
        for _ in range(60):
            info = rooms.step(MODALITY.validate(behaviour(info), clip=True))[4]
            if info["success"]:
                break
        found.append(info["success"])
    assert np.mean(found) >= 0.5


def test_the_goal_is_the_red_thing_in_the_picture(rooms):
    for seed in range(4):
        _, info = rooms.reset(seed=seed)
        put(rooms, camera_pose(info["goal"] - [0.7, 0, 0], 0.0))
        red, green, blue = rooms.render()[32, 32].astype(int)
        assert red > 2.5 * max(green, blue)
        state = rooms.get_state()
        assert state["geom_rgba"][state["geom_rgba"][:, 3] > 0].shape[0] > 15


def test_a_seed_decides_poses_and_pixels(rooms):
    actions = some_actions()
    first, second, other = (play(rooms, seed, actions) for seed in (5, 5, 6))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(first[0].astype(int) - other[0]).mean() > 15


def test_another_process_sees_the_same(rooms):
    frames, poses, _ = play(rooms, 5, some_actions())
    code = (
        "import hashlib, sys; sys.path.insert(0, 'tests'); import test_exploration as t;"
        "s = t.exploration.ExplorationSimulator(); f, p, _ = t.play(s, 5, t.some_actions());"
        "print(hashlib.sha256(f.tobytes() + p.tobytes()).hexdigest())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.split()[-1] == hashlib.sha256(frames.tobytes() + poses.tobytes()).hexdigest()


def test_a_state_can_be_left_and_taken_up_again(rooms):
    check_state(rooms, some_actions(1)[0])


def test_pictures_are_lively_and_never_from_inside_a_wall(rooms):
    for seed in range(20):
        frame, info = rooms.reset(seed=seed)
        assert frame.std() > 10
        assert frame.mean() > 40
        assert rooms._rooms.clearance(info["pose"][:3, 3]) >= exploration_rooms.RADIUS


def test_behaviours_follow_their_seed_and_cover_all_twelve_directions(rooms):
    def actions_of(name, seed):
        _, info = rooms.reset(seed=seed)
        behaviour, actions = behaviours.make_behaviour(name, np.random.default_rng(seed)), []
        for _ in range(24):
            actions.append(MODALITY.validate(behaviour(info), clip=True))
            info = rooms.step(actions[-1])[4]
        return np.stack(actions)

    for name in behaviours.BEHAVIOURS:
        np.testing.assert_array_equal(actions_of(name, 1)[:6], actions_of(name, 1)[:6])
    axes = np.concatenate([actions_of("axes", seed) for seed in range(4)])
    assert ((axes != 0).sum(axis=1) == 1).all(), "one axis at a time"
    steps = np.stack([(axes > 0).sum(axis=0), (axes < 0).sum(axis=0)])
    assert steps.min() >= 1
    assert steps.max() <= 0.25 * len(axes)


def test_a_path_glides_evenly():
    start = geometry.make_pose(geometry.rpy_to_matrix([0.1, 0.2, 0.3]), [1, 2, 3])
    action = np.array([0.1, -0.2, 0.15, 0.1, 0.2, -0.2])
    path = exploration.glide(start, action, 4)
    np.testing.assert_allclose(path[-1], MODALITY.integrate(start, action[None])[1], atol=1e-12)
    steps = geometry.relative(np.concatenate([start[None], path[:-1]]), path)
    np.testing.assert_allclose(np.linalg.norm(steps[:, :3, 3], axis=1), np.linalg.norm(action[:3]) / 4, atol=1e-9)
    np.testing.assert_allclose(steps[:, :3, :3], np.broadcast_to(steps[0, :3, :3], (4, 3, 3)), atol=1e-9)
