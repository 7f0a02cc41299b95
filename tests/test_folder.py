"""Folders of videos or pictures with tables: what was written comes back, and what does not fit is named."""

from __future__ import annotations

import dataclasses
import json
import os
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets import load_dataset
from astra_env.datasets.columns import ActionColumns
from astra_env.datasets.folder import FolderDataset

N, FPS, SIZE = 12, 10, 32
CODECS = {"mp4": "libx264", "mkv": "libx264", "mov": "libx264", "webm": "libvpx-vp9", "avi": "mpeg4", "gif": "gif"}
COLUMNS = ActionColumns(rotation=("qx", "qy", "qz", "qw"), rotation_kind="quaternion_xyzw", gripper="grip")
NAMES = ("x", "y", "z", "qx", "qy", "qz", "qw", "grip")


def greys(count: int = N) -> np.ndarray:
    """Frames (T, H, W, 3) that tell their number by their brightness."""
    levels = np.arange(count, dtype=np.uint8) * 20
    return np.broadcast_to(levels[:, None, None, None], (count, SIZE, SIZE, 3)).copy()


def numbers_of(frames: np.ndarray) -> list[int]:
    return np.rint(frames.mean(axis=(1, 2, 3)) / 20).astype(int).tolist()


def write_film(path, frames: np.ndarray, times: np.ndarray | None = None) -> None:
    """A video of any container; `times` (T,) in frames' durations, for a rate that varies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS[path.suffix[1:]], rate=FPS)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "rgb8" if path.suffix == ".gif" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, 100 * FPS) if times is not None else Fraction(1, FPS)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if path.suffix == ".gif":
                frame = frame.reformat(format="rgb8")
            if times is not None:
                frame.pts, frame.time_base = round(100 * times[index]), Fraction(1, 100 * FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def path_of(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Actions (N - 1, 7), poses (N, 4, 4), and the table (N, 8) of the poses."""
    modality, rng = ACTION_MODALITIES["end_effector"], np.random.default_rng(seed)
    actions = rng.uniform(modality.low, modality.high, (N - 1, 7))
    poses = modality.integrate(np.eye(4), actions)
    grip = np.append(0.0, actions[:, 6])
    return actions, poses, np.concatenate([geometry.pose_to_vector7(poses), grip[:, None]], axis=-1)


def write_csv(path, table: np.ndarray, names=NAMES, **more: list[str]) -> None:
    rows = [",".join([*names, *more])]
    rows += [
        ",".join([*("" if np.isnan(cell) else repr(float(cell)) for cell in row), *(more[name][i] for name in more)])
        for i, row in enumerate(table)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")


def write_pictures(folder, count: int = N, first: int = 0, width: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(greys(count)):
        cv2.imwrite(str(folder / f"frame_{first + index:0{width}}.png"), picture)


@pytest.mark.parametrize("suffix", CODECS)
def test_a_video_and_its_table_make_a_clip(tmp_path, suffix):
    actions, poses, table = path_of()
    write_film(tmp_path / f"lift.{suffix}", greys())
    write_csv(tmp_path / "lift.csv", table)
    dataset = load_dataset("folder", tmp_path, columns=COLUMNS)
    assert FolderDataset.recognises(tmp_path)
    assert (len(dataset), list(dataset.lengths)) == (1, [N])
    clip = dataset[0]
    assert (clip.fps, clip.modality, clip.frames.shape) == (FPS, "end_effector", (N, SIZE, SIZE, 3))
    assert numbers_of(clip.frames) == list(range(N))
    assert clip.source.endswith("lift.csv")
    np.testing.assert_allclose(clip.actions, actions, atol=1e-6)
    np.testing.assert_allclose(clip.poses, poses, atol=1e-6)
    part = dataset.read(0, 5, 9)
    assert numbers_of(part.frames) == [5, 6, 7, 8]
    np.testing.assert_allclose(part.actions, actions[5:8], atol=1e-6)
    np.testing.assert_allclose(part.poses, poses[5:9], atol=1e-6)


@pytest.mark.parametrize("beside", [True, False])
def test_pictures_come_in_the_order_of_their_numbers(tmp_path, beside):
    actions, _, table = path_of()
    write_pictures(tmp_path / "lift", first=3)  # frame_3 … frame_14, which are not in the order of their letters
    write_csv(tmp_path / ("lift.csv" if beside else "lift/poses.csv"), table)
    assert FolderDataset.recognises(tmp_path)
    clip = load_dataset("folder", tmp_path, columns=COLUMNS, fps=5.0, frame_size=(16, 16))[0]
    assert numbers_of(clip.frames) == list(range(N))
    assert (clip.frames.shape[1:], clip.fps) == ((16, 16, 3), 5.0)
    np.testing.assert_allclose(clip.actions, actions, atol=1e-6)


def test_windows_cover_a_recording_and_share_the_frame_between_two(tmp_path):
    actions, _, table = path_of()
    write_film(tmp_path / "lift.mp4", greys())
    write_csv(tmp_path / "lift.csv", table)
    dataset = load_dataset("folder", tmp_path, columns=COLUMNS, num_frames=5, frame_size=(8, 16))
    assert [numbers_of(clip.frames) for clip in dataset] == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]
    assert dataset[1].frames.shape == (5, 8, 16, 3)
    np.testing.assert_allclose(dataset[1].actions, actions[4:8], atol=1e-6)


def test_splits_are_folders(tmp_path):
    _, _, table = path_of()
    for split, names in (("train", ("a", "b")), ("heldout", ("a",))):
        for name in names:
            write_film(tmp_path / split / f"{name}.mp4", greys())
            write_csv(tmp_path / split / f"{name}.csv", table)
    assert FolderDataset.recognises(tmp_path)
    counts = {split: len(load_dataset("folder", tmp_path, columns=COLUMNS, split=split)) for split in (None, "train")}
    assert counts == {None: 3, "train": 2}
    assert "heldout" in load_dataset("folder", tmp_path, columns=COLUMNS, split="heldout")[0].source
    with pytest.raises(ValueError, match="split is 'test'"):
        load_dataset("folder", tmp_path, columns=COLUMNS, split="test")


def test_parquet_is_read_as_csv_is(tmp_path):
    actions, _, table = path_of()
    write_film(tmp_path / "lift.mp4", greys())
    columns = {name: table[:, i].astype(np.float32) for i, name in enumerate(NAMES)} | {"task": ["lift it"] * N}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "lift.parquet")
    clip = load_dataset("folder", tmp_path, columns=COLUMNS)[0]
    np.testing.assert_allclose(clip.actions, actions, atol=1e-6)
    assert clip.text == "lift it"
    (tmp_path / "lift.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(ValueError, match=r"lift.parquet cannot be read as Parquet"):
        load_dataset("folder", tmp_path, columns=COLUMNS)[0]


def test_text_comes_from_a_file_or_a_column(tmp_path):
    _, _, table = path_of()
    write_film(tmp_path / "lift.mp4", greys())
    write_csv(tmp_path / "lift.csv", table, text=["from the column"] * N)
    assert load_dataset("folder", tmp_path, columns=COLUMNS)[0].text == "from the column"
    (tmp_path / "lift.txt").write_text("from the file\n")
    assert load_dataset("folder", tmp_path, columns=COLUMNS)[0].text == "from the file"
    write_csv(tmp_path / "lift.csv", table)
    (tmp_path / "lift.txt").unlink()
    assert load_dataset("folder", tmp_path, columns=COLUMNS)[0].text == ""


def test_columns_may_lie_beside_the_data_and_must_be_told(tmp_path):
    actions, _, table = path_of()
    write_film(tmp_path / "lift.mp4", greys())
    write_csv(tmp_path / "lift.csv", table)
    with pytest.raises(ValueError, match=r"cannot be guessed.*\['x', 'y', 'z', 'qx'"):
        load_dataset("folder", tmp_path)
    (tmp_path / "columns.json").write_text(json.dumps(dataclasses.asdict(COLUMNS)))
    np.testing.assert_allclose(load_dataset("folder", tmp_path)[0].actions, actions, atol=1e-6)


@pytest.mark.parametrize(("name", "option"), [("time", None), ("timestamp", None), ("seconds", "seconds")])
def test_rows_at_other_times_than_the_frames_are_interpolated(tmp_path, name, option):
    times = np.linspace(-0.05, 1.2, 51)  # a sensor at 40 Hz that starts before the camera
    path = np.stack([0.3 * times, 0.1 * times**2, 0 * times, (times > 0.55)], axis=-1)
    write_film(tmp_path / "lift.mp4", greys())
    write_csv(tmp_path / "lift.csv", np.concatenate([path, times[:, None]], axis=-1), ("x", "y", "z", "grip", name))
    clip = load_dataset("folder", tmp_path, columns=ActionColumns(gripper="grip"), time=option)[0]
    at_frames = np.arange(N) / FPS
    np.testing.assert_allclose(clip.poses[:, 0, 3], 0.3 * at_frames, atol=1e-6)
    np.testing.assert_allclose(clip.actions[:, 1], 0.1 * np.diff(at_frames**2), atol=1e-4)
    np.testing.assert_array_equal(clip.actions[:, 6], at_frames[1:] > 0.55)


def test_deltas_may_leave_out_the_last_frame(tmp_path):
    deltas = np.random.default_rng(0).uniform(-0.05, 0.05, (N - 1, 4))
    write_film(tmp_path / "lift.mp4", greys())
    write_csv(tmp_path / "lift.csv", deltas, ("x", "y", "z", "grip"))
    clip = load_dataset("folder", tmp_path, columns=ActionColumns(meaning="deltas", gripper="grip"))[0]
    np.testing.assert_allclose(clip.actions[:, :3], deltas[:, :3], atol=1e-6)


@pytest.mark.parametrize(("rows", "names"), [(N - 2, NAMES), (N + 3, NAMES), (N - 1, NAMES)])
def test_a_count_that_is_not_that_of_the_frames_is_refused(tmp_path, rows, names):
    table = np.resize(path_of()[2], (rows, len(names)))
    write_film(tmp_path / "lift.mp4", greys())
    write_csv(tmp_path / "lift.csv", table, names)
    with pytest.raises(ValueError, match=rf"lift.csv has {rows} rows, lift.mp4 {N} frames: .*told as time.*'qx'"):
        load_dataset("folder", tmp_path, columns=COLUMNS)[0]
    with pytest.raises(ValueError, match=r"a column when of the seconds.*'qx'"):
        load_dataset("folder", tmp_path, columns=COLUMNS, time="when")[0]


def test_a_row_that_is_not_right_is_named(tmp_path):
    _, _, table = path_of()
    write_film(tmp_path / "lift.mp4", greys())
    table[4, 1] = np.nan
    write_csv(tmp_path / "lift.csv", table)
    dataset = load_dataset("folder", tmp_path, columns=COLUMNS)
    with pytest.raises(ValueError, match=r"lift.csv, row 4: .*not a finite number"):
        dataset[0]
    table[4, 1] = 0
    write_csv(tmp_path / "lift.csv", table)
    lines = (tmp_path / "lift.csv").read_text().splitlines()
    for change, message in (
        ("1,2,3", r"lift.csv, row 7: it has 3 cells, expected 8"),
        (",".join(["1"] * 4 + ["far"] + ["1"] * 3), r"lift.csv, row 7: qy is 'far', expected a number"),
    ):
        (tmp_path / "lift.csv").write_text("\n".join([*lines[:8], change, *lines[9:]]))
        with pytest.raises(ValueError, match=message):
            dataset[0]
    (tmp_path / "lift.csv").write_text("")
    with pytest.raises(ValueError, match=r"lift.csv cannot be read as a table"):
        dataset[0]


def test_a_rate_that_varies_is_refused_unless_it_is_told(tmp_path):
    _, _, table = path_of()
    write_film(tmp_path / "lift.mkv", greys(), times=np.cumsum(np.arange(N) % 3 + 1))
    write_csv(tmp_path / "lift.csv", table)
    with pytest.raises(ValueError, match=r"lift.mkv: its frames do not come at a constant rate"):
        load_dataset("folder", tmp_path, columns=COLUMNS)[0]
    clip = load_dataset("folder", tmp_path, columns=COLUMNS, fps=7.0)[0]
    assert (clip.fps, len(clip.frames)) == (7.0, N)
    with pytest.raises(ValueError, match="fps is -1"):
        load_dataset("folder", tmp_path, columns=COLUMNS, fps=-1)


def test_missing_parts_are_named(tmp_path):
    _, _, table = path_of()
    with pytest.raises(FileNotFoundError, match="no video"):
        load_dataset("folder", tmp_path, columns=COLUMNS)
    assert not FolderDataset.recognises(tmp_path)
    write_film(tmp_path / "lift.mp4", greys())
    with pytest.raises(ValueError, match=r"lift.mp4 has no table, expected one: lift.csv or lift.parquet"):
        load_dataset("folder", tmp_path, columns=COLUMNS)
    write_csv(tmp_path / "lift.csv", table)
    (tmp_path / "lift.mp4").write_bytes(b"no film")
    with pytest.raises(ValueError, match=r"lift.mp4 cannot be read as a video"):
        load_dataset("folder", tmp_path, columns=COLUMNS)


def test_pictures_that_do_not_fit_together_are_named(tmp_path):
    _, _, table = path_of()
    write_pictures(tmp_path / "lift")
    write_csv(tmp_path / "lift.csv", table)
    with pytest.raises(ValueError, match="pictures, which do not say their rate; tell fps"):
        load_dataset("folder", tmp_path, columns=COLUMNS)
    cv2.imwrite(str(tmp_path / "lift" / "frame_5.png"), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"lift/frame_5.png has the size \(8, 8\), those before it \(32, 32\)"):
        load_dataset("folder", tmp_path, columns=COLUMNS, fps=5)[0]
    (tmp_path / "lift" / "frame_5.png").unlink()
    with pytest.raises(ValueError, match=r"frame_4.png is followed by .*frame_6.png"):
        load_dataset("folder", tmp_path, columns=COLUMNS, fps=5)
    cv2.imwrite(str(tmp_path / "lift" / "cover.png"), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"cover.png has no number"):
        load_dataset("folder", tmp_path, columns=COLUMNS, fps=5)


def test_a_folder_elsewhere_is_fetched(tmp_path, monkeypatch):
    import fsspec

    from astra_env.datasets import files

    monkeypatch.setattr(files.Files.__init__, "__defaults__", (20.0, tmp_path / "cache"))
    _, _, table = path_of()
    write_film(tmp_path / "lift.mp4", greys())
    write_csv(tmp_path / "lift.csv", table)
    for name in ("lift.mp4", "lift.csv"):
        fsspec.filesystem("memory").pipe(f"/films/{name}", (tmp_path / name).read_bytes())
    clip = load_dataset("folder", "memory://films", columns=COLUMNS)[0]
    assert numbers_of(clip.frames) == list(range(N))


@pytest.mark.skipif("ASTRA_REALDATA" not in os.environ, reason="ASTRA_REALDATA names the folder of real samples")
@pytest.mark.parametrize("number", ["0001", "0002", "0003"])
def test_a_real_arm_with_its_states_in_a_table(tmp_path, number):
    droid = Path(os.environ["ASTRA_REALDATA"]) / "droid"
    sample = json.loads((droid / "annotation" / f"{number}.json").read_text())
    states = np.array(sample["states"])  # x y z, roll pitch yaw, gripper
    write_csv(tmp_path / "arm.csv", states, ("x", "y", "z", "roll", "pitch", "yaw", "grip"))
    (tmp_path / "arm.mp4").symlink_to(droid / "videos" / number / "0.mp4")
    (tmp_path / "arm.txt").write_text(sample["texts"][0])
    columns = ActionColumns(rotation=("roll", "pitch", "yaw"), rotation_kind="rpy", gripper="grip")
    dataset = load_dataset("folder", tmp_path, columns=columns, frame_size=(48, 80))
    if number == "0003":  # which has a frame more than states
        with pytest.raises(ValueError, match=r"arm.csv has 205 rows, arm.mp4 206 frames"):
            dataset[0]
        return
    clip = dataset[0]
    assert (len(clip.frames), clip.fps, clip.text) == (len(states), 4.0, sample["texts"][0])
    np.testing.assert_allclose(clip.actions[:, :3], np.diff(states[:, :3], axis=0), atol=1e-6)
    assert np.abs(np.diff(states[:, 3])).max() > 6  # the roll is near half a turn, and changes its sign
    assert np.abs(clip.actions[:, 3:6]).max() < 0.1
    followed = ACTION_MODALITIES["end_effector"].integrate(clip.poses[0], clip.actions)
    np.testing.assert_allclose(followed, clip.poses, atol=1e-4)
