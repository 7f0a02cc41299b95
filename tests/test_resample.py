"""Clips at any rate become episodes at the modality's rate that go the same way."""

from __future__ import annotations

import numpy as np
import pytest

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets import Clip
from astra_env.datasets.resample import frames_needed, path_of, speeds_of, to_episode


def smooth_clip(modality_name: str, fps: float, seconds: float = 4.0, *, measured: bool = False) -> Clip:
    """Slowly changing actions within the bounds; frame t is a picture of grey level t."""
    modality, count = ACTION_MODALITIES[modality_name], int(seconds * fps)
    time = np.arange(count) / fps
    scale = np.array(modality.high) * (1.0 if modality_name == "vehicle" else modality.rate_hz / fps)
    waves = 0.5 * np.sin(np.outer(time, np.linspace(0.4, 1.2, modality.action_dim)))
    actions = (scale * np.abs(waves)).astype(np.float32)
    actions[:, modality.kinematics.num_fields :] = (time >= 2.0)[:, None]
    frames = np.arange(count + 1, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    poses = modality.integrate(np.eye(4), actions, speed=6.0, rate_hz=fps).astype(np.float32)
    speeds = np.full(count + 1, 6.0, np.float32) if modality_name == "vehicle" else None
    if speeds is not None:
        speeds[1:] += np.cumsum(actions[:, 1]) / fps
    return Clip(frames, actions, modality_name, fps, poses if measured else None, speeds, "go", "clip.mp4")


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("fps", [3.0, 5.0, 12.0, 20.0, 29.97, 60.0])
@pytest.mark.parametrize("name", ACTION_MODALITIES)
def test_an_episode_leads_where_its_clip_leads(name, fps, measured):
    clip, modality = smooth_clip(name, fps, measured=measured), ACTION_MODALITIES[name]
    episode = to_episode(clip)
    num = len(episode["actions"])
    assert num == pytest.approx(4.0 * modality.rate_hz, abs=1)
    assert episode["frames"].shape == (4 * num + 1, 8, 8, 3)
    path = modality.integrate(np.eye(4), episode["actions"], speed=6.0)
    times = np.arange(num + 1) / modality.rate_hz
    expected = [path_of(clip)[int(np.rint(t * fps))] for t in times]
    length = np.linalg.norm(np.diff(path_of(clip)[:, :3, 3], axis=0), axis=1).sum()
    # of a few frames a second, the nearest one is up to half a frame off
    tolerance = 0.02 * length + 0.5 / fps * length / 4.0
    np.testing.assert_allclose(path[:, :3, 3], np.array(expected)[:, :3, 3], atol=tolerance)
    np.testing.assert_allclose(episode["measured_poses"][::4], path, atol=0.02 * length)


@pytest.mark.parametrize("fps", [10.0, 20.0, 40.0])
def test_pictures_are_those_of_their_time(fps):
    episode = to_episode(smooth_clip("camera", fps))
    shown = episode["frames"][:, 0, 0, 0]
    np.testing.assert_allclose(shown / fps, np.arange(len(shown)) / 20, atol=0.5 / fps + 1e-9)


def test_a_gripper_closes_in_the_chunk_in_which_it_was_told_to():
    episode = to_episode(smooth_clip("end_effector", 20.0))
    np.testing.assert_array_equal(episode["actions"][:, 6], (np.arange(1, 21) / 5 > 2.0 + 1e-9).astype(float))


def test_speed_is_measured_or_follows_from_the_way():
    clip = smooth_clip("vehicle", 12.0, measured=True)
    from dataclasses import replace

    np.testing.assert_allclose(speeds_of(replace(clip, speeds=None), path_of(clip)), clip.speeds, atol=0.3)
    backwards = replace(clip, poses=clip.poses[::-1].copy(), speeds=None)
    assert (speeds_of(backwards, path_of(backwards)) < 0).all()
    with pytest.raises(ValueError, match=r"clip.mp4: .*speed"):
        path_of(replace(clip, poses=None, speeds=None))


@pytest.mark.parametrize("fps", [3.0, 5.0, 12.0, 20.0, 29.97, 60.0])
def test_as_many_frames_as_needed_fill_the_chunks(fps):
    needed = frames_needed(6, "camera", fps)
    clip = smooth_clip("camera", fps)
    cut = Clip(clip.frames[:needed], clip.actions[: needed - 1], "camera", fps)
    assert len(to_episode(cut)["actions"]) == 6
    short = Clip(clip.frames[: needed - 1], clip.actions[: needed - 2], "camera", fps)
    assert len(to_episode(short)["actions"]) == 5


def test_geometry_starts_where_the_first_pose_was_measured():
    clip = smooth_clip("camera", 20.0)
    from dataclasses import replace

    start = geometry.make_pose(geometry.rpy_to_matrix([0.1, 0.2, 0.3]), [1, 2, 3])
    moved = replace(clip, poses=(start @ path_of(clip)).astype(np.float32))
    np.testing.assert_allclose(path_of(moved), moved.poses, atol=1e-5)
