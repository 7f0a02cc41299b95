"""HDF5 demonstrations in robomimic's layout and flatter ones: what was written comes back, what is missing is named."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets import load_dataset
from astra_env.datasets.columns import ActionColumns
from astra_env.datasets.hdf5 import ROBOMIMIC, HDF5Dataset

h5py = pytest.importorskip("h5py")

N, RATE = 9, 20.0
MODALITY = ACTION_MODALITIES["end_effector"]
ENV_ARGS = {"env_name": "Lift", "type": 1, "env_kwargs": {"robots": ["Panda"], "control_freq": 20}}
STEPS = ActionColumns(
    meaning="deltas",
    translation=("action_0", "action_1", "action_2"),
    gripper="action_3",
)


def frames_of(seed: int, count: int = N) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def write_demo(group, seed: int) -> np.ndarray:
    """A demonstration as robomimic writes it: N observations and N commands; returns what moves the arm (N - 1, 7)."""
    rng = np.random.default_rng(seed)
    moves = rng.uniform(MODALITY.low, MODALITY.high, (N - 1, 7))
    moves[:, 6] = rng.integers(0, 2, N - 1)
    poses = MODALITY.integrate(geometry.make_pose(np.diag([1.0, -1, -1]), [0.1, 0.2, 0.9]), moves)
    # shares of the controller's scale, which the arm does not reach; the gripper opens at -1 and closes at 1
    commands = np.concatenate([rng.uniform(-1, 1, (N, 6)), np.append(2 * moves[:, 6] - 1, 1.0)[:, None]], axis=-1)
    group.attrs["num_samples"] = N
    group["actions"], group["rewards"], group["dones"] = commands, np.zeros(N), np.zeros(N, int)
    group["states"] = rng.normal(size=(N, 32))
    observations = {
        "agentview_image": frames_of(seed),
        "robot0_eye_in_hand_image": frames_of(seed + 100),
        "robot0_eef_pos": poses[:, :3, 3],
        "robot0_eef_quat": geometry.matrix_to_quaternion(poses[:, :3, :3]),
        "robot0_gripper_qpos": rng.uniform(0, 0.04, (N, 2)),
    }
    for name, values in observations.items():
        group[f"obs/{name}"] = values
        group[f"next_obs/{name}"] = np.roll(values, -1, axis=0)
    return moves


def write_robomimic(path, demos=(0, 1, 10, 2), env_args=ENV_ARGS, **attributes) -> dict[int, np.ndarray]:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = N * len(demos)
        if env_args is not None:
            data.attrs["env_args"] = json.dumps(env_args)
        for name, value in attributes.items():
            data.attrs[name] = json.dumps(value)
        moves = {number: write_demo(data.create_group(f"demo_{number}"), number) for number in demos}
        file["mask/train"] = np.array([b"demo_10", b"demo_0"])
        file["mask/valid"] = np.array([b"demo_2"])
    return moves


@pytest.mark.parametrize("columns", [ROBOMIMIC, "robomimic"])
def test_robomimic_gives_the_measured_motion_and_the_commanded_gripper(tmp_path, columns):
    moves = write_robomimic(tmp_path / "image.hdf5")
    dataset = load_dataset("hdf5", tmp_path, columns=columns, image="obs/agentview_image")
    assert HDF5Dataset.recognises(tmp_path)
    assert (len(dataset), list(dataset.lengths)) == (4, [N] * 4)
    for clip, number in zip(dataset, (0, 1, 2, 10), strict=True):  # by their numbers, not their letters
        assert (clip.fps, clip.modality) == (RATE, "end_effector")
        assert clip.source.endswith(f"image.hdf5, /data/demo_{number}")
        np.testing.assert_array_equal(clip.frames, frames_of(number))
        np.testing.assert_allclose(clip.actions, moves[number], atol=1e-6)
        np.testing.assert_allclose(MODALITY.integrate(clip.poses[0], clip.actions), clip.poses, atol=1e-5)


def test_a_window_is_the_same_part_of_everything(tmp_path):
    moves = write_robomimic(tmp_path / "image.hdf5")
    options = {"columns": ROBOMIMIC, "image": "obs/robot0_eye_in_hand_image"}
    dataset = load_dataset("hdf5", tmp_path / "image.hdf5", **options, num_frames=4)
    assert len(dataset) == 8
    np.testing.assert_array_equal(dataset[3].frames, frames_of(101)[3:7])
    np.testing.assert_allclose(dataset[3].actions, moves[1][3:6], atol=1e-6)
    assert load_dataset("hdf5", tmp_path, **options, frame_size=(8, 12))[0].frames.shape == (N, 8, 12, 3)


def test_only_the_pictures_of_a_window_are_read(tmp_path, monkeypatch):
    write_robomimic(tmp_path / "image.hdf5")
    dataset = load_dataset("hdf5", tmp_path, columns=ROBOMIMIC, image="obs/agentview_image")
    read, original = [], h5py.Dataset.__getitem__

    def spy(data, key, *more, **options):
        values = original(data, key, *more, **options)
        read.append(values.shape)
        return values

    monkeypatch.setattr(h5py.Dataset, "__getitem__", spy)
    dataset.read(0, 2, 5)
    assert [shape for shape in read if len(shape) == 4] == [(3, 16, 16, 3)]


def test_filters_are_splits(tmp_path):
    moves = write_robomimic(tmp_path / "image.hdf5")
    options = {"columns": ROBOMIMIC, "image": "obs/agentview_image"}
    train = load_dataset("hdf5", tmp_path, **options, split="train")
    assert len(train) == 2
    np.testing.assert_allclose(train[1].actions, moves[10], atol=1e-6)
    with pytest.raises(ValueError, match=r"split is 'test', expected one of its filters \['train', 'valid'\]"):
        load_dataset("hdf5", tmp_path, **options, split="test")
    with h5py.File(tmp_path / "image.hdf5", "a") as file:
        del file["data/demo_2"]
    with pytest.raises(ValueError, match=r"'valid' names \['demo_2'\], which are missing"):
        load_dataset("hdf5", tmp_path, **options, split="valid")


@pytest.mark.parametrize("layout", ["episode_{}", "demo_{}", "file"])
def test_episodes_lie_in_groups_or_in_files_of_their_own(tmp_path, layout):
    steps = np.random.default_rng(0).uniform(-0.05, 0.05, (2, N - 1, 4))
    for number in range(2):
        with h5py.File(tmp_path / ("all.h5" if layout != "file" else f"{number}.h5"), "a") as file:
            group = file if layout == "file" else file.create_group(layout.format(number))
            group["camera/rgb"], group["action"] = frames_of(number), steps[number]
    dataset = load_dataset("hdf5", tmp_path, columns=STEPS, fps=5)
    assert (len(dataset), dataset[1].fps) == (2, 5)
    np.testing.assert_array_equal(dataset[1].frames, frames_of(1))
    np.testing.assert_allclose(dataset[1].actions[:, :3], steps[1, :, :3], atol=1e-6)
    np.testing.assert_allclose(dataset[1].actions[:, 6], np.clip(steps[1, :, 3], 0, 1), atol=1e-6)


def test_columns_may_lie_beside_the_file_and_must_be_told(tmp_path):
    moves = write_robomimic(tmp_path / "image.hdf5", demos=(0,))
    with pytest.raises(ValueError, match=r"cannot be guessed.*'actions_0'.*'obs/robot0_eef_pos_0'.*'rewards'"):
        load_dataset("hdf5", tmp_path, image="obs/agentview_image")
    (tmp_path / "columns.json").write_text(json.dumps(dataclasses.asdict(ROBOMIMIC)))
    clip = load_dataset("hdf5", tmp_path / "image.hdf5", image="obs/agentview_image")[0]
    np.testing.assert_allclose(clip.actions, moves[0], atol=1e-6)
    with pytest.raises(ValueError, match=r"columns are 'libero', expected ActionColumns or one of \['robomimic'\]"):
        load_dataset("hdf5", tmp_path, columns="libero")


def test_an_instruction_in_the_file_is_the_text(tmp_path):
    write_robomimic(tmp_path / "image.hdf5", demos=(0,), problem_info={"language_instruction": "lift the cube"})
    assert load_dataset("hdf5", tmp_path, columns=ROBOMIMIC, image="obs/agentview_image")[0].text == "lift the cube"


def test_what_is_missing_or_broken_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no HDF5 files"):
        load_dataset("hdf5", tmp_path, columns=ROBOMIMIC)
    path = tmp_path / "image.hdf5"
    write_robomimic(path, demos=(0,), env_args=None)
    with pytest.raises(ValueError, match=r"demo_0: image is None.*'obs/agentview_image', 'obs/robot0_eye_in_hand_im"):
        load_dataset("hdf5", tmp_path, columns=ROBOMIMIC)
    options = {"columns": ROBOMIMIC, "image": "obs/agentview_image"}
    with pytest.raises(ValueError, match=r"demo_0: no env_args tells a control_freq, expected fps"):
        load_dataset("hdf5", tmp_path, **options)[0]
    with h5py.File(path, "a") as file:
        file["data/demo_0/obs/robot0_eef_pos"][4, 1] = np.nan
    with pytest.raises(ValueError, match=r"image.hdf5, /data/demo_0, row 4: .*not a finite number"):
        load_dataset("hdf5", tmp_path, **options, fps=20)[0]
    with h5py.File(path, "a") as file:
        del file["data/demo_0/obs/robot0_eef_quat"]
    with pytest.raises(ValueError, match=r"demo_0: columns .*robot0_eef_quat_0.* are missing; it has"):
        load_dataset("hdf5", tmp_path, **options, fps=20)[0]
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"image.hdf5 is not a whole HDF5 file"):
        load_dataset("hdf5", tmp_path, **options)
