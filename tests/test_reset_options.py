from __future__ import annotations

import numpy as np
import pytest
from tiny import actions_of, assert_same, episode, random_actions, random_frames

import astra_env  # noqa: F401  registers the ids
from astra_env.actions import ACTION_MODALITIES
from astra_env.geometry import make_pose, relative, rpy_to_matrix


def test_a_picture_starts_a_world(make, tmp_path):
    import cv2

    image = random_frames(1, 1)[0, 0].numpy()
    env = make()
    from_array = episode(env, seed=1, options={"image": image})
    path = tmp_path / "picture.png"
    assert cv2.imwrite(str(path), image[..., ::-1])
    for given in (path, str(path)):
        assert_same([episode(env, seed=1, options={"image": given}), from_array])
    other = episode(env, seed=1, options={"image": 255 - image})
    assert_same([other, from_array], equal=False)
    assert env.unwrapped.state.lengths.tolist() == [4]


def test_a_larger_picture_is_cropped_and_resized(make):
    left, right = np.zeros((64, 48, 3), np.uint8), np.full((64, 48, 3), 255, np.uint8)
    wide = np.concatenate([left, right], 1)  # 64 x 96, the middle third half dark, half bright
    env = make(observation="latent")
    env.reset(seed=1, options={"image": wide})
    small = np.concatenate([np.zeros((32, 16, 3), np.uint8), np.full((32, 16, 3), 255, np.uint8)], 1)
    expected = env.reset(seed=1, options={"image": small})[0]
    np.testing.assert_allclose(env.reset(seed=1, options={"image": wide})[0], expected, atol=1e-5)


@pytest.mark.parametrize("option", ["image", "goal"])
@pytest.mark.parametrize(
    "image",
    [
        np.zeros((31, 40, 3), np.uint8),
        np.zeros((40, 31, 3), np.uint8),
        np.zeros((32, 32), np.uint8),
        np.zeros((32, 32, 4), np.uint8),
        np.zeros((32, 32, 3), np.float32),
    ],
    ids=["low", "narrow", "grey", "alpha", "float"],
)
def test_wrong_pictures_are_refused(make, option, image):
    with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\) with H, W of at least 32"):
        make().reset(seed=1, options={option: image})


def test_unreadable_pictures_are_named(make, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for name in ("text.png", "missing.png"):
        with pytest.raises(ValueError, match=name):
            make().reset(seed=1, options={"image": tmp_path / name})


def test_known_actions_come_with_frames(make):
    frames, actions = random_frames(1, 9)[0].numpy(), random_actions(1, 2)[0].numpy()
    env = make()
    env.reset(seed=1, options={"frames": frames, "actions": actions})
    assert env.unwrapped.state.action_present[0].sum() == 2
    with pytest.raises(ValueError, match=r"1 actions came with 3 latents, expected 2"):
        env.reset(seed=1, options={"frames": frames, "actions": actions[:1]})
    with pytest.raises(ValueError, match="bounds"):
        env.reset(seed=1, options={"frames": frames, "actions": 9 * np.ones_like(actions)})


@pytest.mark.parametrize("num_frames", [1, 5, 40])
def test_frames_start_a_world(make, num_frames):
    frames = random_frames(1, num_frames)[0].numpy()
    env = make()
    env.reset(seed=1, options={"frames": frames})
    assert env.unwrapped.state.lengths.tolist() == [-(-num_frames // 4)]
    assert env.step(actions_of(1)[0])[0].shape == (32, 32, 3)


def test_what_an_environment_shows_can_start_another(make):
    env = make()
    _, info = env.reset(seed=1)
    make().reset(seed=1, options={"frames": info["frames"]})


@pytest.mark.parametrize(
    "frames",
    [np.zeros((4, 30, 30, 3), np.uint8), np.zeros((32, 32, 3), np.uint8), np.zeros((4, 32, 32, 3), np.float32)],
    ids=["size", "one picture", "float"],
)
def test_wrong_frames_are_refused(make, frames):
    with pytest.raises(ValueError, match=r"expected uint8 \(B, T, 32, 32, 3\)"):
        make().reset(seed=1, options={"frames": frames})


def test_starts_are_chosen_by_number(make):
    env = make(observation="latent")
    first = [env.reset(seed=1, options={"start": k})[0] for k in range(3)]
    assert not np.array_equal(first[0], first[1]) and not np.array_equal(first[1], first[2])
    assert env.unwrapped.state.lengths.tolist() == [3] and env.unwrapped.state.action_present.sum() == 2
    drawn = [env.reset(seed=seed)[0] for seed in range(12)]
    assert all(any(np.array_equal(seen, start) for start in first) for seen in drawn)
    assert len({seen.tobytes() for seen in drawn}) == 3
    for start in (-1, 3):
        with pytest.raises(ValueError, match=f"start is {start}, expected 0 to 2"):
            env.reset(options={"start": start})


def test_a_car_starts_at_the_speed_of_its_clip_or_as_told(make):
    env, frames = make(id="Astra-NuScenes-v0"), random_frames(1, 5)[0].numpy()
    for options, speed in (
        ({"start": 1}, 2.0),
        ({"start": 1, "speed": 7.5}, 7.5),
        ({"frames": frames, "speed": -1}, -1.0),
        ({"frames": frames}, 0.0),
        ({"image": frames[0], "speed": 3}, 3.0),
    ):
        _, info = env.reset(seed=1, options=options)
        assert info["speed"] == speed
        _, _, _, _, info = env.step(np.array([0.0, 1.0], np.float32))
        assert info["speed"] == pytest.approx(speed + 0.2)
        assert info["pose"][0, 3] == pytest.approx(0.2 * (speed + 0.1))
    with pytest.raises(ValueError, match=r"speeds are \[nan\], expected a finite number in m/s"):
        env.reset(options={"speed": float("nan")})


def test_a_path_is_followed_as_it_is_seen_from_its_first_pose(make):
    """A recorded path in the world's axes, walked again by the actions that lead through it."""
    env, modality = make(id="Astra-MultiCam-v0"), ACTION_MODALITIES["camera"]
    actions = 0.5 * random_actions(4, modality="camera").numpy()
    start = make_pose(rpy_to_matrix([0.3, -1.0, 2.0]), [4.0, 5.0, 6.0])
    path = modality.integrate(start, actions)
    _, info = env.reset(seed=1, options={"path": path})
    np.testing.assert_allclose(info["path"], relative(start, path), atol=1e-12)
    for index, action in enumerate(actions):
        np.testing.assert_array_equal(info["next_pose"], info["path"][index + 1])
        _, reward, terminated, _, info = env.step(action)
        np.testing.assert_allclose(info["pose"], info["path_pose"], atol=1e-6)
        assert reward == pytest.approx(1, abs=1e-4) and terminated == info["success"] == (index == 3)
    np.testing.assert_array_equal(info["next_pose"], info["path"][-1])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (np.eye(4), r"shape \(4, 4\), expected \(T \+ 1, 4, 4\)"),
        (np.eye(4)[None], "at least two"),
        (np.stack([np.eye(4), 2 * np.eye(4)]), r"no rigid pose at \[1\]"),
        (np.stack([np.eye(4), np.diag([1, 1, -1, 1])]), r"no rigid pose at \[1\]"),
        (np.full((3, 4, 4), np.nan), r"no rigid pose at \[0 1 2\]"),
    ],
    ids=["one pose", "a single pose", "scaled", "mirrored", "nan"],
)
def test_wrong_paths_are_refused_and_change_nothing(make, path, message):
    env = make(id="Astra-MultiCam-v0")
    _, info = env.reset(seed=1)
    state = env.unwrapped.save_state()
    with pytest.raises(ValueError, match=message):
        env.reset(seed=1, options={"path": path})
    assert env.unwrapped.save_state() is state and np.array_equal(env.unwrapped.path, info["path"])


def test_a_path_is_refused_where_none_is_followed(make):
    with pytest.raises(ValueError, match="Astra-RT1-v0 got a path, but its reward follows none"):
        make().reset(options={"path": np.tile(np.eye(4), (3, 1, 1))})


def test_unknown_options_are_refused(make):
    with pytest.raises(ValueError, match=r"options \['picture'\], expected some of .*image"):
        make().reset(options={"picture": None})


def test_prompts_are_refused(make):
    with pytest.raises(ValueError, match="takes no text"):
        make().reset(options={"prompt": "lift the cube"})


def test_a_goal_rewards_closeness(make):
    env = make()
    picture = random_frames(1, 1)[0, 0].numpy()
    _, info = env.reset(seed=1, options={"image": picture, "goal": picture})
    assert set(info["reward_terms"]) == {"goal_distance"}
    assert info["reward_terms"]["goal_distance"] == pytest.approx(0, abs=1e-5)
    _, reward, terminated, _, info = env.step(actions_of(1)[0])
    values = env.unwrapped.objective(env.unwrapped.save_state().repeat(4)).tolist()
    assert reward < -1e-3 and not terminated and reward == -info["reward_terms"]["goal_distance"]
    assert values == pytest.approx([reward] * 4, rel=1e-3)
    _, info = env.reset(seed=1)
    assert "task_reward" in info["reward_terms"], "a goal lasts one episode"
