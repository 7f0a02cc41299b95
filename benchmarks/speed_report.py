"""What `astra-bench speed` found, as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.writing import number, table


def render_speed(results: dict[str, Any]) -> str:
    """The demands and the sweep as Markdown."""
    rows = [
        [
            f"{row['id']}: {row['what']}",
            f"{row['sign']} {row['demanded']:g}",
            number(row["reached"]),
            number(row["compiled"]) if row.get("compiled") else "",
            _met(row),
        ]
        for row in results["demands"]
    ]
    native, other = results["sweep"]["native"], results["sweep"]["vectorisation"]
    sweep = [
        [
            num,
            *(
                number(native[key][index], digits)
                for key, digits in (
                    ("frame_ms", 1),
                    ("frame_frames_per_s", 0),
                    ("latent_ms", 1),
                    ("latent_frames_per_s", 0),
                )
            ),
        ]
        for index, num in enumerate(native["worlds"])
    ]
    header = ["worlds", "ms a step", "frames/s", "ms a step, latents", "frames/s, latents"]
    wall = ", ".join(f"{name} {number(ms, 0)} ms" for name, ms in other["wall_ms"].items())
    chunks = [
        [n, number(ms, 1), number(4000 * int(n) / ms, 0), number(200 * int(n), 0)]
        for n, ms in results["sweep"]["chunk_ms"].items()
    ]
    seen = ", ".join(f"{number(ms, 1)} ms after {n}" for n, ms in results["sweep"]["history_ms"].items())
    return "\n\n".join(
        [
            table(["what", "demanded", "reached", "compiled", "met"], rows),
            table(header, sweep),
            f"{other['worlds']} worlds, a step on the clock: {wall}.",
            table(["latents a chunk", "ms a step", "frames/s", "ms of video an action is held for"], chunks),
            f"A step by the latents that the world has seen: {seen}.",
        ]
    )


def _met(row: dict[str, Any]) -> str:
    if row["met"]:
        return "yes"
    return "compiled" if (row.get("compiled") or 0) >= row["demanded"] else "no"
