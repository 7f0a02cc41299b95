"""Wan-2.1 behind our classes: names, the neutral start, and files that are whole, broken or foreign."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from tiny import seeded

from astra_env.models.history import HistoryLayout, PackedHistory
from astra_env.models.wan import WAN_1_3B, from_wan, load_wan_autoencoder, load_wan_transformer

SIZES = {
    "num_attention_heads": 3,
    "attention_head_dim": 32,
    "num_layers": 2,
    "ffn_dim": 64,
    "text_dim": 24,
    "freq_dim": 32,
    "in_channels": 4,
    "out_channels": 4,
}
ACTIONS = {"action_dims": {"camera": 6}}


def tiny_wan(**changes) -> WanTransformer3DModel:
    torch.manual_seed(0)
    return WanTransformer3DModel(**SIZES | changes).requires_grad_(False)


def converted(wan, **changes):
    return from_wan(wan.state_dict(), wan.config, **ACTIONS, **changes).requires_grad_(False)


def inputs(num_frames: int):
    latents = torch.randn(2, 4, num_frames, 6, 8, generator=seeded())
    return latents, torch.tensor([0.9, 0.3]), torch.randn(2, 7, 24, generator=seeded(1))


def velocity_without_history(transformer, latents, sigma, text):
    packed = PackedHistory.empty(2, transformer.config.dim, transformer.config.history.size, latents.device)
    null = transformer.action_features(torch.zeros(2, 1, 6), torch.zeros(2, 1), ("camera",) * 2)
    cache = transformer.cache_history(packed, null, transformer.encode_text(text))
    n = latents.shape[2]
    actions = transformer.action_features(torch.zeros(2, n, 6), torch.ones(2, n), ("camera",) * 2)
    return transformer(latents, sigma, actions, cache)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint in diffusers form: a transformer in two shards and an autoencoder."""
    root = tmp_path_factory.mktemp("wan")
    tiny_wan().save_pretrained(root / "transformer", max_shard_size="400KB")
    torch.manual_seed(0)
    AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1).save_pretrained(root / "vae")
    return root


def copied(folder, tmp_path):
    for file in folder.glob("*/*"):
        (tmp_path / file.parent.name).mkdir(exist_ok=True)
        (tmp_path / file.parent.name / file.name).write_bytes(file.read_bytes())
    return tmp_path


# 1. The neutral start


@pytest.mark.parametrize("attention", ["causal", "full"])
def test_without_history_step_0_equals_the_backbone(attention):
    wan = tiny_wan()
    latents, sigma, text = inputs(3)
    expected = wan(latents, 1000 * sigma, text).sample
    velocity = velocity_without_history(converted(wan, history_attention=attention), latents, sigma, text)
    torch.testing.assert_close(velocity, expected, atol=2e-5, rtol=0)
    assert expected.abs().mean() > 0.1


def test_joined_uncompressed_history_is_two_frames_of_the_backbones_video():
    wan = tiny_wan()
    layout = HistoryLayout(num_4x=0, num_2x=0, num_1x=1)
    transformer = converted(wan, history_attention="full", history=layout)
    video, sigma, text = inputs(5)
    expected = wan(video, 1000 * sigma, text).sample[:, :, 2:]
    past = {"lengths": torch.tensor([2, 2]), "actions": torch.ones(2, 2, 6), "present": torch.ones(2, 2)}
    cache, _ = transformer.encode_history(video[:, :, :2], **past, modality=("camera",) * 2, prompt_embeds=text)
    actions = transformer.action_features(torch.ones(2, 3, 6), torch.ones(2, 3), ("camera",) * 2)
    velocity = transformer(video[:, :, 2:], sigma, actions, cache)
    torch.testing.assert_close(velocity, expected, atol=2e-5, rtol=0)


def test_added_parts_are_whole_trainable_and_of_the_backbones_dtype():
    wan = tiny_wan().to(torch.bfloat16)
    transformer = from_wan(wan.state_dict(), wan.config, **ACTIONS)
    for name, parameter in transformer.named_parameters():
        assert parameter.requires_grad and parameter.isfinite().all(), name
        assert (parameter.device.type, parameter.dtype) == ("cpu", torch.bfloat16), name
    coarse, fine = (transformer.history_embedder.embed[scale].weight for scale in ("4x", "1x"))
    torch.testing.assert_close(coarse.float().sum((2, 3, 4)), fine.float().sum((2, 3, 4)), atol=0.02, rtol=0.02)
    assert all(projector.weight.std() > 0 for projector in transformer.action_experts.projectors.values())


def test_fused_projections_count_with_or_without_their_parts():
    wan = tiny_wan()
    expected = converted(wan).state_dict()
    wan.fuse_qkv_projections()
    fused = wan.state_dict()
    parts = ("attn1.to_q.", "attn1.to_k.", "attn1.to_v.", "attn2.to_k.", "attn2.to_v.")
    alone = {name: value for name, value in fused.items() if not any(part in name for part in parts)}
    assert "blocks.0.attn1.to_qkv.weight" in alone and len(alone) < len(fused)
    for state_dict in (fused, alone):
        given = from_wan(state_dict, wan.config, **ACTIONS).state_dict()
        for name in ("blocks.1.qkv.weight", "blocks.1.qkv.bias", "blocks.1.text_attention.kv.weight"):
            torch.testing.assert_close(given[name], expected[name], atol=0, rtol=0)


# 2. Checkpoints of other models


def test_names_that_do_not_fit_are_listed_in_one_sentence():
    wan = tiny_wan()
    state_dict = wan.state_dict()
    state_dict["blocks.7.extra"] = state_dict.pop("blocks.0.attn1.to_q.weight")
    state_dict["proj_out.weight"] = torch.zeros(5, 96)
    with pytest.raises(
        ValueError, match=r"missing \(blocks.0.attn1.to_q.weight\).*unexpected \(blocks.7.extra\)"
    ) as error:
        from_wan(state_dict, wan.config, **ACTIONS)
    assert "proj_out.weight (5, 96), expected (16, 96)" in str(error.value)


def test_another_size_says_what_was_expected_and_found(folder):
    expected = r"transformer/config.json is .*num_attention_heads is 3, expected 12.*num_layers is 2, expected 30"
    with pytest.raises(ValueError, match=expected):
        load_wan_transformer(folder, expected=WAN_1_3B, **ACTIONS)


def test_image_to_video_is_refused():
    wan = tiny_wan(in_channels=9, image_dim=8, added_kv_proj_dim=96)
    with pytest.raises(ValueError, match=r"image_dim is 8, expected None.*out_channels is 4, expected 9"):
        from_wan(wan.state_dict(), wan.config, **ACTIONS)


# 3. Files


def test_a_local_folder_with_shards_loads(folder):
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    transformer = load_wan_transformer(folder, **ACTIONS).requires_grad_(False)
    latents, sigma, text = inputs(3)
    expected = tiny_wan()(latents, 1000 * sigma, text).sample
    velocity = velocity_without_history(transformer, latents, sigma, text)
    torch.testing.assert_close(velocity, expected, atol=2e-5, rtol=0)
    assert load_wan_transformer(folder, dtype=torch.bfloat16, **ACTIONS).head.weight.dtype == torch.bfloat16


def test_the_autoencoder_loads_with_its_tiling(folder):
    autoencoder = load_wan_autoencoder(folder, tile_size=(4, 4), tile_stride=(3, 3)).requires_grad_(False)
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    assert tuple(autoencoder.tiling.size) == (4, 4)
    for name, value in vae.state_dict().items():
        torch.testing.assert_close(autoencoder.vae.state_dict()[name], value, atol=0, rtol=0)


def test_a_truncated_shard_is_named(folder, tmp_path):
    shard = sorted(copied(folder, tmp_path).glob("transformer/*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{shard.name} is truncated or damaged.*copy it again"):
        load_wan_transformer(tmp_path, **ACTIONS)


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_a_missing_file_is_named(folder, tmp_path, part):
    file = sorted(copied(folder, tmp_path).glob(f"{part}/*.safetensors"))[0]
    file.unlink()
    load = {
        "transformer": lambda: load_wan_transformer(tmp_path, **ACTIONS),
        "vae": lambda: load_wan_autoencoder(tmp_path),
    }
    with pytest.raises(ValueError, match=f"{part} lacks {file.name}"):
        load[part]()


def test_half_a_json_is_named(folder, tmp_path):
    config = copied(folder, tmp_path) / "vae" / "config.json"
    config.write_text(config.read_text()[:20])
    with pytest.raises(ValueError, match=r"config.json cannot be read.*copy it again"):
        load_wan_autoencoder(tmp_path)


def test_another_autoencoder_is_refused(folder, tmp_path):
    config = copied(folder, tmp_path) / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scale_factor_spatial": 16}))
    with pytest.raises(ValueError, match="scale_factor_spatial is 16, expected 8"):
        load_wan_autoencoder(tmp_path)
