"""The released form imagines what the reference implementation does, in our environments' terms."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from tiny import random_actions, random_frames, seeded
from tiny_release import CHUNK, SMALL, actions_of, load_release, start, write_release
from torch import Tensor

from astra_env.models import WorldModel, WorldState
from astra_env.models.flow_matching import Sampling
from astra_env.models.guidance import GuidedVelocity, conditionings
from astra_env.models.reference import reference_forward
from astra_env.models.reference_actions import preset_camera_rows
from astra_env.models.reference_sampling import guided, inference_window, sampling_steps, sigma_table

EXACT = {"atol": 2e-5, "rtol": 0}


@pytest.fixture(scope="module")
def world_model(tmp_path_factory) -> WorldModel:
    return load_release(write_release(tmp_path_factory.mktemp("release")))


def reference_inputs(world_model: WorldModel, state: WorldState, actions: Tensor) -> dict[str, Tensor]:
    """The authors' inputs for the next chunk of a world whose history fits the window.

    Row k of the table is the action that led to latent k, rest where that is unknown; the chunk's rows are its own.
    """
    length, size = int(state.lengths[0]), world_model.layout.size
    slots = [0, *range(size - length + 1, size)]
    own = world_model.normalise(actions, state.modality)
    table = torch.nn.functional.pad(torch.cat([state.actions[:, slots], own], dim=1), (0, 1))
    return inference_window(state.latents[:, :, slots], table, CHUNK) | {"context": state.prompt_embeds}


def reference_velocity(world_model: WorldModel, modality: str):
    return partial(reference_forward, world_model.transformer, modality)


# The same numbers as the authors' code


@pytest.mark.parametrize("num_history", [1, 2, 5, 9, 20])
@pytest.mark.parametrize("modality", ["camera", "end_effector"])
def test_the_velocity_is_the_references(world_model, num_history, modality):
    state, actions = start(world_model, num_history, modality, batch=2), actions_of(modality, 2, CHUNK)
    noise, sigma = torch.randn(2, 16, CHUNK, 4, 4, generator=seeded(4)), torch.tensor(0.7)
    passes = conditionings(
        world_model.transformer, state, world_model.normalise(actions, state.modality), Sampling(), None
    )
    velocity = GuidedVelocity(world_model.transformer, passes)(noise, sigma)
    inputs = reference_inputs(world_model, state, actions) | {"latents": noise, "timestep": 1000 * sigma[None]}
    expected = reference_velocity(world_model, modality)(inputs)
    assert expected.std() > 0.1
    torch.testing.assert_close(velocity, expected, **EXACT)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("num_history", [1, 5, 20])
def test_a_step_is_the_references(world_model, num_history, guidance_scale):
    state, actions = start(world_model, num_history), actions_of("camera", 1, CHUNK)
    options = {"num_inference_steps": 2, "guidance_scale": guidance_scale}
    after = world_model.step(state, actions, [seeded(6)], **options)
    velocity = guided(reference_velocity(world_model, "camera"), action_scale=guidance_scale)
    noise = torch.randn(1, 16, CHUNK, 4, 4, generator=seeded(6))
    inputs = reference_inputs(world_model, state, actions)
    *_, expected = sampling_steps(velocity, inputs, noise, sigma_table(2, shift=5.0))
    assert (expected - noise).abs().mean() > 0.1
    torch.testing.assert_close(after.latents[:, :, -CHUNK:], expected, **EXACT)


def test_a_long_history_keeps_its_first_latent_and_its_own_actions(world_model):
    state, actions = start(world_model, 27), actions_of("camera", 1, CHUNK)
    noise, sigma = torch.randn(1, 16, CHUNK, 4, 4, generator=seeded(4)), torch.tensor(0.7)
    latents = torch.cat([state.latents[:, :, :1], torch.zeros(1, 16, 7, 4, 4), state.latents[:, :, 1:]], dim=2)
    rows = torch.cat([state.actions[:, :1], torch.zeros(1, 7, 12), state.actions[:, 1:]], dim=1)
    own = world_model.normalise(actions, state.modality)
    table = torch.nn.functional.pad(torch.cat([rows, own], dim=1), (0, 1))
    inputs = inference_window(latents, table, CHUNK, keep_first=True)  # what the authors' training reads
    inputs |= {"context": state.prompt_embeds, "latents": noise, "timestep": 1000 * sigma[None]}
    passes = conditionings(world_model.transformer, state, own, Sampling(), None)
    velocity = GuidedVelocity(world_model.transformer, passes)(noise, sigma)
    torch.testing.assert_close(velocity, reference_velocity(world_model, "camera")(inputs), **EXACT)


FORWARD, LEFT = 0.03, -0.03  # metres and radians a latent frame, as the authors' presets have them
BOTH = (FORWARD * math.sin(LEFT), 0.0, FORWARD * math.cos(LEFT))  # forward as seen after the turn
PRESETS = {
    1: (0.0, 0.0, FORWARD, 0.0, 0.0, 0.0),
    2: (0.0, 0.0, 0.0, 0.0, 0.0, LEFT),
    4: (*BOTH, 0.0, 0.0, LEFT),
}


@pytest.mark.parametrize("num_frames", [1, 17])
@pytest.mark.parametrize("cam_type", PRESETS)
def test_a_camera_command_is_the_authors_preset(world_model, cam_type, num_frames):
    prompts = torch.randn(1, 4, 8, generator=seeded(1))
    state = world_model.init_state(random_frames(1, num_frames), "camera", prompts)
    after = world_model.step(state, torch.tensor([PRESETS[cam_type]]), [seeded(6)], num_inference_steps=2)
    history = world_model.autoencoder.encode(random_frames(1, num_frames))
    rows = torch.from_numpy(preset_camera_rows(cam_type, history.shape[2], CHUNK))[None]
    inputs = inference_window(history, rows, CHUNK) | {"context": prompts}
    noise = torch.randn(1, 16, CHUNK, 4, 4, generator=seeded(6))
    *_, expected = sampling_steps(reference_velocity(world_model, "camera"), inputs, noise, sigma_table(2, shift=5.0))
    torch.testing.assert_close(after.latents[:, :, -CHUNK:], expected, **EXACT)


# Worlds


def test_a_step_shows_32_frames(world_model):
    state, frames = world_model.decode(start(world_model, batch=2))
    assert frames.shape == (2, 32, *SMALL, 3) and bool((frames == frames[:, :1]).all()), "one picture, held"
    state = world_model.step(state, actions_of("camera", 2), num_inference_steps=2)
    decoded, frames = world_model.decode(state)
    assert frames.shape == (2, 32, *SMALL, 3) and frames.dtype == torch.uint8
    assert decoded.lengths.tolist() == [9, 9] and bool((frames[:, 1:] != frames[:, :-1]).any())
    again = world_model.decode(decoded)[1]
    assert (again.int() - frames.int()).abs().max() <= 1
    alone = world_model.step(start(world_model, batch=2)[1], actions_of("camera", 2)[[1]], num_inference_steps=2)
    torch.testing.assert_close(alone.latents[0], state.latents[1], atol=1e-4, rtol=1e-4)


def test_an_action_is_held_for_the_chunk(world_model):
    state, action = start(world_model), actions_of("camera", 1)
    held = action[:, None].expand(-1, CHUNK, -1)
    ends = [world_model.step(state, given, num_inference_steps=1).latents for given in (action, held)]
    assert torch.equal(*ends)


def test_modalities_share_a_batch(world_model):
    rows = [start(world_model, 5, modality) for modality in ("camera", "end_effector")]
    actions = torch.cat([torch.nn.functional.pad(actions_of("camera", 1), (0, 1)), random_actions(1)])
    together = world_model.step(WorldState.cat(rows), actions, num_inference_steps=1).latents
    for index, (row, width) in enumerate(zip(rows, (6, 7), strict=True)):
        alone = world_model.step(row, actions[[index], :width], num_inference_steps=1).latents
        torch.testing.assert_close(together[[index]], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_gradients_pass_through_two_steps(world_model, guidance_scale):
    actions = actions_of("camera", 2, 2).requires_grad_(True)
    options = {"num_inference_steps": 2, "guidance_scale": guidance_scale}
    end = world_model.imagine(start(world_model, batch=2), actions, **options)
    end.latents.square().mean().backward()
    assert actions.grad is not None and actions.grad.isfinite().all() and (actions.grad != 0).all()
