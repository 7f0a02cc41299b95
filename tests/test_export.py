"""Imagined episodes become data sets that read as what was imagined."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets import load_dataset
from astra_env.envs import ENVIRONMENTS
from astra_env.envs.export import WRITERS, export, imagine_clips


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_clip_is_what_the_environment_imagines(environment):
    space = gymnasium.make(environment).action_space
    space.seed(3)
    actions = [space.sample() for _ in range(3)]
    given = iter(actions)

    def policy(observations, infos):
        assert len(observations) == 2
        action = next(given)
        return np.stack([action, action])

    clip = imagine_clips(environment, episodes=2, steps=3, seed=5, policy=policy)[1]
    env = gymnasium.make(environment)
    _, info = env.reset(seed=6)
    frames, poses = [info["frames"][-1:]], [info["pose"]]
    for action in actions:
        _, _, terminated, truncated, info = env.step(action)
        frames.append(info["frames"])
        poses.append(info["pose"])
        if terminated or truncated:
            break
    # rows of a batch and single worlds round otherwise
    np.testing.assert_allclose(clip.frames.astype(int), np.concatenate(frames).astype(int), atol=3)
    np.testing.assert_allclose(clip.poses[::4], np.stack(poses), atol=1e-4)
    assert (clip.fps, clip.modality) == (20.0, ENVIRONMENTS[environment].modality)
    modality = ACTION_MODALITIES[clip.modality]
    speed = 0.0 if clip.speeds is None else clip.speeds[0]
    path = modality.integrate(clip.poses[0], clip.actions, speed=speed, rate_hz=clip.fps)
    np.testing.assert_allclose(path, clip.poses, atol=1e-4)


def test_an_episode_ends_where_its_world_ends():
    clips = imagine_clips("Astra-Sekai-v0", episodes=2, steps=6, max_episode_steps=4)
    assert [len(clip.frames) for clip in clips] == [17, 17]
    assert [len(clip.actions) for clip in clips] == [16, 16]


@pytest.mark.parametrize("name", WRITERS)
def test_exported_episodes_read_back(name, tmp_path):
    clips = imagine_clips("Astra-NuScenes-v0", episodes=2, steps=2)
    export(clips, tmp_path / "set", name)
    dataset = load_dataset(name, tmp_path / "set")
    assert len(dataset) == 2
    for clip, again in zip(clips, dataset, strict=True):
        np.testing.assert_allclose(again.actions, clip.actions, atol=1e-5)
        assert (again.fps, again.modality, again.text) == (clip.fps, clip.modality, clip.text)
        assert np.abs(again.frames.astype(int) - clip.frames).mean() < 8


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no writer of 'avi'.*lerobot"):
        export([], tmp_path / "set", "avi")
