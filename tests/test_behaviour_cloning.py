"""Cloning recorded behaviour: a tiny network finds what the pictures tell, and comes back from its folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny import write_dataset

from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets.recorded import RecordedDataset
from policies.behaviour_cloning import CONFIG, CloneConfig, ClonedPolicy, advised, clone


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Recordings in which the square is the farther left, the more the next action goes right."""
    root = write_dataset(tmp_path_factory.mktemp("data"), num_train=12, num_heldout=3, num_chunks=8, size=32)
    for path in root.rglob("episode_*.npz"):
        with np.load(path) as file:
            arrays = dict(file)
        rng = np.random.default_rng(len(path.name) + int(path.stem[-5:]))
        arrays["actions"][:] = 0
        for index in range(len(arrays["actions"])):
            place = int(rng.integers(0, 24))
            frame = np.full((32, 32, 3), 40, np.uint8)
            frame[12:20, place : place + 8] = (220, 60, 60)
            arrays["frames"][4 * index] = frame
            arrays["actions"][index, 1] = 0.05 * (place / 12 - 1)
        np.savez(path, **arrays)
    return root


def test_a_clone_finds_what_the_pictures_tell(data, tmp_path):
    config = CloneConfig(str(data), str(tmp_path / "clone"), steps=250, batch_size=32, dim=8, learning_rate=3e-3)
    folder = clone(config)
    told = json.loads((folder / CONFIG).read_text())
    assert told["heldout_error"] < 0.5 * told["mean_action_error"]
    policy = ClonedPolicy.load(folder)
    frames = np.full((2, 32, 32, 3), 40, np.uint8)
    frames[0, 12:20, 2:10] = frames[1, 12:20, 22:30] = (220, 60, 60)
    left, right = policy.act(frames)
    assert left[1] < 0 < right[1]
    np.testing.assert_allclose(policy.act(frames[0]), left, atol=1e-6)
    space = ACTION_MODALITIES["end_effector"].space()
    assert left in space and right in space


def test_the_seed_decides_the_clone(data, tmp_path):
    folders = [
        clone(CloneConfig(str(data), str(tmp_path / name), steps=3, dim=8, seed=seed))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    weights = [(folder / "policy.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1] != weights[2]


def test_an_expert_says_what_to_do_in_recorded_states(data):
    """It goes from where the gripper was towards where the cube was, whatever was done."""
    dataset = RecordedDataset(data)
    arrays = dataset.arrays(0)
    actions = advised(dataset, 0, "Astra-RT1-Reach-v0")
    assert actions.shape == arrays["actions"].shape and not np.allclose(actions, arrays["actions"])
    moments = slice(0, -4, 4)
    ways = arrays["objects"][moments, 0] - arrays["measured_poses"][moments, :3, 3]
    flat = np.clip(ways, -0.05, 0.05)[:, :2]
    np.testing.assert_allclose(actions[:, :2], flat, atol=1e-6)
    with pytest.raises(ValueError, match="cannot say what to do in end_effector recordings"):
        advised(dataset, 0, "Astra-NuScenes-v0")
    with pytest.raises(ValueError, match="cannot say what to do"):
        advised(dataset, 0, "Astra-RT1-v0")  # it draws


def test_bad_input_is_one_sentence(data, tmp_path):
    with pytest.raises(ValueError, match=r"has the behaviours \['random'\] in train, expected one of \['expert'\]"):
        clone(CloneConfig(str(data), str(tmp_path), behaviours=("expert",)))
    with pytest.raises(ValueError, match="is not a cloned policy"):
        ClonedPolicy.load(tmp_path)
    folder = clone(CloneConfig(str(data), str(tmp_path / "clone"), steps=1, dim=8))
    with pytest.raises(ValueError, match=r"sees frames uint8 \(H, W, 3\) or \(N, H, W, 3\), got float64 \(3,\)"):
        ClonedPolicy.load(folder).act(np.zeros(3))
    told = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**told, "rate_hz": 10.0}))
    with pytest.raises(ValueError, match="actions of other rate_hz than here"):
        ClonedPolicy.load(folder)
