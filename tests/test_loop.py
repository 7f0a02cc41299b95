from __future__ import annotations

import copy
import json
import math

import pytest
import torch

import astra_env  # noqa: F401  registers the ids
from astra_env.training import loop
from astra_env.training.autoencoder import fit_autoencoder
from astra_env.training.walkers import Recipe
from astra_env.training.world_model import fit_world_model, make_tracks


class Killed(Exception):
    """What ends a run in these tests."""


def kill_at(monkeypatch, step: int) -> None:
    """Let the trainer die before it takes the given step."""
    original = loop.Trainer.step

    def dying(self, loss):
        if self.step_index == step:
            raise Killed
        original(self, loss)

    monkeypatch.setattr(loop.Trainer, "step", dying)


def log_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same_weights(module, other) -> None:
    for (name, value), expected in zip(module.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name


def walk(world, folder, **changes):
    world_model, episodes, latents, heldout = copy.deepcopy(world)
    folder.mkdir(exist_ok=True)
    recipe = Recipe(batch_size=3, max_rollout=3)
    arguments = {"num_steps": 8, "recipe": recipe, "validation": [heldout]} | changes
    tracks = make_tracks(world_model, [episodes], [latents], torch.ones(1))
    fit_world_model(world_model, tracks, folder, **arguments)
    return world_model.transformer


def test_an_interrupted_transformer_run_ends_as_an_uninterrupted_one(world, tmp_path, monkeypatch):
    whole = walk(world, tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_at(patch, 5)
        with pytest.raises(Killed):
            walk(world, tmp_path / "parts")
    assert (tmp_path / "parts" / "transformer.pt").is_file()
    resumed = walk(world, tmp_path / "parts")
    assert_same_weights(resumed, whole)
    again = walk(world, tmp_path / "parts")  # nothing is left to do
    assert_same_weights(again, whole)
    logs = [log_of(tmp_path / name) for name in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert [entry["step"] for entry in logs[0]] == [2, 4, 6, 8]
    for entry in logs[0]:
        assert entry["stage"] == "transformer" and math.isfinite(entry["loss"])
        assert abs(sum(entry["expert_use"]["end_effector"]) - 1) < 0.01
        psnr = entry["psnr"]["robot"]
        assert len(psnr["true"]) == len(psnr["shuffled"]) == len(psnr["still"]) == 2


def test_validation_does_not_disturb_the_training(world, tmp_path):
    runs = [walk(world, tmp_path / str(k), num_steps=4, validation=v) for k, v in enumerate(([world[3]], []))]
    assert_same_weights(*runs)


def test_an_interrupted_autoencoder_run_ends_as_an_uninterrupted_one(world, tmp_path, monkeypatch):
    def fit(folder):
        folder.mkdir(exist_ok=True)
        autoencoder = copy.deepcopy(world[0].autoencoder)
        fit_autoencoder(autoencoder, [world[1]], [world[3]], torch.ones(1), folder, num_steps=6, batch_size=2)
        return autoencoder

    saving = loop.Trainer.step

    def step_and_save(self, loss):
        saving(self, loss)
        if self.step_index == 3:
            self.save()

    monkeypatch.setattr(loop.Trainer, "step", step_and_save)
    whole = fit(tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_at(patch, 5)
        with pytest.raises(Killed):
            fit(tmp_path / "parts")
    assert_same_weights(fit(tmp_path / "parts"), whole)
    latents = whole.encode(world[1].frames)  # every channel has zero mean and unit variance
    torch.testing.assert_close(latents.mean((0, 2, 3, 4)), torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3, 4)), torch.ones(16), atol=2e-3, rtol=0)


def test_the_average_is_kept_apart_from_the_weights_until_the_end(tmp_path):
    module = torch.nn.Linear(2, 1)
    trainer = loop.Trainer(module, tmp_path, "line", num_steps=20, learning_rate=0.5)
    while not trainer.done:
        trainer.step((module(torch.ones(1, 2)) - 5).square().sum())
    current = module.weight.clone()
    trainer.use_average()
    assert not torch.equal(module.weight, current)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    module = torch.nn.Linear(2, 1)
    trainer = loop.Trainer(module, tmp_path, "line", num_steps=20, learning_rate=0.5)
    with pytest.raises(FloatingPointError, match="loss of line is nan at step"):
        trainer.step(module(torch.full((1, 2), torch.nan)).sum())


def test_the_state_stays_whole_when_a_save_is_interrupted(tmp_path, monkeypatch):
    module = torch.nn.Linear(2, 1)
    trainer = loop.Trainer(module, tmp_path, "line", num_steps=20, learning_rate=0.5)
    trainer.save()
    before = trainer.path.read_bytes()

    def half(state, path):
        path.write_bytes(b"half")
        raise Killed

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(Killed):
        trainer.save()
    assert trainer.path.read_bytes() == before
