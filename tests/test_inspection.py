from __future__ import annotations

import pytest
import torch
from tiny import random_actions, random_frames, tiny_world_model

from astra_env.models.inspection import denoising_frames, routing_weights


@pytest.fixture(scope="module")
def worlds():
    world_model = tiny_world_model()
    return world_model, world_model.init_state(random_frames(2, 9), "end_effector", seeds=[3, 4])


def test_experts_share_an_action_out(worlds):
    world_model, state = worlds
    weights = routing_weights(world_model, random_actions(2, 1), state.modality)
    assert weights.shape == (2, world_model.transformer.config.num_experts)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert ((weights > 0).sum(1) <= world_model.transformer.config.top_k).all()
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_the_last_picture_of_denoising_is_the_steps_own(worlds, guidance_scale):
    world_model, state = worlds
    actions, sampling = random_actions(2), {"num_inference_steps": 3, "guidance_scale": guidance_scale}
    pictures = denoising_frames(world_model, state, actions, **sampling)
    assert pictures.shape == (2, 3, 4, 32, 32, 3)
    frames = world_model.decode(world_model.step(state, actions, **sampling))[1]
    torch.testing.assert_close(pictures[:, -1], frames, atol=1, rtol=0)
    assert not torch.equal(pictures[:, 0], pictures[:, -1])


def test_who_watches_changes_nothing(worlds):
    world_model, state = worlds
    seen = []
    watched = world_model.step(state, random_actions(2), watch=seen.append)
    assert torch.equal(watched.newest, world_model.step(state, random_actions(2)).newest)
    torch.testing.assert_close(seen[-1][:, :, -1], watched.newest)
