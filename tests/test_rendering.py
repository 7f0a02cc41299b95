"""What every id shows: pictures, lists of them, a window, and videos that Gymnasium records."""

from __future__ import annotations

import sys
import time

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from tiny import actions_of

import astra_env  # noqa: F401  registers the ids
from astra_env.envs import ENVIRONMENTS
from astra_env.envs.window import LAG
from astra_env.pictures import enlarged, with_action
from astra_env.video import read_video, video_info, write_video

IDS = list(ENVIRONMENTS)


@pytest.fixture
def make_vec(checkpoint):
    return lambda **options: gym.make_vec(
        "Astra-RT1-v0", vectorization_mode="vector_entry_point", world_model=checkpoint, device="cpu", **options
    )


@pytest.fixture
def pygame(monkeypatch):
    """Windows that nobody sees."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    module = pytest.importorskip("pygame")
    yield module
    module.quit()


def walk(env: gym.Env, steps: int) -> list[np.ndarray]:
    """The start's newest frame and all frames of the steps after it."""
    frames = [*env.reset(seed=1)[1]["frames"][-1:]]
    env.action_space.seed(0)
    for _ in range(steps):
        frames += list(env.step(env.action_space.sample())[4]["frames"])
    return frames


@pytest.mark.parametrize("environment", IDS)
@pytest.mark.filterwarnings("ignore:.*symmetric and normalized:UserWarning")
def test_a_list_holds_every_frame_since_the_last_one(make, environment):
    env = make(id=environment, render_mode="rgb_array_list")
    assert env.metadata["render_fps"] == 20 and make(id=environment).metadata["render_fps"] == 5
    frames = walk(env, 2)
    assert np.array_equal(env.render(), frames) and len(frames) == 9
    assert env.render() == []
    env.step(env.action_space.sample())
    assert len(env.render()) == 4
    assert len(walk(env, 1)) == len(env.render()) == 5  # a reset begins a new list
    check_env(env.unwrapped)


def test_lists_are_decoded_where_latents_are_observed(make):
    env = make(render_mode="rgb_array_list", observation="latent")
    frames = walk(env, 2)
    assert np.array_equal(env.render(), frames)
    kept = env.unwrapped._frames.copy()
    walk(env, 2)
    for frame in env.render():
        frame[:] = 0
    assert np.array_equal(env.unwrapped._newest_frames(), kept)


def test_an_unknown_mode_is_an_error(make):
    with pytest.raises(ValueError, match=r"render_mode is 'ansi', expected one of \['human', 'rgb_array'"):
        make(render_mode="ansi")


@pytest.mark.parametrize("environment", IDS)
@pytest.mark.filterwarnings("error::UserWarning:gymnasium")
def test_gymnasium_records_every_id(make, environment, tmp_path):
    pytest.importorskip("moviepy")
    env = gym.wrappers.RecordVideo(make(id=environment, render_mode="rgb_array"), str(tmp_path / "videos"))
    frames = walk(env, 5)
    env.close()
    (path,) = (tmp_path / "videos").glob("*.mp4")
    assert video_info(path) == (6, 5.0)
    shown = np.stack(frames[::4])  # one a step
    assert np.abs(read_video(path).astype(int) - shown).mean() < 20  # noise of untrained worlds, in half the colours


def test_a_whole_episode_is_a_video_of_its_list(make, tmp_path):
    env = make(render_mode="rgb_array_list")
    frames = walk(env, 5)
    write_video(tmp_path / "episode.mp4", env.render(), env.metadata["render_fps"])
    assert video_info(tmp_path / "episode.mp4") == (len(frames), 20.0)


def test_gymnasium_records_many_worlds(make_vec, tmp_path):
    pytest.importorskip("moviepy")
    worlds = gym.wrappers.vector.RecordVideo(make_vec(num_envs=4, render_mode="rgb_array"), str(tmp_path / "videos"))
    worlds.reset(seed=1)
    shown = worlds.env.render()
    assert isinstance(shown, tuple) and [picture.shape for picture in shown] == [(32, 32, 3)] * 4
    for _ in range(3):
        worlds.step(worlds.action_space.sample())
    worlds.close()
    (path,) = (tmp_path / "videos").glob("*.mp4")
    assert video_info(path) == (4, 5.0) and read_video(path).shape[1:] == (64, 64, 3)


@pytest.mark.parametrize("environment", ["Astra-RT1-v0", "Astra-SpatialVID-v0"])
def test_a_window_shows_every_frame_at_real_speed(make, environment, pygame, monkeypatch):
    shown = []
    monkeypatch.setattr(pygame.surfarray, "blit_array", lambda _, array: shown.append(array.swapaxes(0, 1).copy()))
    env = make(id=environment, render_mode="human")
    env.reset(seed=1)
    (start,) = shown
    assert pygame.display.get_surface().get_size() == (448, 560)
    assert environment in pygame.display.get_caption()[0]
    assert env.render() is None
    begun = time.perf_counter()
    action = env.action_space.sample()
    frames = [env.step(action)[4]["frames"] for _ in range(3)][-1]
    # the last of 12 frames need not end, and some may be made up for
    assert time.perf_counter() - begun > (11 - LAG) * 0.05 - 0.01
    physical = env.unwrapped.physical(action, ())
    expected = with_action(enlarged(frames), env.unwrapped.action_modality, physical)
    assert len(shown) == 13 and np.array_equal(shown[-4:], expected)
    assert (start[448:] == 0).all() and start[:448].any()
    env.close()
    assert not pygame.display.get_init()


def test_closing_the_window_goes_on_unseen(make, pygame):
    env, other = make(render_mode="human"), make()
    for e in (env, other):
        e.reset(seed=1)
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    for action in actions_of(2):
        assert np.array_equal(env.step(action)[0], other.step(action)[0])
        assert not pygame.display.get_init()
    forks = env.unwrapped.fork(2)
    assert forks.render_mode == "rgb_array" and len(forks.render()) == 2
    assert forks.metadata["render_modes"] == ["rgb_array"]
    env.close()


def test_a_window_that_another_one_has_closed_is_opened_again(make, pygame):
    env, other = make(render_mode="human"), make(render_mode="human")
    for e in (env, other):
        e.reset(seed=1)
    other.close()
    env.step(env.action_space.sample())
    pygame.display.set_mode((64, 48))  # as another engine may do
    env.step(env.action_space.sample())
    assert pygame.display.get_surface().get_size() == (448, 560)
    env.close()


@pytest.mark.filterwarnings("ignore:.*symmetric and normalized:UserWarning")
def test_gymnasiums_checker_passes_with_a_window(make, pygame):
    check_env(make(render_mode="human").unwrapped)


def test_a_machine_without_a_screen_is_told(make, pygame, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "nowhere")
    env = make(render_mode="human")
    with pytest.raises(RuntimeError, match=r"No window can be opened here .* choose render_mode='rgb_array'"):
        env.reset(seed=1)


def test_missing_pygame_is_told(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(ImportError, match=r"A window needs pygame: install it with `pip install 'astra-env\[human\]'`"):
        make(render_mode="human")
