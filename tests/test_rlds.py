"""RLDS: sets in the true layout are read and written without TensorFlow, known sets as their authors mean them."""

from __future__ import annotations

import io
import json
import os
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets import load_dataset
from astra_env.datasets.columns import ActionColumns
from astra_env.datasets.rlds import RLDSDataset, RT1Dataset
from astra_env.datasets.rlds_sets import KNOWN, switched
from astra_env.datasets.tfrecord import masked_crc32c

tfds = pytest.importorskip("tensorflow_datasets")
MODALITY = ACTION_MODALITIES["end_effector"]
NUM_STEPS = 6
REALDATA = Path(os.environ.get("ASTRA_REALDATA", "/missing"))
COLUMNS = ActionColumns(
    meaning="deltas",
    translation=("action_0", "action_1", "action_2"),
    rotation=("action_3", "action_4", "action_5"),
    rotation_kind="rpy",
    gripper="action_6",
)


def png(seed: int) -> io.BytesIO:
    picture = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    return io.BytesIO(cv2.imencode(".png", picture)[1].tobytes())


def nested(flat: dict) -> dict:
    tree: dict = {}
    for path, value in flat.items():
        *above, name = path.split("/")
        place = tree
        for part in above:
            place = place.setdefault(part, {})
        place[name] = value
    return tree


def write_set(root, name: str, episodes: list[dict[str, list]], image="observation/image", text="language_instruction"):
    """A set in TFRecord files, of features by path with a value a step; pictures, texts and flags are added."""
    folder = root / name / "1.0.0"
    folder.mkdir(parents=True)
    first = {path: np.asarray(values[0]) for path, values in episodes[0].items()}
    flags = dict.fromkeys(("is_first", "is_last", "is_terminal"), np.bool_)
    features = {path: tfds.features.Tensor(shape=value.shape, dtype=value.dtype) for path, value in first.items()}
    pictures = {path: tfds.features.Image(shape=(8, 10, 3)) for path in ([image] if isinstance(image, str) else image)}
    step = nested({**features, **flags, **pictures, text: tfds.features.Text()})
    examples = []
    for episode in episodes:
        steps = []
        for index in range(len(next(iter(episode.values())))):
            row = {path: values[index] for path, values in episode.items()}
            row |= dict.fromkeys(flags, False) | {text: "lift it"} | {path: png(index) for path in pictures}
            steps.append(nested(row))
        examples.append({"steps": steps})
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name="tests"
    )
    info = tfds.core.DatasetInfo(
        builder=identity, features=tfds.features.FeaturesDict({"steps": tfds.features.Dataset(step)})
    )
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=1000, file_format="array_record")
    writer.initialize_splits(["train"])
    writer.add_examples({"train": examples})
    writer.close_all()
    return to_tfrecord(folder)


def to_tfrecord(folder: Path) -> Path:
    """The same records framed by hand, as most sets are published."""
    from array_record.python.array_record_module import ArrayRecordReader

    source = folder / f"{folder.parent.name}-train.array_record-00000"
    records = ArrayRecordReader(str(source)).read_all()
    source.unlink()
    with (folder / f"{folder.parent.name}-train.tfrecord-00000-of-00001").open("wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + struct.pack("<I", masked_crc32c(length)))
            file.write(record + struct.pack("<I", masked_crc32c(record)))
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    info["splits"][0]["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def unknown_set(root, num_episodes: int = 3, **options) -> tuple[Path, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    actions = [rng.uniform(0, 0.04, (NUM_STEPS, 7)).astype(np.float32) for _ in range(num_episodes)]
    return write_set(root, "my_robot", [{"action": list(a)} for a in actions], **options), actions


def motion(seed: int, planar: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Actions (N - 1, 7) and the poses (N, 4, 4) that they lead through."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(MODALITY.low, MODALITY.high, (NUM_STEPS - 1, 7)).astype(np.float32)
    actions[:, 6] = [0, 1, 1, 0, 0]
    if planar:
        actions[:, 2:] = 0
    start = geometry.make_pose(np.eye(3) if planar else geometry.rpy_to_matrix([0.2, -0.1, 0.4]), np.zeros(3))
    return actions, MODALITY.integrate(start, actions)


def published(row, actions: np.ndarray, poses: np.ndarray) -> dict[str, list]:
    """Features of a known set that say these actions and poses in its own convention."""
    values: dict[str, np.ndarray] = {}
    rotations = {
        "none": np.zeros((NUM_STEPS, 0)),
        "rpy": geometry.matrix_to_rpy(poses[:, :3, :3]),
        "quaternion_xyzw": geometry.matrix_to_quaternion(poses[:, :3, :3]),
    }
    undefined = np.full((1, 7), np.nan)
    for columns in filter(None, (row.columns, row.state)):
        if columns.meaning == "deltas":
            moves = np.concatenate([actions, undefined])
            parts = moves[:, : len(columns.translation)], moves[:, 3 : 3 + len(columns.rotation)], moves[:, 6]
        else:
            closed = np.concatenate([actions[:1, 6], actions[:, 6]])
            parts = poses[:, : len(columns.translation), 3], rotations[columns.rotation_kind], closed
        gripper = columns.gripper_open + parts[2] * (columns.gripper_closed - columns.gripper_open)
        names = (*columns.translation, *columns.rotation, columns.gripper)
        values |= dict(zip(names, np.column_stack([*parts[:2], gripper]).T, strict=True))
    values.pop("gripper", None)
    features: dict[str, list] = {}
    for name, column in values.items():
        feature, _, index = name.rpartition("_")
        if index.isdigit():
            features.setdefault(feature, []).append(column)
        else:
            features[name] = list(np.nan_to_num(column) > 0.5)
    return {
        name: columns if isinstance(columns[0], np.bool_) else list(np.column_stack(columns).astype(np.float32))
        for name, columns in features.items()
    }


@pytest.mark.parametrize("name", KNOWN)
def test_known_sets_move_as_they_were_measured_to_move(tmp_path, name):
    row = KNOWN[name]
    actions, poses = motion(0, planar=not row.columns.rotation)
    features = published(row, actions, poses.copy())
    if name == "fractal20220817_data":
        changes = np.array([0, 1, 0, -1, 0, np.nan], np.float32)
        features["action/gripper_closedness_action"] = list(changes[:, None])
    write_set(tmp_path, name, [features], image=row.image, text="observation/natural_language_instruction")
    clip = load_dataset("rlds", tmp_path)[0]
    assert (clip.fps, clip.modality, clip.text) == (row.fps, "end_effector", "lift it")
    np.testing.assert_allclose(clip.actions, actions, atol=1e-5)
    np.testing.assert_allclose(clip.poses, poses, atol=1e-5)


def test_rt1_needs_no_name_and_a_robot_is_told_by_its_own_reader_alone(tmp_path):
    row = KNOWN["fractal20220817_data"]
    features = published(row, *motion(1)) | {"action/gripper_closedness_action": [np.zeros(1, np.float32)] * NUM_STEPS}
    folder = write_set(tmp_path / "a", "fractal20220817_data", [features])
    assert load_dataset("rt1", folder)[0].fps == 3.0
    assert RT1Dataset.recognises(tmp_path / "a") and not RLDSDataset.recognises(tmp_path / "a")
    unknown_set(tmp_path / "b")
    assert RLDSDataset.recognises(tmp_path / "b") and not RT1Dataset.recognises(tmp_path / "b")
    assert not RLDSDataset.recognises(tmp_path)


def test_a_gripper_holds_what_it_was_last_told():
    np.testing.assert_array_equal(switched(np.array([0, 1, 0, 0, -1, 0.0])), [0, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(switched(np.array([0, 0, -1, 0.05])), [1, 1, 0, 0])
    np.testing.assert_array_equal(switched(np.zeros(3)), 0)


def test_a_text_of_numbers_is_read(tmp_path):
    told = np.zeros(16, np.int32)
    told[:5] = list(b"push!")
    episode = published(KNOWN["language_table"], *motion(2, planar=True)) | {
        "observation/instruction": [told] * NUM_STEPS
    }
    folder = write_set(tmp_path, "language_table", [episode], image="observation/rgb", text="observation/other")
    assert load_dataset("rlds", folder)[0].text == "push!"


def test_unknown_sets_are_read_as_they_are_told(tmp_path):
    folder, actions = unknown_set(tmp_path)
    with pytest.raises(ValueError, match=r"my_robot is none of the known sets .* action_0 … action_6"):
        load_dataset("rlds", folder)
    with pytest.raises(ValueError, match=r"columns \['action_7'\] are missing; .* action_0 … action_6"):
        load_dataset("rlds", folder, fps=4, columns=ActionColumns(**{**vars(COLUMNS), "gripper": "action_7"}))
    dataset = load_dataset("rlds", folder, fps=4, columns=COLUMNS)
    assert (len(dataset), list(dataset.lengths), dataset[2].fps) == (3, [NUM_STEPS] * 3, 4)
    for index, expected in enumerate(actions):
        np.testing.assert_allclose(dataset[index].actions, expected[:-1], atol=1e-6)
    for index in range(NUM_STEPS):
        expected = cv2.imdecode(np.frombuffer(png(index).read(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        np.testing.assert_array_equal(dataset[0].frames[index], expected)


def test_windows_and_parts_of_splits_are_parts_of_the_whole(tmp_path):
    folder, actions = unknown_set(tmp_path)
    told = {"fps": 4, "columns": COLUMNS}
    dataset = load_dataset("rlds", folder, num_frames=3, frame_size=(4, 4), **told)
    assert len(dataset) == 3 * 2 and dataset[0].frames.shape == (3, 4, 4, 3)
    np.testing.assert_allclose(dataset[3].actions, actions[1][2:4], atol=1e-6)
    part = load_dataset("rlds", folder, split="train[1:]", **told)
    assert len(part) == 2
    np.testing.assert_allclose(part[0].actions, actions[1][:-1], atol=1e-6)
    with pytest.raises(ValueError, match=r"has the splits \['train'\], not 'val'"):
        load_dataset("rlds", folder, split="val", **told)
    with pytest.raises(ValueError, match=r"split is 'train\[a:\]', expected such as"):
        load_dataset("rlds", folder, split="train[a:]", **told)


def test_one_of_several_pictures_must_be_told(tmp_path):
    folder, _ = unknown_set(tmp_path, image=["observation/left", "observation/right"])
    told = {"fps": 4, "columns": COLUMNS}
    with pytest.raises(ValueError, match=r"expected one of its pictures \['observation/left', 'observation/right'\]"):
        load_dataset("rlds", folder, **told)
    assert load_dataset("rlds", folder, image="observation/right", **told)[0].frames.shape == (NUM_STEPS, 8, 10, 3)


def test_what_is_broken_is_named(tmp_path):
    told = {"fps": 4, "columns": COLUMNS}
    folder, _ = unknown_set(tmp_path)
    (shard,) = folder.glob("*.tfrecord-*")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-50])
    with pytest.raises(ValueError, match=r"tfrecord-00000-of-00001, record 2: it begins at byte \d+ and is not whole"):
        load_dataset("rlds", folder, **told)
    shard.write_bytes(whole[: 16 + struct.unpack("<Q", whole[:8])[0]])
    with pytest.raises(ValueError, match=r"holds 1 episodes, dataset_info.json tells of 3"):
        load_dataset("rlds", folder, **told)
    (folder / "features.json").write_text("{")
    with pytest.raises(ValueError, match="describe no episodes of steps"):
        load_dataset("rlds", folder, **told)
    (folder / "features.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"features.json is missing"):
        load_dataset("rlds", folder, **told)
    (folder / "dataset_info.json").unlink()
    with pytest.raises(ValueError, match=r"holds no dataset_info.json"):
        load_dataset("rlds", folder, **told)


def test_an_action_that_is_no_number_is_named_but_the_last_one_means_nothing(tmp_path):
    actions = np.zeros((2, NUM_STEPS, 7), np.float32)
    actions[0, -1], actions[1, 3, 1] = np.nan, np.nan
    folder = write_set(tmp_path, "my_robot", [{"action": list(episode)} for episode in actions])
    dataset = load_dataset("rlds", folder, fps=4, columns=COLUMNS)
    assert np.isfinite(dataset[0].actions).all()
    with pytest.raises(ValueError, match=r"record 1, row 3: .*action_1.* is not a finite number"):
        dataset[1]


@pytest.fixture(scope="module")
def bridge():
    if not (REALDATA / "bridge_rlds").is_dir():
        pytest.skip("ASTRA_REALDATA names no folder with bridge_rlds.")
    return load_dataset("rlds", REALDATA / "bridge_rlds")


def test_bridge_episodes_have_their_pictures_and_texts(bridge):
    assert list(bridge.lengths) == [10] * 25
    clips = list(bridge)
    assert {(clip.frames.shape, clip.actions.shape, clip.fps) for clip in clips} == {((10, 64, 64, 3), (9, 7), 5.0)}
    assert clips[0].text == "put cup from counter or drying rack into sink"
    assert all(clip.text and clip.frames.std() > 20 for clip in clips)
    assert len(load_dataset("rlds", REALDATA / "bridge_rlds", split="val")) == 25


def test_bridge_actions_lead_where_the_arm_was_measured(bridge):
    """Order, signs and axes: from the first pose, the commands lead along the measured way."""
    moved, measured = [], []
    for clip in bridge:
        poses = MODALITY.integrate(clip.poses[0], clip.actions, rate_hz=clip.fps)
        for track, way in ((poses, moved), (clip.poses, measured)):
            turns = geometry.matrix_to_axis_angle(track[1:, :3, :3] @ clip.poses[0, :3, :3].T)
            way.append(np.concatenate([track[1:, :3, 3] - clip.poses[0, :3, 3], turns], axis=-1))
    moved, measured = np.concatenate(moved).T, np.concatenate(measured).T
    correlations = [np.corrcoef(command, way)[0, 1] for command, way in zip(moved, measured, strict=True)]
    assert min(correlations) > 0.95, correlations
    slopes = [np.polyfit(command, way, 1)[0] for command, way in zip(moved, measured, strict=True)]
    assert min(slopes) > 0.8 and max(slopes) < 1.0, slopes  # the arm lags behind its commands


def test_bridge_grippers_do_as_they_are_told(bridge):
    states = load_dataset("rlds", REALDATA / "bridge_rlds", columns=KNOWN["bridge_dataset"].state)
    told = np.concatenate([clip.actions[:, 6] for clip in bridge])
    measured = np.concatenate([clip.actions[:, 6] for clip in states])
    assert np.corrcoef(told, measured)[0, 1] > 0.8
    assert measured[told < 0.5].mean() < 0.1 and measured[told > 0.5].mean() > 0.2  # an object keeps it from closing
