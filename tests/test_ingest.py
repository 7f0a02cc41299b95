"""Importing: what comes out is what our own recordings are, whole after any interruption, and nothing is silent."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_datasets import write_episode

from astra_env.actions import ACTION_MODALITIES
from astra_env.cli import main
from astra_env.datasets import DATASETS, load_dataset
from astra_env.datasets.ingest import IngestConfig, ingest, open_source, recognise
from astra_env.flags import ask
from astra_env.video import read_video


def recordings(root: Path, count: int = 4) -> Path:
    """Three chunks of 0.2 s each."""
    for index in range(count):
        write_episode(root / "train" / f"episode_{index:05d}.npz", index, ACTION_MODALITIES["camera"])
    return root


def config_of(root: Path, out: Path, **changes) -> IngestConfig:
    values = {"format": "recorded", "frame_size": (16, 24), "num_chunks": 3, "heldout": 0.25, "workers": 1}
    return IngestConfig(str(root), str(out), **(values | changes))


def imported(root: Path, out: Path, **changes) -> Path:
    config = config_of(root, out, **changes)
    return ingest(config, open_source(config, None, {}))


def contents(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Every array of every episode by file and name."""
    found = {}
    for path in sorted(folder.glob("*/episode_*.npz")):
        with np.load(path) as file:
            found[f"{path.parent.name}/{path.name}"] = {name: file[name] for name in file.files}
    return found


def assert_same_episodes(folder: Path, expected: Path) -> None:
    ours, theirs = contents(folder), contents(expected)
    assert ours.keys() == theirs.keys()
    for name, arrays in ours.items():
        for key, values in arrays.items():
            np.testing.assert_array_equal(values, theirs[name][key], err_msg=f"{name} {key}")


def test_what_is_imported_is_what_was_there(tmp_path):
    root = recordings(tmp_path / "mine")
    manifest = json.loads(imported(root, tmp_path / "out").read_text())
    assert manifest["counts"] == {"train": 3, "heldout": 1}
    assert (manifest["modality"]["name"], manifest["domain"], manifest["frame_size"]) == ("camera", "mine", [16, 24])
    assert "metres" in manifest["source"]["convention"]["units"]
    source, both = load_dataset("recorded", root), []
    for split in ("train", "heldout"):
        dataset = load_dataset("recorded", tmp_path / "out", split=split)
        assert dataset.domain == "mine"
        both += [dataset.arrays(index) for index in range(len(dataset))]
    sources = [json.loads(str(arrays["meta"]))["source"] for arrays in both]
    assert sorted(sources) == [str(path) for path in source.paths]
    for arrays, name in zip(both, sources, strict=True):
        original = source.arrays(source.paths.index(Path(name)))
        np.testing.assert_allclose(arrays["actions"], original["actions"], atol=1e-5)
        np.testing.assert_allclose(arrays["measured_poses"], original["measured_poses"], atol=1e-5)
        assert arrays["frames"].shape == (13, 16, 24, 3)


def test_long_recordings_are_cut_and_held_out_as_a_whole(tmp_path):
    root = recordings(tmp_path / "mine")
    imported(root, tmp_path / "out", num_chunks=1)
    sources = {
        split: {json.loads(str(a["meta"]))["source"] for n, a in contents(tmp_path / "out").items() if split in n}
        for split in ("train", "heldout")
    }
    assert len(contents(tmp_path / "out")) == 12
    assert sources["train"].isdisjoint(sources["heldout"])
    (tmp_path / "one").mkdir()
    imported(recordings(tmp_path / "single", 1), tmp_path / "one", num_chunks=1)
    assert sorted(contents(tmp_path / "one")) == [
        "heldout/episode_00000.npz",
        "train/episode_00000.npz",
        "train/episode_00001.npz",
    ]


def test_the_video_for_a_person_shows_the_first_recordings(tmp_path):
    imported(recordings(tmp_path / "mine"), tmp_path / "out")
    video = read_video(tmp_path / "out" / "overlay.mp4")
    assert len(video) == 4 * 12
    assert video.shape[2] == 480
    # the way is drawn further from frame to frame, in a corner that the picture has no part in
    assert np.abs(video[11, :140, -140:].astype(int) - video[0, :140, -140:]).max() > 60


def test_nothing_is_written_when_the_person_says_no(tmp_path):
    config = config_of(recordings(tmp_path / "mine"), tmp_path / "out")
    asked = []
    with pytest.raises(ValueError, match="tell the columns"):
        ingest(config, open_source(config, None, {}), lambda video: bool(asked.append(video)))
    assert asked == [tmp_path / "out" / "overlay.mp4"]
    assert contents(tmp_path / "out") == {}


def test_what_cannot_be_read_stops_or_is_listed(tmp_path):
    root = recordings(tmp_path / "mine", 6)
    broken = root / "train" / "episode_00002.npz"
    with np.load(broken) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["measured_poses"][7, 0, 3] = np.nan
    np.savez_compressed(broken, **arrays)
    with pytest.raises(ValueError, match=r"episode_00002.npz: row 7 of the poses is not finite"):
        imported(root, tmp_path / "out")
    imported(root, tmp_path / "out", skip_bad=True, heldout=0.01)
    assert len(list((tmp_path / "out" / "heldout").iterdir())) == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(contents(tmp_path / "out")) == 5
    assert all("episode_00002.npz" in text for text in report["not_read"])
    assert report["not_read"] and report["fields"].keys() == set(ACTION_MODALITIES["camera"].fields)


def test_too_short_recordings_say_how_many_actions_would_fit(tmp_path):
    with pytest.raises(ValueError, match=r"needs 21 frames at 20 Hz, the longest recording has 13; .*--num-chunks 3"):
        imported(recordings(tmp_path / "mine"), tmp_path / "out", num_chunks=5)


def test_several_processes_write_the_same(tmp_path):
    root = recordings(tmp_path / "mine")
    imported(root, tmp_path / "one")
    imported(root, tmp_path / "two", workers=2)
    assert_same_episodes(tmp_path / "two", tmp_path / "one")


def test_a_killed_import_goes_on_and_ends_the_same(tmp_path):
    root = recordings(tmp_path / "mine", 40)
    imported(root, tmp_path / "whole", num_chunks=1)
    command = [
        "ingest",
        str(root),
        "--out",
        str(tmp_path / "parts"),
        "--format",
        "recorded",
        "--frame-size",
        "16",
        "24",
    ]
    command += ["--num-chunks", "1", "--heldout", "0.25", "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", f"from astra_env.cli import main; main({command!r})"], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(contents_names(tmp_path / "parts")) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = contents_names(tmp_path / "parts")
    assert 5 <= len(before) < 120
    assert not (tmp_path / "parts" / "dataset.json").exists()
    times = {name: (tmp_path / "parts" / name).stat().st_mtime_ns for name in before}
    main(command)
    assert_same_episodes(tmp_path / "parts", tmp_path / "whole")
    assert times == {name: (tmp_path / "parts" / name).stat().st_mtime_ns for name in before}  # kept, not made again


def contents_names(folder: Path) -> list[str]:
    return [f"{path.parent.name}/{path.name}" for path in folder.glob("*/episode_*.npz")]


def test_a_folder_is_recognised_or_named(tmp_path):
    assert recognise(str(recordings(tmp_path / "mine"))) == "recorded"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is empty; give a folder"):
        recognise(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="is no folder"):
        recognise(str(tmp_path / "nowhere"))
    (tmp_path / "empty" / "notes.txt").write_text("nothing")
    with pytest.raises(ValueError, match=r"none of the formats.*--format"):
        recognise(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="--format"):
        recognise("hf://datasets/somebody/something")


def test_the_command_checks_without_writing(tmp_path, capsys):
    root = recordings(tmp_path / "mine")
    main(["ingest", str(root), "--check", "--frame-size", "16"])
    printed = capsys.readouterr().out
    assert "4 recordings, 52 frames; 0 cannot be read" in printed
    assert "dyaw: mean" in printed
    with pytest.raises(SystemExit):
        main(["ingest", str(root)])
    assert "--out" in capsys.readouterr().err


def test_answers_become_a_description_of_columns():
    from astra_env.datasets.columns import ActionColumns

    answers = {"modality": "camera", "meaning": "poses", "translation": "tx ty tz", "inverse": "yes", "axes": "opengl"}
    told = ask(ActionColumns, lambda question: answers.get(question.split(":")[0], ""))
    assert told == ActionColumns("camera", translation=("tx", "ty", "tz"), inverse=True, axes="opengl")
    with pytest.raises(ValueError, match="modality"):
        ask(ActionColumns, lambda question: "sideways" if question.startswith("modality") else "")


@pytest.mark.parametrize("name", DATASETS)
def test_every_reader_states_its_convention(name):
    from pkgutil import resolve_name

    convention = resolve_name(DATASETS[name]).convention
    assert all(len(text) > 10 for text in (convention.page, convention.units, convention.frame, convention.order))
