"""Commands of `astra-bench` that show what was measured before: Markdown, plots, one HTML page."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from astra_env.commands import Command

RESULTS = Path("benchmarks/results")


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, default=RESULTS / "first_light.json", help="what a benchmark wrote")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="Markdown file (%(default)s)")


def _report(options: argparse.Namespace) -> None:
    from benchmarks.domains_report import render_domains
    from benchmarks.inertia import render_inertia
    from benchmarks.learning import render_learning
    from benchmarks.loading import render_loading
    from benchmarks.planning import render_planning
    from benchmarks.play import render_play
    from benchmarks.plots import PLOTS
    from benchmarks.policies import render_policies
    from benchmarks.recording import render_recording
    from benchmarks.report import render_table
    from benchmarks.speed_report import render_speed
    from benchmarks.uncertainty import render_uncertainty
    from benchmarks.writing import replace_marked

    results = json.loads(options.results.read_text())
    # what only the results of one benchmark have, the part of the Markdown file, and what writes it
    kinds: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
        "num_samples": ("uncertainty", render_uncertainty),
        "lengths": ("inertia", render_inertia),
        "domains": ("domains", render_domains),
        "clips_per_s": ("loading", render_loading),
        "sweep": ("speed", render_speed),
        "environments": ("policies", render_policies),
        "observations": ("learning", render_learning),
        "tasks": ("planning", render_planning),
        "key_to_picture": ("play", render_play),
        "streamed": ("recording", render_recording),
        "open_loop": ("first-light", render_table),
    }
    kind = next((kind for key, kind in kinds.items() if key in results), None)
    if kind is None:
        raise ValueError(f"{options.results} is shown by no table; expected one of the results {sorted(kinds)}.")
    part, render = kind
    replace_marked(options.readme, part, render(results))
    if part in ("first-light", "speed"):
        PLOTS[part.replace("-", "_")].write(options.results.with_suffix(".png"), results)
    print(f"{options.readme} shows the figures of {options.results}.")


def _add_plots(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of results files (%(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the PNG files (default: that of the results)")


def _plots(options: argparse.Namespace) -> None:
    from benchmarks.plots import write_plots

    for path in write_plots(options.results, options.out or options.results):
        print(path)


def _add_html(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of results files (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/report.html"), help="the page (%(default)s)")


def _html(options: argparse.Namespace) -> None:
    from benchmarks.html_report import write_html

    write_html(options.results, options.out)
    print(f"{options.out} opens in any browser, without a network.")


COMMANDS: dict[str, Command] = {
    "report": Command("write the table of earlier results into a Markdown file", _add_report, _report),
    "plots": Command("draw earlier results into PNG files", _add_plots, _plots),
    "html": Command("write all earlier results, plots and contact sheets into one HTML page", _add_html, _html),
}
