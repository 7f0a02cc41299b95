"""`astra-bench`: measure a world model and write the figures down."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path("benchmarks/results/first_light.json")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; what goes wrong is told in one sentence."""
    parser = argparse.ArgumentParser(prog="astra-bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    light = commands.add_parser("first-light", help="measure prediction, action following, speed and stability")
    light.add_argument("--data", required=True, help="folder of recorded episodes (astra-env collect robot)")
    light.add_argument("--world-model", default="astra-tiny", help="bundled name or checkpoint folder")
    light.add_argument("--out", type=Path, default=RESULTS, help="results file; pictures are written beside it")
    light.add_argument("--episodes", type=int, help="held-out episodes to use (default: up to 200)")
    light.add_argument("--quick", action="store_true", help="a few of everything, to see that it works")
    light.add_argument("--readme", type=Path, help="Markdown file whose first-light table is replaced")
    report = commands.add_parser("report", help="write the table of earlier results into a Markdown file")
    report.add_argument("--results", type=Path, default=RESULTS)
    report.add_argument("--readme", type=Path, default=Path("README.md"))
    wan = commands.add_parser("backbone", help="count the arithmetic of the 1.3B backbone; time it where a GPU is")
    wan.add_argument("--out", type=Path, default=RESULTS.with_name("backbone.json"))
    options = parser.parse_args(arguments)
    try:
        {"first-light": _first_light, "report": _report, "backbone": _backbone}[options.command](options)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"astra-bench: {error}")


def _first_light(options: argparse.Namespace) -> None:
    # torch loads here, so that --help answers at once
    from benchmarks.first_light import QUICK, Sizes, contact_frames, first_light
    from benchmarks.report import render_table, save_contact_sheet, save_plot, update_readme

    sizes = QUICK if options.quick else Sizes()
    if options.episodes is not None:
        sizes = dataclasses.replace(sizes, episodes=options.episodes)
    results, bench = first_light(options.data, options.world_model, options.out, sizes)
    save_plot(options.out.with_suffix(".png"), results)
    save_contact_sheet(options.out.with_name("contact_sheet.png"), *contact_frames(bench))
    if options.readme is not None:
        update_readme(options.readme, results)
    print(render_table(results))
    print(f"\nWritten: {options.out}, and beside it {options.out.stem}.png and contact_sheet.png.")


def _report(options: argparse.Namespace) -> None:
    from benchmarks.report import save_plot, update_readme

    results = json.loads(options.results.read_text())
    update_readme(options.readme, results)
    save_plot(options.results.with_suffix(".png"), results)
    print(f"{options.readme} shows the figures of {options.results}.")


def _backbone(options: argparse.Namespace) -> None:
    from benchmarks.backbone import backbone

    results = json.dumps(backbone(), indent=2)
    options.out.write_text(results + "\n")
    print(results)


if __name__ == "__main__":
    main()
