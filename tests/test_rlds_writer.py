"""Clips written as RLDS come back as they were, through our reader and through tensorflow-datasets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets import Clip, load_dataset
from astra_env.datasets.rlds_writer import write_rlds

tfds = pytest.importorskip("tensorflow_datasets")


def some_clip(seed: int, modality: str = "end_effector", num_frames: int = 5, **changes) -> Clip:
    rng = np.random.default_rng(seed)
    kind = ACTION_MODALITIES[modality]
    actions = rng.uniform(kind.low, kind.high, (num_frames - 1, kind.action_dim)).astype(np.float32)
    values = {
        "frames": rng.integers(0, 256, (num_frames, 8, 10, 3), dtype=np.uint8),
        "actions": actions,
        "modality": modality,
        "fps": 12.5,
        "poses": kind.integrate(geometry.make_pose(np.eye(3), [1, 0, 0]), actions, speed=5.0).astype(np.float32),
        "speeds": rng.uniform(0, 9, num_frames).astype(np.float32) if modality == "vehicle" else None,
        "text": f"do number {seed}, ä",
        "source": f"clip_{seed}",
    }
    return Clip(**values | changes)


def assert_same(read: Clip, written: Clip) -> None:
    np.testing.assert_array_equal(read.frames, written.frames)
    np.testing.assert_array_equal(read.actions, written.actions)
    assert (read.modality, read.fps, read.text) == (written.modality, written.fps, written.text)
    for name in ("poses", "speeds"):
        if getattr(written, name) is None:
            assert getattr(read, name) is None
        else:
            np.testing.assert_array_equal(getattr(read, name), getattr(written, name))


@pytest.mark.parametrize("modality", ACTION_MODALITIES)
def test_clips_come_back_as_they_were(tmp_path, modality):
    clips = [some_clip(seed, modality, num_frames=4 + seed) for seed in range(3)]
    folder = write_rlds(tmp_path, iter(clips), name="my_world")
    assert folder == tmp_path / "my_world" / "1.0.0"
    dataset = load_dataset("rlds", tmp_path)
    assert list(dataset.lengths) == [4, 5, 6]
    for read, written in zip(dataset, clips, strict=True):
        assert_same(read, written)


def test_clips_without_poses_come_back_without(tmp_path):
    clip = some_clip(0, poses=None)
    write_rlds(tmp_path, [clip])
    assert_same(load_dataset("rlds", tmp_path)[0], clip)


def test_tensorflow_datasets_reads_what_is_written(tmp_path):
    clip = some_clip(0)
    folder = write_rlds(tmp_path, [clip, some_clip(1)])
    source = tfds.builder_from_directory(folder).as_data_source("train")
    assert len(source) == 2
    episode = source[0]
    steps = list(episode["steps"])
    np.testing.assert_array_equal([step["observation"]["image"] for step in steps], clip.frames)
    np.testing.assert_array_equal([step["action"] for step in steps[:-1]], clip.actions)
    np.testing.assert_array_equal(steps[-1]["action"], [0, 0, 0, 0, 0, 0, clip.actions[-1, 6]])
    assert [bool(step["is_first"]) for step in steps] == [True, False, False, False, False]
    assert [bool(step["is_last"]) for step in steps] == [False, False, False, False, True]
    assert {(step["language_instruction"].decode(), float(step["discount"])) for step in steps} == {(clip.text, 1.0)}
    assert episode["episode_metadata"]["file_path"] == b"clip_0"


def test_a_set_is_written_whole_or_not_at_all(tmp_path):
    def interrupted():
        yield some_clip(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rlds(tmp_path, interrupted())
    with pytest.raises(ValueError, match="no clips"):
        write_rlds(tmp_path, [])
    with pytest.raises(ValueError, match=r"clip 1 \(clip_1\) has modality"):
        write_rlds(tmp_path, [some_clip(0), some_clip(1, "camera")])
    assert not [path for path in tmp_path.rglob("*") if path.is_file() or "incomplete" in path.name]
    write_rlds(tmp_path, [some_clip(0)])
    with pytest.raises(ValueError, match="exists"):
        write_rlds(tmp_path, [some_clip(0)])


def test_a_torn_arrayrecord_file_is_named(tmp_path):
    (shard,) = write_rlds(tmp_path, [some_clip(0)]).glob("*.array_record-*")
    whole = shard.read_bytes()
    for broken in (whole[:500], whole[:300] + bytes(10) + whole[310:]):
        shard.write_bytes(broken)
        with pytest.raises(ValueError, match=r"array_record-00000 is torn"):
            load_dataset("rlds", tmp_path)


def test_tensorflow_is_not_imported_where_it_is_installed(tmp_path):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('TensorFlow is imported')")
    code = f"""
import numpy as np
from astra_env.datasets import Clip, load_dataset
from astra_env.datasets.rlds_writer import write_rlds
clip = Clip(np.zeros((3, 8, 8, 3), np.uint8), np.zeros((2, 7), np.float32), "end_effector", 5.0)
write_rlds({str(tmp_path)!r}, [clip])
assert len(load_dataset("rlds", {str(tmp_path / "astra_env")!r})[0].frames) == 3
"""
    paths = [str(tmp_path), str(Path(__file__).parents[1])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
