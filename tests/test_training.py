from __future__ import annotations

import copy
import functools
import json
import math

import numpy as np
import pytest
import torch
from tiny import MODALITY, random_actions, random_frames, seeded, tiny_world_model, write_dataset, write_episode

from astra_env.models import WorldModel
from astra_env.models.reward_model import RewardModel
from astra_env.training import TrainConfig, loop, train
from astra_env.training.autoencoder import fit_autoencoder, reconstruction_loss, sample_clips
from astra_env.training.episodes import Episodes, encode_episodes, load_episodes
from astra_env.training.rewards import fit_rewards
from astra_env.training.world_model import Recipe, Walkers, fit_world_model, open_loop_psnr, training_loss


class Killed(Exception):
    """What ends a run in these tests."""


def synthetic(num: int, num_chunks: int = 6) -> Episodes:
    frames, actions = random_frames(num, 4 * num_chunks + 1), random_actions(num, num_chunks)
    rewards = torch.rand(num, num_chunks + 1, generator=seeded())
    return Episodes(frames, actions, rewards, rewards > 0.7, MODALITY)


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


@pytest.fixture(scope="module")
def world():
    world_model = tiny_world_model(perturbed=False).requires_grad_(True)
    episodes, heldout = synthetic(3), synthetic(2)
    latents, heldout_latents = (encode_episodes(world_model.autoencoder, part) for part in (episodes, heldout))
    return world_model, episodes, latents, heldout, heldout_latents


def walk(world, folder, **changes):
    world_model, episodes, latents, heldout, heldout_latents = copy.deepcopy(world)
    folder.mkdir(exist_ok=True)
    recipe = Recipe(batch_size=3, max_rollout=3)
    validation = (heldout_latents, heldout)
    arguments = {"num_steps": 8, "recipe": recipe, "validation": validation} | changes
    fit_world_model(world_model, latents, episodes, folder, **arguments)
    return world_model.transformer


def test_an_interrupted_transformer_run_ends_as_an_uninterrupted_one(world, tmp_path, monkeypatch):
    whole = walk(world, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 5)
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
        assert abs(sum(entry["expert_share"]) - 1) < 0.01
        assert len(entry["psnr_true"]) == len(entry["psnr_shuffled"]) == len(entry["psnr_still"]) == 2


def test_an_interrupted_autoencoder_run_ends_as_an_uninterrupted_one(world, tmp_path, monkeypatch):
    def fit(folder):
        folder.mkdir(exist_ok=True)
        autoencoder = copy.deepcopy(world[0].autoencoder)
        fit_autoencoder(autoencoder, world[1], world[3], folder, num_steps=6, batch_size=2)
        return autoencoder

    saving = loop.Trainer.step

    def step_and_save(self, loss):
        saving(self, loss)
        if self.step_index == 3:
            self.save()

    monkeypatch.setattr(loop.Trainer, "step", step_and_save)
    whole = fit(tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 5)
        fit(tmp_path / "parts")
    assert_same_weights(fit(tmp_path / "parts"), whole)
    latents = whole.encode(world[1].frames)  # every channel has zero mean and unit variance
    torch.testing.assert_close(latents.mean((0, 2, 3, 4)), torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3, 4)), torch.ones(16), atol=1e-3, rtol=0)


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


def test_the_transformer_learns_one_batch_by_heart(world):
    world_model, episodes, latents, *_ = copy.deepcopy(world)
    actions = world_model.normalise(episodes.actions, (MODALITY,) * 3)
    recipe = Recipe(batch_size=4, noisy_memory=0, action_dropout=0, history_action_dropout=0)
    optimizer = torch.optim.Adam(world_model.transformer.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        generator = seeded()  # the same rows, noise and noise levels every time
        walkers = Walkers(world_model, latents, actions, recipe)
        walkers.restart(generator)
        loss, _ = training_loss(world_model, walkers, generator, MODALITY)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_walkers_read_the_recorded_history_and_target(world):
    world_model, episodes, latents, *_ = world
    actions = world_model.normalise(episodes.actions, (MODALITY,) * 3)
    walkers = Walkers(world_model, latents, actions, Recipe(batch_size=24, single_latent=0.3))
    walkers.restart(seeded())
    state = walkers.state
    target, following = walkers.targets()
    for row in range(24):
        episode, time, length = (int(state[name][row]) for name in ("episode", "time", "lengths"))
        assert length in (1, time + 1) and 1 <= state["remaining"][row] <= 6 - time
        history = latents[episode, time + 1 - length : time + 1].transpose(0, 1)[None]
        assert torch.equal(state["slots"][row], world_model.layout.windowed(history)[0])
        assert torch.equal(target[row, :, 0], latents[episode, time + 1])
        assert torch.equal(following[row, 0], actions[episode, time])
        known = state["present"][row].bool()
        recent = actions[episode, max(0, time + 1 - length) : time]
        assert int(known.sum()) in (0, min(length - 1, world_model.layout.size - 1))
        if known.any():
            assert torch.equal(state["past"][row][known], recent[-int(known.sum()) :])
    assert (state["lengths"] == 1).any() and (state["lengths"] > 3).any()


def test_walkers_continue_on_what_the_model_imagined(world):
    world_model, episodes, latents, *_ = world
    actions = world_model.normalise(episodes.actions, (MODALITY,) * 3)
    walkers = Walkers(world_model, latents, actions, Recipe(batch_size=8, max_rollout=4))
    generator = seeded()
    for _ in range(12):
        walkers.restart(generator)
        before = {name: value.clone() for name, value in walkers.state.items()}
        loss, routing = training_loss(world_model, walkers, generator, MODALITY)
        after = walkers.state
        assert loss.requires_grad and routing.shape == (8, 1, 4)
        assert not after["slots"].requires_grad
        assert torch.equal(after["time"], before["time"] + 1) and (after["time"] <= 6).all()
        assert torch.equal(after["slots"][:, :, 1:-1], before["slots"][:, :, 2:])
        assert not torch.equal(after["slots"][:, :, -1], latents[before["episode"], before["time"] + 1])


def test_training_and_inference_see_the_same_history(world):
    world_model, episodes, latents, *_ = world
    actions = world_model.normalise(episodes.actions, (MODALITY,) * 3)
    recipe = Recipe(batch_size=6, single_latent=0, history_action_dropout=0)
    walkers = Walkers(world_model, latents, actions, recipe)
    walkers.restart(seeded())
    for row in range(6):
        episode, time = int(walkers.state["episode"][row]), int(walkers.state["time"][row])
        frames, past = episodes.frames[[episode], : 4 * time + 1], episodes.actions[[episode], :time]
        state = world_model.init_state(frames, MODALITY, actions=past)
        torch.testing.assert_close(state.latents[0], walkers.state["slots"][row])
        torch.testing.assert_close(state.actions[0], walkers.state["past"][row])
        assert torch.equal(state.action_present[0], walkers.state["present"][row])
        assert state.lengths[0] == walkers.state["lengths"][row]


def test_validation_compares_true_actions_with_another_episodes(world):
    world_model, _, _, heldout, heldout_latents = world
    report = open_loop_psnr(world_model, heldout_latents, heldout, num_episodes=2)
    still = heldout.frames[:, [16]].float()
    errors = [(heldout.frames[:, 4 * (4 + k)].float() - still[:, 0]).square().mean() for k in (1, 2)]
    expected = [round(10 * math.log10(255**2 / error.item()), 2) for error in errors]
    assert report["psnr_still"] == pytest.approx(expected, abs=0.02)
    assert report["psnr_true"] == report["psnr_shuffled"], "a neutral transformer knows nothing of actions"


def test_clips_begin_where_latents_begin():
    marked = torch.arange(25, dtype=torch.uint8)[None, :, None, None, None].expand(2, -1, 8, 8, 3)
    clips = sample_clips(marked, 200, 3, seeded())[..., 0, 0, 0]
    assert clips.shape == (200, 12)
    starts = set(clips[:, 3].tolist())
    assert starts == {0, 4, 8, 12, 16}
    for clip in clips.int():
        expected = (clip[3] + torch.arange(-3, 9)).clamp(min=0)
        assert torch.equal(clip, expected.int())


def test_reconstruction_loss_is_zero_only_for_the_picture_itself():
    pixels = torch.rand(2, 4, 3, 8, 8, generator=seeded())
    assert reconstruction_loss(pixels, pixels) == 0
    assert reconstruction_loss(pixels + 0.1, pixels) > 0
    # the same error counts more on what moves than on what stands still
    target = torch.zeros(2, 4, 3, 8, 8)
    target[0, 0, :, :4, :4] = 1
    moving, still = target.clone(), target.clone()
    moving[0, 0, :, 1, 1] -= 0.5
    still[1, 3, :, 6, 6] -= 0.5
    assert reconstruction_loss(moving, target) > reconstruction_loss(still, target)


def test_latents_are_encoded_once(world, tmp_path, monkeypatch):
    autoencoder, episodes = world[0].autoencoder, world[1]
    first = encode_episodes(autoencoder, episodes, tmp_path / "latents.npy")
    assert first.shape == (3, 7, 16, 4, 4)
    torch.testing.assert_close(first.transpose(1, 2), autoencoder.encode(episodes.frames))
    monkeypatch.setattr(autoencoder, "encode", None)
    assert torch.equal(encode_episodes(autoencoder, episodes, tmp_path / "latents.npy"), first)
    assert [file.name for file in tmp_path.iterdir()] == ["latents.npy"]


def test_episodes_are_stacked_by_split(tmp_path):
    root = write_dataset(tmp_path / "data")
    episodes, heldout = load_episodes(root, "train"), load_episodes(root, "heldout")
    assert (len(episodes), len(heldout)) == (3, 2) and episodes.modality == MODALITY
    assert episodes.frames.shape == (3, 25, 64, 64, 3) and episodes.frames.dtype == torch.uint8
    assert episodes.actions.shape == (3, 6, 7) and episodes.rewards.shape == episodes.success.shape == (3, 7)
    with np.load(root / "episode_00003.npz") as arrays:
        assert np.array_equal(heldout.frames[0], arrays["frames"])
        assert np.array_equal(heldout.rewards[0], arrays["reward"])
    assert len(load_episodes(root, "train", limit=2)) == 2
    write_episode(root / "episode_00009.npz", "train", num_chunks=4)
    with pytest.raises(ValueError, match=r"have \[4, 6\] chunks"):
        load_episodes(root, "train")


def test_the_reward_head_learns_and_reports(tmp_path):
    latents = torch.randn(8, 7, 16, 4, 4, generator=seeded())
    rewards = torch.sigmoid(3 * latents[:, :, 0].mean((2, 3)))
    episodes = Episodes(torch.empty(8, 0), torch.empty(8, 6, 7), rewards, rewards > 0.7, MODALITY)
    report = fit_rewards(latents, episodes, latents, episodes, tmp_path, num_steps=120, batch_size=64)
    assert json.loads((tmp_path / "rewards.json").read_text()) == report
    assert set(report) == {
        "reward_mean_absolute_error",
        "success_precision",
        "success_recall",
        "success_rate",
        "num_latents",
    }
    assert report["num_latents"] == 56
    assert report["reward_mean_absolute_error"] < 0.5 * rewards.sub(rewards.mean()).abs().mean()
    assert report["success_precision"] > 0.7 and report["success_recall"] > 0.7
    reward, success = RewardModel.load(tmp_path, torch.device("cpu"))(latents[0])
    assert reward.shape == success.shape == (7,)


def test_a_reward_head_can_be_fitted_without_any_success(tmp_path):
    latents = torch.randn(2, 7, 16, 4, 4, generator=seeded())
    episodes = Episodes(torch.empty(2, 0), torch.empty(2, 6, 7), torch.rand(2, 7), torch.zeros(2, 7).bool(), MODALITY)
    report = fit_rewards(latents, episodes, latents, episodes, tmp_path, num_steps=3, batch_size=8)
    assert report["success_rate"] == 0 and report["success_recall"] == 0


def test_the_whole_recipe_makes_a_checkpoint_that_loads(tmp_path, monkeypatch):
    quick = functools.partial(fit_rewards, num_steps=3, batch_size=8)
    monkeypatch.setitem(train.__globals__, "fit_rewards", quick)
    config = TrainConfig(
        data=str(write_dataset(tmp_path / "data")),
        out=str(tmp_path / "run"),
        autoencoder_steps=2,
        transformer_steps=4,
        batch_size=2,
        dim=32,
        num_layers=2,
    )
    checkpoint = train(config)
    recorded = json.loads((checkpoint / "train_config.json").read_text())
    assert recorded["dim"] == 32 and recorded["transformer_steps"] == 4
    assert {"config.json", "rewards.json", "transformer.safetensors", "autoencoder.safetensors"} <= {
        file.name for file in checkpoint.iterdir()
    }
    assert {entry["stage"] for entry in log_of(tmp_path / "run")} == {"autoencoder", "transformer"}
    world_model = WorldModel.from_pretrained(checkpoint, dtype=torch.float32)
    heldout = load_episodes(config.data, "heldout")
    state = world_model.init_state(heldout.frames[:, :5], heldout.modality, actions=heldout.actions[:, :1])
    state = world_model.imagine(state, heldout.actions[:, 1:3])
    assert world_model.decode(state)[1].shape == (2, 4, 64, 64, 3)
    weights = {file.name: file.read_bytes() for file in checkpoint.glob("*.safetensors")}
    assert train(config) == checkpoint  # a second call finds everything done
    assert weights == {file.name: file.read_bytes() for file in checkpoint.glob("*.safetensors")}


def test_an_unknown_budget_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"expected one of \['cpu', 'gpu'\]"):
        train(TrainConfig(data="nowhere", out=str(tmp_path / "run"), budget="huge"))
    assert not (tmp_path / "run").exists()
