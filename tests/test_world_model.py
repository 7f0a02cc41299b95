from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import MODALITY, random_actions, random_frames, seeded, tiny_world_model

from astra_env.models import WorldModel, WorldState

ROWS = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def world_model() -> WorldModel:
    return tiny_world_model()


def start(world_model, batch=3, num_frames=9, seeds=(5, 6, 7)) -> WorldState:
    num = -(-num_frames // 4) - 1
    actions = random_actions(batch, num) if num else None
    return world_model.init_state(random_frames(batch, num_frames), MODALITY, actions=actions, seeds=seeds[:batch])


# Worlds


@pytest.mark.parametrize("num_frames", [1, 5, 9, 61])
def test_a_start_is_made_of_the_encoded_frames(world_model, num_frames):
    state = start(world_model, num_frames=num_frames)
    latents = world_model.autoencoder.encode(random_frames(3, num_frames))
    assert torch.equal(state.latents, world_model.layout.windowed(latents, dim=2))
    assert torch.equal(state.newest, latents[:, :, -1])
    assert state.lengths.tolist() == [latents.shape[2]] * 3
    assert state.seeds.tolist() == [5, 6, 7] and state.num_steps.tolist() == [0] * 3
    assert int(state.action_present.sum()) == 3 * min(latents.shape[2] - 1, world_model.layout.size - 1)


def test_known_actions_of_the_start_act(world_model):
    frames, actions = random_frames(1, 9), random_actions(1, 2)
    states = [world_model.init_state(frames, MODALITY, actions=a) for a in (actions, actions.flip(1), None)]
    ends = [world_model.step(state, random_actions(1)).newest for state in states]
    assert not torch.allclose(ends[0], ends[1], atol=1e-3) and not torch.allclose(ends[0], ends[2], atol=1e-3)


def test_actions_are_normalised_by_their_bounds(world_model):
    modality = world_model.modalities[MODALITY]
    low, high = torch.tensor(modality.low), torch.tensor(modality.high)
    actions = torch.stack([low, high, (low + high) / 2])[None]
    expected = torch.tensor([-1.0, 1.0, 0.0])[None, :, None].expand(1, 3, 7)
    torch.testing.assert_close(world_model.normalise(actions, (MODALITY,)), expected)


@pytest.mark.parametrize(
    "frames",
    [
        random_frames(1, 5).float(),
        random_frames(1, 5)[0],
        random_frames(1, 5, size=40),
        random_frames(1, 5).movedim(-1, 2),
    ],
    ids=["float", "no batch", "other size", "channels first"],
)
def test_wrong_frames_are_refused(world_model, frames):
    with pytest.raises(ValueError, match=r"expected uint8 \(B, T, 32, 32, 3\)"):
        world_model.init_state(frames, MODALITY)


def test_prompts_are_refused(world_model):
    with pytest.raises(ValueError, match="takes no text"):
        world_model.init_state(random_frames(1, 1), MODALITY, prompts=["lift the cube"])


def test_an_unknown_modality_is_named(world_model):
    for names in ("vehicle", ["vehicle"], [MODALITY, MODALITY]):
        with pytest.raises(ValueError, match=r"expected one of \['end_effector'\] for each of 1 worlds"):
            world_model.init_state(random_frames(1, 1), names)


def test_one_action_is_known_between_two_latents(world_model):
    with pytest.raises(ValueError, match="1 actions came with 3 latents, expected 2"):
        world_model.init_state(random_frames(1, 9), MODALITY, actions=random_actions(1, 1))


@pytest.mark.parametrize("shape", [(3, 6), (3, 8), (2, 7), (3, 1, 6), (7,)], ids=str)
def test_actions_of_another_shape_are_refused(world_model, shape):
    with pytest.raises(ValueError, match=r"expected \(3, n, 7\) for 3 worlds"):
        world_model.step(start(world_model), torch.zeros(shape))


def test_a_generator_for_each_row_is_asked_for(world_model):
    with pytest.raises(ValueError, match="1 generators for 3 worlds, expected one"):
        world_model.step(start(world_model), random_actions(3), [seeded()])


# Steps


def test_imagining_is_stepping(world_model):
    state, actions = start(world_model), random_actions(3, 4)
    stepped = state
    for index in range(4):
        stepped = world_model.step(stepped, actions[:, index])
    imagined = world_model.imagine(state, actions)
    assert torch.equal(stepped.latents, imagined.latents) and stepped.num_steps.tolist() == [4] * 3
    assert torch.equal(stepped.actions[:, -4:], world_model.normalise(actions, (MODALITY,) * 3))


def test_an_imagined_history_remembers_its_actions(world_model):
    state = world_model.imagine(start(world_model, num_frames=1), random_actions(3, 3))
    assert state.action_present.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1]] * 3
    forgotten = dataclasses.replace(state, action_present=torch.zeros_like(state.action_present))
    ends = [world_model.step(s, random_actions(3, seed=1)).newest for s in (state, forgotten)]
    assert (ends[0] - ends[1]).flatten(1).abs().amax(1).min() > 1e-3


def test_noise_follows_from_seed_and_step_count(world_model):
    state, actions = start(world_model, seeds=(5, 5, 6))[[0, 0, 0]], random_actions(1).expand(3, 7)
    seeds = {"seeds": torch.tensor([5, 5, 6]), "num_steps": torch.tensor([0, 1, 0])}
    state = WorldState(**{**vars(state), **seeds})
    ends = world_model.step(state, actions).newest
    assert torch.equal(ends, world_model.step(state, actions).newest)
    assert not torch.allclose(ends[0], ends[1], atol=1e-3) and not torch.allclose(ends[0], ends[2], atol=1e-3)


def test_global_random_numbers_are_neither_used_nor_moved(world_model):
    state, actions = start(world_model), random_actions(3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = world_model.step(state, actions).latents
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(world_model.step(state, actions).latents, first)


def test_generators_draw_the_noise_row_by_row(world_model):
    state, actions = start(world_model), random_actions(3, 2)
    ends = [world_model.imagine(state, actions, [seeded(k) for k in order]).latents for order in ((1, 2, 3), (1, 4, 3))]
    torch.testing.assert_close(ends[0][[0, 2]], ends[1][[0, 2]], **ROWS)
    assert not torch.allclose(ends[0][1], ends[1][1], atol=1e-3)
    generators = [seeded(k) for k in (1, 2, 3)]
    stepped = world_model.step(state, actions[:, 0], generators)
    stepped = world_model.step(stepped, actions[:, 1], generators)
    assert torch.equal(stepped.latents, ends[0])


@pytest.mark.parametrize("num_frames", [1, 9])
def test_a_row_does_not_depend_on_its_neighbours(world_model, num_frames):
    state, actions = start(world_model, num_frames=num_frames), random_actions(3, 3)
    together = world_model.imagine(state, actions)
    frames = world_model.decode(together)[1]
    for row in range(3):
        alone = world_model.imagine(state[row], actions[[row]])
        torch.testing.assert_close(alone.latents[0], together.latents[row], **ROWS)
        assert (world_model.decode(alone)[1][0].int() - frames[row].int()).abs().max() <= 1


def test_worlds_of_different_ages_share_a_batch(world_model):
    young, old = start(world_model, 1, num_frames=1), start(world_model, 1, num_frames=41)
    actions = random_actions(2, 3)
    together = world_model.imagine(WorldState.cat([young, old]), actions)
    for row, state in enumerate((young, old)):
        alone = world_model.imagine(state, actions[[row]])
        torch.testing.assert_close(alone.latents[0], together.latents[row], **ROWS)


@pytest.mark.parametrize("num_steps", [0, 10, 30])
def test_actions_act_for_ever(world_model, num_steps):
    state = world_model.imagine(start(world_model, 1), random_actions(1, num_steps))
    first, second = (world_model.step(state, random_actions(1, seed=k)).newest for k in (1, 2))
    assert (first - second).abs().max() > 1e-3


def test_several_latents_can_be_imagined_at_once(world_model):
    state = world_model.step(start(world_model), random_actions(3, 2))
    assert state.lengths.tolist() == [5] * 3 and state.undecoded.tolist() == [5] * 3
    assert state.num_steps.tolist() == [1] * 3


@pytest.mark.parametrize("num_inference_steps", [1, 3])
def test_guidance_of_one_is_no_guidance(world_model, num_inference_steps):
    state, actions = start(world_model), random_actions(3)
    options = {"num_inference_steps": num_inference_steps}
    plain = world_model.step(state, actions, **options).newest
    assert torch.equal(world_model.step(state, actions, guidance_scale=1.0, **options).newest, plain)
    near = world_model.step(state, actions, guidance_scale=1 + 1e-6, **options).newest
    torch.testing.assert_close(near, plain, **ROWS)
    strong = world_model.step(state, actions, guidance_scale=3.0, **options).newest
    assert (strong - plain).flatten(1).abs().amax(1).min() > 1e-3


def test_guidance_extrapolates_from_the_action_free_velocity(world_model):
    state, actions = start(world_model), random_actions(3)
    free, once, twice = (world_model.step(state, actions, guidance_scale=s).newest for s in (0.0, 1.0, 2.0))
    torch.testing.assert_close(twice - once, once - free, atol=1e-3, rtol=1e-3)  # one Euler step is linear in it
    other = world_model.step(state, random_actions(3, seed=9), guidance_scale=0.0).newest
    torch.testing.assert_close(free, other, **ROWS)


def test_the_number_of_inference_steps_matters(world_model):
    state, actions = start(world_model), random_actions(3)
    one, two = (world_model.step(state, actions, num_inference_steps=n).newest for n in (1, 2))
    assert not torch.allclose(one, two, atol=1e-3)
    with pytest.raises(ValueError, match="num_inference_steps is 0"):
        world_model.step(state, actions, num_inference_steps=0)


def test_gradients_flow_from_an_imagined_future_to_every_action(world_model):
    actions = random_actions(2, 4).requires_grad_(True)
    end = world_model.imagine(start(world_model, 2), actions)
    end.newest.square().sum().backward()
    assert (actions.grad.abs().sum(-1) > 0).all()


def test_gradients_are_those_of_finite_differences(world_model):
    state, actions = start(world_model, 1), random_actions(1, 2) * 0.5
    direction = torch.randn(1, 2, 7, generator=seeded())

    def value(a):
        return world_model.imagine(state, a).newest.double().square().sum()

    a = actions.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(value(a), a)
    numeric = (value(actions + 1e-3 * direction) - value(actions - 1e-3 * direction)) / 2e-3
    assert (gradient * direction).sum().item() == pytest.approx(numeric.item(), rel=0.05)


# Pictures


def whole_video(world_model, num_frames, actions):
    """Frames of a start and an imagined future from all latents at once, (B, T, H, W, 3)."""
    state = start(world_model, len(actions), num_frames=num_frames)
    latents = [world_model.autoencoder.encode(random_frames(len(actions), num_frames))]
    for index in range(actions.shape[1]):
        state = world_model.step(state, actions[:, index])
        latents.append(state.newest[:, :, None])
    return world_model.autoencoder.decode_video(torch.cat(latents, 2))


def assert_same_frames(frames, expected):
    assert frames.shape == expected.shape
    assert (frames.int() - expected.int()).abs().max() <= 1  # rounding to whole numbers may fall either way


@pytest.mark.parametrize("num_frames", [1, 9])
def test_decoding_every_step_equals_decoding_the_whole_video(world_model, num_frames):
    actions = random_actions(2, 10)
    video = whole_video(world_model, num_frames, actions)
    state, frames = world_model.decode(start(world_model, 2, num_frames=num_frames))
    assert_same_frames(frames[:, -1], video[:, num_frames - 1])
    for index in range(10):
        state, frames = world_model.decode(world_model.step(state, actions[:, index]))
        assert frames.shape == (2, 4, 32, 32, 3) and frames.dtype == torch.uint8
        assert_same_frames(frames, video[:, num_frames + 4 * index : num_frames + 4 * index + 4])
        assert state.undecoded.tolist() == [0, 0]


@pytest.mark.parametrize("num_steps", [1, 3, 6, 7, 12])
def test_decoding_late_equals_decoding_every_step(world_model, num_steps):
    actions = random_actions(2, num_steps)
    video = whole_video(world_model, 9, actions)
    decoded, _ = world_model.decode(start(world_model, 2))
    for state in (decoded, start(world_model, 2)):
        late, frames = world_model.decode(world_model.imagine(state, actions))
        assert_same_frames(frames, video[:, -4:])
        ahead = random_actions(2, seed=4)
        _, following = world_model.decode(world_model.step(late, ahead))
        longer = whole_video(world_model, 9, torch.cat([actions, ahead[:, None]], 1))
        assert_same_frames(following, longer[:, -4:])


@pytest.mark.parametrize("num_steps", [0, 1, 3, 12])
def test_decoding_twice_shows_the_same(world_model, num_steps):
    state, frames = world_model.decode(world_model.imagine(start(world_model), random_actions(3, num_steps)))
    again, same = world_model.decode(state)
    assert_same_frames(same, frames)
    ahead = random_actions(3, seed=4)
    ends = [world_model.decode(world_model.step(s, ahead))[1] for s in (state, again)]
    assert_same_frames(ends[1], ends[0])


def test_rows_that_wait_for_different_numbers_of_latents(world_model):
    actions = random_actions(4, 12)
    states, expected = [], []
    for row, num_steps in enumerate((2, 0, 12, 5)):
        state = start(world_model)[row % 3]
        state = world_model.imagine(world_model.decode(state)[0], actions[[row], :num_steps])
        states.append(state)
        expected.append(world_model.decode(state)[1])
    decoded, frames = world_model.decode(WorldState.cat(states))
    assert_same_frames(frames, torch.cat(expected))
    assert torch.equal(decoded.latents, torch.cat([state.latents for state in states]))
    assert decoded.undecoded.tolist() == [0] * 4
    after = world_model.decode(world_model.step(decoded, actions[:, 0]))[1]
    for row, state in enumerate(states):
        alone = world_model.step(world_model.decode(state)[0], actions[[row], 0])
        assert_same_frames(after[[row]], world_model.decode(alone)[1])


@torch.no_grad()
def test_compiled_blocks_stay_compiled_for_many_batch_sizes():
    world_model = tiny_world_model()
    world_model.compile(backend="eager")
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for batch in range(1, 11):
            state = world_model.init_state(random_frames(batch, 1), MODALITY)
            assert world_model.step(state, random_actions(batch)).latents.isfinite().all()


def test_compiled_blocks_imagine_the_same():
    plain, compiled = tiny_world_model(), tiny_world_model()
    compiled.compile(backend="eager")  # the same operations, without a C++ compiler
    states = [world_model.step(start(world_model), random_actions(3)) for world_model in (plain, compiled)]
    torch.testing.assert_close(states[0].latents, states[1].latents, **ROWS)
    assert all(block._compiled_call_impl is not None for block in compiled.transformer.blocks)
