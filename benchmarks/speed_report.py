"""What `astra-bench speed` found, as Markdown and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.writing import new_figure, number, table, write_figure


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


def save_speed_plot(path: Path, results: dict[str, Any]) -> None:
    """Frames a second and time per world, by number of worlds."""
    native = results["sweep"]["native"]
    figure = new_figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    for observation, style, name in (("frame", "o-C0", "pictures"), ("latent", "s-C1", "latents")):
        left.plot(native["worlds"], native[f"{observation}_frames_per_s"], style, label=name, markersize=4)
        times = [ms / num for num, ms in zip(native["worlds"], native[f"{observation}_ms"], strict=True)]
        right.plot(native["worlds"], times, style, label=name, markersize=4)
    left.set(ylabel="frames a second, all worlds together")
    right.set(ylabel="ms a step and world")
    for axes in (left, right):
        axes.set(xlabel="worlds in one batch", xscale="log", ylim=(0, None))
        axes.set_xticks(native["worlds"], [str(num) for num in native["worlds"]])
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    write_figure(path, figure)
