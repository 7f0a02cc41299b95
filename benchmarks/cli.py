"""`astra-bench`: measure a world model and write the figures down."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
    large = commands.add_parser("gpu", help="what the 1.3B shape reaches on a GPU; without one, what arithmetic allows")
    large.add_argument("--out", type=Path, default=RESULTS.with_name("gpu.json"), help="results file")
    fast = commands.add_parser(
        "speed", help="time worlds against the reference's arithmetic and other shapes, on a CPU"
    )
    fast.add_argument("--out", type=Path, default=RESULTS.with_name("speed.json"), help="results file")
    fast.add_argument("--quick", action="store_true", help="once of everything, to see that it works")
    fast.add_argument("--readme", type=Path, help="Markdown file whose part about speed is replaced")
    plans = commands.add_parser("planning", help="plan in imagination, act in the real simulator (make simulators)")
    plans.add_argument("--out", type=Path, default=RESULTS.with_name("planning.json"), help="results file")
    plans.add_argument("--episodes", type=int, default=20, help="goals of each task (%(default)s)")
    plans.add_argument("--seed", type=int, default=0, help="of the first goal (%(default)s)")
    plans.add_argument("--world-model", default="astra-tiny", help="bundled name or checkpoint folder")
    doubt = commands.add_parser("uncertainty", help="how well doubt tells the true error, on held-out episodes")
    doubt.add_argument("--data", required=True, nargs="+", type=_pair, help="robot=DIR driving=DIR ...")
    doubt.add_argument("--heads", nargs="+", type=_pair, default=[], help="robot=DIR ... that fit-reward wrote")
    doubt.add_argument("--world-model", default="astra-tiny", help="bundled name or checkpoint folder")
    doubt.add_argument("--out", type=Path, default=RESULTS.with_name("uncertainty.json"), help="results file")
    doubt.add_argument("--save", action="store_true", help="write each domain's calibration into the checkpoint")
    doubt.add_argument("--quick", action="store_true", help="a few of everything, to see that it works")
    clips = commands.add_parser("loading", help="clips a second from video files, against decoding them whole")
    clips.add_argument("--out", type=Path, default=RESULTS.with_name("loading.json"), help="results file")
    clips.add_argument("--readme", type=Path, help="Markdown file whose part about loading is replaced")
    compared = commands.add_parser(
        "policies", help="policies in the real simulator, learned and planned in imagination"
    )
    compared.add_argument("--runs", type=Path, required=True, help="folder of ID/imagination and ID/simulator runs")
    compared.add_argument("--ids", nargs="+", required=True, help="environment ids")
    compared.add_argument("--out", type=Path, default=RESULTS.with_name("policies.json"), help="results file")
    compared.add_argument("--world-model", default="astra-tiny", help="bundled name or checkpoint folder")
    compared.add_argument("--quick", action="store_true", help="a few of everything, to see that it works")
    compared.add_argument("--readme", type=Path, help="Markdown file whose part about policies is replaced")
    learns = commands.add_parser("learning", help="steps a second of PPO, native worlds against SyncVectorEnv")
    learns.add_argument("--out", type=Path, default=RESULTS.with_name("learning.json"), help="results file")
    learns.add_argument("--quick", action="store_true", help="a few of everything, to see that it works")
    _add_domains(commands)
    options = parser.parse_args(arguments)
    run = {
        "first-light": _first_light,
        "report": _report,
        "backbone": _backbone,
        "domains": _domains,
        "speed": _speed,
        "gpu": _gpu,
        "loading": _loading,
        "learning": _learning,
        "planning": _planning,
        "policies": _policies,
        "uncertainty": _uncertainty,
    }
    try:
        run[options.command](options)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"astra-bench: {error}")


def _add_domains(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("domains", help="measure every domain of one world model")
    parser.add_argument("--data", required=True, nargs="+", type=_pair, help="robot=DIR driving=DIR camera=DIR ...")
    parser.add_argument("--world-model", default="astra-tiny", help="bundled name or checkpoint folder")
    parser.add_argument("--out", type=Path, default=RESULTS.with_name("domains.json"), help="results file")
    parser.add_argument("--readme", type=Path, help="Markdown file whose part about the domains is replaced")
    parser.add_argument("--quick", action="store_true", help="a few of everything, to see that it works")
    parser.add_argument("--single", nargs="+", type=_pair, default=[], help="robot=CHECKPOINT ... of one domain each")
    parser.add_argument("--joint", help="checkpoint that is compared with them (default: the world model)")
    parser.add_argument("--teacher", help="checkpoint that the world model was distilled from, to stand beside it")


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (name and separator and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not DOMAIN=PATH")
    return name, value


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


def _domains(options: argparse.Namespace) -> None:
    from benchmarks.domains import QUICK, Checkpoints, Sizes, domains
    from benchmarks.domains_report import render_domains
    from benchmarks.writing import around_markers, replace_marked

    if options.readme is not None:
        around_markers(options.readme, "domains")  # now, not after an hour of measuring
    checkpoints = Checkpoints(options.world_model, options.joint, dict(options.single), options.teacher)
    results = domains(dict(options.data), checkpoints, options.out, QUICK if options.quick else Sizes())
    text = render_domains(results)
    if options.readme is not None:
        replace_marked(options.readme, "domains", text)
    print(text)
    print(f"\nWritten: {options.out}, and pictures beside it.")


def _report(options: argparse.Namespace) -> None:
    from benchmarks.domains_report import render_domains
    from benchmarks.learning import render_learning
    from benchmarks.loading import render_loading
    from benchmarks.planning import render_planning
    from benchmarks.policies import render_policies
    from benchmarks.report import save_plot, update_readme
    from benchmarks.speed_report import render_speed, save_speed_plot
    from benchmarks.uncertainty import render_uncertainty
    from benchmarks.writing import replace_marked

    results = json.loads(options.results.read_text())
    # what only the results of one benchmark have, the part of the Markdown file, and what writes it
    kinds: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
        "num_samples": ("uncertainty", render_uncertainty),
        "domains": ("domains", render_domains),
        "clips_per_s": ("loading", render_loading),
        "sweep": ("speed", render_speed),
        "environments": ("policies", render_policies),
        "observations": ("learning", render_learning),
        "tasks": ("planning", render_planning),
    }
    kind = next((kind for key, kind in kinds.items() if key in results), None)
    if kind is None:
        update_readme(options.readme, results)
        save_plot(options.results.with_suffix(".png"), results)
    else:
        replace_marked(options.readme, kind[0], kind[1](results))
    if "sweep" in results:
        save_speed_plot(options.results.with_suffix(".png"), results)
    print(f"{options.readme} shows the figures of {options.results}.")


def _backbone(options: argparse.Namespace) -> None:
    from benchmarks.backbone import backbone

    results = json.dumps(backbone(), indent=2)
    options.out.write_text(results + "\n")
    print(results)


def _speed(options: argparse.Namespace) -> None:
    from benchmarks.speed import QUICK, Sizes, speed
    from benchmarks.speed_report import render_speed, save_speed_plot
    from benchmarks.writing import around_markers, replace_marked

    if options.readme is not None:
        around_markers(options.readme, "speed")
    results = speed(options.out, QUICK if options.quick else Sizes())
    save_speed_plot(options.out.with_suffix(".png"), results)
    if options.readme is not None:
        replace_marked(options.readme, "speed", render_speed(results))
    print(render_speed(results))
    print(f"\nWritten: {options.out}, and beside it {options.out.stem}.png.")


def _gpu(options: argparse.Namespace) -> None:
    from astra_env.writing import write_json
    from benchmarks.gpu import gpu, render_gpu
    from benchmarks.writing import rounded

    results = gpu()
    write_json(options.out, rounded(results))
    print(render_gpu(results))
    print(f"\nWritten: {options.out}.")


def _uncertainty(options: argparse.Namespace) -> None:
    from benchmarks.uncertainty import QUICK, Sizes, render_uncertainty, uncertainty

    sizes, heads = QUICK if options.quick else Sizes(), dict(options.heads)
    data = dict(options.data)
    results = uncertainty(data, options.world_model, options.out, sizes, heads=heads, save=options.save)
    print(f"{render_uncertainty(results)}\n\nWritten: {options.out}, and beside it {options.out.stem}.png.")


def _planning(options: argparse.Namespace) -> None:
    from benchmarks.planning import planning, render_planning

    print(render_planning(planning(options.out, options.episodes, options.seed, world_model=options.world_model)))
    print(f"\nWritten: {options.out}.")


def _learning(options: argparse.Namespace) -> None:
    from benchmarks.learning import QUICK, Sizes, learning, render_learning

    text = render_learning(learning(options.out, QUICK if options.quick else Sizes()))
    print(f"{text}\n\nWritten: {options.out}.")


def _policies(options: argparse.Namespace) -> None:
    from benchmarks.policies import QUICK, Sizes, policies, render_policies
    from benchmarks.writing import around_markers, replace_marked

    if options.readme is not None:
        around_markers(options.readme, "policies")
    sizes = QUICK if options.quick else Sizes()
    results = policies(options.runs, options.ids, options.out, sizes, options.world_model)
    text = render_policies(results)
    if options.readme is not None:
        replace_marked(options.readme, "policies", text)
    print(f"{text}\n\nWritten: {options.out}.")


def _loading(options: argparse.Namespace) -> None:
    from benchmarks.loading import loading, render_loading
    from benchmarks.writing import around_markers, replace_marked

    if options.readme is not None:
        around_markers(options.readme, "loading")
    text = render_loading(loading(options.out))
    if options.readme is not None:
        replace_marked(options.readme, "loading", text)
    print(f"{text}\n\nWritten: {options.out}.")


if __name__ == "__main__":
    main()
