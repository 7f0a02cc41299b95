"""Text end to end: what a world reads, when new words begin to act, and what worlds without text say."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from tiny import MODALITY, actions_of, random_actions, random_frames, seeded, tiny_world_model

import astra_env  # noqa: F401  registers the ids
from astra_env.models import WorldModel, WorldState

TEXT_DIM = 8
ID = "Astra-RT1-v0"
IMAGE = {"image": random_frames(1, 1)[0, 0].numpy()}


class Words:
    """Stands for `TextEncoder`: a random embedding for each sentence, and the sentences that it was asked for."""

    def __init__(self) -> None:
        self.heard: list[list[str]] = []

    def encode(self, prompts: list[str]) -> torch.Tensor:
        self.heard.append(list(prompts))
        return torch.cat([embeds(prompt) for prompt in prompts])


def embeds(prompt: str) -> torch.Tensor:
    """(1, 3, TEXT_DIM)."""
    return torch.randn(1, 3, TEXT_DIM, generator=seeded(sum(prompt.encode())))


def start(world_model: WorldModel, prompts, batch: int = 1) -> WorldState:
    return world_model.init_state(random_frames(batch, 5), MODALITY, prompts, random_actions(batch, 1))


@pytest.fixture
def world_model() -> WorldModel:
    """A tiny world that reads text."""
    world_model = tiny_world_model(text_dim=TEXT_DIM)
    world_model.text_encoder = Words()  # type: ignore[assignment]
    return world_model


# World models


def test_a_sentence_is_its_embedding(world_model):
    said, given = start(world_model, ["rain"]), start(world_model, embeds("rain"))
    assert torch.equal(said.prompt_embeds, given.prompt_embeds)
    ends = [world_model.step(state, random_actions(1)).newest for state in (said, given, start(world_model, ["sun"]))]
    assert torch.equal(ends[0], ends[1]) and (ends[0] - ends[2]).abs().max() > 1e-3


def test_no_prompt_is_the_empty_one(world_model):
    assert torch.equal(start(world_model, None).prompt_embeds, embeds(""))


def test_rows_have_prompts_of_their_own(world_model):
    together, actions = start(world_model, ["rain", "sun"], 2), random_actions(2)
    ends = world_model.step(together, actions, text_guidance_scale=2.0).newest
    for row, prompt in enumerate(("rain", "sun")):
        alone = world_model.with_prompts(together[row], [prompt])
        end = world_model.step(alone, actions[[row]], text_guidance_scale=2.0).newest
        torch.testing.assert_close(end[0], ends[row], atol=1e-4, rtol=1e-4)


def test_new_words_change_what_comes_and_nothing_that_is(world_model):
    state = world_model.step(start(world_model, ["rain"] * 2, 2), random_actions(2))
    other = world_model.with_prompts(state, ["rain", "sun"])
    assert other.prompt_embeds.shape == state.prompt_embeds.shape
    for name in ("latents", "actions", "action_present", "lengths", "undecoded", "seeds", "num_steps"):
        assert torch.equal(getattr(state, name), getattr(other, name)), name
    ahead = random_actions(2, seed=4)
    kept, changed = (world_model.step(entry, ahead).newest for entry in (state, other))
    torch.testing.assert_close(kept[0], changed[0], atol=1e-4, rtol=1e-4)
    assert (kept[1] - changed[1]).abs().max() > 1e-3


def test_text_guidance_of_one_is_one_pass(world_model):
    state, actions, sizes = start(world_model, ["rain"]), random_actions(1), []
    hook = world_model.transformer.blocks[0].register_forward_hook(lambda _, args, out: sizes.append(len(out[0])))
    plain, one, three = (world_model.step(state, actions, text_guidance_scale=s).newest for s in (None, 1.0, 3.0))
    hook.remove()
    # one pass each for the first two; then two histories, and one batch for both
    assert sizes == [1, 1, 1, 1, 2] and torch.equal(plain, one) and (three - one).abs().max() > 1e-3
    empty = world_model.step(world_model.with_prompts(state, None), actions).newest
    torch.testing.assert_close(three, empty + 3 * (one - empty), atol=1e-3, rtol=1e-3)  # one Euler step is linear


def test_prompts_act_in_full_attention():
    world_model = tiny_world_model(text_dim=TEXT_DIM, history_attention="full")
    ends = [
        world_model.step(start(world_model, embeds(prompt)), random_actions(1)).newest for prompt in ("rain", "sun")
    ]
    assert (ends[0] - ends[1]).abs().max() > 1e-3


def test_a_saved_state_keeps_its_prompt(world_model, tmp_path):
    state = start(world_model, ["rain"])
    state.save(tmp_path / "world")
    loaded = WorldState.load(tmp_path / "world")
    ends = [world_model.step(entry, random_actions(1)).newest for entry in (state, loaded)]
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["rain", "sun"], r"\['rain', 'sun'\], expected a sentence for each of 1 worlds"),
        ("rain", "expected a sentence for each of 1 worlds"),
        ([1], "expected a sentence for each of 1 worlds"),
        (torch.zeros(1, 3, 5), r"\(1, 3, 5\), expected \(1, L, 8\)"),
        (torch.zeros(2, 3, 8), r"\(2, 3, 8\), expected \(1, L, 8\)"),
        (torch.zeros(3, 8), r"\(3, 8\), expected \(1, L, 8\)"),
    ],
    ids=["two", "bare", "number", "width", "batch", "no batch"],
)
def test_wrong_prompts_are_refused(world_model, prompts, message):
    with pytest.raises(ValueError, match=message):
        start(world_model, prompts)


def test_embeddings_are_asked_for_where_nothing_can_encode():
    world_model = tiny_world_model(text_dim=TEXT_DIM)
    for prompts in (["rain"], None):
        with pytest.raises(ValueError, match="no text encoder; give prompts as embeddings"):
            start(world_model, prompts)


# Environments


@pytest.fixture
def make_env(world_model, monkeypatch):
    """Makes environments over the tiny world that reads text."""
    monkeypatch.setattr("astra_env.envs.worlds.load_world_model", lambda name, device: world_model)
    return lambda **options: gymnasium.make(ID, observation="latent", render_mode="rgb_array", **options)


def newest(env, prompt: str | None, *, then: str | None = None) -> np.ndarray:
    """The second step's latent, in a world that began with a prompt, and heard another one after the first step."""
    env.reset(seed=1, options=IMAGE | ({} if prompt is None else {"prompt": prompt}))
    env.step(actions_of(1)[0])
    if then is not None:
        env.unwrapped.set_prompt(then)
    return env.step(actions_of(1, seed=2)[0])[0]


def test_a_prompt_describes_the_world(make_env, world_model):
    env = make_env()
    rain, sun, none = newest(env, "rain"), newest(env, "sun"), newest(env, None)
    assert world_model.text_encoder.heard == [["rain"], ["sun"], [""]]
    assert np.array_equal(newest(env, "rain"), rain)
    assert np.abs(rain - sun).max() > 1e-3 and np.abs(rain - none).max() > 1e-3


def test_a_new_prompt_holds_from_the_next_step_on(make_env):
    env = make_env()
    kept, changed = newest(env, "rain"), newest(env, "rain", then="sun")
    assert np.abs(kept - changed).max() > 1e-3
    assert np.array_equal(newest(env, "rain", then="rain"), kept)


def test_a_new_prompt_changes_nothing_of_the_present(make_env):
    env = make_env()
    env.reset(seed=1, options=IMAGE | {"prompt": "rain"})
    env.step(actions_of(1)[0])
    before, picture = env.unwrapped.save_state(), env.render()
    env.unwrapped.set_prompt("sun")
    after = env.unwrapped.save_state()
    assert torch.equal(before.latents, after.latents) and np.array_equal(env.render(), picture)
    assert not torch.equal(before.prompt_embeds, after.prompt_embeds)


def test_a_style_is_added_to_every_prompt(make_env, world_model):
    env = make_env(style="in the rain")
    newest(env, "a street", then="a beach")
    newest(env, None)
    env.unwrapped.set_prompt("")
    assert world_model.text_encoder.heard == [
        ["a street, in the rain"],
        ["a beach, in the rain"],
        ["in the rain"],
        ["in the rain"],
    ]


@pytest.mark.parametrize(("scale", "same"), [(1.0, True), (3.0, False)])
def test_text_guidance_reaches_the_model(make_env, scale, same):
    plain, guided = newest(make_env(), "rain"), newest(make_env(text_guidance_scale=scale), "rain")
    assert np.array_equal(plain, guided) == same


def test_a_prompt_before_the_world_is_an_error(make_env):
    with pytest.raises(RuntimeError, match="reset"):
        make_env().unwrapped.set_prompt("rain")


# The bundled world


def test_the_bundled_world_takes_no_text():
    env = gymnasium.make(ID, device="cpu", disable_env_checker=True)
    with pytest.raises(ValueError, match="takes no text; leave the prompt out"):
        env.reset(options={"prompt": "lift the cube"})
    env.reset(seed=1)
    with pytest.raises(ValueError, match="takes no text; leave the prompt out"):
        env.unwrapped.set_prompt("lift the cube")
    with pytest.raises(ValueError, match="takes no text"):
        gymnasium.make(ID, device="cpu", style="in the rain").reset(seed=1)
    assert env.step(actions_of(1)[0])[0].shape == env.observation_space.shape


def test_a_refused_first_reset_does_no_harm():
    env = gymnasium.make(ID)
    with pytest.raises(ValueError, match="takes no text"):
        env.reset(options={"prompt": "a red cube"})
    env.reset(seed=0)
    env.step(env.action_space.sample())
