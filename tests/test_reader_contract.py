"""What every reader keeps, on tiny data in the form in which it is published."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_datasets import write_episode

from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets import DATASETS, Clip, load_dataset
from astra_env.datasets.ingest import recognise
from astra_env.datasets.lerobot_writer import write_lerobot
from astra_env.datasets.reader import ClipReader

Made = tuple[Path, dict[str, Any]]


def recorded(root: Path, monkeypatch) -> Made:
    write_episode(root / "train" / "episode_00000.npz", 0, ACTION_MODALITIES["camera"])
    return root, {}


def rlds(root: Path, monkeypatch) -> Made:
    from test_rlds import COLUMNS, unknown_set

    return unknown_set(root)[0], {"columns": COLUMNS, "fps": 5.0}


def rt1(root: Path, monkeypatch) -> Made:
    from test_rlds import KNOWN, NUM_STEPS, motion, published, write_set

    name, text = "fractal20220817_data", "observation/natural_language_instruction"
    features = published(KNOWN[name], *motion(1))
    features["action/gripper_closedness_action"] = [np.ones(1, np.float32)] * NUM_STEPS
    return write_set(root, name, [features], image=KNOWN[name].image, text=text), {}


def lerobot(root: Path, monkeypatch) -> Made:
    from test_lerobot import make_clip

    write_lerobot(root / "set", [make_clip(1), make_clip(2)])
    return root / "set", {}


def nuscenes(root: Path, monkeypatch) -> Made:
    pytest.importorskip("nuscenes", reason="needs nuscenes-devkit (make datasets)")
    from test_nuscenes import driven, uneven, write_nuscenes

    return write_nuscenes(root, uneven(), driven(uneven())), {}


def sekai(root: Path, monkeypatch) -> Made:
    from test_camera_datasets import write_sekai

    write_sekai(root)
    return root, {}


def spatialvid(root: Path, monkeypatch) -> Made:
    from test_camera_datasets import write_spatialvid

    write_spatialvid(root)
    return root, {}


def multicamvideo(root: Path, monkeypatch) -> Made:
    from test_camera_datasets import write_multicamvideo

    write_multicamvideo(root, cameras=1)
    return root, {}


def hdf5(root: Path, monkeypatch) -> Made:
    from test_hdf5 import write_robomimic

    write_robomimic(root / "image.hdf5")
    return root, {"columns": "robomimic", "image": "obs/agentview_image"}


def minari(root: Path, monkeypatch) -> Made:
    from test_minari import MEASURED, record

    return record(monkeypatch, root), {"columns": MEASURED}


def folder(root: Path, monkeypatch) -> Made:
    from test_folder import COLUMNS, greys, path_of, write_csv, write_film

    write_film(root / "one.mp4", greys())
    write_csv(root / "one.csv", path_of()[2])
    return root, {"columns": COLUMNS}


MAKERS: dict[str, Callable[[Path, Any], Made]] = {
    maker.__name__: maker
    for maker in (
        recorded,
        rlds,
        rt1,
        lerobot,
        nuscenes,
        sekai,
        spatialvid,
        multicamvideo,
        hdf5,
        minari,
        folder,
    )
}


@pytest.fixture(params=list(DATASETS))
def made(request, tmp_path, monkeypatch) -> tuple[str, Path, dict[str, Any]]:
    """Name, root and options of a data set of every format."""
    return request.param, *MAKERS[request.param](tmp_path, monkeypatch)


def assert_same(clip: Clip, other: Clip, start: int = 0, stop: int | None = None) -> None:
    """A clip is frames `start` to `stop` of another."""
    np.testing.assert_array_equal(clip.frames, other.frames[start:stop])
    np.testing.assert_allclose(clip.actions, other.actions[start : None if stop is None else stop - 1], atol=1e-6)
    for name in ("poses", "speeds"):
        if getattr(other, name) is not None:
            np.testing.assert_allclose(getattr(clip, name), getattr(other, name)[start:stop], atol=1e-6)
    assert (clip.modality, clip.fps, clip.text) == (other.modality, other.fps, other.text)


def test_a_reader_gives_whole_clips(made):
    name, root, options = made
    reader = load_dataset(name, root, **options)
    assert isinstance(reader, ClipReader) and len(reader) == len(reader.lengths) >= 1
    for clip, length in zip(reader, reader.lengths, strict=True):
        assert len(clip.frames) == length and clip.frames.dtype == np.uint8
        assert clip.actions.dtype == np.float32 and np.abs(clip.actions).max() > 0
        assert clip.fps > 0 and str(root) in clip.source
        if clip.poses is not None:
            rotations = clip.poses[:, :3, :3]
            np.testing.assert_allclose(
                rotations @ np.swapaxes(rotations, 1, 2), np.tile(np.eye(3), (length, 1, 1)), atol=1e-4
            )
            np.testing.assert_allclose(np.linalg.det(rotations), 1, atol=1e-4)
    with pytest.raises(IndexError):
        reader[len(reader)]


def test_windows_and_sizes_are_parts_of_the_whole(made):
    name, root, options = made
    whole = load_dataset(name, root, frame_size=(12, 20), **options)
    assert whole[0].frames.shape[1:] == (12, 20, 3)
    cut = load_dataset(name, root, frame_size=(12, 20), num_frames=4, **options)
    assert len(cut) == sum((length - 1) // 3 for length in whole.lengths)
    for index in {0, len(cut) // 2, len(cut) - 1}:
        recording, start, stop = cut.windows[index]
        assert_same(cut[index], whole[recording], start, stop)


def test_worker_processes_read_the_same(made):
    name, root, options = made
    reader = load_dataset(name, root, **options)
    assert_same(pickle.loads(pickle.dumps(reader))[0], reader[0])  # noqa: S301  what was just made


def test_a_folder_is_recognised_as_what_it_is(made):
    name, root, _ = made
    assert recognise(str(root)) == name


def test_an_empty_folder_is_refused_in_a_sentence(made, tmp_path_factory):
    name, _, options = made
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_dataset(name, empty, **options)
    assert str(empty) in str(caught.value) and len(str(caught.value)) < 400


def test_every_format_has_its_data():
    assert MAKERS.keys() == DATASETS.keys()
