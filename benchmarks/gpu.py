"""G1-G6: the 1.3B shape at 480 x 832 with random weights, as a GPU should run it.

The arithmetic and the bytes are counted on tensors without storage, and give floors that need no GPU; the times are
measured where there is one, in bfloat16, and are None elsewhere. A chunk is 1, 3 or 9 latents of four frames, denoised
in four Euler steps without guidance. The reference's default is 50 steps with guidance in eight latents a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from astra_env.models.autoencoder import TinyAutoencoder, WanAutoencoder
from astra_env.models.reference import RELEASED_1_3B
from astra_env.models.transformer import AstraTransformer, TransformerConfig
from benchmarks.backbone import CHUNK_SIZE, FRAME_SIZE, configs, count, cuda_ms, make_inputs, measure, parts
from benchmarks.runtime import machine
from benchmarks.writing import table

PEAK_TFLOPS = 780.0
"""Dense bfloat16 products that an H200 reaches, by published measurements; floors are arithmetic over this."""
STEPS, REFERENCE_PASSES = 4, 100
DEMANDED = {1: (4.0, 0.30), 3: (2.2, 0.45), 9: (1.5, 0.45)}
"""Latents a chunk: by how much a pass is to be faster than the released form's, and its share of the floor."""
FORMS: Mapping[str, Mapping[str, Any]] = {"eager": {}, "compiled": {"dynamic": False}}
"""How our blocks run: options of `torch.compile`."""


def state_bytes(config: TransformerConfig) -> int:
    """Bytes that a world keeps between the steps of a chunk: keys and values of its history, in bfloat16."""
    with torch.device("meta"), torch.no_grad():
        once, _ = parts(AstraTransformer(config), make_inputs(config, "meta", torch.bfloat16))
        cache, _ = once()
    return sum(2 * tensor.numel() for pair in cache.history for tensor in pair)


def decoders() -> dict[str, TinyAutoencoder | WanAutoencoder]:
    """A decoder of the bundled world's kind for such latents, and Wan's own, whole and in the reference's tiles."""
    return {"tiny": TinyAutoencoder(), "wan": WanAutoencoder(), "wan tiled": WanAutoencoder((34, 34))}


def decode_tflop(autoencoder: TinyAutoencoder | WanAutoencoder) -> float:
    """TFLOP of one latent that is not a stream's first."""
    height, width = (size // 8 for size in FRAME_SIZE)
    autoencoder = autoencoder.to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
        if isinstance(autoencoder, WanAutoencoder):
            for top, bottom, left, right in autoencoder.tiling.tiles(height, width):
                h, w = min(bottom, height) - top, min(right, width) - left
                memory = [torch.empty(1, dim, 2, h * s, w * s) for dim, s in autoencoder.memory_sizes]
                autoencoder.vae.decoder(torch.empty(1, 16, 1, h, w), feat_cache=memory, feat_idx=[0])
        else:
            autoencoder.decode_raw(torch.empty(1, 1, 16, height, width), autoencoder.init_cache(1, height, width))
    return counter.get_total_flops() / 1e12


@torch.no_grad()
def decode_ms(autoencoder: TinyAutoencoder | WanAutoencoder, repeats: int = 5) -> float:
    """Milliseconds of one later latent on the GPU in bfloat16."""
    height, width = (size // 8 for size in FRAME_SIZE)
    autoencoder = autoencoder.to("cuda", torch.bfloat16)
    autoencoder.decoding_dtype = torch.bfloat16
    latents = torch.randn(1, 16, 1, height, width, device="cuda", dtype=torch.bfloat16)
    cache = tuple(part.to("cuda") for part in autoencoder.init_cache(1, height, width))
    _, cache = autoencoder.decode_pixels(latents, cache)
    return cuda_ms(lambda: autoencoder.decode_pixels(latents, cache), repeats)


def gpu(sizes: Mapping[str, Any] = RELEASED_1_3B, chunk_sizes: Sequence[int] = tuple(DEMANDED)) -> dict[str, Any]:
    """Counts of both forms and of the decoders, floors, and where there is a GPU what was reached of G1-G6."""
    forms, on_gpu = configs(sizes), torch.cuda.is_available()
    results: dict[str, Any] = {"machine": machine(), "peak_tflops": PEAK_TFLOPS, "steps": STEPS, "chunks": {}}
    for n in chunk_sizes:
        entry: dict[str, Any] = {name: count(config, n) for name, config in forms.items()}
        if on_gpu:
            entry["released"] |= measure(forms["released"], chunk_size=n)
            for form, options in FORMS.items():
                entry[form] = measure(forms["own"], chunk_size=n, **options)
        results["chunks"][n] = entry
    results["decode"] = {name: {"tflop": decode_tflop(part)} for name, part in decoders().items()}
    if on_gpu:
        for name, part in decoders().items():
            results["decode"][name]["ms"] = decode_ms(part)
        results["default_chunk_ms"] = REFERENCE_PASSES * measure(forms["released"])["step_ms"]
    results["default_tflop"] = count(forms["released"])["step_tflop"]
    results["history_bytes"] = state_bytes(forms["own"])
    results["demands"] = demands(results)
    return results


def demands(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """G1-G6: what is demanded, the floor that arithmetic sets, and what was reached, None without a GPU."""
    decode, kept = results["decode"], results["history_bytes"] / 1e9
    rows = [row for n, least in DEMANDED.items() if n in results["chunks"] for row in _of_a_chunk(results, n, *least)]
    first = min(results["chunks"])
    chunk, tiny = results["chunks"][first], decode["tiny"]
    floor = STEPS * _floor_ms(chunk["own"]["step_tflop"]) + _floor_ms(tiny["tflop"])
    latency = STEPS * _best(chunk, "step_ms") + tiny["ms"] if "ms" in tiny else None
    what = f"ms from action to picture, {first} latent a chunk, history read beforehand"
    rows.append(_row("G4", what, "≤", 100.0, floor, latency))
    rows.append(_row("G5", "GB of history a world keeps", "≤", 1.1, kept, kept))
    what = "ms to decode a latent with the tiny decoder"
    rows.append(_row("G6", what, "≤", 20.0, _floor_ms(tiny["tflop"]), tiny.get("ms")))
    tiled, whole = decode["wan tiled"], decode["wan"]
    ratio = tiled["ms"] / whole["ms"] if "ms" in whole else None
    what = "Wan's decoder whole against the reference's tiles"
    rows.append(_row("G6", what, "≥", 2.0, tiled["tflop"] / whole["tflop"], ratio))
    return sorted(rows, key=lambda row: row["id"])


def _of_a_chunk(results: Mapping[str, Any], n: int, faster: float, share: float) -> list[dict[str, Any]]:
    """G1 to G3 for chunks of n latents."""
    chunk, decode = results["chunks"][n], results["decode"]
    own, released, tiny, tiled = chunk["own"], chunk["released"], decode["tiny"], decode["wan tiled"]
    pass_ms = _floor_ms(own["step_tflop"])
    ms = _floor_ms(own["once_tflop"]) + STEPS * pass_ms + n * _floor_ms(tiny["tflop"])
    default_ms = _floor_ms(REFERENCE_PASSES * results["default_tflop"]) + CHUNK_SIZE * _floor_ms(tiled["tflop"])
    floors = [released["step_tflop"] / own["step_tflop"], 1.0, 4000 * n / ms, default_ms / CHUNK_SIZE / (ms / n)]
    reached: list[float | None] = [None] * 4
    if "ms" in tiny:
        best = _best(chunk, "step_ms")
        taken = _best(chunk, "once_ms") + STEPS * best + n * tiny["ms"]
        default = results["default_chunk_ms"] + CHUNK_SIZE * tiled["ms"]
        reached = [released["step_ms"] / best, pass_ms / best, 4000 * n / taken, default / CHUNK_SIZE / (taken / n)]
    asked = (
        ("G1", f"forward pass of {n} latents against the released form's", faster),
        ("G2", f"forward pass of {n} latents, share of the floor", share),
        ("G3", f"frames/s at {n} latents a chunk", 20.0),
        ("G3", f"frames/s at {n} latents against the reference's default", 25.0),
    )
    return [
        _row(number, what, "≥", least, floor, value)
        for (number, what, least), floor, value in zip(asked, floors, reached, strict=True)
    ]


def _row(number: str, what: str, sign: str, demanded: float, floor: float, reached: float | None) -> dict[str, Any]:
    return {"id": number, "what": what, "sign": sign, "demanded": demanded, "floor": floor, "reached": reached}


def _best(chunk: Mapping[str, Any], part: str) -> float:
    return min(chunk[form][part] for form in FORMS)


def _floor_ms(tflop: float) -> float:
    return 1000 * tflop / PEAK_TFLOPS


def render_gpu(results: Mapping[str, Any]) -> str:
    """The demands as Markdown."""
    rows = [
        [
            f"{row['id']}: {row['what']}",
            f"{row['sign']} {row['demanded']:g}",
            *map(_shown, (row["floor"], row["reached"])),
        ]
        for row in results["demands"]
    ]
    return table(["what", "demanded", "by arithmetic alone", "measured"], rows)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
