"""The README's part about the domains: one table for each question, details of every action folded away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.writing import number, percent, table

HORIZONS = (1, 2, 5, 10)


def render_domains(results: dict[str, Any]) -> str:
    """All figures as Markdown."""
    measured: dict[str, dict[str, Any]] = results["domains"]
    parts = (_open_loop, _denoising, _teacher, _following, _chains, _experts, _joint, _sheets)
    rare = "\n\n".join([*_rare(measured), *_pictures(measured, "rare", "rare and foreign starts")])
    shown = [text for part in parts for text in part(measured)]
    return "\n\n".join([*shown, _folded("Rare actions, obstacles, there and back, pictures of another kind", rare)])


def _open_loop(measured: dict[str, dict[str, Any]]) -> Iterator[str]:
    counts = ", ".join(f"{name} {report['num_episodes']}" for name, report in measured.items())
    yield f"Open loop on held-out episodes ({counts}), by steps of 0.2 s ahead:"
    for measure, unit, digits in (("psnr", "PSNR, dB", 2), ("ssim", "SSIM", 3)):
        rows = []
        for name, report in measured.items():
            loop = report["open_loop"]
            true = loop[measure]["true"]
            lines = {
                "imagined": true,
                "more than the last frame repeated": _gain(true, loop[measure]["still"]),
                "more than under another episode's actions": _gain(true, loop[measure]["shuffled"]),
                "autoencoder alone (ceiling)": loop[measure]["ceiling"],
            }
            for line, values in lines.items():
                at = dict(zip(loop["horizons"], values, strict=True))
                rows.append([f"{name}: {line}", *(number(at.get(k), digits) for k in HORIZONS)])
        figures = table([unit, *map(str, HORIZONS)], rows)
        yield figures if measure == "psnr" else _folded(unit, figures)


def _denoising(measured: dict[str, dict[str, Any]]) -> Iterator[str]:
    rows = []
    for name, report in measured.items():
        entries = {k: v for k, v in report["denoising"].items() if isinstance(v, dict)}
        for num, entry in entries.items():
            at = dict(zip(report["denoising"]["horizons"], entry["psnr"], strict=True))
            row = [f"{name}, {num}", *(number(at.get(k)) for k in HORIZONS), number(entry["sharpness"])]
            rows.append([*row, number(report["denoising"]["sharpness_recorded"])])
    yield "By denoising steps: PSNR in dB, and after the last step the sharpness of imagined and of recorded pictures:"
    yield table(["", *map(str, HORIZONS), "sharpness", "recorded"], rows)


def _teacher(measured: dict[str, dict[str, Any]]) -> Iterator[str]:
    rows = []
    for name, report in measured.items():
        for side, entry in report.get("teacher", {}).items():
            at = dict(zip(entry["horizons"], entry["psnr"], strict=True))
            figures = [*(number(at.get(k)) for k in HORIZONS), number(entry["sharpness"])]
            ways = [percent(entry["right_way"]), percent(entry["half_way"])]
            rows.append([f"{name}, {side} ({entry['num_inference_steps']})", *figures, *ways])
    if rows:
        yield "The bundled student beside its teacher: PSNR in dB, sharpness of the last pictures, actions followed."
        yield table(["", *map(str, HORIZONS), "sharpness", "right way", "more than half-way"], rows)


def _gain(values: list[float], rival: list[float]) -> list[float]:
    return [value - other for value, other in zip(values, rival, strict=True)]


def _following(measured: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield "Action following from held-out starts, the motion told by estimators that were trained on real frames:"
    rows, details = [], []
    for name, report in measured.items():
        entries = {action: entry for action, entry in report["following"].items() if entry["num_starts"]}
        if not entries:
            rows.append([name, 0, "–", "–", "–"])
            continue
        worst = min(entries, key=lambda action: entries[action]["right_way"])
        ways = [entry["right_way"] for entry in entries.values()]
        half = [entry["half_way"] for entry in entries.values()]
        lowest = f"{percent(entries[worst]['right_way'])} (`{worst}`)"
        rows.append([name, len(entries), percent(sum(ways) / len(ways)), lowest, percent(sum(half) / len(half))])
        details += [_action(f"{name} `{action}`", entry) for action, entry in entries.items()]
    yield table(["", "actions", "right way, mean", "right way, least", "more than half-way"], rows)
    header = ["action", "starts", "right way", "more than half-way", "mean motion", "commanded motion"]
    yield _folded("Each action", table(header, details))
    yield "\n".join(f"- {name}: {_trust(report['estimator'])}" for name, report in measured.items())


def _action(label: str, entry: dict[str, Any]) -> list[Any]:
    unit = entry["unit"] if " " not in entry["unit"] else ""
    motion = [f"{number(entry[key], 3)} {unit}".strip() for key in ("mean_displacement", "ideal_displacement")]
    return [label, entry["num_starts"], percent(entry["right_way"]), percent(entry["half_way"]), *motion]


def _trust(estimator: dict[str, Any]) -> str:
    """The estimator's own error in one line."""
    errors = [
        f"{field} {number(real, 3)} / {number(shown, 3)} {unit if ' ' not in unit else ''}".strip()
        for field, real, shown, unit in zip(
            estimator["fields"],
            estimator["mean_absolute_error_real"],
            estimator["mean_absolute_error_autoencoded"],
            estimator["units"],
            strict=True,
        )
    ]
    text = f"the estimator's mean held-out error on real / autoencoded frames is {', '.join(errors)}"
    if "right_sign" not in estimator:
        return text + "."
    signs = ", ".join(map(percent, estimator["right_sign_autoencoded"]))
    return f"{text}; the sign is right in {signs} of the quarter of the pairs that moves most along each."


def _chains(measured: dict[str, dict[str, Any]]) -> Iterator[str]:
    rows = []
    for name, report in measured.items():
        chains = report.get("chains", {"num_windows": 0})
        if not chains["num_windows"]:
            continue
        for frames in ("imagined", "real", "autoencoded", "standing_still"):
            for index, k in enumerate(chains["steps"]):
                errors = [
                    number(chains[frames][key][index], digits) for key, digits in (("rotation", 2), ("translation", 3))
                ]
                rows.append([f"{name}, {frames.replace('_', ' ')} frames, {k} steps", *errors])
    if rows:
        yield (
            "Camera path: the pose estimated along held-out action sequences against the commanded one. On real frames "
            "the error is the estimator's own; a camera that stands still has the last one."
        )
        yield table(["", "RotErr, degrees", "TransErr, m"], rows)


def _experts(measured: dict[str, dict[str, Any]]) -> Iterator[str]:
    num = max(len(report["experts"]) for report in measured.values())
    yield "Experts: mean routing weight over held-out actions."
    header = ["", *(f"expert {index}" for index in range(num))]
    yield table(header, [[name, *map(percent, report["experts"])] for name, report in measured.items()])
    rows, horizons = [], HORIZONS
    for name, report in measured.items():
        for route, entry in report["routing"].items():
            at = dict(zip(entry["horizons"], entry["psnr"], strict=True))
            rows.append([f"{name}, {route}", *(number(at.get(k)) for k in horizons), percent(entry["right_way"])])
    yield "The right routing and wrong ones: PSNR in dB by steps ahead, and actions followed the right way."
    yield table(["", *map(str, horizons), "right way"], rows)


def _joint(measured: dict[str, dict[str, Any]]) -> Iterator[str]:
    compared = {name: report["joint"] for name, report in measured.items() if "joint" in report}
    if not compared:
        return
    rows = []
    for name, entry in compared.items():
        for line in ("joint", "single", "difference"):
            at = dict(zip(entry["horizons"], entry[line], strict=True))
            rows.append([f"{name}, {line}", *(number(at.get(k)) for k in HORIZONS)])
    yield "Joint training against one domain alone at the same budget: PSNR in dB on the same held-out episodes."
    yield table(["", *map(str, HORIZONS)], rows)
    worse = [name for name, entry in compared.items() if not entry["not_worse"]]
    margin = next(iter(compared.values()))["margin_db"]
    verdict = f"worse in {', '.join(worse)}" if worse else "worse in none of these domains"
    yield f"By more than {margin:g} dB joint training is {verdict}."


def _rare(measured: dict[str, dict[str, Any]]) -> Iterator[str]:
    actions, stops, trips, foreign = [], [], [], []
    for name, report in measured.items():
        rare = report["rare"]
        actions += [
            _action(f"{name}, {case}", entry) for case, entry in rare.get("actions", {}).items() if entry["num_starts"]
        ]
        stop = rare.get("stopped", {"num_starts": 0})
        if stop["num_starts"]:
            keys = ("really", "commanded", "imagined", "estimated_on_real_frames")
            stops.append([name, stop["num_starts"], *(number(stop[key]) for key in keys)])
        back = rare["there_and_back"]
        entries = {f"recorded, {e['steps']} steps": e for e in back["recorded"]} | back["held"]
        keys = ("imagined_end", "imagined_farthest", "real_end", "real_farthest")
        trips += [
            [f"{name}, {case}", entry["num_starts"], *(number(entry.get(key), 1) for key in keys)]
            for case, entry in entries.items()
            if entry["num_starts"]
        ]
        foreign += [
            [f"{name} from a {case}", number(entry["sharpness_picture"]), *map(number, entry["sharpness"])]
            for case, entry in rare["foreign"].items()
        ]
    if actions:
        yield "Rare driving:"
        yield table(["", "starts", "right way", "more than half-way", "mean change", "change by kinematics"], actions)
    if stops:
        yield "Where something stops the recording within five steps, metres that are gone:"
        yield table(["", "starts", "really", "commanded", "imagined", "estimated on real frames"], stops)
    if trips:
        yield "There and back: PSNR in dB of the last picture, and of the farthest one, against the first."
        yield table(["", "starts", "imagined end", "imagined farthest", "real end", "real farthest"], trips)
    yield "Worlds that begin from one picture of another kind: sharpness of the picture, and after 1, 5 and 10 steps."
    yield table(["", "picture", "1", "5", "10"], foreign)


def _sheets(measured: dict[str, dict[str, Any]]) -> Iterator[str]:
    return _pictures(measured, "contact_sheet", "real above imagined")


def _pictures(measured: dict[str, dict[str, Any]], key: str, text: str) -> Iterator[str]:
    for name, report in measured.items():
        yield f"{name}, {text}:\n\n![{name}, {text}](benchmarks/results/{report['pictures'][key]})"


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{content}\n\n</details>"
