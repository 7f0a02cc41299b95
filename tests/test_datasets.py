"""Clips and readers: what is recorded comes back, and what is broken is named."""

from __future__ import annotations

import json

import numpy as np
import pytest

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets import DATASETS, Clip, load_dataset

NUM_CHUNKS, CHUNK_FRAMES = 3, 4
MODALITY = ACTION_MODALITIES["end_effector"]


def write_episode(path, seed: int) -> dict[str, np.ndarray]:
    """An episode file whose poses follow its actions exactly."""
    rng = np.random.default_rng(seed)
    num_frames = NUM_CHUNKS * CHUNK_FRAMES + 1
    actions = rng.uniform(MODALITY.low, MODALITY.high, (NUM_CHUNKS, MODALITY.action_dim)).astype(np.float32)
    shares = MODALITY.split(actions, CHUNK_FRAMES).reshape(-1, MODALITY.action_dim)
    poses = MODALITY.integrate(geometry.make_pose(np.eye(3), [0.5, 0, 0]), shares).astype(np.float32)
    arrays = {
        "frames": rng.integers(0, 256, (num_frames, 8, 8, 3), dtype=np.uint8),
        "actions": actions,
        "measured_poses": poses,
        "reward": rng.random(NUM_CHUNKS + 1).astype(np.float32),
    }
    meta = {"text": "lift", "fps": 20, "chunk_frames": CHUNK_FRAMES, "modality": MODALITY.name, "seed": seed}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, meta=np.array(json.dumps(meta)), **arrays)
    return arrays


def valid_clip(**changes) -> Clip:
    values = {
        "frames": np.zeros((5, 8, 8, 3), np.uint8),
        "actions": np.zeros((4, MODALITY.action_dim), np.float32),
        "modality": MODALITY.name,
        "fps": 20.0,
        "source": "somewhere.npz",
    }
    return Clip(**values | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modality": "telepathy"}, "modality"),
        ({"frames": np.zeros((5, 8, 8, 3), np.float32)}, "uint8"),
        ({"frames": np.zeros((5, 3, 8, 8), np.uint8)}, "uint8"),
        ({"actions": np.zeros((5, MODALITY.action_dim), np.float32)}, "actions"),
        ({"actions": np.zeros((4, 2), np.float32)}, "actions"),
        ({"poses": np.zeros((4, 4, 4))}, "poses"),
    ],
)
def test_a_clip_refuses_what_does_not_fit_and_names_its_source(changes, message):
    valid_clip()
    with pytest.raises(ValueError, match=rf"somewhere.npz: .*{message}"):
        valid_clip(**changes)


def test_recorded_episodes_come_back_in_order(tmp_path):
    written = [write_episode(tmp_path / "train" / f"episode_{i:05d}.npz", seed=i) for i in range(3)]
    dataset = load_dataset("recorded", tmp_path)
    assert len(dataset) == 3
    for index, arrays in enumerate(written):
        for name, values in arrays.items():
            np.testing.assert_array_equal(dataset.arrays(index)[name], values)
        clip = dataset[index]
        np.testing.assert_array_equal(clip.frames, arrays["frames"])
        assert (clip.fps, clip.text, clip.modality) == (20.0, "lift", MODALITY.name)
        assert clip.source.endswith(f"episode_{index:05d}.npz")


def test_the_actions_of_a_clip_move_each_frame_to_the_next(tmp_path):
    write_episode(tmp_path / "heldout" / "episode_00000.npz", seed=0)
    clip = load_dataset("recorded", tmp_path, split="heldout")[0]
    assert clip.actions.shape == (len(clip.frames) - 1, MODALITY.action_dim)
    np.testing.assert_allclose(MODALITY.integrate(clip.poses[0], clip.actions), clip.poses, atol=1e-5)


def test_iterating_a_data_set_ends(tmp_path):
    for i in range(2):
        write_episode(tmp_path / "train" / f"episode_{i:05d}.npz", seed=i)
    assert len(list(load_dataset("recorded", tmp_path))) == 2


def test_missing_and_broken_data_is_named(tmp_path):
    with pytest.raises(ValueError, match="recorded"):
        load_dataset("unheard-of", tmp_path)
    with pytest.raises(FileNotFoundError, match="no episodes"):
        load_dataset("recorded", tmp_path)
    with pytest.raises(ValueError, match="split"):
        load_dataset("recorded", tmp_path, split="test")
    path = tmp_path / "train" / "episode_00000.npz"
    write_episode(path, seed=0)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"episode_00000.npz is not a whole episode"):
        load_dataset("recorded", tmp_path)


def test_every_reader_in_the_table_resolves():
    from pkgutil import resolve_name

    assert all(isinstance(resolve_name(place), type) for place in DATASETS.values())
