"""Clips and readers: what is recorded comes back, and what is broken is named."""

from __future__ import annotations

import json

import numpy as np
import pytest

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets import DATASETS, Clip, load_dataset

NUM_CHUNKS, CHUNK_FRAMES, FPS = 3, 4, 20
MODALITY = ACTION_MODALITIES["end_effector"]


def write_episode(path, seed: int, modality=MODALITY, **more) -> dict[str, np.ndarray]:
    """An episode file whose poses follow its actions exactly; a car begins at 5 m/s."""
    rng = np.random.default_rng(seed)
    num_frames = NUM_CHUNKS * CHUNK_FRAMES + 1
    actions = rng.uniform(modality.low, modality.high, (NUM_CHUNKS, modality.action_dim)).astype(np.float32)
    shares = modality.split(actions, CHUNK_FRAMES).reshape(-1, modality.action_dim)
    start = geometry.make_pose(np.eye(3), [0.5, 0, 0])
    poses = modality.integrate(start, shares, speed=5.0, rate_hz=FPS).astype(np.float32)
    arrays = {
        "frames": rng.integers(0, 256, (num_frames, 8, 8, 3), dtype=np.uint8),
        "actions": actions,
        "measured_poses": poses,
        "reward": rng.random(NUM_CHUNKS + 1).astype(np.float32),
    }
    meta = {"text": "lift", "fps": FPS, "chunk_frames": CHUNK_FRAMES, "modality": modality.name, "seed": seed} | more
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
        ({"actions": np.full((4, MODALITY.action_dim), np.nan)}, "row 0 of the actions is not finite"),
        ({"poses": np.full((5, 4, 4), np.inf)}, "row 0 of the poses is not finite"),
        ({"speeds": np.zeros(4)}, "speeds"),
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


@pytest.mark.parametrize("modality", ACTION_MODALITIES.values(), ids=ACTION_MODALITIES)
def test_the_actions_of_a_clip_move_each_frame_to_the_next(tmp_path, modality):
    arrays = write_episode(tmp_path / "heldout" / "episode_00000.npz", 0, modality)
    clip = load_dataset("recorded", tmp_path, split="heldout")[0]
    assert clip.modality == modality.name
    assert clip.actions.shape == (len(clip.frames) - 1, modality.action_dim)
    poses = modality.integrate(clip.poses[0], clip.actions, speed=5.0, rate_hz=clip.fps)
    np.testing.assert_allclose(poses, clip.poses, atol=1e-5)
    chunks = clip.actions.reshape(NUM_CHUNKS, CHUNK_FRAMES, -1)
    np.testing.assert_allclose(modality.combine(chunks), arrays["actions"], atol=1e-6)


def test_a_recording_says_its_domain_and_the_first_ones_are_of_the_robot(tmp_path):
    write_episode(tmp_path / "train" / "episode_00000.npz", 0)
    assert load_dataset("recorded", tmp_path).domain == "robot"
    write_episode(tmp_path / "heldout" / "episode_00000.npz", 0, ACTION_MODALITIES["camera"], domain="multicam")
    dataset = load_dataset("recorded", tmp_path, split="heldout")
    assert (dataset.domain, dataset.modality) == ("multicam", "camera")


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
