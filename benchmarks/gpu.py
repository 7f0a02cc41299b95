"""G1-G6: the 1.3B shape at 480 x 832 with random weights, as a GPU should run it.

The arithmetic and the bytes are counted on tensors without storage, and give floors that need no GPU; the times are
measured where there is one, in bfloat16, and are None elsewhere. A chunk is 1, 3 or 9 latents of four frames, denoised
in four Euler steps without guidance. The reference's default is 50 steps with guidance in eight latents a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
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
CHUNK_SIZES = (1, 3, 9)
FORMS: Mapping[str, Mapping[str, Any]] = {
    "eager": {},
    "compiled": {"dynamic": False},
    "graphs": {"dynamic": False, "mode": "reduce-overhead"},
}
"""How our blocks run: options of `torch.compile`; the last one replays CUDA graphs."""


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


def gpu(sizes: Mapping[str, Any] = RELEASED_1_3B, chunk_sizes: tuple[int, ...] = CHUNK_SIZES) -> dict[str, Any]:
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
    chunks, decode, rows = results["chunks"], results["decode"], []

    def add(number: str, what: str, sign: str, demanded: float, floor: float | None, reached: float | None) -> None:
        rows.append(
            {"id": number, "what": what, "sign": sign, "demanded": demanded, "floor": floor, "reached": reached}
        )

    tiny = decode["tiny"]
    for n, least in zip(chunks, (4.0, 2.2, 1.5), strict=False):
        ours, theirs = chunks[n]["own"]["step_tflop"], chunks[n]["released"]["step_tflop"]
        best = _best(chunks[n])
        ratio = None if best is None else chunks[n]["released"]["step_ms"] / best
        add("G1", f"forward pass of {n} latents against the released form's", "≥", least, theirs / ours, ratio)
    for n, share in zip(chunks, (0.30, 0.45, 0.45), strict=False):
        floor = _floor_ms(chunks[n]["own"]["step_tflop"])
        best = _best(chunks[n])
        add(
            "G2",
            f"forward pass of {n} latents, share of the floor",
            "≥",
            share,
            1.0,
            None if best is None else floor / best,
        )
    default = _floor_ms(REFERENCE_PASSES * results["default_tflop"]) + CHUNK_SIZE * _floor_ms(decode["wan"]["tflop"])
    for n in chunks:
        own = chunks[n]["own"]
        floor = _floor_ms(own["once_tflop"] + STEPS * own["step_tflop"]) + n * _floor_ms(tiny["tflop"])
        taken = _chunk_ms(chunks[n], tiny, n)
        add(
            "G3",
            f"frames/s at {n} latents a chunk",
            "≥",
            20.0,
            4000 * n / floor,
            None if taken is None else 4000 * n / taken,
        )
        reached = None
        if taken is not None:
            theirs = results["default_chunk_ms"] + CHUNK_SIZE * decode["wan tiled"]["ms"]
            reached = (theirs / CHUNK_SIZE) / (taken / n)
        add(
            "G3",
            f"frames/s at {n} latents against the reference's default",
            "≥",
            25.0,
            (default / CHUNK_SIZE) / (floor / n),
            reached,
        )
    first = min(chunks)
    best = _best(chunks[first])
    floor = STEPS * _floor_ms(chunks[first]["own"]["step_tflop"]) + _floor_ms(tiny["tflop"])
    latency = None if best is None else STEPS * best + tiny["ms"]
    add("G4", f"ms from action to picture, {first} latent a chunk, history read beforehand", "≤", 100.0, floor, latency)
    add("G5", "GB of history a world keeps", "≤", 1.1, results["history_bytes"] / 1e9, results["history_bytes"] / 1e9)
    add("G6", "ms to decode a latent with the tiny decoder", "≤", 20.0, _floor_ms(tiny["tflop"]), tiny.get("ms"))
    tiled, whole = decode["wan tiled"], decode["wan"]
    ratio = tiled["ms"] / whole["ms"] if "ms" in whole else None
    add("G6", "Wan's decoder whole against the reference's tiles", "≥", 2.0, tiled["tflop"] / whole["tflop"], ratio)
    return rows


def _best(chunk: Mapping[str, Any]) -> float | None:
    times = [chunk[form]["step_ms"] for form in FORMS if form in chunk]
    return min(times) if times else None


def _chunk_ms(chunk: Mapping[str, Any], tiny: Mapping[str, float], num: int) -> float | None:
    best = _best(chunk)
    if best is None:
        return None
    return min(chunk[form]["once_ms"] for form in FORMS) + STEPS * best + num * tiny["ms"]


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
