"""The doctor tells of each thing that is wrong, and of nothing where nothing is."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets import Clip
from astra_env.datasets.doctor import examine

FPS = 20.0


def scene(count: int, yaws: np.ndarray, seed: int = 0) -> np.ndarray:
    """A wide picture seen through a window that turns to the right with the yaw; some detail at every place."""
    rng = np.random.default_rng(seed)
    wide = cv2.resize(rng.integers(64, 192, (16, 256, 3), dtype=np.uint8), (2048, 96), interpolation=cv2.INTER_LINEAR)
    shifts = [np.array([[1, 0, -1000 - 60 * yaw], [0, 1, 0]]) for yaw in yaws[: count + 1]]
    return np.stack([cv2.warpAffine(wide, shift, (96, 96)) for shift in shifts])


def healthy(name: str = "camera", count: int = 80, seed: int = 0) -> Clip:
    """Actions within the bounds with measured poses that agree, and pictures that turn as the camera does."""
    modality, rng = ACTION_MODALITIES[name], np.random.default_rng(seed)
    waves = np.sin(np.outer(np.arange(count) / FPS, np.linspace(1.0, 4.0, modality.action_dim)) + rng.random())
    scale = np.array(modality.high) * (1.0 if name == "vehicle" else modality.rate_hz / FPS)
    actions = (0.8 * scale * waves).astype(np.float32)
    actions[:, modality.kinematics.num_fields :] = np.arange(count)[:, None] > count / 2
    poses = modality.integrate(np.eye(4), actions, speed=6.0, rate_hz=FPS).astype(np.float32)
    turned = np.cumsum(actions[:, 5]) if name == "camera" else -np.cumsum(actions[:, 0]) / 20
    yaws = np.concatenate([[0.0], turned if name != "end_effector" else np.sin(np.arange(count) / 5) / 5])
    return Clip(scene(count, yaws, seed), actions, name, FPS, poses, None, "", f"clip_{seed}")


def findings(*clips: Clip) -> str:
    return "\n".join(examine(clips).findings)


@pytest.mark.parametrize("name", ACTION_MODALITIES)
def test_nothing_is_found_where_nothing_is_wrong(name):
    report = examine([healthy(name, seed=seed) for seed in range(3)])
    assert report.findings == ()
    assert (report.num_clips, report.num_frames) == (3, 243)
    values = np.concatenate([healthy(name, seed=seed).actions for seed in range(3)])[:, 0]
    per_action = 1.0 if name == "vehicle" else FPS / ACTION_MODALITIES[name].rate_hz
    field = report.fields[ACTION_MODALITIES[name].fields[0]]
    assert field["std"] == pytest.approx(values.std() * per_action, rel=1e-4)
    assert field["min"] <= field["q01"] <= field["q99"] <= field["max"]


def changed(clip: Clip, column: int, change) -> Clip:
    actions = clip.actions.copy()
    actions[:, column] = change(actions[:, column])
    return replace(clip, actions=actions)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: 57.3 * v, "dx .*another unit"),
        (lambda v: 0 * v + 0.001, "dx is always"),
        (lambda v: np.clip(v, -0.02, 0.02), "dx is exactly -?0.08.*clipped"),
        (lambda v: 2.0 * v, r"dx leaves the bounds \[-0.2, 0.2\] m"),
    ],
    ids=["unit", "constant", "clipped", "out of bounds"],
)
def test_values_that_cannot_be_right_are_named(change, message):
    import re

    assert re.search(message, findings(replace(changed(healthy(), 0, change), poses=None)))


def test_swapped_axes_and_signs_are_named():
    clip = healthy("end_effector")
    swapped = clip.actions.copy()
    swapped[:, [0, 1]] = swapped[:, [1, 0]]
    text = findings(replace(clip, actions=swapped))
    assert "x of the actions follows y of the measured poses" in text
    assert "y of the actions follows x of the measured poses" in text
    assert "z of the actions follows -z" in findings(changed(clip, 2, np.negative))


@pytest.mark.parametrize(("name", "column"), [("camera", 5), ("vehicle", 0)])
def test_a_picture_that_turns_the_other_way_is_named(name, column):
    clip = changed(replace(healthy(name), poses=None), column, np.negative)
    assert "turns against" in findings(clip)


def test_broken_pictures_and_gaps_are_named_with_their_place():
    clip = healthy()
    doubled = clip.frames.copy()
    doubled[1::2] = doubled[:-1:2]
    assert "40 of 81 frames repeat the one before, frame 1 first" in findings(replace(clip, frames=doubled))
    cut = clip.frames.copy()
    cut[30:] = 255 - cut[30:]
    assert "from frame 30 on" in findings(replace(clip, frames=cut))
    torn = clip.frames.copy()
    torn[50, 48:] = 255 - torn[50, 48:] // 2
    assert "frame 50 looks torn" in findings(replace(clip, frames=torn))
    poses = clip.poses.copy()
    poses[40:, 0, 3] += 3
    assert "leaps by" in findings(replace(clip, poses=poses)) and "frame 40" in findings(replace(clip, poses=poses))


def test_clips_of_two_kinds_or_rates_are_refused():
    with pytest.raises(ValueError, match="one kind at one rate"):
        examine([healthy("camera"), healthy("vehicle")])
    with pytest.raises(ValueError, match="10 Hz"):
        examine([healthy(), replace(healthy(), fps=10.0)])
    assert examine([]).findings == ("There are no clips.",)
