"""Commands that make data: record, import, cut start states, export."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys

from astra_env.commands import Command
from astra_env.envs import ENVIRONMENTS
from astra_env.flags import add_flags, ask, from_flags, named_value


def _add_collect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("domain", choices=["robot", "driving", "camera", "multicam"], help="what to record")
    parser.add_argument("--out", required=True, help="folder of the episodes; those it has are kept")
    parser.add_argument("--episodes", type=int, default=4000, help="training episodes (%(default)s)")
    parser.add_argument("--heldout", type=int, default=200, help="held-out episodes (%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first training episode (%(default)s)")


def _collect(options: argparse.Namespace) -> None:
    from astra_env.simulators.collect import collect

    manifest = collect(
        options.domain,
        options.out,
        episodes=options.episodes,
        heldout=options.heldout,
        workers=options.workers,
        seed=options.seed,
    )
    print(f"{manifest} describes the episodes beside it.")


def _add_ingest(parser: argparse.ArgumentParser) -> None:
    from astra_env.datasets.columns import ActionColumns
    from astra_env.datasets.ingest import IngestConfig

    parser.add_argument("data", metavar="PATH", help="folder of the recordings, or an address such as hf://datasets/…")
    add_flags(parser, IngestConfig)
    parser.add_argument("--check", action="store_true", help="only report what may be wrong with the recordings")
    parser.add_argument("--yes", action="store_true", help="do not ask whether the overlay video is right")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the format's reader, such as camera=CAM_FRONT; several times if need be",
    )
    add_flags(parser.add_argument_group("what the columns of unknown data mean"), ActionColumns)


def _ingest(options: argparse.Namespace) -> None:
    from astra_env.datasets import ingest
    from astra_env.datasets.columns import ActionColumns
    from astra_env.datasets.reader import Untold

    config = from_flags(ingest.IngestConfig, options)
    told = any(getattr(options, field.name) != field.default for field in dataclasses.fields(ActionColumns))
    columns = from_flags(ActionColumns, options) if told else None
    more = dict(named_value(text) for text in options.option)
    source = ingest.open_source(config, columns, more)
    try:
        source.open()
    except Untold as error:
        if not sys.stdin.isatty():
            raise
        print(f"{error}\nAn empty answer takes what is in brackets.")
        columns = ask(ActionColumns, input)
        source = ingest.open_source(config, columns, more)
    if options.check:
        report, bad = ingest.check(source, limit=config.limit, skip_bad=True)
        print(f"{report.num_clips} recordings, {report.num_frames} frames; {len(bad)} cannot be read")
        for name, values in report.fields.items():
            print(f"  {name}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))
        print("\n".join([*bad.values(), *report.findings]) or "Nothing looks wrong.")
        return

    def confirm(video: object) -> bool:
        if columns is None or options.yes or not sys.stdin.isatty():
            print(f"{video} shows the actions over the pictures: look whether they agree.", file=sys.stderr)
            return True
        return input(f"Look at {video}: do the actions agree with the pictures? [y/N] ").lower().startswith("y")

    manifest = ingest.ingest(config, source, confirm)
    print(f"{manifest} describes the episodes beside it; train with: astra-env train {manifest.parent} --out RUN")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("environment", choices=list(ENVIRONMENTS), help="what to imagine")
    parser.add_argument("--out", required=True, help="folder of the data set; it must not exist")
    parser.add_argument("--format", default="lerobot", choices=["lerobot", "rlds"], help="(%(default)s)")
    parser.add_argument("--episodes", type=int, default=16, help="imagined in one batch (%(default)s)")
    parser.add_argument("--steps", type=int, default=25, help="most steps of an episode (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of starts, noise and random actions (%(default)s)")
    parser.add_argument(
        "--policy", metavar="MODULE:FUNCTION", help="of observations and infos of all worlds to actions"
    )
    parser.add_argument("--world-model", default="astra-tiny", help="bundled name or checkpoint folder (%(default)s)")


def _export(options: argparse.Namespace) -> None:
    from pkgutil import resolve_name

    from astra_env.envs.export import export, imagine_clips

    policy = None if options.policy is None else resolve_name(options.policy)
    clips = imagine_clips(
        options.environment,
        episodes=options.episodes,
        steps=options.steps,
        seed=options.seed,
        policy=policy,
        world_model=options.world_model,
    )
    export(clips, options.out, options.format)
    print(f"{options.out} holds {len(clips)} imagined episodes, {sum(len(clip.frames) for clip in clips)} frames.")


def _add_starts(parser: argparse.ArgumentParser) -> None:
    from astra_env.datasets.recorded import SPLITS

    parser.add_argument("data", metavar="DATA", help="folder of recorded episodes")
    parser.add_argument("--out", required=True, metavar="NPZ", help="file of the clips")
    parser.add_argument("--count", type=int, default=2000, help="clips, of one episode each if there are (%(default)s)")
    parser.add_argument(
        "--split", default="train", choices=SPLITS, help="episodes that they are cut from (%(default)s)"
    )
    parser.add_argument("--frame-size", type=int, help="pixels a side of the world's frames, if not as recorded")


def _starts(options: argparse.Namespace) -> None:
    from pathlib import Path

    from astra_env.training.bundle import start_states
    from astra_env.training.episodes import load_episodes

    limit = max(1, options.count)  # more episodes than clips are not read
    starts = start_states(
        load_episodes(options.data, options.split, limit, frame_size=options.frame_size), options.count
    )
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    starts.save(options.out)
    print(f"{options.out} holds {len(starts)} clips; begin with them: gymnasium.make(ID, start_states={options.out!r})")


COMMANDS: dict[str, Command] = {
    "collect": Command("record episodes in the real simulator (needs: make simulators)", _add_collect, _collect),
    "ingest": Command("check other people's recordings and bring them into our layout", _add_ingest, _ingest),
    "starts": Command("cut clips from recorded episodes for imagined ones to begin from", _add_starts, _starts),
    "export": Command("imagine episodes and write them as a LeRobot or RLDS data set", _add_export, _export),
}
