"""LeRobot data sets: what is written comes back, as others write it too, and what is broken is named."""

from __future__ import annotations

import json
import shutil

import cv2
import fsspec
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets import Clip, load_dataset
from astra_env.datasets.columns import ActionColumns
from astra_env.datasets.lerobot_writer import CAMERA, write_lerobot
from astra_env.video import read_video, write_video

FPS, LENGTHS = 10, (7, 12, 9)
JOINTS = ActionColumns(translation=("action.x", "action.y", "action.z"), gripper="action.grip")
TABLE, VIDEO = "data/chunk-000/episode_000001.parquet", "videos/chunk-000/observation.images.top/episode_000001.mp4"
META = "set/meta/episodes/chunk-000/file-000.parquet"


def make_clip(number: int, modality: str = "end_effector", **changes) -> Clip:
    """Poses follow the actions; frame t is a shade brighter than the one before, which tells them apart."""
    kind, rng, length = ACTION_MODALITIES[modality], np.random.default_rng(number), LENGTHS[number]
    actions = rng.uniform(kind.low, kind.high, (length - 1, kind.action_dim)).astype(np.float32)
    poses = kind.integrate(geometry.make_pose(np.eye(3), [0.5, 0, 0]), actions, speed=5.0, rate_hz=FPS)
    values = {
        "frames": shades(number, length),
        "actions": actions,
        "modality": modality,
        "fps": float(FPS),
        "poses": poses.astype(np.float32),
        "speeds": rng.random(length).astype(np.float32) if modality == "vehicle" else None,
        "text": ("lift the cup", "open the drawer")[number % 2],
        "source": f"recording {number}",
    }
    return Clip(**values | changes)


def shades(number: int, length: int) -> np.ndarray:
    frames = np.zeros((length, 48, 64, 3), np.uint8)
    frames[..., 0] = 20 + 12 * np.arange(length)[:, None, None]
    frames[..., 1] = 60 * number + 20
    frames[:, :24, :, 2] = 200
    return frames


def assert_same(clip: Clip, written: Clip, start: int = 0, stop: int | None = None) -> None:
    np.testing.assert_allclose(clip.actions, written.actions[start : None if stop is None else stop - 1], atol=1e-6)
    for name in ("poses", "speeds"):
        expected = getattr(written, name)
        if expected is None:
            assert getattr(clip, name) is None
        else:
            np.testing.assert_allclose(getattr(clip, name), expected[start:stop], atol=1e-6)
    assert_looks_like(clip.frames, written.frames[start:stop])
    assert (clip.text, clip.fps, clip.modality) == (written.text, written.fps, written.modality)


def assert_looks_like(frames: np.ndarray, expected: np.ndarray) -> None:
    assert frames.shape == expected.shape
    assert np.abs(frames.astype(int) - expected).mean(axis=(1, 2)).max() < 6  # half the shade between two frames


def join_videos(root) -> None:
    """All episodes into one video, one after the other, as lerobot's own writer keeps them."""
    folder, meta = root / "set/videos" / CAMERA / "chunk-000", root / META
    paths = sorted(folder.glob("*.mp4"))
    frames = [read_video(path) for path in paths]
    write_video(paths[0], np.concatenate(frames), FPS)
    for path in paths[1:]:
        path.unlink()
    rows, seconds = parquet.read_table(meta).to_pylist(), 0.0
    for row in rows:
        row[f"videos/{CAMERA}/file_index"] = 0
        row[f"videos/{CAMERA}/from_timestamp"] = seconds
        seconds += row["length"] / FPS
        row[f"videos/{CAMERA}/to_timestamp"] = seconds
    parquet.write_table(pa.Table.from_pylist(rows), meta)


def write_v21(root, names=("x", "y", "z", "grip"), *, pictures: bool = False) -> list[np.ndarray]:
    """A data set of version 2.1 of three episodes; gives their action tables: positions and a gripper."""
    camera, kind = "observation.images.top", "image" if pictures else "video"
    (root / "meta").mkdir(parents=True)
    tables = []
    lines: dict[str, list] = {
        "episodes": [],
        "tasks": [{"task_index": 0, "task": "lift"}, {"task_index": 1, "task": "ö"}],
    }
    for number, length in enumerate(LENGTHS):
        rng, frames = np.random.default_rng(number), shades(number, length)
        tables.append(np.column_stack([rng.normal(size=(length, 3)), rng.integers(0, 2, length)]).astype(np.float32))
        columns = {
            "action": pa.array(list(tables[-1]), pa.list_(pa.float32(), 4)),
            "timestamp": pa.array(np.arange(length) / FPS, pa.float32()),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, number),
            "index": sum(LENGTHS[:number]) + np.arange(length),
            "task_index": np.full(length, number % 2),
        }
        if pictures:
            encoded = [cv2.imencode(".png", frame[..., ::-1])[1].tobytes() for frame in frames]
            columns[camera] = pa.array([{"bytes": part, "path": "frame.png"} for part in encoded])
        else:
            write_video(root / f"videos/chunk-000/{camera}/episode_{number:06d}.mp4", frames, FPS)
        path = root / f"data/chunk-000/episode_{number:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table(columns), path)
        lines["episodes"].append({"episode_index": number, "tasks": [("lift", "ö")[number % 2]], "length": length})
    for name, rows in lines.items():
        (root / f"meta/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    info = {
        "codebase_version": "v2.1",
        "fps": FPS,
        "chunks_size": 1000,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            "action": {"dtype": "float32", "shape": [4], "names": names},
            camera: {"dtype": kind, "shape": [48, 64, 3], "names": ["height", "width", "channels"]},
            "frame_index": {"dtype": "int64", "shape": [1], "names": None},
        },
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    return tables


def change_info(root, **changes) -> None:
    path = root / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("modality", ACTION_MODALITIES)
@pytest.mark.parametrize("joined", [False, True], ids=["video each", "one video"])
def test_clips_come_back_whole_and_in_windows(tmp_path, modality, joined):
    written = [make_clip(number, modality) for number in range(3)]
    write_lerobot(tmp_path / "set", written)
    if joined:
        join_videos(tmp_path)
    for clip, expected in zip(load_dataset("lerobot", tmp_path / "set"), written, strict=True):
        assert_same(clip, expected)
    windows = load_dataset("lerobot", tmp_path / "set", num_frames=4)
    assert len(windows) == 2 + 3 + 2
    for clip, (recording, start, stop) in zip(windows, windows.windows, strict=True):
        assert_same(clip, written[recording], start, stop)


def test_clips_without_poses_have_none_and_frames_are_resized(tmp_path):
    write_lerobot(tmp_path / "set", [make_clip(0, poses=None)])
    clip = load_dataset("lerobot", tmp_path / "set", frame_size=(24, 32))[0]
    assert clip.poses is None and clip.frames.shape == (LENGTHS[0], 24, 32, 3)


@pytest.mark.parametrize(
    ("pictures", "names"), [(False, ["x", "y", "z", "grip"]), (True, {"motors": ["x", "y", "z", "grip"]})]
)
def test_version_21_is_read_as_its_owner_says(tmp_path, pictures, names):
    tables = write_v21(tmp_path, names, pictures=pictures)
    dataset = load_dataset("lerobot", tmp_path, columns=JOINTS, num_frames=4)
    for clip, (recording, start, stop) in zip(dataset, dataset.windows, strict=True):
        table, frames = tables[recording][start:stop], shades(recording, LENGTHS[recording])[start:stop]
        np.testing.assert_allclose(clip.poses[:, :3, 3], table[:, :3], atol=1e-6)
        np.testing.assert_allclose(clip.actions[:, :3], np.diff(table[:, :3], axis=0), atol=1e-6)
        np.testing.assert_array_equal(clip.actions[:, 6], table[1:, 3])
        assert clip.text == ("lift", "ö")[recording % 2]
        if pictures:
            np.testing.assert_array_equal(clip.frames, frames)
        else:
            assert_looks_like(clip.frames, frames)


def test_columns_without_names_are_numbered(tmp_path):
    write_v21(tmp_path, None)
    numbered = ActionColumns(translation=("action_0", "action_1", "action_2"), gripper="action_3")
    assert load_dataset("lerobot", tmp_path, columns=numbered)[2].actions.shape == (LENGTHS[2] - 1, 7)


def test_nothing_is_guessed(tmp_path):
    write_v21(tmp_path)
    with pytest.raises(ValueError, match=r"cannot be guessed.*'action.x', 'action.y', 'action.z', 'action.grip'"):
        load_dataset("lerobot", tmp_path)
    with pytest.raises(ValueError, match=r"info.json: .*'action.q'.* missing; it has .*'action.x'"):
        load_dataset(
            "lerobot", tmp_path, columns=ActionColumns(translation=("action.q", "action.y"), gripper="action.grip")
        )
    features = json.loads((tmp_path / "meta/info.json").read_text())["features"]
    change_info(tmp_path, features=features | {"observation.images.side": {"dtype": "video", "shape": [48, 64, 3]}})
    with pytest.raises(ValueError, match=r"camera is None.*'observation.images.top', 'observation.images.side'"):
        load_dataset("lerobot", tmp_path, columns=JOINTS)
    assert len(load_dataset("lerobot", tmp_path, columns=JOINTS, camera="observation.images.top")) == 3


def test_our_own_names_in_other_units_are_not_taken_for_ours(tmp_path):
    write_lerobot(tmp_path / "set", [make_clip(0)])
    features = json.loads((tmp_path / "set/meta/info.json").read_text())["features"]
    features["action"]["units"][0] = "cm"
    change_info(tmp_path / "set", features=features)
    with pytest.raises(ValueError, match=r"cannot be guessed"):
        load_dataset("lerobot", tmp_path / "set")


def test_of_a_remote_data_set_only_what_is_asked_for_is_fetched(tmp_path):
    clips = [make_clip(number) for number in range(3)]
    write_lerobot(tmp_path / "set", clips)
    address = f"memory:/{tmp_path}"
    fsspec.filesystem("memory").put(str(tmp_path / "set"), str(tmp_path), recursive=True)
    dataset = load_dataset("lerobot", address)
    try:
        assert_same(dataset[1], clips[1])
        files = [path for path in dataset.files.local.rglob("*") if path.is_file()]
        fetched = {path.relative_to(dataset.files.local).as_posix() for path in files}
        assert fetched == {
            "meta/info.json",
            "meta/tasks.parquet",
            "meta/episodes/chunk-000/file-000.parquet",
            "data/chunk-000/file-000.parquet",
            f"videos/{CAMERA}/chunk-000/file-001.mp4",
        }
    finally:
        shutil.rmtree(dataset.files.local)


@pytest.mark.parametrize("version", ["v2.0", "v1.6", None])
def test_other_versions_are_to_be_converted(tmp_path, version):
    write_v21(tmp_path)
    change_info(tmp_path, codebase_version=version)
    with pytest.raises(ValueError, match=rf"info.json: codebase_version is '?{version}'?, expected .*convert"):
        load_dataset("lerobot", tmp_path, columns=JOINTS)


def tear(path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rewrite(path, **columns) -> None:
    table = parquet.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    parquet.write_table(table, path)


def column(**values):
    return lambda root: rewrite(root / TABLE, **values)


def actions(bad: list[float]):
    return column(action=[bad if row == 5 else [0.0] * 4 for row in range(12)])


@pytest.mark.parametrize(
    ("harm", "error", "message"),
    [
        (lambda root: tear(root / TABLE), ValueError, r"_000001.parquet is not a whole Parquet file"),
        (lambda root: (root / VIDEO).unlink(), FileNotFoundError, r"_000001.mp4 is missing"),
        (lambda root: tear(root / VIDEO), ValueError, r"_000001.mp4 cannot be read"),
        (lambda root: write_video(root / VIDEO, shades(1, 11), FPS), ValueError, r"mp4 has 11 frames .*expected 12"),
        (actions([0.0, 0.0, 0.0, np.nan]), ValueError, r"_000001.parquet, episode 1, row 5: .*action.grip.*finite"),
        (actions([0.0, 0.0, 0.0]), ValueError, r"_000001.parquet, episode 1, row 5: action has shape \(3,\)"),
        (column(frame_index=[*range(1, 13)]), ValueError, r"_000001.parquet, episode 1 has 11 rows of the frames 0 to"),
        (column(task_index=[9] * 12), ValueError, r"_000001.parquet, episode 1, row 0: task_index is 9"),
        (lambda root: tear(root / "meta/episodes.jsonl"), ValueError, r"episodes.jsonl, line 2 is not JSON"),
        (lambda root: tear(root / "meta/info.json"), ValueError, r"info.json is not JSON"),
        (lambda root: change_info(root, data_path="{who}"), ValueError, r"info.json: data_path"),
        (lambda root: change_info(root, data_path="../../{episode_index}"), ValueError, r"info.json: data_path leads"),
    ],
)
def test_what_is_broken_is_named(tmp_path, harm, error, message):
    write_v21(tmp_path)
    harm(tmp_path)
    with pytest.raises(error, match=message):
        load_dataset("lerobot", tmp_path, columns=JOINTS)[1]


def test_a_video_of_many_episodes_that_is_too_short_for_one_is_named(tmp_path):
    write_lerobot(tmp_path / "set", [make_clip(number) for number in range(3)])
    join_videos(tmp_path)
    rewrite(tmp_path / META, **{f"videos/{CAMERA}/to_timestamp": [0.7, 1.8, 2.8]})
    dataset = load_dataset("lerobot", tmp_path / "set")
    assert len(dataset[0].frames) == LENGTHS[0]
    with pytest.raises(ValueError, match=r"file-000.mp4 has 11 frames of episode 1, expected 12"):
        dataset[1]


def test_ours_reads_lerobot(tmp_path):
    lerobot = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    camera = "observation.images.top"
    features = {
        "action": {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "grip"]},
        camera: {"dtype": "video", "shape": (48, 64, 3), "names": ["height", "width", "channels"]},
    }
    rows = lerobot.LeRobotDataset.create("theirs/set", fps=FPS, features=features, root=tmp_path / "set", vcodec="h264")
    rng, tables = np.random.default_rng(0), []
    for number, length in enumerate(LENGTHS):
        tables.append(rng.random((length, 4)).astype(np.float32))
        for action, frame in zip(tables[-1], shades(number, length), strict=True):
            rows.add_frame({"action": action, camera: frame, "task": f"task {number}"})
        rows.save_episode()
    rows.finalize()
    for number, clip in enumerate(load_dataset("lerobot", tmp_path / "set", columns=JOINTS)):
        assert_looks_like(clip.frames, shades(number, LENGTHS[number]))
        np.testing.assert_allclose(clip.poses[:, :3, 3], tables[number][:, :3], atol=1e-6)
        assert clip.text == f"task {number}"
