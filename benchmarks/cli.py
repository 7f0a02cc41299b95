"""`astra-bench`: measure a world model and write the figures down."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from astra_env.commands import Command, run_command
from benchmarks import showing
from benchmarks.showing import RESULTS


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; what a user can put right is told in one sentence, with exit code 2."""
    run_command("astra-bench", str(__doc__), COMMANDS, arguments)


def _add_results(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="results file (%(default)s)")


def _add_world_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--world-model", default="astra-tiny", help="bundled name or checkpoint folder (%(default)s)")


def _add_quick(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="a few of everything, to see that it works")


def _add_readme(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--readme", type=Path, help="Markdown file whose part about these results is replaced")


def _add_domain_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, nargs="+", type=_pair, help="robot=DIR driving=DIR camera=DIR ...")


def _add_first_light(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="folder of recorded episodes (astra-env collect robot)")
    parser.add_argument("--episodes", type=int, help="held-out episodes to use (default: up to 200)")
    _add_world_model(parser)
    _add_results(parser, "first_light")
    _add_quick(parser)
    _add_readme(parser)


def _add_backbone(parser: argparse.ArgumentParser) -> None:
    _add_results(parser, "backbone")


def _add_gpu(parser: argparse.ArgumentParser) -> None:
    _add_results(parser, "gpu")


def _add_speed(parser: argparse.ArgumentParser) -> None:
    _add_results(parser, "speed")
    _add_quick(parser)
    _add_readme(parser)


def _add_planning(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", nargs="+", default=["robot", "camera", "multicam"], help="which (%(default)s)")
    parser.add_argument("--episodes", type=int, default=20, help="goals of each task (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first goal (%(default)s)")
    _add_world_model(parser)
    _add_results(parser, "planning")


def _add_uncertainty(parser: argparse.ArgumentParser) -> None:
    _add_domain_data(parser)
    parser.add_argument("--heads", nargs="+", type=_pair, default=[], help="robot=DIR ... that fit-reward wrote")
    parser.add_argument("--save", action="store_true", help="write each domain's calibration into the checkpoint")
    _add_world_model(parser)
    _add_results(parser, "uncertainty")
    _add_quick(parser)


def _add_inertia(parser: argparse.ArgumentParser) -> None:
    _add_domain_data(parser)
    _add_world_model(parser)
    _add_results(parser, "inertia")
    _add_quick(parser)


def _add_loading(parser: argparse.ArgumentParser) -> None:
    _add_results(parser, "loading")
    _add_readme(parser)


def _add_learning(parser: argparse.ArgumentParser) -> None:
    _add_results(parser, "learning")
    _add_quick(parser)


def _add_recording(parser: argparse.ArgumentParser) -> None:
    _add_world_model(parser)
    _add_results(parser, "recording")
    _add_quick(parser)
    _add_readme(parser)


def _add_play(parser: argparse.ArgumentParser) -> None:
    _add_world_model(parser)
    _add_results(parser, "play")
    _add_quick(parser)
    _add_readme(parser)


def _add_policies(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=Path, required=True, help="folder of ID/imagination, ID/simulator and ID/clone")
    parser.add_argument("--ids", nargs="+", required=True, help="environment ids")
    _add_world_model(parser)
    _add_results(parser, "policies")
    _add_quick(parser)
    _add_readme(parser)


def _add_domains(parser: argparse.ArgumentParser) -> None:
    _add_domain_data(parser)
    parser.add_argument("--single", nargs="+", type=_pair, default=[], help="robot=CHECKPOINT ... of one domain each")
    parser.add_argument("--joint", help="checkpoint that is compared with them (default: the world model)")
    parser.add_argument("--teacher", help="checkpoint that the world model was distilled from, to stand beside it")
    _add_world_model(parser)
    _add_results(parser, "domains")
    _add_quick(parser)
    _add_readme(parser)


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (name and separator and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not DOMAIN=PATH")
    return name, value


def _first_light(options: argparse.Namespace) -> None:
    # torch loads here, so that --help answers at once
    from benchmarks.first_light import QUICK, Sizes, contact_frames, first_light
    from benchmarks.plots import PLOTS
    from benchmarks.report import render_table, save_contact_sheet, update_readme

    sizes = QUICK if options.quick else Sizes()
    if options.episodes is not None:
        sizes = dataclasses.replace(sizes, episodes=options.episodes)
    results, bench = first_light(options.data, options.world_model, options.out, sizes)
    PLOTS["first_light"].write(options.out.with_suffix(".png"), results)
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


def _backbone(options: argparse.Namespace) -> None:
    from benchmarks.backbone import backbone

    results = json.dumps(backbone(), indent=2)
    options.out.write_text(results + "\n")
    print(results)


def _speed(options: argparse.Namespace) -> None:
    from benchmarks.plots import PLOTS
    from benchmarks.speed import QUICK, Sizes, speed
    from benchmarks.speed_report import render_speed
    from benchmarks.writing import around_markers, replace_marked

    if options.readme is not None:
        around_markers(options.readme, "speed")
    results = speed(options.out, QUICK if options.quick else Sizes())
    PLOTS["speed"].write(options.out.with_suffix(".png"), results)
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


def _inertia(options: argparse.Namespace) -> None:
    from benchmarks.inertia import QUICK, Sizes, inertia, render_inertia

    results = inertia(dict(options.data), options.world_model, options.out, QUICK if options.quick else Sizes())
    print(f"{render_inertia(results)}\n\nWritten: {options.out}.")


def _planning(options: argparse.Namespace) -> None:
    from benchmarks.planning import planning, render_planning

    results = planning(options.out, options.episodes, options.seed, options.tasks, options.world_model)
    print(f"{render_planning(results)}\n\nWritten: {options.out}.")


def _learning(options: argparse.Namespace) -> None:
    from benchmarks.learning import QUICK, Sizes, learning, render_learning

    text = render_learning(learning(options.out, QUICK if options.quick else Sizes()))
    print(f"{text}\n\nWritten: {options.out}.")


def _play(options: argparse.Namespace) -> None:
    from benchmarks.play import QUICK, Sizes, play, render_play

    sizes = QUICK if options.quick else Sizes()
    _tell(options, "play", lambda: render_play(play(options.out, sizes, options.world_model)))


def _policies(options: argparse.Namespace) -> None:
    from benchmarks.policies import QUICK, Sizes, policies, render_policies

    sizes = QUICK if options.quick else Sizes()
    run = options.runs, options.ids, options.out, sizes, options.world_model
    _tell(options, "policies", lambda: render_policies(policies(*run)))


def _loading(options: argparse.Namespace) -> None:
    from benchmarks.loading import loading, render_loading

    _tell(options, "loading", lambda: render_loading(loading(options.out)))


def _recording(options: argparse.Namespace) -> None:
    from benchmarks.recording import QUICK, Sizes, recording, render_recording

    sizes = QUICK if options.quick else Sizes()
    _tell(options, "recording", lambda: render_recording(recording(options.out, sizes, options.world_model)))


def _tell(options: argparse.Namespace, part: str, measure: Callable[[], str]) -> None:
    """Print what was measured, and write it into its part of a Markdown file where one is named."""
    from benchmarks.writing import around_markers, replace_marked

    if options.readme is not None:
        around_markers(options.readme, part)  # now, not after an hour of measuring
    text = measure()
    if options.readme is not None:
        replace_marked(options.readme, part, text)
    print(f"{text}\n\nWritten: {options.out}.")


COMMANDS: dict[str, Command] = {
    "first-light": Command("measure prediction, action following, speed and stability", _add_first_light, _first_light),
    "backbone": Command("count the arithmetic of the 1.3B backbone; time it where a GPU is", _add_backbone, _backbone),
    "domains": Command("measure every domain of one world model", _add_domains, _domains),
    "speed": Command("time worlds against the reference's arithmetic and other shapes, on a CPU", _add_speed, _speed),
    "gpu": Command("what the 1.3B shape reaches on a GPU; without one, what arithmetic allows", _add_gpu, _gpu),
    "loading": Command("clips a second from video files, against decoding them whole", _add_loading, _loading),
    "learning": Command("steps a second of PPO, native worlds against SyncVectorEnv", _add_learning, _learning),
    "planning": Command("plan in imagination, act in the real simulator", _add_planning, _planning),
    "play": Command("how long it takes from a key to its picture in the browser", _add_play, _play),
    "recording": Command("what it costs to record: time, bytes, memory of 10,000 steps", _add_recording, _recording),
    "policies": Command("policies in the real simulator, learned and planned in imagination", _add_policies, _policies),
    "inertia": Command("quality and obedience against the length of history", _add_inertia, _inertia),
    "uncertainty": Command("how well doubt tells the true error, on held-out episodes", _add_uncertainty, _uncertainty),
    **showing.COMMANDS,
}


if __name__ == "__main__":
    main()
