"""nuScenes: tables as they are published become frames at a constant rate with the steering that led there."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets import load_dataset

pytest.importorskip("nuscenes", reason="needs nuscenes-devkit (make datasets)")

VEHICLE = ACTION_MODALITIES["vehicle"]
START = geometry.make_pose(geometry.rpy_to_matrix([0, 0, 0.5]), [400.0, 1100.0, 0.0])
SPEED, STEERING, ACCELERATION = 6.0, 0.1, 0.5
CAMERA_IN_EGO = geometry.make_pose([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], [1.7, 0.0, 1.5])


def driven(seconds: np.ndarray, steering: float = STEERING, speed: float = SPEED) -> np.ndarray:
    """Exact poses (N, 4, 4) of a car that holds its steering and acceleration."""
    action = np.array([[steering, ACCELERATION if speed else 0.0]])
    return np.stack([VEHICLE.kinematics.integrate(START, action, time, speed)[-1] for time in seconds])


def uneven(count: int = 25) -> np.ndarray:
    """Seconds (N,) of pictures at about 12 Hz, every other one late."""
    return np.arange(count) / 12 + np.where(np.arange(count) % 2, 0.02, 0.0)


def wxyz(pose: np.ndarray) -> list[float]:
    return geometry.pose_to_vector7(pose, scalar_first=True)[3:].tolist()


def write_nuscenes(root: Path, seconds: np.ndarray, poses: np.ndarray, camera: np.ndarray = CAMERA_IN_EGO) -> Path:
    """All tables of v1.0-mini, one scene of CAM_FRONT: each sixth picture is a key frame; picture k is grey 10 k."""
    count, first = len(seconds), 1_532_402_927_612_460
    stamps = [first + round(time * 1e6) for time in seconds]
    names = [f"{'samples' if k % 6 == 0 else 'sweeps'}/CAM_FRONT/n__CAM_FRONT__{stamps[k]}.jpg" for k in range(count)]
    tables: dict[str, list] = {
        name: [] for name in ("category", "attribute", "visibility", "instance", "sample_annotation")
    }
    tables["log"] = [{"token": "log", "logfile": "n", "vehicle": "n", "date_captured": "2018-07-24", "location": "l"}]
    tables["map"] = [{"token": "map", "log_tokens": ["log"], "category": "semantic_prior", "filename": "maps/m.png"}]
    tables["scene"] = [
        {"token": "scene", "log_token": "log", "nbr_samples": count // 6 + 1, "name": "scene-0061"}
        | {"first_sample_token": "sample0", "last_sample_token": "", "description": "Parked truck, turn left"}
    ]
    tables["sample"] = [
        {"token": f"sample{k}", "timestamp": stamps[k], "prev": "", "next": "", "scene_token": "scene"}
        for k in range(0, count, 6)
    ]
    tables["sensor"] = [
        {"token": "front", "channel": "CAM_FRONT", "modality": "camera"},
        {"token": "back", "channel": "CAM_BACK", "modality": "camera"},
        {"token": "lidar", "channel": "LIDAR_TOP", "modality": "lidar"},
    ]
    tables["calibrated_sensor"] = [
        {"token": "calibration", "sensor_token": "front", "translation": camera[:3, 3].tolist()}
        | {"rotation": wxyz(camera), "camera_intrinsic": [[1266.4, 0, 816.3], [0, 1266.4, 491.5], [0, 0, 1]]}
    ]
    tables["ego_pose"] = [
        {
            "token": f"ego{k}",
            "timestamp": stamps[k],
            "rotation": wxyz(poses[k]),
            "translation": poses[k, :3, 3].tolist(),
        }
        for k in range(count)
    ]
    tables["sample_data"] = [
        {"token": f"data{k}", "sample_token": f"sample{k // 6 * 6}", "ego_pose_token": f"ego{k}", "filename": names[k]}
        | {"calibrated_sensor_token": "calibration", "timestamp": stamps[k], "is_key_frame": k % 6 == 0}
        | {"fileformat": "jpg", "height": 18, "width": 32, "prev": f"data{k - 1}" if k else ""}
        | {"next": f"data{k + 1}" if k + 1 < count else ""}
        for k in range(count)
    ]
    for folder in ("v1.0-mini", "maps", "samples/CAM_FRONT", "sweeps/CAM_FRONT"):
        (root / folder).mkdir(parents=True)
    for name, rows in tables.items():
        (root / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))
    cv2.imwrite(str(root / "maps" / "m.png"), np.zeros((4, 4), np.uint8))
    for k, name in enumerate(names):
        cv2.imwrite(str(root / name), np.full((18, 32, 3), 10 * k % 250, np.uint8))
    return root


def change_table(root: Path, name: str, change) -> None:
    path = root / "v1.0-mini" / f"{name}.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def write_can_bus(root: Path, seconds: np.ndarray, speeds: np.ndarray) -> None:
    first = json.loads((root / "v1.0-mini" / "sample_data.json").read_text())[0]["timestamp"]
    rows = [
        {"utime": first + round(time * 1e6), "vel": [speed, 0.0, 0.0], "pos": [0.0, 0.0, 0.0]}
        for time, speed in zip(seconds, speeds, strict=True)
    ]
    (root / "can_bus").mkdir()
    (root / "can_bus" / "scene-0061_pose.json").write_text(json.dumps(rows))


@pytest.mark.parametrize("can_bus", [True, False], ids=["can_bus", "poses_alone"])
@pytest.mark.parametrize("steering", [STEERING, -0.2])
def test_a_driven_curve_gives_its_steering_and_acceleration(tmp_path, steering, can_bus):
    seconds = uneven()
    write_nuscenes(tmp_path, seconds, driven(seconds, steering))
    if can_bus:
        times = np.arange(-0.1, 3, 0.02)
        write_can_bus(tmp_path, times, SPEED + ACCELERATION * times)
    clip = load_dataset("nuscenes", tmp_path)[0]
    wanted = np.arange(len(clip.frames)) / 12
    assert (clip.modality, clip.fps, clip.text) == ("vehicle", 12.0, "Parked truck, turn left")
    assert len(clip.frames) == 25
    np.testing.assert_allclose(clip.actions[:, 0], steering, atol=0.012)
    np.testing.assert_allclose(clip.actions[2:-2, 1].mean(), ACCELERATION, atol=0.02 if can_bus else 0.1)
    np.testing.assert_allclose(clip.poses, driven(wanted, steering), atol=5e-3)
    np.testing.assert_allclose(clip.speeds, SPEED + ACCELERATION * wanted, atol=1e-3 if can_bus else 0.06)
    followed = VEHICLE.integrate(clip.poses[0], clip.actions, speed=float(clip.speeds[0]), rate_hz=clip.fps)
    assert np.linalg.norm(followed[-1, :3, 3] - clip.poses[-1, :3, 3]) < 0.3  # after 13 m


def test_frames_are_the_nearest_pictures_and_windows_parts_of_the_whole(tmp_path):
    seconds = uneven()
    write_nuscenes(tmp_path, seconds, driven(seconds))
    whole = load_dataset("nuscenes", tmp_path, fps=10.0, frame_size=(9, 16))[0]
    nearest = [int(np.abs(seconds - k / 10).argmin()) for k in range(len(whole.frames))]
    np.testing.assert_allclose(whole.frames.mean(axis=(1, 2, 3)), [10 * k % 250 for k in nearest], atol=2)
    assert whole.frames.shape[1:] == (9, 16, 3)
    windows = load_dataset("nuscenes", tmp_path, fps=10.0, frame_size=(9, 16), num_frames=6)
    assert windows.windows == [(0, 0, 6), (0, 5, 11), (0, 10, 16), (0, 15, 21)]
    for (_, start, stop), clip in zip(windows.windows, windows, strict=True):
        np.testing.assert_array_equal(clip.frames, whole.frames[start:stop])
        np.testing.assert_array_equal(clip.actions, whole.actions[start : stop - 1])
        np.testing.assert_array_equal(clip.poses, whole.poses[start:stop])
        np.testing.assert_array_equal(clip.speeds, whole.speeds[start:stop])


def test_the_noise_of_a_standing_car_is_no_steering(tmp_path):
    seconds = uneven()
    poses = driven(seconds, speed=0.0)
    poses[:, :2, 3] += np.random.default_rng(0).normal(0, 1e-4, (len(poses), 2))
    poses[1::2, :3, :3] = poses[1::2, :3, :3] @ geometry.rpy_to_matrix([0, 0, 1e-3])
    write_nuscenes(tmp_path, seconds, poses)
    assert not load_dataset("nuscenes", tmp_path)[0].actions[:, 0].any()


def test_the_camera_is_where_it_was_calibrated(tmp_path):
    write_nuscenes(tmp_path, uneven(), driven(uneven()))
    camera = load_dataset("nuscenes", tmp_path).camera_pose(0)
    np.testing.assert_allclose(camera, CAMERA_IN_EGO, atol=1e-9)


def test_speeds_come_from_the_poses_where_the_can_bus_misses_them(tmp_path):
    write_nuscenes(tmp_path, uneven(), driven(uneven()))
    write_can_bus(tmp_path, np.arange(0.0, 1.0, 0.02), np.full(50, 99.0))
    np.testing.assert_allclose(load_dataset("nuscenes", tmp_path)[0].speeds, 6.5, atol=0.6)


def test_without_the_devkit_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    write_nuscenes(tmp_path, uneven(8), driven(uneven(8)))
    monkeypatch.setitem(sys.modules, "nuscenes.nuscenes", None)
    with pytest.raises(ImportError, match="make datasets"):
        load_dataset("nuscenes", tmp_path)


def without(table: str, token: str):
    return lambda root: change_table(root, table, lambda rows: [row for row in rows if row["token"] != token])


def without_picture(root: Path) -> None:
    next(iter((root / "sweeps" / "CAM_FRONT").glob("*.jpg"))).unlink()


def with_broken_pose(root: Path) -> None:
    change_table(root, "ego_pose", lambda rows: [row | {"rotation": [0.5, 0, 0, 0]} for row in rows])


def with_torn_table(root: Path) -> None:
    (root / "v1.0-mini" / "ego_pose.json").write_text("[{")


def with_a_torn_can_bus(root: Path) -> None:
    write_can_bus(root, np.arange(3.0), np.ones(3))
    path = root / "can_bus" / "scene-0061_pose.json"
    path.write_text(path.read_text()[:-9])


def with_a_gap(root: Path) -> None:
    skip = {"data3": "data20"}
    change_table(
        root, "sample_data", lambda rows: [row | {"next": skip.get(row["token"], row["next"])} for row in rows]
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("ego_pose", "ego7"), r"ego_pose.json has no row 'ego7', which sweeps/CAM_FRONT.* names"),
        (without("sample_data", "data8"), r"sample_data.json has no row 'data8', which scene-0061 names"),
        (without("calibrated_sensor", "calibration"), r"v1.0-mini does not hold whole tables"),
        (without_picture, r"image .*sweeps/CAM_FRONT.* cannot be opened"),
        (with_broken_pose, r"ego_pose.json, scene-0061, row 0: the quaternion has length 0.5"),
        (with_torn_table, r"v1.0-mini does not hold whole tables"),
        (with_a_torn_can_bus, r"can_bus/scene-0061_pose.json is not whole"),
        (with_a_gap, r"scene-0061, after data3: the next picture of CAM_FRONT was expected within 0.5 s"),
    ],
)
def test_missing_and_broken_rows_are_named(tmp_path, damage, message):
    damage(write_nuscenes(tmp_path, uneven(), driven(uneven())))
    with pytest.raises(ValueError, match=message):
        load_dataset("nuscenes", tmp_path)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "v1.0-trainval"}, r"version is 'v1.0-trainval', expected one of \['v1.0-mini'\]"),
        ({"camera": "CAM_TOP"}, r"camera is 'CAM_TOP', expected one of \['CAM_BACK', 'CAM_FRONT'\]"),
        ({"camera": "CAM_BACK"}, r"sample_data.json has no row of CAM_BACK"),
        ({"fps": 0}, "fps is 0"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, message):
    write_nuscenes(tmp_path, uneven(8), driven(uneven(8)))
    with pytest.raises(ValueError, match=message):
        load_dataset("nuscenes", tmp_path, **options)


def test_the_folder_is_recognised_by_its_tables(tmp_path):
    from astra_env.datasets.nuscenes import NuScenesDataset

    assert not NuScenesDataset.recognises(tmp_path)
    assert NuScenesDataset.recognises(write_nuscenes(tmp_path, uneven(8), driven(uneven(8))))


@pytest.mark.skipif("ASTRA_REALDATA" not in os.environ, reason="ASTRA_REALDATA is not set")
def test_a_published_key_frame_comes_back(tmp_path):
    folder = Path(os.environ["ASTRA_REALDATA"]) / "nuscenes_sample"
    sample = json.loads((folder / "info.json").read_text())["data_list"][0]
    ego, front = np.array(sample["ego2global"]), sample["images"]["CAM_FRONT"]
    ahead = geometry.compose(ego, geometry.make_pose(np.eye(3), [0.5, 0.0, 0.0]))
    root = write_nuscenes(tmp_path, np.arange(2) / 12, np.stack([ego, ahead]), np.array(front["cam2ego"]))
    for path in root.glob("*/CAM_FRONT/*.jpg"):
        path.write_bytes((folder / front["img_path"]).read_bytes())
    dataset = load_dataset("nuscenes", root)
    clip = dataset[0]
    assert clip.frames.shape == (2, 900, 1600, 3)
    np.testing.assert_allclose(clip.poses[0], ego, atol=2e-4)  # float32 has steps of 1e-4 m at 1181 m
    np.testing.assert_allclose(clip.speeds, 6.0, atol=1e-3)
    np.testing.assert_allclose(clip.actions, 0.0, atol=1e-3)
    np.testing.assert_allclose(dataset.camera_pose(0), front["cam2ego"], atol=1e-6)
    assert (dataset.camera_pose(0)[:3, 2] @ [1, 0, 0]) > 0.99  # CAM_FRONT looks forward
