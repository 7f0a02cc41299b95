"""Data sets of different modality, picture size and rate, in one training run and in one batch."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch
from tiny import seeded, tiny_world_model, write_dataset

from astra_env.actions import ACTION_MODALITIES
from astra_env.models import WorldModel
from astra_env.training import TrainConfig, train
from astra_env.training.episodes import Episodes, load_episodes, mixture_weights
from astra_env.training.walkers import Recipe, Walkers
from astra_env.training.world_model import make_tracks, training_loss

DIMS = {"end_effector": 7, "vehicle": 2, "camera": 6}


def write_drives(root, *, fps: float = 20, chunk_frames: int = 4, num_chunks: int = 6, size: int = 48):
    """Recorded drives whose pictures tell the time: grey level 2 a frame at 20 Hz."""
    modality = ACTION_MODALITIES["vehicle"]
    for split, count in (("train", 4), ("heldout", 2)):
        (root / split).mkdir(parents=True)
        for index in range(count):
            rng = np.random.default_rng(index)
            num_frames = chunk_frames * num_chunks + 1
            times = np.arange(num_frames) / fps
            grey = np.broadcast_to((40 * times).astype(np.uint8)[:, None, None, None], (num_frames, size, size, 3))
            meta = {"domain": "driving", "modality": "vehicle", "fps": fps, "chunk_frames": chunk_frames, "text": ""}
            np.savez_compressed(
                root / split / f"episode_{index:05d}.npz",
                frames=grey,
                actions=rng.uniform(modality.low, modality.high, (num_chunks, 2)).astype(np.float32),
                measured_poses=np.tile(np.eye(4, dtype=np.float32), (num_frames, 1, 1)),
                speed=times.astype(np.float32),
                reward=rng.random(num_chunks + 1).astype(np.float32),
                success=np.zeros(num_chunks + 1, bool),
                failure=rng.random(num_chunks + 1) > 0.8,
                meta=np.array(json.dumps(meta)),
            )
    return root


def random_episodes(modality: str, num: int = 3) -> tuple[Episodes, torch.Tensor]:
    entry = ACTION_MODALITIES[modality]
    low, high = torch.tensor(entry.low), torch.tensor(entry.high)
    actions = low + (high - low) * torch.rand(num, 6, entry.action_dim, generator=seeded(1))
    labels = torch.zeros(num, 7)
    latents = torch.randn(num, 7, 16, 4, 4, generator=seeded(2))
    return Episodes(modality, modality, torch.zeros(num, 0), actions, labels, labels.bool()), latents


@pytest.fixture
def mixture():
    world_model = tiny_world_model(action_dims=DIMS).requires_grad_(True)
    parts = [random_episodes(name) for name in DIMS]
    datasets, latents = [part[0] for part in parts], [part[1] for part in parts]
    return world_model, make_tracks(world_model, datasets, latents, torch.tensor([0.5, 0.3, 0.2]))


def test_rows_come_from_the_data_sets_by_their_shares(mixture):
    world_model, tracks = mixture
    walkers = Walkers(world_model, tracks, Recipe(batch_size=400))
    walkers.restart(seeded())
    shares = [walkers.modality.count(name) / 400 for name in DIMS]
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=0.08)
    target, actions = walkers.targets()
    for row in range(0, 400, 37):
        track = tracks[int(walkers.state["track"][row])]
        assert track.modality == walkers.modality[row]
        episode, time = int(walkers.state["episode"][row]), int(walkers.state["time"][row])
        assert torch.equal(target[row, :, 0], track.latents[episode, time + 1])
        assert torch.equal(actions[row, 0], track.actions[episode, time])
        assert (actions[row, 0, DIMS[track.modality] :] == 0).all(), "what a modality does not have stays empty"


def test_one_forward_pass_trains_every_modality(mixture):
    world_model, tracks = mixture
    walkers, generator = Walkers(world_model, tracks, Recipe(batch_size=24, action_dropout=0.0)), seeded()
    walkers.restart(generator)
    loss, routing = training_loss(world_model, walkers, generator)
    assert set(routing) == set(DIMS)
    assert sum(len(weights) for weights in routing.values()) == 24
    for weights in routing.values():
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
        assert ((weights > 0).sum(-1) == 2).all(), "top-2 of the experts"
    loss.backward()
    for projector in world_model.transformer.action_experts.projectors.values():
        assert projector.weight.grad.abs().sum() > 0


def test_a_mixed_batch_learns_what_its_rows_learn_alone(mixture):
    world_model, tracks = mixture
    states = []
    for name in DIMS:
        state = world_model.init_state(torch.zeros(1, 5, 32, 32, 3, dtype=torch.uint8), name)
        states.append(world_model.step(state, tracks[0].actions[:1, 0, : DIMS[name]]).latents)
    mixed = world_model.init_state(torch.zeros(3, 5, 32, 32, 3, dtype=torch.uint8), list(DIMS), seeds=[0, 0, 0])
    together = world_model.step(mixed, tracks[0].actions[:1, 0].expand(3, -1)).latents
    torch.testing.assert_close(together, torch.cat(states), atol=1e-4, rtol=0)


def test_recordings_at_other_rates_and_sizes_are_brought_to_the_worlds(tmp_path):
    steady = load_episodes(write_drives(tmp_path / "a"), "train", frame_size=32)
    assert steady.frames.shape == (4, 25, 32, 32, 3) and steady.actions.shape == (4, 6, 2)
    slow = load_episodes(write_drives(tmp_path / "b", fps=10), "train", frame_size=32)  # an action lasts 0.4 s
    assert slow.frames.shape == (4, 49, 32, 32, 3) and slow.actions.shape == (4, 12, 2)
    assert torch.equal(slow.actions[:, 0::2], slow.actions[:, 1::2]), "steering and acceleration are held"
    assert torch.equal(slow.actions[:, 0::2], steady.actions)
    grey = slow.frames[0, :, 0, 0, 0].int()
    assert (grey - 2 * torch.arange(49)).abs().max() <= 2, "the pictures keep their time"
    torch.testing.assert_close(slow.speeds[0], 0.2 * torch.arange(13), atol=1e-4, rtol=0)
    assert torch.equal(slow.rewards[:, 0::2], steady.rewards) and torch.equal(
        slow.rewards[:, 1::2], steady.rewards[:, 1:]
    )
    fast = load_episodes(write_drives(tmp_path / "c", chunk_frames=2), "train", frame_size=32)  # 0.1 s
    assert fast.frames.shape == (4, 13, 32, 32, 3) and fast.actions.shape == (4, 3, 2)
    assert torch.equal(fast.rewards, steady.rewards[:, ::2])
    with pytest.raises(ValueError, match=r"episode_00000.npz holds an action for 0.15 s, expected a whole multiple"):
        load_episodes(write_drives(tmp_path / "d", chunk_frames=3), "train")


def test_shares_are_given_or_follow_the_root_of_the_size():
    large, small = random_episodes("camera", 9)[0], random_episodes("vehicle", 4)[0]
    torch.testing.assert_close(mixture_weights([large, small], None), torch.tensor([0.6, 0.4]))
    torch.testing.assert_close(mixture_weights([large, small], (1.0, 3.0)), torch.tensor([0.25, 0.75]))
    with pytest.raises(ValueError, match=r"weights are \[1.0\], expected one positive number for each of 2"):
        mixture_weights([large, small], (1.0,))


def test_two_domains_become_one_checkpoint(tmp_path, monkeypatch):
    quick = functools.partial(train.__globals__["fit_rewards"], num_steps=3, batch_size=8)
    monkeypatch.setitem(train.__globals__, "fit_rewards", quick)
    roots = (str(write_dataset(tmp_path / "robot")), str(write_drives(tmp_path / "drives")))
    config = TrainConfig(
        data=roots,
        out=str(tmp_path / "run"),
        weights=(2.0, 1.0),
        autoencoder_steps=2,
        transformer_steps=4,
        batch_size=4,
        dim=32,
        num_layers=2,
        compile=False,
    )
    checkpoint = train(config)
    world_model = WorldModel.from_pretrained(checkpoint, dtype=torch.float32)
    assert set(world_model.modalities) == {"end_effector", "vehicle"}
    for domain in ("robot", "driving"):
        assert (checkpoint / "domains" / domain / "start_states.npz").is_file()
        assert (checkpoint / "domains" / domain / "rewards.json").is_file()
    report = json.loads((checkpoint / "domains" / "driving" / "rewards.json").read_text())
    assert {"success_recall", "failure_precision", "failure_recall"} <= report.keys()
    logged = [json.loads(line) for line in (checkpoint / "log.jsonl").open()]
    assert set(logged[0]["heldout_psnr"]) == {"robot", "driving"}
    assert set(logged[-1]["psnr"]) == {"robot", "driving"}
    assert set(logged[-1]["expert_use"]) <= {"end_effector", "vehicle"}
    with pytest.raises(ValueError, match=r"hold the domains \['robot', 'robot'\], expected each once"):
        train(TrainConfig(data=(roots[0], roots[0]), out=str(tmp_path / "twice")))
