"""Recorded episodes as a world imagines them: its latents, under the recorded actions, with the recorded labels."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import random_actions, random_frames, synthetic_episodes, tiny_world_model

from astra_env.training import dreams
from astra_env.training.bundle import NUM_CHUNKS
from astra_env.training.dreams import imagine_episodes
from astra_env.training.episodes import Episodes

E, N = 3, 6


@pytest.fixture(scope="module")
def world_model():
    return tiny_world_model()


def test_a_latent_has_the_label_of_the_moment_that_it_imagines(world_model):
    episodes = synthetic_episodes(E, N)
    latents, labels = imagine_episodes(world_model, episodes, seed=5)
    assert latents.shape == (E, N - NUM_CHUNKS, 16, 4, 4) and not labels.frames.numel()
    assert torch.equal(labels.rewards, episodes.rewards[:, NUM_CHUNKS + 1 :])
    assert torch.equal(labels.success, episodes.success[:, NUM_CHUNKS + 1 :])
    assert torch.equal(labels.actions, episodes.actions[:, NUM_CHUNKS:])
    alone = world_model.init_state(
        episodes.frames[1:2, : 4 * NUM_CHUNKS + 1],
        episodes.modality,
        actions=episodes.actions[1:2, :NUM_CHUNKS],
        seeds=[6],
    )
    for time in range(N - NUM_CHUNKS):
        alone = world_model.step(alone, episodes.actions[1:2, NUM_CHUNKS + time])
        torch.testing.assert_close(latents[1, time], alone.newest[0], atol=1e-4, rtol=0)


def test_what_comes_later_is_imagined_and_follows_the_actions(world_model):
    """Pictures after the first chunks are not looked at; actions are."""
    episodes = synthetic_episodes(E, N)
    latents, _ = imagine_episodes(world_model, episodes)
    frames = episodes.frames.clone()
    frames[:, 4 * NUM_CHUNKS + 1 :] = 0
    assert torch.equal(imagine_episodes(world_model, dataclasses.replace(episodes, frames=frames))[0], latents)
    actions = episodes.actions.clone()
    actions[:, -1] = -actions[:, -1]
    other, _ = imagine_episodes(world_model, dataclasses.replace(episodes, actions=actions))
    assert torch.equal(other[:, :-1], latents[:, :-1]) and not torch.allclose(other[:, -1], latents[:, -1])


def test_batches_do_not_matter_and_the_seed_does(world_model, monkeypatch):
    episodes = synthetic_episodes(E, N)
    whole, _ = imagine_episodes(world_model, episodes)
    assert not torch.allclose(imagine_episodes(world_model, episodes, seed=9)[0], whole)
    monkeypatch.setattr(dreams, "PART", 2)
    torch.testing.assert_close(imagine_episodes(world_model, episodes)[0], whole, atol=1e-4, rtol=0)


def test_speeds_are_what_the_actions_make_of_the_last_known_one():
    rewards = torch.zeros(2, N + 1)
    frames, actions = random_frames(2, 4 * N + 1), random_actions(2, N, modality="vehicle")
    actions[..., 1] = 1.0  # m/s^2
    speeds = torch.full((2, N + 1), 99.0)
    speeds[:, NUM_CHUNKS] = torch.tensor([3.0, 8.0])
    over = torch.zeros_like(rewards, dtype=torch.bool)
    over[0, -1] = True
    episodes = Episodes("driving", "vehicle", frames, actions, rewards, ~over, over, speeds)
    _, labels = imagine_episodes(tiny_world_model(action_dims={"vehicle": 2}), episodes)
    gained = 0.2 * torch.arange(1, N - NUM_CHUNKS + 1)  # a chunk lasts 0.2 s
    torch.testing.assert_close(labels.speeds, torch.stack([3 + gained, 8 + gained]), atol=1e-4, rtol=0)
    assert torch.equal(labels.failure, over[:, NUM_CHUNKS + 1 :])


def test_episodes_without_anything_to_imagine_are_refused(world_model):
    with pytest.raises(ValueError, match=r"Episodes have 4 actions, .* expected more than 4"):
        imagine_episodes(world_model, synthetic_episodes(1, NUM_CHUNKS))
