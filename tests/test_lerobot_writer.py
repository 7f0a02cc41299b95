"""What is written as a LeRobot data set is whole, and what lerobot itself reads."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pyarrow import parquet
from test_lerobot import FPS, LENGTHS, assert_looks_like, make_clip

from astra_env.datasets import load_dataset
from astra_env.datasets.lerobot_writer import CAMERA, write_lerobot


def test_the_row_after_the_last_action_stands_still_with_the_gripper_as_it_was(tmp_path):
    clip = make_clip(0)
    write_lerobot(tmp_path / "set", [clip])
    rows = parquet.read_table(tmp_path / "set/data/chunk-000/file-000.parquet").to_pylist()
    assert len(rows) == LENGTHS[0]
    np.testing.assert_array_equal(rows[-1]["action"], [0, 0, 0, 0, 0, 0, clip.actions[-1, -1]])
    np.testing.assert_allclose([row["timestamp"] for row in rows], np.arange(LENGTHS[0]) / FPS, atol=1e-6)


def test_statistics_are_those_of_all_rows_and_pixels(tmp_path):
    clips = [make_clip(number) for number in range(3)]
    write_lerobot(tmp_path / "set", clips)
    stats = json.loads((tmp_path / "set/meta/stats.json").read_text())
    rows = parquet.read_table(tmp_path / "set/data/chunk-000/file-000.parquet")
    actions = np.array(rows["action"].to_pylist())
    pixels = np.concatenate([clip.frames for clip in clips]).reshape(-1, 3) / 255
    for key, values, shape in (("action", actions, (7,)), (CAMERA, pixels, (3, 1, 1))):
        for name in ("min", "max", "mean", "std"):
            expected = getattr(values, name)(axis=0).reshape(shape)
            np.testing.assert_allclose(stats[key][name], expected, atol=1e-6)
        assert stats[key]["count"] == [sum(LENGTHS)]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (make_clip(1, "camera"), r"recording 1 is camera .*expected end_effector .*recording 0"),
        (make_clip(1, poses=None), r"recording 1 .*without poses.*expected .*with poses"),
        (make_clip(1, fps=5.0), r"recording 1 .*5 Hz.*10 Hz"),
        (make_clip(1, fps=9.5), r"recording 1 .*9.5 Hz.*whole number"),
        (make_clip(1, frames=np.zeros((12, 47, 64, 3), np.uint8)), r"recording 1 .*47 x 64.*even"),
    ],
)
def test_all_is_written_or_nothing(tmp_path, second, message):
    with pytest.raises(ValueError, match=message):
        write_lerobot(tmp_path / "set", iter([make_clip(0), second]))
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    with pytest.raises(ValueError, match="no clips"):
        write_lerobot(tmp_path / "set", [])
    write_lerobot(tmp_path / "set", [make_clip(0)])
    with pytest.raises(ValueError, match="there already"):
        write_lerobot(tmp_path / "set", [make_clip(1)])
    assert len(load_dataset("lerobot", tmp_path / "set")) == 1


def test_lerobot_reads_ours(tmp_path):
    lerobot = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    clips = [make_clip(number) for number in range(3)]
    write_lerobot(tmp_path / "set", clips)
    rows = lerobot.LeRobotDataset("ours/set", root=tmp_path / "set", video_backend="pyav")
    assert len(rows) == sum(LENGTHS)
    number = 0
    for clip in clips:
        for frame, picture in enumerate(clip.frames):
            row, number = rows[number], number + 1
            assert_looks_like((255 * row[CAMERA].numpy().transpose(1, 2, 0)).round()[None], picture[None])
            assert row["task"] == clip.text
            if frame < len(clip.actions):
                np.testing.assert_array_equal(row["action"].numpy(), clip.actions[frame])
