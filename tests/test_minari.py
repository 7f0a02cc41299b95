"""Minari data sets, written by Minari: what was recorded comes back, what is missing is named."""

from __future__ import annotations

import dataclasses
import json

import gymnasium
import numpy as np
import pytest

from astra_env.datasets import load_dataset
from astra_env.datasets.columns import ActionColumns
from astra_env.datasets.minari import MinariDataset

minari = pytest.importorskip("minari")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")

LENGTHS, FPS, SIZE = (6, 9), 15, 40
COMMANDED = ActionColumns(meaning="deltas", translation=("action_0", "action_1", "action_2"), gripper="action_3")
MEASURED = ActionColumns(
    translation=("observation/place_0", "observation/place_1", "observation/place_2"),
    gripper="action_3",
    gripper_meaning="commanded",
)


class Reach(gymnasium.Env):
    """A point that is moved through a room whose walls are as bright as the step's number."""

    metadata = {"render_modes": [], "render_fps": FPS}  # noqa: RUF012
    action_space = gymnasium.spaces.Box(-0.1, 1.0, (4,), np.float64)
    observation_space = gymnasium.spaces.Dict(
        {
            "pixels": gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8),
            "place": gymnasium.spaces.Box(-9, 9, (3,), np.float64),
        }
    )


gymnasium.register("AstraTests/Reach-v0", entry_point=f"{__name__}:Reach")


def steps_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 0.1, (LENGTHS[seed], 4))


def record(monkeypatch, root, *, pixels: bool = True, env: str | None = "AstraTests/Reach-v0"):
    """Two episodes in Minari's own layout, pictures as JPEG; the folder of the data set."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    buffers = []
    for seed, length in enumerate(LENGTHS):
        places = np.concatenate([np.zeros((1, 3)), np.cumsum(steps_of(seed)[:, :3], axis=0)])
        pictures = [np.full((SIZE, SIZE, 3), 20 * index, np.uint8) for index in range(length + 1)]
        observations = {"pixels": pictures, "place": list(places)} if pixels else {"place": list(places)}
        ends = [False] * (length - 1) + [True]
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                observations=observations,
                actions=list(steps_of(seed)),
                rewards=[0.0] * length,
                terminations=ends,
                truncations=[False] * length,
                infos={"height": list(np.arange(length + 1.0))},
            )
        )
    spaces = {name: space for name, space in Reach.observation_space.spaces.items() if pixels or name != "pixels"}
    minari.create_dataset_from_buffers(
        "tests/reach-v0",
        buffers,
        env=None if env is None else gymnasium.spec(env),
        observation_space=gymnasium.spaces.Dict(spaces),
        action_space=Reach.action_space,
    )
    return root / "tests" / "reach-v0"


def numbers_of(frames: np.ndarray) -> list[int]:
    return np.rint(frames.mean(axis=(1, 2, 3)) / 20).astype(int).tolist()


@pytest.mark.parametrize("columns", [COMMANDED, MEASURED])
def test_episodes_come_back(tmp_path, monkeypatch, columns):
    root = record(monkeypatch, tmp_path)
    dataset = load_dataset("minari", root, columns=columns)
    assert MinariDataset.recognises(root)
    assert list(dataset.lengths) == [length + 1 for length in LENGTHS]
    for seed, clip in enumerate(dataset):
        assert (clip.fps, clip.modality) == (FPS, "end_effector")
        assert numbers_of(clip.frames) == list(range(LENGTHS[seed] + 1))
        assert clip.source.endswith(f"reach-v0, episode {seed}")
        np.testing.assert_allclose(clip.actions[:, [0, 1, 2, 6]], steps_of(seed), atol=1e-6)
        assert (clip.poses is None) == (columns is COMMANDED)


def test_windows_and_sizes(tmp_path, monkeypatch):
    root = record(monkeypatch, tmp_path)
    dataset = load_dataset("minari", root, columns=COMMANDED, num_frames=4, frame_size=(16, 24), fps=5)
    assert [numbers_of(clip.frames) for clip in dataset] == [
        [0, 1, 2, 3],
        [3, 4, 5, 6],
        [0, 1, 2, 3],
        [3, 4, 5, 6],
        [6, 7, 8, 9],
    ]
    assert (dataset[4].frames.shape, dataset[4].fps) == ((4, 16, 24, 3), 5)
    np.testing.assert_allclose(dataset[4].actions[:, :3], steps_of(1)[6:9, :3], atol=1e-6)


def test_columns_may_lie_beside_the_data_and_must_be_told(tmp_path, monkeypatch):
    root = record(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match=r"cannot be guessed.*'observation/place_0'.*'action_0'.*'info/height'"):
        load_dataset("minari", root)
    (root / "columns.json").write_text(json.dumps(dataclasses.asdict(COMMANDED)))
    np.testing.assert_allclose(load_dataset("minari", root)[0].actions[:, :3], steps_of(0)[:, :3], atol=1e-6)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"metadata.json is missing"):
        load_dataset("minari", tmp_path, columns=COMMANDED)
    root = record(monkeypatch, tmp_path / "seen", env=None)
    with pytest.raises(ValueError, match=r"its environment tells no render_fps here, expected fps"):
        load_dataset("minari", root, columns=COMMANDED)
    assert len(load_dataset("minari", root, columns=COMMANDED, fps=10)) == len(LENGTHS)
    with pytest.raises(ValueError, match=r"image is 'pixels', expected one of .*\['observation/pixels'\]"):
        load_dataset("minari", root, columns=COMMANDED, image="pixels", fps=10)
    with pytest.raises(ValueError, match=r"episode 0: columns \['x', 'y', 'z'\] are missing; it has"):
        load_dataset("minari", root, columns=ActionColumns(gripper="action_3"), fps=10)[0]
    blind = record(monkeypatch, tmp_path / "blind", pixels=False)
    with pytest.raises(ValueError, match="there are none"):
        load_dataset("minari", blind, columns=COMMANDED)
    with pytest.raises(ValueError, match="Minari reads local folders"):
        load_dataset("minari", "memory://reach", columns=COMMANDED)


def test_an_environment_that_is_not_known_here_does_not_tell_its_rate(tmp_path, monkeypatch):
    root = record(monkeypatch, tmp_path)
    monkeypatch.delitem(gymnasium.registry, "AstraTests/Reach-v0")
    with pytest.raises(ValueError, match=r"AstraTests/Reach-v0 tells no render_fps here"):
        load_dataset("minari", root, columns=COMMANDED)
