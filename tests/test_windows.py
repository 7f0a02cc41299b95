"""Rows of encoded clips: what a world model sees, and a function of their number alone."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from encoded import a_release, encoded_world
from test_shards import ARM, CAR

import astra_env  # noqa: F401  registers the ids
from astra_env.models import WorldModel
from astra_env.models.flow_matching import Sampling, add_noise
from astra_env.models.guidance import GuidedVelocity, conditionings
from astra_env.training.parallel import Denoiser
from astra_env.training.shards import Shards
from astra_env.training.windows import WindowRecipe, Windows

CLEAN = WindowRecipe(noisy_memory=0.0, action_dropout=0.0, single_latent=0.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> SimpleNamespace:
    return encoded_world(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("which", ["ours", "released"])
def test_a_row_is_what_the_world_model_sees(which, data, tmp_path):
    if which == "released":
        world_model, shards = a_release(tmp_path)
    else:
        world_model, shards = WorldModel.from_pretrained(data.start, "cpu", torch.float32), Shards(getattr(data, CAR))
    windows = Windows(world_model, [shards], None, CLEAN, seed=0)
    batch = windows.batch(range(6))
    clips = {clip.name: clip for clip in shards.clips}
    assert len(set(batch.lengths.tolist())) > 2
    for row, name in enumerate(batch.clips):
        clip, length, n = clips[name], int(batch.lengths[row]), windows.chunk_size
        latents = shards.latents(clip, 0, length + n).transpose(0, 1)[None]
        frames, actions = world_model.autoencoder.decode_video(latents[:, :, :length]), shards.actions(clip)[None]
        speeds = shards.speeds(clip)
        state = world_model.init_state(
            frames,
            clip.modality,
            prompts=None if which == "ours" else batch.prompts[[row]],
            actions=actions[:, : length - 1] if length > 1 else None,
            speeds=None if speeds is None else speeds[length - 1 : length],
        )
        state = dataclasses.replace(state, latents=world_model.layout.windowed(latents[:, :, :length], dim=2))
        following = actions[:, length - 1 : length - 1 + n]
        encoded = world_model.normalise(following, state.modality, state.speeds)
        torch.testing.assert_close(batch.slots[[row]], state.latents)
        torch.testing.assert_close(batch.past[[row]], state.actions, atol=1e-5, rtol=1e-4)
        assert torch.equal(batch.known[[row]], state.action_present)
        assert torch.equal(batch.target[[row]], latents[:, :, length:])
        torch.testing.assert_close(batch.actions[[row]], encoded, atol=1e-5, rtol=1e-4)
        # the loss of the row is that of the velocity by which the world model goes on
        noise, sigma = batch.noise[[row]], batch.sigma[row]
        passes = conditionings(world_model.transformer, state, encoded, Sampling(), None)
        velocity = GuidedVelocity(world_model.transformer, passes)(
            add_noise(latents[:, :, length:], noise, sigma), sigma
        )
        expected = batch.weight[row] * (velocity - (noise - latents[:, :, length:])).square().mean()
        torch.testing.assert_close(
            Denoiser(world_model.transformer)(windows.batch([row])), expected, atol=1e-5, rtol=1e-4
        )


def test_a_row_follows_from_its_number(data):
    world_model = WorldModel.from_pretrained(data.start, "cpu", torch.float32)
    windows = Windows(world_model, [Shards(getattr(data, ARM))], None, WindowRecipe(), seed=3)
    whole, alone = windows.batch(range(5)), windows.batch([3])
    for name, value in whole.tensors.items():
        assert torch.equal(value[[3]], alone.tensors[name]), name
    assert len({value.item() for value in whole.sigma}) == 5
    other = Windows(world_model, windows.folders, None, WindowRecipe(), seed=4).batch([3])
    assert not torch.equal(other.noise, alone.noise)


def test_rows_are_as_the_recipe_says(data):
    world_model = WorldModel.from_pretrained(data.start, "cpu", torch.float32)
    folders = [Shards(getattr(data, ARM)), Shards(getattr(data, CAR))]
    recipe = WindowRecipe(
        condition_frames=24,
        single_latent=0.25,
        action_dropout=0.3,
        noisy_memory=0.8,
        noisy_memory_sigmas=(0.6, 1.0),
        noisy_memory_slots="1x",
        noise_levels="shifted",
    )
    rows = range(600)
    noisy = Windows(world_model, folders, (3.0, 1.0), recipe, seed=0).batch(rows)
    clean = Windows(world_model, folders, (3.0, 1.0), replace(recipe, noisy_memory=0.0), seed=0).batch(rows)
    assert 0.7 < sum(name == ARM for name in noisy.modality) / 600 < 0.8
    counts = torch.bincount(noisy.lengths, minlength=8).tolist()
    assert counts[0] == counts[7] == 0, "24 frames are six latents at most"
    assert 0.3 < counts[1] / 600 < 0.45, "a quarter, and a sixth of the others"
    assert min(counts[2:7]) > 40
    assert 0.25 < 1 - noisy.given.mean() < 0.35
    changed = (noisy.slots != clean.slots).any(1).flatten(2).any(-1)
    assert 0.75 < changed[:, 0].float().mean() < 0.85
    assert torch.equal(changed[:, 0], changed[:, -1]) and not changed[:, 1:-1].any()
    assert abs(noisy.weight.mean() - 1) < 0.1 and 0.64 < noisy.sigma.mean() < 0.72
