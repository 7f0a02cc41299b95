"""The command that shows a world in the browser."""

from __future__ import annotations

import argparse

from astra_env.commands import Command
from astra_env.envs import ENVIRONMENTS


def _add_play(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("environment", choices=list(ENVIRONMENTS), help="what to play")
    parser.add_argument("--host", default="127.0.0.1", help="address to be reached under (%(default)s: from here only)")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first start (%(default)s)")
    parser.add_argument("--out", default="outputs/play", help="folder of what is recorded (%(default)s)")
    parser.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="a function of the observation, or a class that is made with the environment and has act(observation), "
        "such as policies.mpc:MPCPolicy; may be given several times",
    )
    parser.add_argument("--visitors", type=int, default=8, help="most that play at once (%(default)s)")
    parser.add_argument("--world-model", default="astra-tiny", help="bundled name or checkpoint folder (%(default)s)")


def _play(options: argparse.Namespace) -> None:
    import asyncio

    from astra_env.play.server import PlayConfig, serve
    from astra_env.play.world import PlayWorld

    worlds = {"world_model": options.world_model}
    config = PlayConfig(options.environment, worlds, tuple(options.policy), options.out, options.seed, options.visitors)
    PlayWorld(options.environment, options.policy, **worlds)  # what is wrong is told now; the weights stay loaded
    asyncio.run(
        serve(
            config, options.host, options.port, lambda address: print(f"Open {address} (Ctrl+C ends it).", flush=True)
        )
    )


COMMANDS: dict[str, Command] = {
    "play": Command("drive, steer or walk through a world in the browser", _add_play, _play),
}
