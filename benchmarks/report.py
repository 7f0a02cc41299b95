"""Tables and pictures of the first-light results: a README fragment and a contact sheet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from astra_env.pictures import contact_sheet, write_image
from benchmarks.writing import number, percent, replace_marked, table

CONTACT_STEPS = (0, 1, 2, 4, 6, 8, 10)
NAMES = {
    "true": "imagined, true actions",
    "shuffled": "imagined, another episode's actions",
    "still": "repeat the last frame",
    "ceiling": "autoencoder alone (ceiling)",
}


def render_table(results: dict[str, Any]) -> str:
    """All figures as Markdown."""
    parts = [_open_loop, _following, _sampling, _runtime]
    return "\n\n".join(part(results) for part in parts)


def _open_loop(results: dict[str, Any]) -> str:
    loop = results["open_loop"]
    horizons = [k for k in (1, 2, 5, 10) if k in loop["horizons"]]
    seconds = [f"{k} ({0.2 * k:.1f} s)" for k in horizons]
    index = [loop["horizons"].index(k) for k in horizons]
    text = [f"Open loop on {loop['num_episodes']} held-out episodes, by steps ahead:"]
    rows = []
    for measure, title, digits in (("psnr", "PSNR, dB", 2), ("ssim", "SSIM", 3)):
        for key, name in NAMES.items():
            rows.append([f"{title}: {name}", *(number(loop[measure][key][i], digits) for i in index)])
    rows += [
        [f"PSNR gain over {what}, dB", *(number(loop["psnr"]["true"][i] - loop["psnr"][key][i]) for i in index)]
        for key, what in (("still", "the last frame"), ("shuffled", "another episode's actions"))
    ]
    text.append(table(["", *seconds], rows))
    wins = all(
        loop[measure]["true"][i] > loop[measure][key][i]
        for measure in ("psnr", "ssim")
        for key in ("still", "shuffled")
        for i in range(len(loop["horizons"]))
    )
    verdict = "beat" if wins else "do not beat"
    text.append(
        f"True actions {verdict} both others in PSNR and SSIM at every horizon from 1 to {loop['horizons'][-1]}."
    )
    distances = [[name, *(number(v, 4) for v in loop["perceptual"][key])] for key, name in NAMES.items()]
    headings = [f"{k} ({0.2 * k:.1f} s)" for k in loop["perceptual_horizons"]]
    text.append(table(["EfficientNet-Lite0 distance (less is better)", *headings], distances))
    return "\n\n".join(text)


def _following(results: dict[str, Any]) -> str:
    following, estimator = results["action_following"], results["pose_estimator"]
    rows = []
    for name, entry in following["directions"].items():
        if not entry["num_starts"]:
            rows.append([f"`{name}`", 0, "–", "–", "–", "–"])
            continue
        moved, ideal = entry["mean_displacement"], entry["ideal_displacement"]
        if name[1:] in ("dx", "dy", "dz"):
            distances = [f"{100 * moved:.1f} cm", f"{100 * ideal:.1f} cm"]
        else:
            unit = "" if name.endswith("gripper") else " rad"
            distances = [f"{moved:.2f}{unit}", f"{ideal:.2f}{unit}"]
        rows.append(
            [f"`{name}`", entry["num_starts"], percent(entry["right_way"]), percent(entry["half_way"]), *distances]
        )
    header = ["action, held 1 s", "starts", "right way", "more than half-way", "mean motion", "ideal motion"]
    errors = [
        f"{number(1000 * v, 1)} mm" if unit == "m" else f"{number(v, 3)} rad" if unit == "rad" else number(v, 3)
        for v, unit in zip(estimator["mean_absolute_error_autoencoded"], estimator["units"], strict=True)
    ]
    named = ", ".join(f"{field} {error}" for field, error in zip(estimator["fields"], errors, strict=True))
    note = f"Motion is measured by an estimator trained on recorded frames; its mean held-out error: {named}."
    return "\n\n".join(["Action following:", table(header, rows), note])


def _sampling(results: dict[str, Any]) -> str:
    rows, default = [], results["default_sampling"]
    horizon = results["open_loop"]["horizons"][-1]
    for entry in results["sampling"]:
        steps, scale = entry["num_inference_steps"], entry["guidance_scale"]
        chosen = steps == default["num_inference_steps"] and scale == default["guidance_scale"]
        rows.append(
            [
                f"{steps} step{'s' if steps > 1 else ''}, guidance {scale:g}{' (default)' if chosen else ''}",
                percent(entry["right_way"]),
                percent(entry["half_way"]),
                number(entry["psnr_1"]),
                number(entry[f"psnr_{horizon}"]),
                number(entry["ms_per_env_step"], 1),
            ]
        )
    header = ["sampling", "right way", "more than half-way", "PSNR at 1", f"PSNR at {horizon}", "ms per `env.step()`"]
    return "\n\n".join(["Guidance and denoising steps (translations and gripper):", table(header, rows)])


def _runtime(results: dict[str, Any]) -> str:
    times = [
        [f"{threads} threads" if threads != "1" else "1 thread", number(t["median_ms"], 1), number(t["p95_ms"], 1)]
        for threads, t in results["latency"].items()
    ]
    rollout = results["long_rollout"]
    rows = [
        [f"step {e['step']}", number(e["sharpness"]), number(e["feature_distance"], 3), number(e["latent_std"])]
        for e in rollout["imagined"]
    ]
    rows.append(
        ["real frames", number(rollout["real"]["sharpness"]), number(rollout["real"]["feature_distance"], 3), "–"]
    )
    growth = [value for value in rollout["memory_growth_mb"] if value is not None]
    memory = f"memory grows by at most {max(growth):.1f} MB" if growth else "memory is not measured on this system"
    finite = "all latents are finite" if rollout["finite"] else "some latents are not finite"
    return "\n\n".join(
        [
            "`env.step()` with decoder and reward:",
            table(["", "median, ms", "95th percentile, ms"], times),
            f"Episodes of {rollout['num_steps']} steps under smooth random actions: {finite}, {memory}.",
            table(["", "sharpness", "feature distance to real frames", "latent std"], rows),
        ]
    )


def update_readme(path: str | os.PathLike[str], results: dict[str, Any]) -> None:
    """Replace what stands between the two first-light markers of a Markdown file."""
    replace_marked(path, "first-light", render_table(results))


def save_contact_sheet(path: Path, real: Tensor, imagined: Tensor, scale: int = 2) -> None:
    """PNG with a recorded row above an imagined row for each episode; both uint8 (K, 1 + horizon, H, W, 3)."""
    steps = [step for step in CONTACT_STEPS if step < real.shape[1]]
    pairs = zip(real[:, steps].numpy(), imagined[:, steps].numpy(), strict=True)
    rows = [row for pair in pairs for row in pair]
    named = f"steps {', '.join(map(str, steps))}"
    labels = [f"{side} ({named})" for side in ("recorded", "imagined")] * (len(rows) // 2)
    write_image(path, contact_sheet(rows, labels, scale=scale))
