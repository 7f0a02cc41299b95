"""Guidance is the formula of velocities that are computed one by one, in as few passes as it needs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import MODALITY, random_actions, random_frames, seeded, tiny_world_model
from torch import Tensor

from astra_env.models import WorldModel, WorldState
from astra_env.models.flow_matching import Sampling
from astra_env.models.guidance import GuidedVelocity, conditionings

TEXT_DIM = 8
SIGMA = torch.tensor(0.6)
EXACT = {"atol": 1e-5, "rtol": 1e-5}
FORMS = {
    "causal": {},
    "full": {"history_attention": "full"},
    "released": {
        "routing": "fixed",
        "history_attention": "full",
        "history_packing": "released",
        "precondition": False,
        "num_experts": 3,
        "shared_dim": 25,
        "top_k": 1,
    },
}


def prompts(seed: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, TEXT_DIM, generator=seeded(seed))


@pytest.fixture(scope="module", params=FORMS)
def world_model(request) -> WorldModel:
    return tiny_world_model(text_dim=TEXT_DIM, **FORMS[request.param])


@pytest.fixture(scope="module")
def state(world_model) -> WorldState:
    given = {"actions": random_actions(2, 2), "prompts": prompts(1)}
    return world_model.init_state(random_frames(2, 9), MODALITY, **given)


def noisy(n: int = 2) -> Tensor:
    return torch.randn(2, 16, n, 4, 4, generator=seeded(5))


def encoded(world_model, state, n: int = 2) -> Tensor:
    return world_model.normalise(random_actions(2, n, seed=7), state.modality)


def scales(actions: float, prompt: float) -> Sampling:
    return Sampling(guidance_scale=actions, text_guidance_scale=prompt)


def guided(world_model, state, scale: float = 1.0, text_scale: float = 1.0) -> Tensor:
    """What guidance gives."""
    actions = encoded(world_model, state)
    passes = conditionings(world_model.transformer, state, actions, scales(scale, text_scale), prompts(2))
    return GuidedVelocity(world_model.transformer, passes)(noisy(), SIGMA)


def velocity(world_model, state, *, present: float = 1.0, history_present: float = 1.0) -> Tensor:
    """One pass, along the transformer's own methods."""
    transformer, actions = world_model.transformer, encoded(world_model, state)
    known = torch.full(actions.shape[:2], present)
    cache, _ = transformer.encode_history(
        state.latents,
        state.lengths,
        torch.cat([state.actions, actions], 1),
        torch.cat([history_present * state.action_present, history_present * torch.ones_like(known)], 1),
        state.modality,
        state.prompt_embeds,
    )
    features = transformer.action_features(actions, known, state.modality)
    return transformer(noisy(), SIGMA.expand(2), features, cache)


def without_actions(world_model, state) -> Tensor:
    """The released form drops the history's actions as well; causal history is shared."""
    full = world_model.transformer.config.history_attention == "full"
    return velocity(world_model, state, present=0.0, history_present=0.0 if full else 1.0)


def test_one_pass_is_the_transformers_own(world_model, state):
    torch.testing.assert_close(guided(world_model, state), velocity(world_model, state), **EXACT)


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 5.0])
def test_action_free_guidance_is_its_formula(world_model, state, scale):
    given, free = velocity(world_model, state), without_actions(world_model, state)
    assert (given - free).flatten(1).abs().amax(1).min() > 1e-3
    torch.testing.assert_close(guided(world_model, state, scale), free + scale * (given - free), **EXACT)


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_text_guidance_is_its_formula(world_model, state, scale):
    given, empty = velocity(world_model, state), velocity(world_model, replace(state, prompt_embeds=prompts(2)))
    assert (given - empty).flatten(1).abs().amax(1).min() > 1e-3
    torch.testing.assert_close(guided(world_model, state, 1.0, scale), empty + scale * (given - empty), **EXACT)


def test_both_add_up(world_model, state):
    given, free = velocity(world_model, state), without_actions(world_model, state)
    empty = velocity(world_model, replace(state, prompt_embeds=prompts(2)))
    expected = given + 1.5 * (given - free) + 3.0 * (given - empty)
    torch.testing.assert_close(guided(world_model, state, 2.5, 4.0), expected, atol=3e-5, rtol=3e-5)


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("text_scale", [0.0, 1.0, 7.5])
def test_weights_add_up_to_one_and_only_what_is_needed_runs(world_model, state, scale, text_scale):
    passes = conditionings(
        world_model.transformer, state, encoded(world_model, state), scales(scale, text_scale), prompts(2)
    )
    assert len(passes) == 1 + (scale != 1) + (text_scale != 1)
    assert sum(entry.weight for entry in passes) == pytest.approx(1)


@pytest.mark.parametrize(("scales", "rows"), [((1.0, 1.0), 2), ((2.0, 1.0), 4), ((1.0, 3.0), 4), ((2.0, 3.0), 6)])
def test_all_passes_share_one_batch(world_model, state, scales, rows):
    sizes: list[int] = []
    hook = world_model.transformer.register_forward_hook(lambda _, args, out: sizes.append(len(out)))
    result = guided(world_model, state, *scales)
    hook.remove()
    assert sizes == [rows] and result.shape == noisy().shape


def test_causal_passes_share_one_history():
    world_model = tiny_world_model(text_dim=TEXT_DIM)
    state = world_model.init_state(random_frames(2, 9), MODALITY, prompts=prompts(1))
    first, free = conditionings(world_model.transformer, state, encoded(world_model, state), scales(2.0, 1.0), None)
    assert free.cache is first.cache


def test_rows_are_guided_by_themselves(world_model, state):
    both = guided(world_model, state, 2.0, 3.0)
    swapped = state[[1, 0]]
    actions = encoded(world_model, state).flip(0)
    passes = conditionings(world_model.transformer, swapped, actions, scales(2.0, 3.0), prompts(2).flip(0))
    velocity = GuidedVelocity(world_model.transformer, passes)(noisy().flip(0), SIGMA)
    torch.testing.assert_close(velocity.flip(0), both, atol=3e-5, rtol=3e-5)


def test_gradients_of_guided_velocities_reach_the_actions(world_model, state):
    actions = encoded(world_model, state).requires_grad_(True)
    passes = conditionings(world_model.transformer, state, actions, scales(2.0, 3.0), prompts(2))
    GuidedVelocity(world_model.transformer, passes)(noisy(), SIGMA).square().sum().backward()
    assert actions.grad is not None and (actions.grad.abs().sum(-1) > 0).all()


def test_outside_its_interval_guidance_neither_acts_nor_costs(world_model, state):
    actions = encoded(world_model, state)
    passes = conditionings(world_model.transformer, state, actions, scales(4.0, 1.0), None)
    batches = []
    hook = world_model.transformer.blocks[0].register_forward_hook(lambda _, args, out: batches.append(len(args[0])))
    inside, outside, alone = (
        GuidedVelocity(world_model.transformer, chosen, interval)(noisy(), SIGMA)
        for chosen, interval in ((passes, (0.5, 1.0)), (passes, (0.7, 1.0)), (passes[:1], (0.0, 1.0)))
    )
    hook.remove()
    assert batches == [4, 2, 2]
    assert torch.equal(outside, alone) and not torch.allclose(inside, alone)
    torch.testing.assert_close(inside, guided(world_model, state, 4.0), **EXACT)


def test_a_step_can_be_sampled_otherwise(world_model, state):
    held = random_actions(2, seed=7)
    whole, none, plain = (
        world_model.step(state, held, num_inference_steps=2, guidance_scale=scale, guidance_interval=interval).latents
        for scale, interval in ((4.0, None), (4.0, (0.0, 0.0)), (1.0, None))
    )
    assert torch.equal(none, plain) and not torch.allclose(whole, plain)
    assert world_model.step(state, held, chunk_size=3).num_steps.tolist() == [1, 1]
    with pytest.raises(TypeError, match=r"Sampling has no \['guidance'\], expected some of"):
        world_model.step(state, held, guidance=2.0)
