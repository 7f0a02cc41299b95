"""The 1.3B backbone at 480 x 832 with random weights: arithmetic of a chunk, and on a GPU its time and memory.

The arithmetic is counted operator by operator on tensors without storage, so it needs no GPU. The baseline is the
released form, which runs history and chunk together in every pass; ours reads the history once and keeps it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from astra_env.models.reference import RELEASED_1_3B, reference_config
from astra_env.models.transformer import AstraTransformer, TransformerConfig
from benchmarks.runtime import machine
from benchmarks.writing import number, table

FRAME_SIZE = (480, 832)
CHUNK_SIZE = 8
PROMPT_LENGTH = 512
NUM_STEPS = 50


def configs(sizes: Mapping[str, Any] = RELEASED_1_3B) -> dict[str, TransformerConfig]:
    """The released form and our own path over the same backbone."""
    released = reference_config(sizes)
    own = dataclasses.replace(
        released, routing="learned", history_attention="causal", history_packing="framepack", shared_dim=64
    )
    return {"released": released, "own": own}


def make_inputs(
    config: TransformerConfig, device: str, dtype: torch.dtype, chunk_size: int = CHUNK_SIZE
) -> dict[str, Tensor]:
    """One world with a full history, a chunk of noise and a prompt."""
    C, S, (h, w) = config.in_channels, config.history.size, (size // 8 for size in FRAME_SIZE)
    width = max(config.action_dims.values())
    assert config.text_dim is not None

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    return {
        "slots": normal(1, C, S, h, w),
        "lengths": torch.full((1,), S, device=device),
        "table": normal(1, S + chunk_size, width),
        "prompt": normal(1, PROMPT_LENGTH, config.text_dim),
        "latents": torch.randn(1, C, chunk_size, h, w, device=device),
        "sigma": torch.ones(1, device=device),
    }


def parts(transformer: AstraTransformer, given: Mapping[str, Tensor]) -> tuple[Callable, Callable]:
    """What is done once a chunk, and the pass that every denoising step repeats."""
    modality = (next(iter(transformer.config.action_dims)),)
    present = torch.ones_like(given["table"][..., 0])

    def once() -> tuple:
        cache, _ = transformer.encode_history(
            given["slots"], given["lengths"], given["table"], present, modality, given["prompt"]
        )
        chunk = slice(-given["latents"].shape[2], None)
        return cache, transformer.action_features(given["table"][:, chunk], present[:, chunk], modality)

    prepared: list[Any] = []

    def step() -> Tensor:
        if not prepared:
            prepared.extend(once())
        return transformer(given["latents"], given["sigma"], prepared[1], prepared[0])

    return once, step


def count(config: TransformerConfig, chunk_size: int = CHUNK_SIZE) -> dict[str, float]:
    """TFLOP of the two parts, and of a chunk of 50 steps without guidance."""
    with torch.device("meta"), torch.no_grad():
        once, step = parts(AstraTransformer(config), make_inputs(config, "meta", torch.float32, chunk_size))
        result = {}
        with FlopCounterMode(display=False) as counter:
            once()
        result["once_tflop"] = counter.get_total_flops() / 1e12
        step()
        with FlopCounterMode(display=False) as counter:
            step()
        result["step_tflop"] = counter.get_total_flops() / 1e12
    result["chunk_tflop"] = result["once_tflop"] + NUM_STEPS * result["step_tflop"]
    return result


@torch.no_grad()
def measure(
    config: TransformerConfig, device: str = "cuda", repeats: int = 5, *, chunk_size: int = CHUNK_SIZE, **compiling: Any
) -> dict[str, float]:
    """Milliseconds of the two parts in bfloat16 (medians) and the peak of GPU memory in GB.

    compiling are options of `torch.compile` for the blocks; without any they run as they are.
    """
    with torch.device(device):
        transformer = AstraTransformer(config).to(torch.bfloat16)
    if compiling:
        for block in transformer.blocks:
            block.compile(**compiling)
    once, step = parts(transformer, make_inputs(config, device, torch.bfloat16, chunk_size))
    torch.cuda.reset_peak_memory_stats()
    result = {name: cuda_ms(run, repeats) for name, run in (("once_ms", once), ("step_ms", step))}
    return result | {"peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9}


def cuda_ms(run: Callable[[], Any], repeats: int) -> float:
    """Median milliseconds of a call on the GPU, after three to warm up."""
    times = []
    for _ in range(repeats + 3):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - begin))
    return sorted(times[3:])[repeats // 2]


def backbone(sizes: Mapping[str, Any] = RELEASED_1_3B) -> dict[str, Any]:
    """Results of both forms; times only where there is a GPU."""
    results: dict[str, Any] = {"machine": machine(), "frame_size": FRAME_SIZE, "chunk_size": CHUNK_SIZE}
    for name, config in configs(sizes).items():
        results[name] = count(config) | (measure(config) if torch.cuda.is_available() else {})
    results["arithmetic_ratio"] = results["released"]["chunk_tflop"] / results["own"]["chunk_tflop"]
    return results


def render_backbone(results: Mapping[str, Any]) -> str:
    """Teraflops of both forms as Markdown."""
    parts = {"once_tflop": "history, once a chunk", "step_tflop": "a denoising step", "chunk_tflop": "a chunk"}
    rows = [[what, *(number(results[form][key], 1) for form in ("released", "own"))] for key, what in parts.items()]
    size = " x ".join(map(str, results["frame_size"]))
    text = table([f"teraflops, {size} pixels, {results['chunk_size']} latents", "released form", "own form"], rows)
    return f"{text}\n\nThe own form needs {number(results['arithmetic_ratio'], 2)} times less arithmetic for a chunk."
