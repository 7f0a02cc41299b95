from __future__ import annotations

import copy
import functools
import json
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from tiny import (
    MODALITY,
    save_checkpoint,
    seeded,
    write_dataset,
    write_episode,
)

import astra_env  # noqa: F401  registers the ids
from astra_env.models import WorldModel
from astra_env.models.flow_matching import Sampling
from astra_env.models.reward_model import RewardModel
from astra_env.training import TrainConfig, train
from astra_env.training.autoencoder import mean_pictures, reconstruction_loss, sample_clips
from astra_env.training.episodes import Episodes, encode_episodes, load_episodes
from astra_env.training.rewards import fit_rewards
from astra_env.training.train import build_world_model
from astra_env.training.walkers import Recipe, Walkers
from astra_env.training.world_model import make_tracks, open_loop_psnr, training_loss


def test_the_transformer_learns_one_batch_by_heart(world):
    world_model, episodes, latents, *_ = copy.deepcopy(world)
    tracks = make_tracks(world_model, [episodes], [latents], torch.ones(1))
    recipe = Recipe(batch_size=4, noisy_memory=0, action_dropout=0, history_action_dropout=0)
    optimizer = torch.optim.Adam(world_model.transformer.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        generator = seeded()  # the same rows, noise and noise levels every time
        walkers = Walkers(world_model, tracks, recipe)
        walkers.restart(generator)
        loss, _ = training_loss(world_model, walkers, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_walkers_read_the_recorded_history_and_target(world):
    world_model, episodes, latents, *_ = world
    tracks = make_tracks(world_model, [episodes], [latents], torch.ones(1))
    actions = tracks[0].actions
    walkers = Walkers(world_model, tracks, Recipe(batch_size=24, single_latent=0.3))
    walkers.restart(seeded())
    state = walkers.state
    target, following = walkers.targets()
    for row in range(24):
        episode, time, length = (int(state[name][row]) for name in ("episode", "time", "lengths"))
        assert length in (1, time + 1) and 1 <= state["remaining"][row] <= 6 - time
        history = latents[episode, time + 1 - length : time + 1].transpose(0, 1)[None]
        assert torch.equal(state["slots"][row], world_model.layout.windowed(history, dim=2)[0])
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
    tracks = make_tracks(world_model, [episodes], [latents], torch.ones(1))
    walkers = Walkers(world_model, tracks, Recipe(batch_size=8, max_rollout=4))
    generator = seeded()
    for _ in range(12):
        walkers.restart(generator)
        before = {name: value.clone() for name, value in walkers.state.items()}
        loss, routing = training_loss(world_model, walkers, generator)
        after = walkers.state
        assert loss.requires_grad and routing[MODALITY].shape == (8, 1, 4)
        assert not after["slots"].requires_grad
        assert torch.equal(after["time"], before["time"] + 1) and (after["time"] <= 6).all()
        assert torch.equal(after["slots"][:, :, 1:-1], before["slots"][:, :, 2:])
        assert not torch.equal(after["slots"][:, :, -1], latents[before["episode"], before["time"] + 1])


@pytest.mark.parametrize("chunk_size", [2, 3])
def test_longer_chunks_are_walked_whole(world, chunk_size):
    world_model, episodes, latents, heldout = copy.deepcopy(world)
    world_model.sampling = Sampling(chunk_size=chunk_size)
    tracks = make_tracks(world_model, [episodes], [latents], torch.ones(1))
    walkers, generator = (
        Walkers(world_model, tracks, Recipe(batch_size=16, max_rollout=4, action_dropout=0.0)),
        seeded(),
    )
    for _ in range(6):
        walkers.restart(generator)
        before = {name: value.clone() for name, value in walkers.state.items()}
        target, actions = walkers.targets()
        times = before["time"][:, None] + torch.arange(chunk_size)
        assert torch.equal(target.transpose(1, 2), latents[before["episode"][:, None], times + 1])
        assert torch.equal(actions, tracks[0].actions[before["episode"][:, None], times])
        training_loss(world_model, walkers, generator)[0].backward()
        assert torch.equal(walkers.state["time"], before["time"] + chunk_size)
        assert torch.equal(walkers.state["slots"][:, :, 1:-chunk_size], before["slots"][:, :, 1 + chunk_size :])
    report = open_loop_psnr(world_model, heldout, num_episodes=2)
    assert len(report["true"]) == len(report["still"]) == 1, "six latents, at most four of them known"


@pytest.mark.parametrize(("growing", "longest"), [(True, 1), (False, 3)])
def test_walks_are_long_from_the_beginning_where_a_model_goes_on_learning(world, growing, longest):
    world_model, episodes, latents, _ = copy.deepcopy(world)
    tracks = make_tracks(world_model, [episodes], [latents], torch.ones(1))
    walkers = Walkers(world_model, tracks, Recipe(batch_size=64, max_rollout=3, growing=growing))
    walkers.restart(seeded(), progress=0.0)
    assert walkers.state["remaining"].max() == longest


def test_chunks_longer_than_the_recordings_are_refused(world):
    world_model, episodes, latents, _ = copy.deepcopy(world)
    world_model.sampling = Sampling(chunk_size=9)
    with pytest.raises(ValueError, match="cannot teach chunks of 9"):
        Walkers(world_model, make_tracks(world_model, [episodes], [latents], torch.ones(1)), Recipe())


def test_training_and_inference_see_the_same_history(world):
    world_model, episodes, latents, *_ = world
    tracks = make_tracks(world_model, [episodes], [latents], torch.ones(1))
    recipe = Recipe(batch_size=6, single_latent=0, history_action_dropout=0)
    walkers = Walkers(world_model, tracks, recipe)
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
    world_model, _, _, heldout = world
    report = open_loop_psnr(world_model, heldout, num_episodes=2)
    still = heldout.frames[:, [16]].float()
    errors = [(heldout.frames[:, 4 * (4 + k)].float() - still[:, 0]).square().mean() for k in (1, 2)]
    expected = [round(10 * math.log10(255**2 / error.item()), 2) for error in errors]
    assert report["still"] == pytest.approx(expected, abs=0.02)
    assert report["true"] == report["shuffled"], "a neutral transformer knows nothing of actions"


def test_clips_begin_where_latents_begin():
    marked = torch.arange(25, dtype=torch.uint8)[None, :, None, None, None].expand(2, -1, 8, 8, 3)
    nothing = torch.zeros(2, 0)
    first, second = (Episodes(name, MODALITY, marked + 100 * k, *[nothing] * 3) for k, name in enumerate("ab"))
    clips, chosen = sample_clips([first, second], torch.tensor([0.25, 0.75]), 400, 3, seeded())
    clips = clips[..., 0, 0, 0].int()
    assert clips.shape == (400, 12)
    assert torch.equal(clips[:, 3] >= 100, chosen == 1)
    assert 0.65 < (chosen == 1).float().mean() < 0.85
    clips -= 100 * chosen[:, None].int()
    assert set(clips[:, 3].tolist()) == {0, 4, 8, 12, 16}
    for clip in clips:
        expected = (clip[3] + torch.arange(-3, 9)).clamp(min=0)
        assert torch.equal(clip, expected.int())


def test_the_mean_picture_is_that_of_each_data_set():
    dark, bright = torch.zeros(2, 17, 8, 8, 3, dtype=torch.uint8), torch.full((3, 17, 8, 8, 3), 255, dtype=torch.uint8)
    nothing = torch.zeros(2, 0)
    pictures = mean_pictures([Episodes("a", MODALITY, frames, *[nothing] * 3) for frames in (dark, bright)])
    assert pictures.shape == (2, 1, 3, 8, 8)
    assert (pictures[0] == -1).all() and (pictures[1] == 1).all()


def test_reconstruction_loss_is_zero_only_for_the_picture_itself():
    pixels, black = torch.rand(2, 4, 3, 8, 8, generator=seeded()), torch.zeros(2, 1, 3, 8, 8)
    assert reconstruction_loss(pixels, pixels, black) == 0
    assert reconstruction_loss(pixels + 0.1, pixels, black) > 0
    # the same error counts more on what moves than on what stands still
    target = torch.zeros(2, 4, 3, 8, 8)
    target[:, 0, :, :4, :4] = 1
    moving, still = target.clone(), target.clone()
    moving[0, 0, :, 1, 1] -= 0.5
    still[1, 3, :, 6, 6] -= 0.5
    assert reconstruction_loss(moving, target, black) > reconstruction_loss(still, target, black)


def test_latents_are_encoded_once_for_the_same_weights(world, tmp_path, monkeypatch):
    autoencoder, episodes = world[0].autoencoder, world[1]
    first = encode_episodes(autoencoder, episodes, tmp_path)
    assert first.shape == (3, 7, 16, 4, 4)
    torch.testing.assert_close(first.transpose(1, 2), autoencoder.encode(episodes.frames))
    autoencoder.latent_mean += 1
    assert not torch.equal(encode_episodes(autoencoder, episodes, tmp_path), first)
    autoencoder.latent_mean -= 1
    monkeypatch.setattr(autoencoder, "encode", None)
    assert torch.equal(encode_episodes(autoencoder, episodes, tmp_path), first)


def test_episodes_are_stacked_by_split(tmp_path):
    root = write_dataset(tmp_path / "data")
    episodes, heldout = load_episodes(root, "train"), load_episodes(root, "heldout")
    assert (len(episodes), len(heldout)) == (3, 2) and episodes.modality == MODALITY
    assert episodes.frames.shape == (3, 25, 64, 64, 3) and episodes.frames.dtype == torch.uint8
    assert episodes.actions.shape == (3, 6, 7) and episodes.rewards.shape == episodes.success.shape == (3, 7)
    with np.load(root / "heldout" / "episode_00003.npz") as arrays:
        assert np.array_equal(heldout.frames[0], arrays["frames"])
        assert np.array_equal(heldout.rewards[0], arrays["reward"])
    assert len(load_episodes(root, "train", limit=2)) == 2
    write_episode(root / "train" / "episode_00009.npz", "train", num_chunks=4)
    with pytest.raises(ValueError, match=r"have \[4, 6\] chunks"):
        load_episodes(root, "train")


def test_the_reward_head_learns_and_reports(tmp_path):
    latents = torch.randn(8, 7, 16, 4, 4, generator=seeded())
    rewards = torch.sigmoid(3 * latents[:, :, 0].mean((2, 3)))
    episodes = Episodes("robot", MODALITY, torch.empty(8, 0), torch.empty(8, 6, 7), rewards, rewards > 0.7)
    report = fit_rewards(latents, episodes, latents, episodes, tmp_path, num_steps=120, batch_size=64)
    assert json.loads((tmp_path / "rewards.json").read_text()) == report
    assert set(report) == {
        "reward_mean_absolute_error",
        "reward_variance_explained",
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
    none = torch.zeros(2, 7).bool()
    episodes = Episodes("robot", MODALITY, torch.empty(2, 0), torch.empty(2, 6, 7), torch.rand(2, 7), none)
    report = fit_rewards(latents, episodes, latents, episodes, tmp_path, num_steps=3, batch_size=8)
    assert report["success_rate"] == 0 and report["success_recall"] == 0
    assert not (tmp_path / "reward_model.safetensors").exists(), "it says nothing of a random reward"


def test_the_whole_recipe_makes_a_checkpoint_that_loads(tmp_path, monkeypatch):
    quick = functools.partial(fit_rewards, num_steps=3, batch_size=8)
    monkeypatch.setitem(train.__globals__, "fit_rewards", quick)
    config = TrainConfig(
        data=(str(write_dataset(tmp_path / "data")),),
        out=str(tmp_path / "run"),
        autoencoder_steps=2,
        transformer_steps=4,
        batch_size=2,
        dim=32,
        num_layers=2,
        patch_size=1,
        compile=False,
    )
    checkpoint = train(config)
    recorded = json.loads((checkpoint / "train_config.json").read_text())
    assert recorded["dim"] == 32 and recorded["transformer_steps"] == 4
    for name in ("config.json", "transformer.safetensors", "autoencoder.safetensors", "domains/robot/rewards.json"):
        assert (checkpoint / name).is_file()
    assert {json.loads(line)["stage"] for line in (checkpoint / "log.jsonl").open()} == {"autoencoder", "transformer"}
    world_model = WorldModel.from_pretrained(checkpoint, dtype=torch.float32)
    assert world_model.transformer.config.patch_size == (1, 1, 1)
    heldout = load_episodes(config.data[0], "heldout")
    state = world_model.init_state(heldout.frames[:, :5], heldout.modality, actions=heldout.actions[:, :1])
    state = world_model.imagine(state, heldout.actions[:, 1:3])
    assert world_model.decode(state)[1].shape == (2, 4, 64, 64, 3)
    env = gym.make("Astra-RT1-v0", world_model=str(checkpoint), device="cpu")
    observation, _ = env.reset(seed=0)
    assert observation.shape == (64, 64, 3) and env.step(env.action_space.sample())[0].shape == (64, 64, 3)
    weights = {file.name: file.read_bytes() for file in checkpoint.glob("*.safetensors")}
    assert train(config) == checkpoint  # a second call finds everything done
    assert weights == {file.name: file.read_bytes() for file in checkpoint.glob("*.safetensors")}


def test_an_unknown_budget_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"expected one of \['cpu', 'gpu'\]"):
        train(TrainConfig(data=("nowhere",), out=str(tmp_path / "run"), budget="huge"))
    assert not (tmp_path / "run").exists()


def test_a_student_that_goes_on_learning_needs_a_second_step(tmp_path):
    save_checkpoint(tmp_path / "start")
    student = WorldModel.from_pretrained(tmp_path / "start")
    for steps, after in ((1, 2), (4, 4)):
        student.sampling = student.sampling.replaced(num_inference_steps=steps)
        student.save_pretrained(tmp_path / "student")
        config = TrainConfig((), out=str(tmp_path / "run"), start_from=str(tmp_path / "student"))
        assert build_world_model(config, ["camera"]).sampling.num_inference_steps == after
