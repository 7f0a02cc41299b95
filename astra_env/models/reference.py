"""Compatibility with the reference implementation (EternalEvan/Astra, 3fb82e19) and its released weights.

`from_reference` reads the released state dict into an `AstraTransformer` whose configuration has the reference's
quirks: fixed routing, attention of the history to the noisy chunk, and the time positions and action rows that its
compressed history was trained with. `reference_forward` calls it on the reference's own inputs.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from astra_env.models.action_experts import FixedActionExperts
from astra_env.models.history import PackedHistory
from astra_env.models.released_history import ReleasedHistoryEmbedder, ReleasedScale
from astra_env.models.transformer import AstraTransformer, TransformerConfig

MODALITIES = {"sekai": 12, "nuscenes": 7, "openx": 12}
"""Columns of an action row without the history flag: a 3 x 4 matrix, or a translation and a quaternion."""
RELEASED_1_3B: Mapping[str, Any] = {
    "patch_size": [1, 2, 2],
    "in_dim": 16,
    "dim": 1536,
    "ffn_dim": 8960,
    "freq_dim": 256,
    "text_dim": 4096,
    "out_dim": 16,
    "num_heads": 12,
    "num_layers": 30,
    "eps": 1e-6,
    "unified_dim": 25,
    "num_experts": 3,
    "top_k": 1,
}
"""Configuration of the released weights over Wan-2.1-T2V-1.3B."""

_PLAIN = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "text_embedding.0",
    "text_embedding.2": "text_embedding.2",
    "time_embedding.0": "time_embedding.0",
    "time_embedding.2": "time_embedding.2",
    "time_projection.1": "time_projection",
    "head.head": "head",
    "clean_x_embedder.proj": "history_embedder.embed.1x",
    "clean_x_embedder.proj_2x": "history_embedder.embed.2x",
    "clean_x_embedder.proj_4x": "history_embedder.embed.4x",
}
_BLOCK = {
    "self_attn.o": "out",
    "projector": "adapter",
    "cross_attn.q": "text_attention.q",
    "cross_attn.o": "text_attention.out",
    "norm3": "text_attention.norm",
    "ffn.0": "ffn.0",
    "ffn.2": "ffn.2",
}
_ONE = {
    "modulation": "modulation",
    "self_attn.norm_q.weight": "norm_q",
    "self_attn.norm_k.weight": "norm_k",
    "cross_attn.norm_q.weight": "text_attention.norm_q",
    "cross_attn.norm_k.weight": "text_attention.norm_k",
}
_JOINED = {
    ("self_attn.q", "self_attn.k", "self_attn.v"): "qkv",
    ("cross_attn.k", "cross_attn.v"): "text_attention.kv",
}


def weight_map(
    num_layers: int, num_experts: int, modalities: Sequence[str] = tuple(MODALITIES)
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Pairs of reference names and our name; several names are concatenated along the first axis, in that order.

    modalities are our names for the reference's, in its order.
    """
    yield ("head.modulation",), "head_modulation"
    projectors = {
        f"{theirs}_processor.projector.0": f"action_experts.projectors.{ours}"
        for theirs, ours in zip(MODALITIES, modalities, strict=False)
    }
    for theirs, ours in (_PLAIN | projectors).items():
        for part in ("weight", "bias"):
            yield (f"{theirs}.{part}",), f"{ours}.{part}"
    for layer in range(num_layers):
        block = f"blocks.{layer}"
        for theirs, ours in _ONE.items():
            yield (f"{block}.{theirs}",), f"{block}.{ours}"
        for part in ("weight", "bias"):
            for theirs, ours in _BLOCK.items():
                yield (f"{block}.{theirs}.{part}",), f"{block}.{ours}.{part}"
            for several, ours in _JOINED.items():
                yield tuple(f"{block}.{name}.{part}" for name in several), f"{block}.{ours}.{part}"
    for part in ("weight", "bias"):
        names = [
            f"blocks.{layer}.moe.experts.{expert}.0.{part}"
            for layer in range(num_layers)
            for expert in range(num_experts)
        ]
        yield tuple(names), f"action_experts.expert_{part}"


def dead_weights(num_layers: int) -> set[str]:
    """Names that the reference stores and never reads: its outputs do not depend on them."""
    names = {f"blocks.{layer}.cam_encoder.{part}" for layer in range(num_layers) for part in ("weight", "bias")}
    return names | {"global_router.weight", "global_router.bias"}


def reference_config(config: Mapping[str, Any], modalities: Sequence[str] = tuple(MODALITIES)) -> TransformerConfig:
    """Our configuration of a reference model (keys of its own, as in `RELEASED_1_3B`)."""
    return TransformerConfig(
        dict(zip(modalities, MODALITIES.values(), strict=True)),
        in_channels=config["in_dim"],
        dim=config["dim"],
        num_layers=config["num_layers"],
        num_heads=config["num_heads"],
        ffn_dim=config["ffn_dim"],
        patch_size=tuple(config["patch_size"]),
        freq_dim=config["freq_dim"],
        text_dim=config["text_dim"],
        shared_dim=config["unified_dim"],
        num_experts=config["num_experts"],
        top_k=config["top_k"],
        routing="fixed",
        history_attention="full",
        history_packing="released",
        precondition=False,
        gelu="tanh",
    )


def from_reference(
    state_dict: Mapping[str, Tensor],
    config: Mapping[str, Any] = RELEASED_1_3B,
    modalities: Sequence[str] = tuple(MODALITIES),
) -> AstraTransformer:
    """Transformer with the released weights; ValueError lists the names that are missing, unexpected or misshapen.

    Args:
        state_dict: tensors under the reference's names.
        config: dim, num_heads, num_layers, ffn_dim, text_dim, ..., unified_dim, num_experts, top_k.
        modalities: our names for the reference's, in its order.
    """
    with torch.device("meta"):
        transformer = AstraTransformer(reference_config(config, modalities))
    weights = convert_names(state_dict, transformer)
    transformer.load_state_dict(weights, assign=True)
    return transformer.requires_grad_(True)


def convert_names(state_dict: Mapping[str, Tensor], transformer: AstraTransformer) -> dict[str, Tensor]:
    """Released tensors under our names; ValueError lists what does not fit the transformer."""
    config, wanted = transformer.config, transformer.state_dict()
    expected = {name: tuple(value.shape) for name, value in to_reference_names(wanted, config).items()}
    missing = sorted(expected.keys() - state_dict.keys())
    unexpected = sorted(state_dict.keys() - expected.keys() - dead_weights(config.num_layers))
    if missing or unexpected:
        raise ValueError(
            f"This is not a state dict of Astra with {config.num_layers} layers and {config.num_experts} experts: "
            f"{len(missing)} names are missing {_some(missing)}, {len(unexpected)} are unexpected {_some(unexpected)}; "
            "give the released diffusion_pytorch_model.ckpt or a checkpoint of the same configuration."
        )
    given = {name: tuple(state_dict[name].shape) for name in expected}
    misshapen = [f"{name} {given[name]}, expected {shape}" for name, shape in expected.items() if given[name] != shape]
    if misshapen:
        raise ValueError(f"{len(misshapen)} weights have another shape than the configuration's {_some(misshapen)}.")
    weights = {}
    for names, ours in weight_map(config.num_layers, config.num_experts, tuple(config.action_dims)):
        # copied: tensors of a file lie where they lie in it, and unaligned ones are slower and round differently
        joined = torch.cat([state_dict[name] for name in names]) if len(names) > 1 else state_dict[names[0]].clone()
        weights[ours] = joined.reshape(wanted[ours].shape)
    return weights


def to_reference_names(tensors: Mapping[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """The inverse of `convert_names`, for weights or their gradients; stacked tensors are cut into equal parts."""
    result: dict[str, Tensor] = {}
    for names, ours in weight_map(config.num_layers, config.num_experts, tuple(config.action_dims)):
        if ours in tensors:
            value = tensors[ours]
            value = value.flatten(0, 1) if ours.startswith("action_experts.expert_") else value
            parts = value.chunk(len(names)) if len(names) > 1 else [value]
            stacked = ours.startswith("action_experts.expert_")
            result |= {name: part[0] if stacked else part for name, part in zip(names, parts, strict=True)}
    for name, value in result.items():
        result[name] = value[None] if name.endswith("modulation") else value
    return result


def _some(names: list[str]) -> str:
    return f"({', '.join(names[:8])}{', ...' if len(names) > 8 else ''})" if names else "(none)"


def load_reference_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """State dict of a released file: plain or Lightning-wrapped .ckpt / .pth (never unpickled), or safetensors."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no checkpoint at {path}; download it from the Astra release, or fix the path."
        )
    try:
        if path.suffix == ".safetensors":
            stored: Any = load_file(path)
        else:
            # files of torch before 1.6 are no archives and cannot be mapped
            stored = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is not a whole checkpoint of tensors ({reason}); download it again.") from error
    return unwrap(stored)


def unwrap(stored: Any) -> dict[str, Tensor]:
    """Tensors under the reference's names, unwrapped from what training adds: `state_dict`, `pipe.dit.`."""
    if isinstance(stored, Mapping) and isinstance(stored.get("state_dict"), Mapping):
        stored = stored["state_dict"]
    if not isinstance(stored, Mapping) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise ValueError("The checkpoint holds no dictionary of tensors; expected a state dict of Astra.")
    for prefix in ("pipe.dit.", "dit.", "module.", "model."):
        inner = {name[len(prefix) :]: value for name, value in stored.items() if name.startswith(prefix)}
        if inner:
            return inner
    return dict(stored)


def reference_forward(transformer: AstraTransformer, modality: str, inputs: Mapping[str, Tensor]) -> Tensor:
    """Velocity (B, C, F, H, W) as the reference computes it, each row of the batch by itself.

    Args:
        transformer: from `from_reference`.
        modality: "sekai", "nuscenes" or "openx".
        inputs: latents (B, C, F, H, W), timestep (B,) in 0 .. 1000, action (B, N, 13 or 8) with the history flag last,
            context (B, L, text_dim); and, with history, latent_indices (B, F), clean_latents (B, C, 2, H, W),
            clean_latent_indices (B, 2), and the same with _2x and _4x, where -1 marks an empty slot. Names may begin
            with "in.".
    """
    dtype = transformer.head.weight.dtype
    given = {name.removeprefix("in."): value for name, value in inputs.items()}
    timestep = given["timestep"].double()
    given |= {name: value.to(dtype) for name, value in given.items() if value.is_floating_point()}
    latents = even(given["latents"])
    B = len(latents)
    names = (modality,) * B
    table, experts = given["action"], transformer.action_experts
    assert isinstance(experts, FixedActionExperts)
    flags = table[..., -1]
    projected = experts.project(table[..., :-1], torch.ones_like(flags), names, current=1 - flags)
    text = transformer.encode_text(given["context"].expand(B, -1, -1))
    packed, first_row = pack_reference(transformer, given)
    features = experts(packed.group_weights.to(projected.dtype) @ projected, names)
    cache = transformer.cache_history(packed, features, text)
    rows = (first_row[:, None] + torch.arange(latents.shape[2], device=first_row.device))[..., None]
    chunk = projected.gather(1, rows.expand(-1, -1, projected.shape[-1]))
    return transformer(latents, timestep.expand(B) / 1000, experts(chunk, names), cache)


def even(latents: Tensor) -> Tensor:
    """Drop the last row and column of odd sizes, which patches of 2 x 2 do not cover."""
    height, width = latents.shape[-2:]
    return latents[..., : height - height % 2, : width - width % 2]


def pack_reference(transformer: AstraTransformer, given: Mapping[str, Tensor]) -> tuple[PackedHistory, Tensor]:
    """History tokens of the reference's inputs, and the action row (B,) of the chunk's first latent."""
    latents, num_rows = given["latents"], given["action"].shape[1]
    embedder = transformer.history_embedder
    assert isinstance(embedder, ReleasedHistoryEmbedder)
    B, device = len(latents), latents.device
    if "clean_latent_indices" not in given:
        nothing = PackedHistory.empty(B, transformer.config.dim, num_rows, device)
        return nothing, torch.zeros(B, dtype=torch.long, device=device)
    target = given["latent_indices"].expand(B, -1).amin(1, keepdim=True)
    start = given["clean_latent_indices"].expand(B, -1)[:, :1]
    first_row = target - start
    scales = []
    for name, key in (("4x", "clean_latents_4x"), ("2x", "clean_latents_2x"), ("1x", "clean_latents")):
        if key not in given:
            continue
        indices = given[key.replace("latents", "latent") + "_indices"].expand(B, -1)
        if not (indices >= 0).any():
            continue
        valid, rows = indices >= 0, (indices - start).clamp(min=0)
        if name == "1x":
            rows = torch.cat([torch.zeros_like(first_row), first_row], dim=1)  # the newest takes the chunk's first row
        cleaned = even(given[key]) if name == "1x" else given[key]
        scales.append(ReleasedScale(name, cleaned, indices.float(), valid, rows))
    return embedder.pack(scales, num_rows, target[:, 0].float()), first_row[:, 0]
