"""Wan-2.1 as the backbone: weights in diffusers form from a local folder, the hub's cache or the hub.

`from_wan` puts a `WanTransformer3DModel` under our names and adds what makes it a world model in a neutral state:
adapters are the identity, experts are silent, history is embedded as the picture is. With no history and zero actions
it predicts what the backbone predicts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from astra_env.models.autoencoder import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION, WanAutoencoder
from astra_env.models.hub import (
    WAN_REPO,
    Say,
    Source,
    check_config,
    fetch,
    part_files,
    read_json,
    read_weights,
    tell,
)
from astra_env.models.reference import to_reference_names, weight_map
from astra_env.models.transformer import AstraTransformer, TransformerConfig

WAN_1_3B: Mapping[str, Any] = {
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "ffn_dim": 8960,
    "num_layers": 30,
    "in_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
}
"""Sizes in the config.json of Wan-2.1-T2V-1.3B, the backbone of the released weights."""

_SIZES = {**dict.fromkeys(WAN_1_3B), "patch_size": None}
_VARIANT: Mapping[str, Any] = {
    "_class_name": "WanTransformer3DModel",
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "image_dim": None,  # image-to-video checkpoints read an image through weights of their own
    "added_kv_proj_dim": None,
    "pos_embed_seq_len": None,
}
_AUTOENCODER: Mapping[str, Any] = {
    "_class_name": "AutoencoderKLWan",
    "scale_factor_spatial": SPATIAL_COMPRESSION,  # 16 in Wan-2.2
    "scale_factor_temporal": TEMPORAL_COMPRESSION,
    "patch_size": None,
}
_RENAMED = {  # from the names of Wan's own release, which the reference implementation keeps, to those of diffusers
    "text_embedding.0.": "condition_embedder.text_embedder.linear_1.",
    "text_embedding.2.": "condition_embedder.text_embedder.linear_2.",
    "time_embedding.0.": "condition_embedder.time_embedder.linear_1.",
    "time_embedding.2.": "condition_embedder.time_embedder.linear_2.",
    "time_projection.1.": "condition_embedder.time_proj.",
    "head.modulation": "scale_shift_table",
    "head.head.": "proj_out.",
    ".modulation": ".scale_shift_table",
    ".self_attn.": ".attn1.",
    ".cross_attn.": ".attn2.",
    ".q.": ".to_q.",
    ".k.": ".to_k.",
    ".v.": ".to_v.",
    ".o.": ".to_out.0.",
    ".norm3.": ".norm2.",
    ".ffn.0.": ".ffn.net.0.proj.",
    ".ffn.2.": ".ffn.net.2.",
}
_ADDED = re.compile(r"^action_experts\.|^history_embedder\.|\.adapter\.")  # our weights that Wan lacks
_FUSED = {"attn1.to_qkv": ("to_q", "to_k", "to_v"), "attn2.to_kv": ("to_k", "to_v")}

# 1. Weights under our names


def diffusers_name(name: str) -> str:
    """What diffusers calls a weight of Wan's own release."""
    for theirs, renamed in _RENAMED.items():
        name = name.replace(theirs, renamed)
    return name


def wan_config(config: Mapping[str, Any], **changes: Any) -> TransformerConfig:
    """Our configuration over a `WanTransformer3DModel`'s; changes, action_dims at least, are fields of ours."""
    sizes = {
        "in_channels": config["in_channels"],
        "dim": config["num_attention_heads"] * config["attention_head_dim"],
        "num_layers": config["num_layers"],
        "num_heads": config["num_attention_heads"],
        "ffn_dim": config["ffn_dim"],
        "patch_size": tuple(config["patch_size"]),
        "freq_dim": config["freq_dim"],
        "text_dim": config["text_dim"],
        "precondition": False,  # its output is the velocity itself
        "gelu": "tanh",
    }
    return TransformerConfig(**sizes | changes)


def from_wan(state_dict: Mapping[str, Tensor], config: Mapping[str, Any], **changes: Any) -> AstraTransformer:
    """Neutral world model over a pretrained backbone, in its dtype; tensors that need no joining are not copied.

    Args:
        state_dict: of a `diffusers.WanTransformer3DModel`, with or without fused projections.
        config: its config.json.
        changes: fields of `TransformerConfig`, action_dims at least.

    Raises:
        ValueError: it is another model's; lists the names that are missing, unexpected or misshapen.
    """
    check_config(config, {**_VARIANT, "out_channels": config.get("in_channels")}, _SIZES, file="config.json")
    with torch.device("meta"):
        transformer = AstraTransformer(wan_config(config, **changes))
    transformer.load_state_dict(convert_names(unfused(state_dict), transformer), strict=False, assign=True)
    start_added_parts(transformer)
    return transformer


def unfused(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Projections that diffusers has fused, cut apart again; they count where the parts are still there too."""
    result = dict(state_dict)
    for name, value in state_dict.items():
        module, _, part = name.rpartition(".")
        for fused, parts in _FUSED.items():
            if module.endswith(fused):
                del result[name]
                attention = module.rpartition(".")[0]
                pieces = zip(parts, value.chunk(len(parts)), strict=True)
                result |= {f"{attention}.{projection}.{part}": piece for projection, piece in pieces}
    return result


def convert_names(state_dict: Mapping[str, Tensor], transformer: AstraTransformer) -> dict[str, Tensor]:
    """Tensors of diffusers under our names; ValueError lists what does not fit the transformer."""
    config = transformer.config
    kept = {ours: value for ours, value in transformer.state_dict().items() if not _ADDED.search(ours)}
    shapes = {diffusers_name(name): tuple(value.shape) for name, value in to_reference_names(kept, config).items()}
    check_names(state_dict, shapes, "a WanTransformer3DModel of its config.json")
    weights = {}
    for names, ours in weight_map(config.num_layers, config.num_experts):
        if ours in kept:
            parts = [state_dict[diffusers_name(name)] for name in names]
            weights[ours] = (torch.cat(parts) if len(parts) > 1 else parts[0]).reshape(kept[ours].shape)
    return weights


def check_names(given: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], what: str) -> None:
    """ValueError unless the given tensors have exactly these names and shapes."""
    found = {name: tuple(value.shape) for name, value in given.items()}
    faults = {
        "missing": sorted(shapes.keys() - found.keys()),
        "unexpected": sorted(found.keys() - shapes.keys()),
        "misshapen": [
            f"{name} {found[name]}, expected {tuple(shape)}"
            for name, shape in shapes.items()
            if name in found and found[name] != tuple(shape)
        ],
    }
    if any(faults.values()):
        lists = [
            f"{len(names)} names are {fault} ({', '.join(names[:8])}{', ...' if len(names) > 8 else ''})"
            for fault, names in faults.items()
            if names
        ]
        raise ValueError(f"These are not the weights of {what}: {'; '.join(lists)}; give the files of one checkpoint.")


def start_added_parts(transformer: AstraTransformer) -> None:
    """Give what Wan lacks its memory, in the backbone's dtype, and its neutral start."""
    backbone = transformer.patch_embedding.weight
    adapters: list[Any] = [block.adapter for block in transformer.blocks]
    experts, embedder = transformer.action_experts, transformer.history_embedder
    for part in (experts, embedder, *adapters):
        part.to(backbone.dtype).to_empty(device=backbone.device)
    for adapter in adapters:
        nn.init.eye_(adapter.weight)
        nn.init.zeros_(adapter.bias)
    embedder.grow_from(transformer.patch_embedding)
    for module in experts.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    for outputs in experts.parameters(recurse=False):  # what the experts add is zero
        nn.init.zeros_(outputs)


# 2. Files


def load_wan_transformer(
    source: Source = WAN_REPO,
    *,
    dtype: torch.dtype | None = None,
    expected: Mapping[str, Any] | None = None,
    say: Say = tell,
    **changes: Any,
) -> AstraTransformer:
    """`from_wan` of a folder, of the hub's cache or of the hub (see `fetch`), on the CPU.

    dtype None keeps the stored one. expected are entries that config.json must have, such as `WAN_1_3B`.
    """
    part = fetch(source, ["transformer"], say) / "transformer"
    config = read_json(part / "config.json")
    check_config(config, expected or {}, expected or (), file=part / "config.json")
    transformer = from_wan(read_weights(part_files(part)), config, **changes)
    return transformer.to(dtype or transformer.head.weight.dtype)


def load_wan_autoencoder(source: Source = WAN_REPO, *, say: Say = tell, **tiling: Any) -> WanAutoencoder:
    """Autoencoder in float32 on the CPU; tiling are tile_size, tile_stride and memory_device of `WanAutoencoder`."""
    part = fetch(source, ["vae"], say) / "vae"
    config = read_json(part / "config.json")
    check_config(config, _AUTOENCODER, ["z_dim"], file=part / "config.json")
    weights = read_weights(part_files(part))
    autoencoder = WanAutoencoder(**tiling, **{name: value for name, value in config.items() if name[0] != "_"})
    shapes = {name: tuple(value.shape) for name, value in autoencoder.vae.state_dict().items()}
    check_names(weights, shapes, f"the AutoencoderKLWan of {part}")
    autoencoder.vae.load_state_dict(weights, assign=True)
    return autoencoder.float()
