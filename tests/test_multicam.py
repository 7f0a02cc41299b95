"""The camera around the arm at work: exact motion within its shell, the path to follow, and what a seed decides."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from simulator_contract import check_contract, check_state

from astra_env.actions import ACTION_MODALITIES

MODALITY = ACTION_MODALITIES["camera"]
HIGH = np.array(MODALITY.high, np.float32)
STILL = np.zeros(6, np.float32)

pytestmark = [
    pytest.mark.simulator,
    pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="robosuite: make simulators"),
]

if importlib.util.find_spec("robosuite") is not None:
    from astra_env.simulators import multicam
    from astra_env.simulators import multicam_behaviours as behaviours


@pytest.fixture(scope="module")
def camera():
    simulator = multicam.MultiCamSimulator()
    yield simulator
    simulator.close()


def middle():
    return behaviours.shell_pose(1.0, 0.4, 0.6)


def play(simulator, seed, actions):
    infos = [simulator.reset(seed=seed)[1]] + [simulator.step(action)[4] for action in actions]
    return [np.concatenate([info[key] for info in infos]) for key in ("frames", "poses")]


def some_actions():
    return np.random.default_rng(0).uniform(-0.5 * HIGH, 0.5 * HIGH, (3, 6)).astype(np.float32)


def test_it_has_the_spaces_and_timing_of_a_simulator(camera):
    check_contract(camera, MODALITY, STILL)
    with pytest.raises(ValueError, match="dx"):
        camera.step(np.array([0.5, 0, 0, 0, 0, 0], np.float32))


def test_the_camera_does_exactly_what_it_is_told(camera):
    for axis in range(6):
        _, info = camera.reset(seed=axis, options={"path": middle()[None]})
        np.testing.assert_array_equal(info["pose"], middle())
        for sign in (1, -1):
            action = STILL.copy()
            action[axis] = sign * HIGH[axis]
            expected = MODALITY.integrate(info["pose"], action[None])[1]
            info = camera.step(action)[4]
            np.testing.assert_allclose(info["pose"], expected, atol=1e-9)


def test_the_arm_works_while_the_camera_stands_still(camera):
    camera.reset(seed=0, options={"path": middle()[None]})
    frames = np.concatenate([camera.step(STILL)[4]["frames"] for _ in range(4)]).astype(int)
    changed = (np.abs(frames[-1] - frames[0]).max(axis=-1) > 20).mean()
    assert 0.005 < changed < 0.4, "the arm moves before a background that stands still"


def test_the_shell_holds_the_camera_and_keeps_the_table_in_the_picture():
    rng = np.random.default_rng(0)
    pose = middle()
    for _ in range(300):
        drift = np.repeat(rng.choice([-1.0, 1.0], 6), 1) * HIGH
        pose = behaviours.on_shell(MODALITY.integrate(pose, drift[None])[1])
        coordinates = behaviours.shell_coordinates(pose[:3, 3])
        assert (coordinates >= behaviours.SHELL_LOW - 1e-9).all()
        assert (coordinates <= behaviours.SHELL_HIGH + 1e-9).all()
        aim = pose[:3, :3].T @ (behaviours.CENTRE - pose[:3, 3])
        assert np.arctan2(np.hypot(aim[0], aim[1]), aim[2]) <= behaviours.MAX_AIM + 1e-9
        np.testing.assert_allclose(behaviours.on_shell(pose), pose, atol=1e-9)


def test_at_the_bound_of_the_shell_the_measured_pose_stays_behind(camera):
    camera.reset(seed=0, options={"path": middle()[None]})
    for _ in range(3):
        info = camera.step(np.array([0, 0, 0.2, 0, 0, 0], np.float32))[4]
    assert behaviours.shell_coordinates(info["pose"][:3, 3])[0] == pytest.approx(behaviours.SHELL_LOW[0])
    assert np.linalg.norm(info["pose"][:3, 3] - info["commanded_pose"][:3, 3]) > 0.1


def test_following_the_path_earns_the_full_reward_and_leaving_it_does_not(camera):
    for seed in range(2):
        _, info = camera.reset(seed=seed)
        for step in range(1, 7):
            action = MODALITY.validate(behaviours.tracking_behaviour(info), clip=True)
            _, reward, _, _, info = camera.step(action)
            np.testing.assert_array_equal(info["path_pose"], info["path"][step])
            assert reward > 0.99
            assert info["success"]
    camera.reset(seed=0, options={"path": middle()[None]})
    rewards = [camera.step(np.array([0.15, 0, -0.05, 0, 0, -0.15], np.float32))[1] for _ in range(3)]
    assert rewards[0] > rewards[1] > rewards[2]
    assert rewards[2] < 0.3


def test_random_paths_can_be_followed():
    for seed in range(20):
        path = behaviours.random_path(np.random.default_rng(seed))
        assert path.shape == (behaviours.PATH_STEPS + 1, 4, 4)
        actions = MODALITY.from_poses(path)
        assert (np.abs(actions) <= 1.6 * HIGH).all(), "the shell may turn the camera on its own"
        assert np.abs(actions).max() > 0.02


def test_a_path_outside_the_shell_is_refused(camera):
    with pytest.raises(ValueError, match="on_shell"):
        camera.reset(seed=0, options={"path": np.eye(4)[None]})
    with pytest.raises(ValueError, match="expected"):
        camera.reset(seed=0, options={"path": np.eye(4)})


def test_a_seed_decides_poses_and_pixels_in_every_process(camera):
    actions = some_actions()
    first, second, other = (play(camera, seed, actions) for seed in (5, 5, 6))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    code = (
        "import hashlib, sys; sys.path.insert(0, 'tests'); import test_multicam as t;"
        "s = t.multicam.MultiCamSimulator(); f, p = t.play(s, 5, t.some_actions());"
        "print(hashlib.sha256(f.tobytes() + p.tobytes()).hexdigest())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert out.stdout.split()[-1] == hashlib.sha256(first[0].tobytes() + first[1].tobytes()).hexdigest()


def test_a_state_can_be_left_and_taken_up_again(camera):
    check_state(camera, some_actions()[0])
    for seed in range(3):
        camera.reset(seed=seed)
        for action in some_actions():
            camera.step(action)
        state = camera.get_state()
        expected = [camera.step(STILL) for _ in range(4)]
        camera.reset(seed=9)
        frame, info = camera.set_state(state)
        np.testing.assert_array_equal(info["pose"], state["pose"])
        np.testing.assert_array_equal(camera.render(), frame)
        for before in expected:
            frame, reward, *_, info = camera.step(STILL)
            np.testing.assert_array_equal(info["frames"], before[4]["frames"], "the arm goes on as it would have")
            np.testing.assert_array_equal(info["path_pose"], before[4]["path_pose"])
            assert reward == before[1]


def test_behaviours_move_as_their_names_say():
    def fly(name, seed, steps=12):
        rng = np.random.default_rng(seed)
        behaviour, poses, commanded = behaviours.make_behaviour(name, rng), [middle()], middle()
        for _ in range(steps):
            action = MODALITY.validate(behaviour({"pose": poses[-1], "commanded_pose": commanded}), clip=True)
            commanded = MODALITY.integrate(poses[-1], action[None])[1]
            poses.append(behaviours.on_shell(commanded))
        return np.stack(poses)

    for name in behaviours.BEHAVIOURS:
        np.testing.assert_array_equal(fly(name, 1), fly(name, 1))
    for seed in range(5):
        distance = [behaviours.shell_coordinates(pose[:3, 3])[0] for pose in fly("orbit", seed)]
        assert np.ptp(distance) < 0.1
        distance = [behaviours.shell_coordinates(pose[:3, 3])[0] for pose in fly("zoom", seed)]
        assert np.ptp(distance) > 0.1
        turned = np.diff(fly("pan", seed)[:, :3, 2], axis=0)
        assert np.abs(turned).max() > 0.005
