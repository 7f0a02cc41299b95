from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny import random_actions, random_frames

from astra_env.envs.start_states import FILE_NAME, StartStates
from astra_env.training.bundle import NUM_CHUNKS, start_states, write_start_states
from astra_env.training.episodes import Episodes


def counting_episodes(num: int, chunks: int, *, over_from: int | None = None) -> Episodes:
    """Episodes whose frames tell their place and time: frame f of episode e is of the colour (f, e, 0)."""
    frames = torch.zeros(num, 4 * chunks + 1, 4, 4, 3, dtype=torch.uint8)
    frames[..., 0] = torch.arange(4 * chunks + 1, dtype=torch.uint8)[None, :, None, None]
    frames[..., 1] = torch.arange(num, dtype=torch.uint8)[:, None, None, None]
    over = torch.arange(chunks + 1).expand(num, -1) >= (chunks + 1 if over_from is None else over_from)
    return Episodes("robot", "end_effector", frames, random_actions(num, chunks), over.float(), over)


@pytest.fixture
def starts() -> StartStates:
    speeds = np.array([0.0, 3.5, -1.0], np.float32)
    return StartStates(random_frames(3, 9).numpy(), random_actions(3, 2).numpy(), speeds)


def test_a_file_holds_the_clips_exactly(starts, tmp_path):
    starts.save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]
    for path in (tmp_path, tmp_path / FILE_NAME, str(tmp_path)):
        loaded = StartStates.load(path)
        assert len(loaded) == 3
        for name, theirs in vars(starts).items():
            ours = getattr(loaded, name)
            assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


def test_what_has_no_speed_is_kept_without(starts, tmp_path):
    StartStates(starts.frames, starts.actions).save(tmp_path)
    assert StartStates.load(tmp_path).speeds is None


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "other.npz"):
        with pytest.raises(FileNotFoundError, match=r"no start states at .*npz"):
            StartStates.load(path)


def test_a_damaged_file_is_named(starts, tmp_path):
    starts.save(tmp_path)
    file = tmp_path / FILE_NAME
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no archive at all"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{FILE_NAME} is not an npz of frames and actions"):
            StartStates.load(tmp_path)


def test_an_archive_of_something_else_is_named(tmp_path):
    np.savez(tmp_path / FILE_NAME, pictures=np.zeros(3))
    with pytest.raises(ValueError, match=r"not an npz of frames and actions"):
        StartStates.load(tmp_path)
    np.savez(tmp_path / FILE_NAME, frames=np.array([{}], dtype=object), actions=np.zeros(1))
    with pytest.raises(ValueError, match=r"not an npz of frames and actions"):
        StartStates.load(tmp_path)


def test_no_world_begins_where_its_task_is_over(tmp_path):
    num, chunks = 6, 9
    over = torch.zeros(num, chunks + 1, dtype=torch.bool)
    over[:, 5:] = True
    over[3] = True  # an episode that is over from its beginning
    frames = torch.arange(4 * chunks + 1, dtype=torch.uint8)[None, :, None, None, None].repeat(num, 1, 4, 4, 3)
    heldout = Episodes("robot", "end_effector", frames, random_actions(num, chunks), over.float(), over)
    write_start_states(heldout, tmp_path)
    last = StartStates.load(tmp_path).frames[:, -1, 0, 0, 0] // 4
    assert len(last) == num
    assert (np.delete(last, 3) < 5).all()


def test_clips_are_pieces_of_their_episodes():
    episodes = counting_episodes(3, 9)
    speeds = 100.0 * torch.arange(3)[:, None] + torch.arange(10)
    for told in (None, speeds):
        starts = start_states(dataclasses.replace(episodes, speeds=told), 8)
        assert starts.frames.shape == (8, 4 * NUM_CHUNKS + 1, 4, 4, 3) and starts.actions.shape == (8, NUM_CHUNKS, 7)
        assert (np.diff(starts.frames[:, :, 0, 0, 0].astype(int), axis=1) == 1).all()
        for index, (frames, actions) in enumerate(zip(starts.frames, starts.actions, strict=True)):
            time, episode, _ = frames[0, 0, 0] // (4, 1, 1)
            np.testing.assert_array_equal(actions, episodes.actions[episode, time : time + NUM_CHUNKS])
            if told is not None:
                assert starts.speeds[index] == speeds[episode, time + NUM_CHUNKS]
    assert start_states(episodes, 8).speeds is None


@pytest.mark.parametrize("chunks", [8, 9, 13])
def test_many_clips_are_all_different_and_evenly_spread(chunks):
    episodes = counting_episodes(4, chunks)
    num_times = chunks - NUM_CHUNKS + 1
    for count in (3, 4, 10, 4 * num_times, 1000):
        places = [tuple(frames[0, 0, 0, :2]) for frames in start_states(episodes, count).frames]
        assert len(set(places)) == len(places) == min(count, 4 * num_times)
        shares = np.bincount([episode for _, episode in places], minlength=4)
        assert shares.max() - shares.min() <= 1


def test_many_clips_end_before_the_task_is_over():
    """There are fewer than asked for where episodes are over early; those that are over at once are begun once."""
    episodes = counting_episodes(3, 9, over_from=6)
    episodes.success[1] = True
    last = start_states(episodes, 12).frames[:, -1, 0, 0]
    assert sorted(last[:, 1].tolist()) == [0, 0, 1, 2, 2]
    assert (last[last[:, 1] != 1, 0] // 4 < 6).all()
    failed = dataclasses.replace(counting_episodes(3, 9), failure=episodes.success)
    assert (start_states(failed, 12).frames == start_states(episodes, 12).frames).all()


def test_what_cannot_be_cut_is_told():
    with pytest.raises(ValueError, match="0 start states were asked for"):
        start_states(counting_episodes(2, 9), 0)
    with pytest.raises(ValueError, match=r"of episodes of 3 actions; expected .* 4 actions or more"):
        start_states(counting_episodes(2, 3), 5)


def test_a_file_may_have_any_name(starts, tmp_path):
    starts.save(tmp_path / "clips.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["clips.npz"]
    assert np.array_equal(StartStates.load(tmp_path / "clips.npz").frames, starts.frames)
    with pytest.raises(ValueError, match=r"clips.txt is no name of start states, expected .* FILE.npz"):
        starts.save(tmp_path / "clips.txt")
