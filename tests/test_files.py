"""Files here and elsewhere, and the windows that readers cut recordings into."""

from __future__ import annotations

import time

import fsspec
import pytest
from test_datasets import write_episode

from astra_env.datasets import files, load_dataset
from astra_env.datasets.files import Files


@pytest.fixture
def remote():
    """Five files of a kilobyte each, elsewhere."""
    system = fsspec.filesystem("memory")
    for index in range(5):
        system.pipe(f"/set/part/{index}.bin", bytes([index]) * 1000)
    yield system
    system.rm("/set", recursive=True)


def test_a_local_root_is_read_where_it_lies(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.txt").write_text("here")
    here = Files(tmp_path)
    assert here.glob("*/*.txt") == ["a/b.txt"] and here.exists("a/b.txt") and not here.exists("a")
    assert here.path("a/b.txt") == tmp_path / "a" / "b.txt"
    with pytest.raises(FileNotFoundError, match=r"c.txt is missing"):
        here.path("a/c.txt")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        Files(tmp_path / "nowhere")


def test_remote_files_are_fetched_once_and_as_they_are(remote, tmp_path):
    there = Files("memory://set", cache=tmp_path)
    assert there.glob("part/*.bin") == [f"part/{index}.bin" for index in range(5)]
    assert there.exists("part/3.bin") and not there.exists("part/9.bin")
    path = there.path("part/3.bin")
    assert path.read_bytes() == bytes([3]) * 1000
    remote.pipe("/set/part/3.bin", b"other")
    assert there.path("part/3.bin").read_bytes() == bytes([3]) * 1000
    assert [entry for entry in tmp_path.rglob("*") if entry.is_file()] == [path]
    with pytest.raises(FileNotFoundError):
        there.path("part/9.bin")


def test_what_was_used_longest_ago_makes_room(remote, tmp_path):
    there = Files("memory://set", cache_gb=2500e-9, cache=tmp_path)
    for index in (0, 1, 0, 2):
        there.path(f"part/{index}.bin")
        time.sleep(0.02)
    assert sorted(path.name for path in tmp_path.rglob("*.bin")) == ["0.bin", "2.bin"]
    tiny = Files("memory://set", cache_gb=1e-9, cache=tmp_path / "tiny")
    assert tiny.path("part/4.bin").read_bytes() == bytes([4]) * 1000  # what is asked for is there, however large


def test_a_data_set_elsewhere_is_read_as_one_here(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CACHE", tmp_path / "cache")
    write_episode(tmp_path / "set" / "train" / "episode_00000.npz", 0)
    here, there = (load_dataset("recorded", root) for root in (tmp_path / "set", f"file://{tmp_path / 'set'}"))
    assert (here[0].frames == there[0].frames).all() and (here[0].actions == there[0].actions).all()


def test_windows_share_one_frame_and_cover_what_they_can(tmp_path):
    for index in range(2):
        write_episode(tmp_path / "train" / f"episode_{index:05d}.npz", index)
    whole, cut = load_dataset("recorded", tmp_path), load_dataset("recorded", tmp_path, num_frames=5)
    assert len(whole[0].frames) == 13 and len(cut) == 6
    for index, clip in enumerate(cut):
        recording, start = index // 3, 4 * (index % 3)
        assert (clip.frames == whole[recording].frames[start : start + 5]).all()
        assert (clip.actions == whole[recording].actions[start : start + 4]).all()
        assert (clip.poses == whole[recording].poses[start : start + 5]).all()
    with pytest.raises(ValueError, match="num_frames is 1, expected at least 2"):
        load_dataset("recorded", tmp_path, num_frames=1)
