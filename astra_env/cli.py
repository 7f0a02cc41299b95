"""`astra-env`: list the environments, watch the demo, imagine and check episodes, record real ones, train a world."""

from __future__ import annotations

import argparse
import os
import typing
from collections.abc import Sequence

from astra_env.commands import Command, data, play, run_command, training
from astra_env.envs import ENVIRONMENTS

# Spinning OpenMP threads slow a small model down many times over on a machine that does anything else; it has to
# be said before torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

PICTURE = 320
"""Pixels of the longer side of a rollout's pictures, where its frames are not larger."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; what a user can put right is told in one sentence, with exit code 2."""
    run_command("astra-env", str(__doc__), COMMANDS, arguments)


def _list(options: argparse.Namespace) -> None:
    from astra_env.envs.describe import describe
    from astra_env.models.checkpoint import BUNDLED

    for name in ENVIRONMENTS:
        print(describe(name))
    names = sorted(config.parent.name for config in BUNDLED.glob("*/config.json"))
    print(f"Bundled world models: {', '.join(names) or 'none'}")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="outputs/demo", help="folder for demo.mp4 and the .rrd files (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="noise of the world and of the planner (%(default)s)")
    parser.add_argument("--world-model", default="astra-tiny", help="bundled name or checkpoint folder (%(default)s)")


def _demo(options: argparse.Namespace) -> None:
    from astra_env.demo import run_demo

    run_demo(options.out, seed=options.seed, world_model=options.world_model)


def _add_rollout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("environment", choices=list(ENVIRONMENTS), help="what to imagine")
    parser.add_argument("--steps", type=int, default=25, help="most steps (%(default)s)")
    parser.add_argument("--hold", type=int, default=3, help="steps that each random action is held for (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the start, the noise and the actions (%(default)s)")
    parser.add_argument("--world-model", default="astra-tiny", help="bundled name or checkpoint folder (%(default)s)")
    parser.add_argument("--record", metavar="EPISODE", help="file that `astra-env replay` can check")
    parser.add_argument("--video", metavar="FILE", help="MP4 or GIF of the frames, with the actions below them")
    parser.add_argument("--contact-sheet", metavar="PNG", help="one picture of up to 20 moments with their actions")


def _rollout(options: argparse.Namespace) -> None:
    import gymnasium

    import astra_env  # noqa: F401  registers the ids
    from astra_env.envs.episode import record_episode

    env: typing.Any = gymnasium.make(options.environment, world_model=options.world_model)
    env.action_space.seed(options.seed)
    samples = [env.action_space.sample() for _ in range(options.steps)]
    held = [samples[step - step % max(1, options.hold)] for step in range(options.steps)]
    actions, frames = iter(held), []
    episode = record_episode(
        env,
        lambda observation, info: next(actions),
        options.steps,
        seed=options.seed,
        watch=lambda info: frames.append(info["frames"]),
    )
    print(f"{len(episode)} steps of {options.environment}, reward {episode.rewards.sum():.3f} in all")
    if options.record:
        episode.save(options.record)
        print(f"{options.record} can be checked with: astra-env replay {options.record}")
    if options.video or options.contact_sheet:
        chunks = [frames[0][-1:], *frames[1:]]  # of the start, its newest frame
        physical = [env.unwrapped.physical(action, ()) for action in episode.actions]
        _write_pictures(options, env.unwrapped, chunks, [None, *physical])


def _write_pictures(options: argparse.Namespace, worlds: typing.Any, chunks: list, actions: list) -> None:
    """What was seen, chunk by chunk (T, H, W, 3), and the action (A,) or None that led to each, as files."""
    import numpy as np

    from astra_env.envs.env import frame_rate
    from astra_env.pictures import contact_sheet, enlarged, with_action, write_image
    from astra_env.video import write_video

    modality = worlds.action_modality
    shown = [
        with_action(enlarged(chunk, PICTURE), modality, action) for chunk, action in zip(chunks, actions, strict=True)
    ]
    if options.video:
        write_video(options.video, [frame for chunk in shown for frame in chunk], frame_rate(worlds))
        print(f"{options.video} shows it.")
    if options.contact_sheet:
        moments = np.unique(np.linspace(0, len(shown) - 1, min(len(shown), 20)).round().astype(int))
        rows = np.split(moments, range(5, len(moments), 5))
        labels = ["steps " + ", ".join(map(str, row)) for row in rows]
        write_image(options.contact_sheet, contact_sheet([np.stack([shown[i][-1] for i in r]) for r in rows], labels))
        print(f"{options.contact_sheet} shows it at a glance.")


def _add_replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("episode", metavar="EPISODE", help="file that `astra-env rollout --record` wrote")
    parser.add_argument("--world-model", help="its world model, if it is not where it was")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.05,
        help="root mean square by which latents may differ on another machine (%(default)s)",
    )


def _replay(options: argparse.Namespace) -> None:
    import astra_env  # noqa: F401  registers the ids
    from astra_env.envs.episode import Episode, replay_episode

    episode = Episode.load(options.episode)
    replay = replay_episode(episode, world_model=options.world_model)
    if replay.first_difference is None:
        print(f"All {len(episode) + 1} states are the recorded ones, bit by bit.")
        return
    worst = float(replay.deviations.max())
    place = (
        f"state {replay.first_difference} of {len(episode)} is the first that differs, latents by {worst:.2g} at most"
    )
    if replay.same_machine:
        raise ValueError(f"{place}, though this machine is like the one of the recording; something has changed.")
    if worst > options.tolerance:
        raise ValueError(f"{place}, which is more than {options.tolerance:g}, on another machine than the recording's.")
    print(f"On another machine than the recording's, {place}: within {options.tolerance:g}.")


def _add_nothing(parser: argparse.ArgumentParser) -> None:
    """For commands without options."""


COMMANDS: dict[str, Command] = {
    "list": Command("print the environments, their actions and the bundled worlds", _add_nothing, _list),
    "demo": Command("imagine scripted actions and a plan; write an MP4 and Rerun recordings", _add_demo, _demo),
    "rollout": Command(
        "imagine random actions; write a video, a contact sheet, an episode file", _add_rollout, _rollout
    ),
    "replay": Command("check that an episode comes again, bit by bit", _add_replay, _replay),
    **play.COMMANDS,
    **data.COMMANDS,
    **training.COMMANDS,
}
