"""Sekai, SpatialVID and MultiCamVideo: published camera tracks become motions in the camera's own frame."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets import load_dataset, multicamvideo, sekai, spatialvid
from astra_env.video import write_video

CAMERA = ACTION_MODALITIES["camera"]
WORLD = geometry.make_pose(geometry.rpy_to_matrix([np.pi - 0.1, 0.3, -0.7]), [0.2, -0.1, 0.4])
FPS, NUM_FRAMES = 10, 25


def walk(num_frames: int = NUM_FRAMES) -> tuple[np.ndarray, np.ndarray]:
    """Motions (T - 1, 6) that go forward, aside and turn, and the poses (T, 4, 4) of the camera that makes them."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-0.04, 0.04, (num_frames - 1, CAMERA.action_dim)).astype(np.float32)
    actions[:, 2] += 0.05
    return actions, CAMERA.integrate(WORLD, actions)


def write_frames(path: Path, num_frames: int = NUM_FRAMES) -> None:
    """A video whose frame k is grey, of brightness 9 k."""
    frames = np.zeros((num_frames, 16, 32, 3), np.uint8) + (np.arange(num_frames) * 9 % 250)[:, None, None, None]
    write_video(path, frames.astype(np.uint8), FPS)


def write_sekai(root: Path, name: str = "mZxUvlK2qDU_0016350_0016375", **arrays) -> np.ndarray:
    actions, poses = walk()
    write_frames(root / "files" / "mZxUvlK2qDU" / f"{name}.mp4")
    (root / "sekai-real-walking-hq").mkdir(exist_ok=True)
    values = {"extrinsic": poses, "intrinsic": np.eye(3)} | arrays
    np.savez(root / "sekai-real-walking-hq" / f"{name}.npz", **values)
    (root / "train").mkdir(exist_ok=True)
    with (root / "train" / "sekai-real-walking-hq.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["videoFile", "caption"], [f"{name}.mp4", "A street, at night"]])
    return actions


def write_spatialvid(root: Path, first: int = 0) -> np.ndarray:
    """A clip whose camera is known in every sixth frame from `first` on, as in a video of 30 frames a second."""
    clip = "0a00f99d-9d9a-5265-9548-e97a34c1302c"
    motion = np.array([0.02, -0.01, 0.05, 0.01, 0.02, 0.03])  # held, so that what lies between poses is known
    rows = CAMERA.integrate(WORLD, np.tile(motion, (4, 1)))
    write_frames(root / "videos" / "group_0001" / f"{clip}.mp4", NUM_FRAMES + first)
    folder = root / "annotations" / "group_0001" / clip
    folder.mkdir(parents=True)
    np.save(folder / "poses.npy", geometry.pose_to_vector7(geometry.inverse(rows)).astype(np.float32))
    lines = [f"# total {len(rows)} indexes", *(f"{k} {first + 6 * k}" for k in range(len(rows)))]
    (folder / "indexes.txt").write_text("\n".join(lines) + "\n")
    (folder / "caption.json").write_text(json.dumps({"SceneSummary": "A park", "SceneDescription": "Trees."}))
    return rows


def unreal_rows(forward: list[float], right: list[float], up: list[float], centimetres: list[float]) -> np.ndarray:
    """A camera (4, 4) as Unreal writes it: its axes and its origin in rows."""
    return np.array([[*forward, 0], [*right, 0], [*up, 0], [*centimetres, 1]])


def write_multicamvideo(root: Path, cameras: int = 2) -> None:
    """Each camera goes forward by 10 cm and turns right by 0.02 rad a frame."""
    scene = root / "train" / "f18_aperture10" / "scene1"
    table: dict[str, dict[str, str]] = {}
    place = np.array([3390.0, 1380.0, 240.0])
    for k in range(81):
        c, s = np.cos(0.02 * k), np.sin(0.02 * k)
        rows = unreal_rows([c, s, 0], [-s, c, 0], [0, 0, 1], place.tolist())
        text = " ".join(f"[{' '.join(f'{value:.10g}' for value in row)}]" for row in rows) + " "
        table[f"frame{k}"] = {f"cam{camera:02d}": text for camera in range(1, cameras + 1)}
        place = place + 10 * np.array([c, s, 0])
    (scene / "cameras").mkdir(parents=True)
    (scene / "cameras" / "camera_extrinsics.json").write_text(json.dumps(table))
    for camera in range(1, cameras + 1):
        write_frames(scene / "videos" / f"cam{camera:02d}.mp4", 81)


def test_sekai_gives_the_motions_of_its_tracks(tmp_path):
    actions = write_sekai(tmp_path)
    (clip,) = load_dataset("sekai", tmp_path)
    np.testing.assert_allclose(clip.actions, actions, atol=1e-5)
    assert (clip.modality, clip.fps, clip.text) == ("camera", FPS, "A street, at night")
    doubled = load_dataset("sekai", tmp_path, scale=2.0)[0]
    np.testing.assert_allclose(doubled.actions[:, :3], 2 * actions[:, :3], atol=1e-5)
    np.testing.assert_allclose(doubled.actions[:, 3:], actions[:, 3:], atol=1e-5)


def test_windows_of_a_video_are_parts_of_the_whole(tmp_path):
    write_sekai(tmp_path)
    whole = load_dataset("sekai", tmp_path, frame_size=(8, 8))[0]
    dataset = load_dataset("sekai", tmp_path, frame_size=(8, 8), num_frames=9)
    assert dataset.windows == [(0, 0, 9), (0, 8, 17), (0, 16, 25)]
    for (_, start, stop), clip in zip(dataset.windows, dataset, strict=True):
        np.testing.assert_array_equal(clip.frames, whole.frames[start:stop])
        np.testing.assert_array_equal(clip.poses, whole.poses[start:stop])
        np.testing.assert_array_equal(clip.actions, whole.actions[start : stop - 1])


@pytest.mark.parametrize("first", [0, 2])
def test_spatialvid_is_inverted_and_filled_between_its_poses(tmp_path, first):
    rows = write_spatialvid(tmp_path, first)
    (clip,) = load_dataset("spatialvid", tmp_path)
    assert (len(clip.frames), clip.text) == (25, "A park")
    np.testing.assert_allclose(clip.poses[::6], rows, atol=1e-5)
    np.testing.assert_allclose(clip.frames.mean(axis=(1, 2, 3)), np.arange(first, first + 25) * 9 % 250, atol=3)
    np.testing.assert_allclose(clip.actions[0], clip.actions[5], atol=5e-3)
    assert (clip.actions[:, 2] > 0).all() and (clip.actions[:, 5] > 0).all()  # forward, turning right
    joined = CAMERA.combine(clip.actions.reshape(4, 6, 6))
    np.testing.assert_allclose(joined, np.tile([0.02, -0.01, 0.05, 0.01, 0.02, 0.03], (4, 1)), atol=1e-5)
    doubled = load_dataset("spatialvid", tmp_path, scale=2.0)[0]
    np.testing.assert_allclose(doubled.poses[:, :3, 3], 2 * clip.poses[:, :3, 3], atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (unreal_rows([1, 0, 0], [0, 1, 0], [0, 0, 1], [30, 0, 0]), {"dz": 0.3}),
        (unreal_rows([1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 30, 0]), {"dx": 0.3}),
        (unreal_rows([1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 30]), {"dy": -0.3}),
        (unreal_rows([0.8, 0.6, 0], [-0.6, 0.8, 0], [0, 0, 1], [0, 0, 0]), {"dyaw": np.arcsin(0.6)}),
        (unreal_rows([0.8, 0, 0.6], [0, 1, 0], [-0.6, 0, 0.8], [0, 0, 0]), {"dpitch": np.arcsin(0.6)}),
        (unreal_rows([1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8], [0, 0, 0]), {"droll": np.arcsin(0.6)}),
    ],
    ids=["forward", "right", "up", "turned_right", "looking_up", "clockwise"],
)
def test_unreal_cameras_move_as_their_axes_say(rows, expected):
    poses = multicamvideo.camera_poses(
        np.stack([unreal_rows([1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]), rows]), "here"
    )
    assert np.linalg.det(poses[1, :3, :3]) == pytest.approx(1)
    np.testing.assert_allclose(
        CAMERA.from_poses(poses)[0], [expected.get(name, 0) for name in CAMERA.fields], atol=1e-6
    )


@pytest.mark.parametrize("inside", ["", "train", "train/f18_aperture10"])
def test_multicamvideo_reads_every_camera(tmp_path, inside):
    write_multicamvideo(tmp_path)
    dataset = load_dataset("multicamvideo", tmp_path / inside, num_frames=41)
    assert len(dataset) == 4
    for clip in dataset:
        assert clip.frames.shape == (41, 16, 32, 3)
        np.testing.assert_allclose(clip.actions, np.tile([0, 0, 0.1, 0, 0, 0.02], (40, 1)), atol=1e-5)


def mirrored(poses: np.ndarray) -> np.ndarray:
    return poses * np.array([-1.0, 1, 1, 1])


def change_text(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"extrinsic": mirrored(walk()[1])}, r"npz, row 0: .* is no pose"),
        ({"extrinsic": np.where(np.arange(25)[:, None, None] == 3, np.nan, walk()[1])}, r"npz, row 3: the pose"),
        ({"extrinsic": walk()[1][:-2]}, r"npz holds 23 poses, but .*mp4 25 frames"),
        ({"extrinsic": walk()[1][:, :3]}, r"npz: poses have shape \(25, 3, 4\)"),
    ],
    ids=["mirrored", "nan", "short", "shape"],
)
def test_broken_sekai_tracks_are_named(tmp_path, arrays, message):
    write_sekai(tmp_path, **arrays)
    with pytest.raises(ValueError, match=message):
        load_dataset("sekai", tmp_path)[0]


def test_torn_and_missing_sekai_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds 0 videos and 0 tracks"):
        load_dataset("sekai", tmp_path)
    write_sekai(tmp_path)
    change_text(tmp_path / "train" / "sekai-real-walking-hq.csv", "videoFile", "file")
    with pytest.raises(ValueError, match=r"sekai-real-walking-hq.csv has the columns \['file', 'caption'\]"):
        load_dataset("sekai", tmp_path)
    track = next(tmp_path.glob("*/*.npz"))
    track.write_bytes(track.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"npz: the array 'extrinsic' of numbers was expected"):
        load_dataset("sekai", tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "indexes.txt").unlink(), r"indexes.txt is missing; make it with get_index.py"),
        (lambda folder: change_text(folder / "indexes.txt", "2 12", "2 x"), r"indexes.txt cannot be read"),
        (
            lambda folder: change_text(folder / "indexes.txt", "2 12", "2 3"),
            r"indexes.txt has to hold two or more rows",
        ),
        (lambda folder: change_text(folder / "indexes.txt", "2 12\n", ""), r"poses.npy holds 5 poses, but .* 4 frames"),
        (lambda folder: change_text(folder / "caption.json", "SceneSummary", "Summary"), r"caption.json holds no"),
        (lambda folder: (folder / "caption.json").unlink(), r"caption.json holds no SceneSummary .*missing"),
        (
            lambda folder: np.save(folder / "poses.npy", np.zeros((5, 7))),
            r"poses.npy, row 0: the quaternion has length 0",
        ),
        (lambda folder: (folder / "poses.npy").write_bytes(b"no"), r"poses.npy: an array of numbers was expected"),
    ],
    ids=["no_indexes", "no_number", "unordered", "missing_row", "caption", "no_caption", "quaternion", "torn"],
)
def test_broken_spatialvid_annotations_are_named(tmp_path, damage, message):
    write_spatialvid(tmp_path)
    damage(next(tmp_path.glob("annotations/*/*")))
    with pytest.raises(ValueError, match=message):
        load_dataset("spatialvid", tmp_path)[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"frame7"', '"frame_7"', r"camera_extrinsics.json, frame7, cam01: a text of 4 x 4 numbers"),
        ("[0 0 1 0]", "[0 0 1]", r"frame0, cam01: a text of 4 x 4 numbers"),
        ("[0 0 1 0]", "[0 0 -1 0]", r"cam01 from frame0 on, row 0: .* is no pose"),
        ("{", "{{", r"camera_extrinsics.json is not whole JSON"),
    ],
)
def test_broken_multicamvideo_cameras_are_named(tmp_path, old, new, message):
    write_multicamvideo(tmp_path, cameras=1)
    change_text(next(tmp_path.rglob("camera_extrinsics.json")), old, new)
    with pytest.raises(ValueError, match=message):
        load_dataset("multicamvideo", tmp_path)[0]


def test_folders_are_recognised_by_the_names_in_them(tmp_path):
    readers = {
        sekai.SekaiDataset: write_sekai,
        spatialvid.SpatialVIDDataset: write_spatialvid,
        multicamvideo.MultiCamVideoDataset: write_multicamvideo,
    }
    for reader, write in readers.items():
        root = tmp_path / reader.__name__
        root.mkdir()
        assert not reader.recognises(root)
        write(root)
        assert [other for other in readers if other.recognises(root)] == [reader]


@pytest.mark.skipif("ASTRA_REALDATA" not in os.environ, reason="ASTRA_REALDATA is not set")
def test_published_tracks_move_as_the_keys_that_they_are_filed_under():
    """Keys_W_D_Mouse_Left: the camera goes forward and right, and turns left. All tracks show what they are named."""
    tracks = sorted((Path(os.environ["ASTRA_REALDATA"]) / "sekai_poses").glob("*/*.npy"))
    assert len(tracks) > 50
    for path in tracks:
        _, *keys, _, mouse = path.parent.name.split("_")
        poses = sekai.camera_poses(np.load(path), str(path))
        dx, _, dz, _, _, dyaw = CAMERA.from_poses(poses[[0, -1]])[0]
        assert dz > 0
        assert dx > 0 if "D" in keys else dx < 0
        if mouse in ("Left", "Right"):
            assert dyaw > 0 if mouse == "Right" else dyaw < 0
        else:
            assert abs(dyaw) < 0.06
