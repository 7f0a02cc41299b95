"""Real samples that others recorded, where ASTRA_REALDATA names their folder; those of a format are in its own test."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from astra_env.cli import main
from astra_env.datasets import load_dataset
from astra_env.datasets.columns import ActionColumns
from astra_env.datasets.doctor import examine
from astra_env.video import read_video, video_info

REALDATA = Path(os.environ.get("ASTRA_REALDATA", "/missing"))


def sample(name: str) -> Path:
    if not (REALDATA / name).exists():
        pytest.skip(f"ASTRA_REALDATA names no folder with {name}.")
    return REALDATA / name


def write_table(path: Path, names: list[str], rows: list[list[float]]) -> None:
    path.write_text("\n".join([",".join(names), *(",".join(map(repr, row)) for row in rows)]) + "\n")


def test_language_table_is_a_stick_that_moves_over_a_table(tmp_path):
    """Its own JSON as a table: 17 motions in metres between 18 frames, and no gripper."""
    source = sample("language_table")
    actions = json.loads((source / "example.json").read_text())["actions"]
    shutil.copy(source / "example.mp4", tmp_path)
    write_table(tmp_path / "example.csv", ["dx", "dy", "hold"], [[*action, 0.0] for action in actions])
    columns = ActionColumns(meaning="deltas", translation=("dx", "dy"), gripper="hold")
    (clip,) = load_dataset("folder", tmp_path, columns=columns, frame_size=(72, 128))
    assert clip.frames.shape == (18, 72, 128, 3) and clip.fps == 4.0
    np.testing.assert_allclose(clip.actions[:, :2], actions, atol=1e-6)
    assert not clip.actions[:, 2:].any()
    findings = " ".join(examine([clip]).findings)
    assert "gripper is always 0" in findings and "another unit" not in findings


def test_droid_goes_from_its_files_to_episodes_of_ours(tmp_path, capsys):
    source = sample("droid")
    names = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
    for path in sorted((source / "annotation").glob("*.json")):
        told = json.loads(path.read_text())
        shutil.copy(source / "videos" / path.stem / "0.mp4", tmp_path / f"{path.stem}.mp4")
        write_table(tmp_path / f"{path.stem}.csv", names, told["states"])
        (tmp_path / f"{path.stem}.txt").write_text(told["texts"][0])
    flags = ["--rotation", "roll", "pitch", "yaw", "--rotation-kind", "rpy", "--gripper", "gripper", "--workers", "1"]
    command = ["ingest", str(tmp_path), "--out", str(tmp_path / "out"), "--num-chunks", "16", *flags]
    with pytest.raises(SystemExit):
        main(command)
    assert "0003.csv has 205 rows, 0003.mp4 206 frames" in capsys.readouterr().err
    main([*command, "--skip-bad"])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["clips"], report["findings"], len(report["not_read"])) == (4, [], 1)
    dataset = load_dataset("recorded", tmp_path / "out")
    assert len(dataset) > 20 and all(dataset[index].text for index in (0, len(dataset) - 1))


def test_a_video_of_the_authors_model_is_read_in_parts():
    path = sample("astra_output") / "output_moe_framepack_sliding.mp4"
    assert video_info(path) == (97, 20.0)
    whole = read_video(path, start=60, stop=97)
    assert whole.shape == (37, 480, 832, 3)
    np.testing.assert_array_equal(read_video(path, start=80, stop=84), whole[20:24])


def test_wan_latents_have_the_layout_of_ours():
    folder = sample("wan_latents")
    (latents,) = load_file(folder / "test_latents_wan.safetensors").values()
    assert latents.shape == (1, 16, 16, 40, 64) and latents.isfinite().all()  # (B, C, T, h, w), as ours
    channels = latents.float().transpose(0, 1).flatten(1)
    assert 0.3 < channels.std(dim=1).mean() < 3  # normalised by channel
    assert read_video(folder / "decoded_taew2_1.mp4", stop=3).shape == (3, 480, 832, 3)
