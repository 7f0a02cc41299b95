"""Files of a release: all kinds of them, saved again, in an environment, and refused where they are something else."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from tiny import random_actions
from tiny_release import SMALL, WEIGHTS, actions_of, load_release, released_weights, start, write_release

import astra_env  # noqa: F401  registers the ids
from astra_env.models import WorldModel
from astra_env.models.released import ASTRA_FILE, FRAME_SIZE


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    return write_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def load(release):
    """Loads the release with options."""
    return partial(load_release, release)


@pytest.fixture(scope="module")
def world_model(load) -> WorldModel:
    return load()


@pytest.mark.parametrize("kind", WEIGHTS)
def test_all_kinds_of_file_hold_the_same(load, release, world_model, kind):
    other = load(weights=release / WEIGHTS[kind])
    for name, value in world_model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_it_is_described_as_it_was_trained(world_model, release):
    assert FRAME_SIZE == (480, 832) and world_model.frame_size == SMALL
    assert world_model.chunk_frames == 32 and world_model.folder is None
    assert set(world_model.modalities) == {"camera", "end_effector"} and world_model.action_dim == 12
    sampling = world_model.sampling
    assert (sampling.num_inference_steps, sampling.shift, sampling.guidance_scale) == (50, 5.0, 1.0)
    assert world_model.text_encoder.source == release / "wan"
    assert not any(parameter.requires_grad for parameter in world_model.parameters())


def test_offloading_changes_no_number(load, world_model):
    offloaded = load(offload=True)
    assert offloaded.autoencoder.memory_device == "cpu" and tuple(offloaded.autoencoder.tiling.size) == (34, 34)
    frames = [model.decode(start(model, 9))[1].int() for model in (world_model, offloaded)]
    assert (frames[0] - frames[1]).abs().max() <= 1


# Saved, and in environments


@pytest.fixture(scope="module")
def saved(world_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    world_model.save_pretrained(folder, dtype=torch.float32, max_shard_size="1MB")
    return folder


@pytest.mark.parametrize("offload", [False, True])
def test_what_is_saved_imagines_the_same(load, world_model, tmp_path, offload):
    load(offload=offload).save_pretrained(tmp_path, dtype=torch.float32, max_shard_size="1MB")
    assert len(list(tmp_path.glob("transformer-*.safetensors"))) > 1
    loaded = WorldModel.from_pretrained(tmp_path, device="cpu", dtype=torch.float32)
    state, actions = start(world_model), actions_of("camera", 1, 2)
    options = {"num_inference_steps": 2, "guidance_scale": 2.0}
    ends = [model.imagine(state, actions, **options) for model in (world_model, loaded)]
    assert torch.equal(ends[0].latents, ends[1].latents)
    assert loaded.config == load(offload=offload).config
    # the autoencoder is kept in half precision
    torch.testing.assert_close(start(loaded).latents, state.latents, atol=5e-3, rtol=5e-3)


def test_it_is_an_environment_without_reward(saved, monkeypatch):
    make = partial(gymnasium.make, "Astra-RT1-v0", world_model=str(saved), device="cpu", num_inference_steps=1)
    words = "astra_env.models.text_encoder.TextEncoder.encode"
    monkeypatch.setattr(words, lambda self, prompts: torch.zeros(len(prompts), 4, 8))
    env = make(observation="chunk", render_mode="rgb_array")
    image = np.random.default_rng(0).integers(256, size=(64, 96, 3), dtype=np.uint8)
    observation, info = env.reset(seed=1, options={"image": image})
    assert observation.shape == (32, *SMALL, 3) and observation in env.observation_space
    after, reward, terminated, _, info = env.step(random_actions(1)[0].numpy())
    assert after in env.observation_space and np.array_equal(env.render(), after[-1])
    assert (reward, terminated, info["reward_terms"]) == (0.0, False, {})
    env.reset(seed=1, options={"image": image, "goal": image})
    assert env.step(random_actions(1)[0].numpy())[1] < 0
    with pytest.raises(ValueError, match="no recorded start states"):
        env.reset(seed=1)


# Bad input


def test_an_environment_passes_options_on(release, monkeypatch):
    monkeypatch.setattr("astra_env.models.released.FRAME_SIZE", SMALL)
    options = {"weights": str(release / WEIGHTS["plain"]), "wan": str(release / "wan")}
    made = [
        gymnasium.make("Astra-RT1-v0", world_model="astra-1.3b", world_model_options=options, device="cpu")
        for _ in range(2)
    ]
    assert made[0].observation_space.shape == (*SMALL, 3)
    assert made[0].unwrapped.world_model is made[1].unwrapped.world_model, "the weights are shared"
    with pytest.raises(ValueError, match="no recorded start states"):
        made[0].unwrapped.reset(seed=0)


def test_another_checkpoint_is_refused(load, tmp_path):
    torch.save({"layer.weight": torch.zeros(2, 2), "layer.bias": torch.zeros(2)}, tmp_path / "other.ckpt")
    with pytest.raises(
        ValueError, match=r"has no '.*': it holds 2 tensors \(layer.bias, layer.weight, ...\), expected the released"
    ):
        load(weights=tmp_path / "other.ckpt")


def test_weights_of_another_width_are_refused(load, tmp_path):
    weights = released_weights() | {"patch_embedding.weight": torch.zeros(96, 16, 1, 2, 2)}
    torch.save(weights, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="of width 96, expected a multiple of 128"):
        load(weights=tmp_path / "other.ckpt")


def test_names_that_are_missing_or_unexpected_are_listed(load, tmp_path):
    weights = released_weights() | {"blocks.0.extra": torch.zeros(1)}
    del weights["head.head.bias"]
    torch.save(weights, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"missing \(head.head.bias\), 1 are unexpected \(blocks.0.extra\)"):
        load(weights=tmp_path / "other.ckpt")


@pytest.mark.parametrize("kind", WEIGHTS)
def test_half_a_file_is_refused(load, release, tmp_path, kind):
    whole = (release / WEIGHTS[kind]).read_bytes()
    file = tmp_path / WEIGHTS[kind]
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{file.name} is not a whole checkpoint.*download it again"):
        load(weights=file)


def test_a_folder_without_autoencoder_says_so(load, tmp_path):
    with pytest.raises(ValueError, match=r"vae lacks config.json, .*safetensors; expected the vae of a checkpoint"):
        load(wan=tmp_path)


def test_weights_are_found_in_their_folder(load, release, tmp_path):
    for place in (tmp_path / "whole" / ASTRA_FILE, tmp_path / "flat" / Path(ASTRA_FILE).name):
        place.parent.mkdir(parents=True)
        place.symlink_to(release / WEIGHTS["plain"])
    for folder in ("whole", "flat"):
        load(weights=tmp_path / folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=rf"empty holds neither {ASTRA_FILE} nor .*; give the file itself"):
        load(weights=tmp_path / "empty")


def test_weights_out_of_reach_say_what_to_run(load, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ConnectionError, match=f"`hf download someone/else --include '{ASTRA_FILE}' --local-dir FOLDER`"
    ):
        load(weights="someone/else")
