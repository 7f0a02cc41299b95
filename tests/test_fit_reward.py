"""A reward learned from labelled frames: from recordings, from folders, from a table; and how good it is said to be."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from tiny import random_actions, random_frames, save_checkpoint, seeded, write_dataset

from astra_env.envs.reward_kit import LearnedReward
from astra_env.models import WorldModel
from astra_env.training.episodes import Episodes
from astra_env.training.fit_reward import FitRewardConfig, fit_reward
from astra_env.video import write_video

QUICK = {"num_steps": 60, "batch_size": 16}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> str:
    """A tiny checkpoint whose latents have about unit variance, as those of trained ones do."""
    path = save_checkpoint(tmp_path_factory.mktemp("world"), domains=["robot"])
    model = WorldModel.from_pretrained(path, device="cpu")
    model.autoencoder.latent_std.fill_(0.01)
    model.save_pretrained(path)
    return str(path)


def picture(solved: bool, seed: int) -> np.ndarray:
    """Noise that is bright where the task is solved."""
    noise = np.random.default_rng(seed).integers(0, 60, (48, 40, 3), dtype=np.uint8)
    return noise + 180 if solved else noise


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures and clips by their folder."""
    root = tmp_path_factory.mktemp("labelled")
    for name in ("success", "failure"):
        (root / name).mkdir()
        for index in range(4):
            shown = picture(name == "success", index)
            cv2.imwrite(str(root / name / f"{index}.png"), shown)
            write_video(root / name / f"{index}.mp4", np.stack([shown] * 6), 20)
    return root


def fitted(world, data, out, **changes):
    return fit_reward(FitRewardConfig(str(data), out=str(out), world_model=world, **{"num_heads": 1} | QUICK | changes))


def test_labelled_files_teach_success(world, folder, tmp_path):
    report = fitted(world, folder, tmp_path / "heads", num_heads=2)
    assert report == json.loads((tmp_path / "heads" / "rewards.json").read_text())
    # of four pictures and four clips a kind, three latents and two each, one in four is held out
    assert report["num_latents"] + report["num_train_latents"] == 2 * 4 * (3 + 2)
    assert report["num_heads"] == 2 and 0.4 < report["success_rate"] < 0.6
    assert report["success_precision"] > 0.9 and report["success_recall"] > 0.9
    reward = LearnedReward.load(tmp_path / "heads")
    assert len(reward.heads) == 2
    model = WorldModel.from_pretrained(world)
    frames = np.stack([cv2.resize(picture(solved, 99), (32, 32))[None].repeat(5, 0) for solved in (True, False)])
    judged = reward(model.init_state(torch.from_numpy(frames), "end_effector"))
    assert judged.done.tolist() == [True, False] and judged.value[0] > judged.value[1] + 0.3


def test_a_table_tells_files_and_rewards(world, folder, tmp_path):
    lines = ["file,label"]
    for index in range(4):
        lines += [
            f"{folder}/success/{index}.png,success",
            f"{folder}/failure/{index}.png,{0.25 if index else 'failure'}",
        ]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    report = fitted(world, tmp_path / "labels.csv", tmp_path / "heads")
    assert report["success_recall"] > 0.9 and report["success_rate"] == 0.5
    assert report["reward_mean_absolute_error"] < 0.3


def test_recordings_bring_their_own_labels(world, tmp_path):
    data = write_dataset(tmp_path / "data", num_train=3, num_heldout=2)
    report = fitted(world, data, tmp_path / "heads", num_steps=3, episodes=2)
    assert report["num_train_latents"] == 2 * 7 and report["num_latents"] == 2 * 7
    assert {"success_precision", "success_recall", "reward_variance_explained"} <= report.keys()


def test_imagined_recordings_teach_and_test_too(world, tmp_path):
    data = write_dataset(tmp_path / "data", num_train=3, num_heldout=2)
    report = fitted(world, data, tmp_path / "heads", num_steps=3, imagined=True)
    # of six chunks, the last two are imagined
    assert report["num_train_latents"] == 3 * 7 + 3 * 2
    assert report["num_latents"] == 2 * 7 and report["imagined_num_latents"] == 2 * 2
    assert {"imagined_success_recall", "imagined_reward_variance_explained"} <= report.keys()
    plain = fitted(world, data, tmp_path / "plain", num_steps=3)
    assert not any(name.startswith("imagined") for name in plain)
    weights = [(tmp_path / name / "reward_model.safetensors").read_bytes() for name in ("heads", "plain")]
    assert weights[0] != weights[1]


def test_pictures_cannot_be_imagined(world, folder, tmp_path):
    with pytest.raises(ValueError, match="has pictures without actions"):
        fitted(world, folder, tmp_path / "heads", imagined=True)


def test_the_speed_of_cars_is_read(world, tmp_path, monkeypatch):
    """Labels that only the recorded speed tells are learned."""
    from astra_env.training import fit_reward as module

    def cars(root, split, limit, *, frame_size):
        speeds = 12 * torch.rand(8, 7, generator=seeded(len(split)))
        frames, actions = random_frames(8, 25), random_actions(8, 6, modality="vehicle")
        return Episodes("driving", "vehicle", frames, actions, speeds / 12, speeds > 9, speeds < 2, speeds)

    monkeypatch.setattr(module, "load_episodes", cars)
    (tmp_path / "data" / "train").mkdir(parents=True)
    report = fitted(world, tmp_path / "data", tmp_path / "heads", num_steps=150)
    assert report["reward_variance_explained"] > 0.5 and "failure_recall" in report
    assert LearnedReward.load(tmp_path / "heads").heads[0].reads_speed


def test_a_world_takes_the_head_that_lies_in_its_domain(world, folder, tmp_path):
    import gymnasium

    import astra_env  # noqa: F401  registers the ids

    checkpoint = save_checkpoint(tmp_path / "copy", domains=["robot"])
    fitted(world, folder, checkpoint / "domains" / "robot", num_steps=5)
    env = gymnasium.make("Astra-RT1-v0", world_model=str(checkpoint), device="cpu", observation="latent")
    env.reset(seed=0)
    reward, state = env.step(env.action_space.sample())[1], env.unwrapped.save_state()
    assert reward == pytest.approx(LearnedReward.load(checkpoint / "domains" / "robot")(state).value.item(), abs=1e-6)


def test_the_seed_decides(world, folder, tmp_path):
    runs = [fitted(world, folder, tmp_path / str(i), num_steps=5, seed=seed) for i, seed in enumerate((1, 1, 2))]
    weights = [(tmp_path / str(i) / "reward_model.safetensors").read_bytes() for i in range(3)]
    assert weights[0] == weights[1] != weights[2]
    assert runs[0] | {"seconds": 0} == runs[1] | {"seconds": 0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no table"),
        ("file,label\na.png,maybe\n", "Line 2 of .* expected a file and a label"),
        ("file,label\na.png,2\n", "Line 2 of .* expected a file and a label"),
        ("name\na.png\n", "Line 2 of .* expected a file and a label"),
        ("file,label\na.png,1\nb.png,0\nc.png,0\n", "There are 1 files of success, expected at least 2"),
    ],
)
def test_a_wrong_table_is_told(world, tmp_path, content, message):
    if content is not None:
        (tmp_path / "labels.csv").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        fitted(world, tmp_path / "labels.csv", tmp_path / "heads")


def test_wrong_folders_and_numbers_are_told(world, tmp_path):
    (tmp_path / "success").mkdir()
    with pytest.raises(ValueError, match="has no failure folder"):
        fitted(world, tmp_path, tmp_path / "heads")
    with pytest.raises(ValueError, match="num_heads is 0"):
        fitted(world, tmp_path, tmp_path / "heads", num_heads=0)
