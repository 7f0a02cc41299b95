from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import random_actions, random_frames

from astra_env.envs.start_states import FILE_NAME, StartStates
from astra_env.training.bundle import write_start_states
from astra_env.training.episodes import Episodes


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
