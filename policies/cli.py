"""`astra-policy`: learn policies in imagined worlds, clone recorded ones, evaluate any in imagination and for real."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from astra_env.commands import Command, run_command
from astra_env.envs import ENVIRONMENTS
from astra_env.flags import add_flags, from_flags
from astra_env.writing import write_json

# It has to be said before torch loads; see astra_env.cli.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; what a user can put right is told in one sentence, with exit code 2."""
    run_command("astra-policy", str(__doc__), COMMANDS, arguments)


def _add_train(parser: argparse.ArgumentParser) -> None:
    from policies.train import TrainPolicyConfig

    parser.add_argument("environment", choices=list(ENVIRONMENTS), help="in which worlds to learn")
    add_flags(parser, TrainPolicyConfig)


def _train(options: argparse.Namespace) -> None:
    from policies.train import TrainPolicyConfig, train_policy

    policy = train_policy(from_flags(TrainPolicyConfig, options))
    print(f"{policy} has learned; see how it does with: astra-policy evaluate {options.environment} {policy.parent}")


def _add_clone(parser: argparse.ArgumentParser) -> None:
    from policies.behaviour_cloning import CloneConfig

    parser.add_argument("data", metavar="DATA", help="folder of recorded episodes")
    add_flags(parser, CloneConfig)


def _clone(options: argparse.Namespace) -> None:
    from policies.behaviour_cloning import CONFIG, CloneConfig, clone

    folder = clone(from_flags(CloneConfig, options))
    told = json.loads((folder / CONFIG).read_text())
    print(
        f"{folder} errs by {told['heldout_error']:.3f} of half the actions' range on held-out episodes; "
        f"always doing the mean errs by {told['mean_action_error']:.3f}."
    )


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("environment", choices=list(ENVIRONMENTS), help="in which worlds")
    parser.add_argument(
        "policy",
        help="random, expert, mpc (with options: mpc:futures=4,num_samples=16), module:function of an observation, "
        "a zip of Stable-Baselines3, a folder of astra-policy train or clone, or lerobot: and a folder or hub id",
    )
    parser.add_argument("--algorithm", help="of the zip, where its folder does not say: ppo, sac, td3 or dqn")
    parser.add_argument("--observation", choices=("frame", "latent"), help="what the policy sees, if not told")
    parser.add_argument("--episodes", type=int, default=20, help="in imagination, and as many for real (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first episode (%(default)s)")
    parser.add_argument("--simulator", action=argparse.BooleanOptionalAction, help="evaluate in the real one too")
    parser.add_argument("--imagination", action=argparse.BooleanOptionalAction, default=True, help="evaluate there")
    parser.add_argument("--world-model", default="astra-tiny", help="bundled name or checkpoint folder (%(default)s)")
    parser.add_argument("--device", default="cpu", help="of the world model (%(default)s)")
    parser.add_argument("--task", default="", help="what a policy of LeRobot is told, if not what the id describes")
    parser.add_argument("--out", metavar="JSON", help="file to write too")


def _evaluate(options: argparse.Namespace) -> None:
    results = evaluate_both(options)
    print(json.dumps(results, indent=2))
    if options.out:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, results)


def evaluate_both(options: argparse.Namespace) -> dict[str, Any]:
    """What a policy comes to in imagination and in the simulator, as the options ask."""
    from policies.agents import load_policy, policy_observation
    from policies.evaluate import evaluate
    from policies.worlds import make_imagined, make_real

    if not (options.imagination or options.simulator):
        raise ValueError("There is nowhere to evaluate; leave out --no-imagination, or add --simulator.")
    seen = options.observation or policy_observation(options.policy)
    results: dict[str, Any] = {"environment": options.environment, "policy": options.policy, "observation": seen}
    imagined = make_imagined(
        options.environment, world_model=options.world_model, observation=seen, device=options.device
    )
    worlds = {"imagination": imagined} if options.imagination else {}
    if options.simulator:
        world_model: Any = imagined.get_wrapper_attr("world_model") if seen == "latent" else None
        worlds["simulator"] = make_real(options.environment, world_model)
    for name, world in worlds.items():
        policy = load_policy(
            options.policy,
            options.environment,
            world,
            algorithm=options.algorithm,
            task=options.task,
            world_model=options.world_model,
        )
        evaluation = evaluate(world, policy, options.episodes, options.seed, progress=True)
        results[name] = evaluation.to_json(ENVIRONMENTS[options.environment].max_episode_steps)
        world.close()
    return results


COMMANDS: dict[str, Command] = {
    "train": Command("learn a policy in imagined worlds; goes on when called again", _add_train, _train),
    "clone": Command("fit a policy to what was done in recorded episodes", _add_clone, _clone),
    "evaluate": Command("run a policy in imagination and in the simulator", _add_evaluate, _evaluate),
}
