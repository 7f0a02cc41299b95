"""Whether what is learned or planned in imagination works in the simulator, and whether imagination ranks policies.

Every policy of an id acts in the real simulator, in episodes of the same seeds; all that see no more than pictures act
in imagination as well, in episodes that begin from the simulator's own first pictures, and end where the dream is no
longer to be trusted (``IMAGINED_STEPS``). Returns count a solved task as rewarded to the end
(`Evaluation.kept_returns`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from astra_env.envs import ENVIRONMENTS
from astra_env.envs.target_kit import RememberedLift, RememberedPlace
from astra_env.writing import write_json
from benchmarks.runtime import machine
from benchmarks.uncertainty import pearson, spearman
from benchmarks.writing import number, percent, rounded, table
from policies.agents import load_policy
from policies.behaviour_cloning import CONFIG as CLONE_CONFIG
from policies.evaluate import Policy, evaluate
from policies.train import BEST, CHECKPOINTS, CONFIG, POLICY
from policies.worlds import LastInfo, make_imagined, make_real

IN_SIMULATOR_ONLY = ("expert", "mpc")
"""Policies that need to know more than pictures, or that plan in the very world that they would act in."""
FINALS: dict[str, tuple[str, str]] = {
    "imagination": ("learned in imagination", BEST),
    "without_pessimism": ("learned in imagination without pessimism", BEST),
    "simulator": ("learned in the simulator", POLICY),
}
"""Run of an id -> what its policy is called, and which of the run's policies that is."""
IMAGINED_STEPS = {"Astra-RT1-Reach-v0": 12, "Astra-RT1-v0": 12}
"""Id -> steps of an imagined episode, if not as many as of a real one: a dreamt cube goes along with the gripper, a
little with every step."""
SHARES = (0.25, 0.5, 0.75)
"""Of steps at random, which make policies of differing strength of one."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    episodes: int = 30
    planned_episodes: int = 10
    """Of the planner, which takes half a second for an action."""
    seed: int = 7_000_000
    """Of the first episode; recordings, held-out ones and their tests are of other seeds."""


QUICK = Sizes(episodes=2, planned_episodes=1)


def policies(
    runs: Path, ids: Sequence[str], out: Path, sizes: Sizes | None = None, world_model: str = "astra-tiny"
) -> dict[str, Any]:
    """Measure every policy of every id; what ``out`` holds already, of the same setting, is not measured again.

    Args:
        runs: folder of what `astra-policy train` wrote for policies that see latents, ID/imagination and the other
            ``FINALS``, and of what `astra-policy clone` wrote, ID/clone; those of them that are there.
        ids: environment ids.
        out: results file.
        sizes: how much is measured.
        world_model: bundled name or checkpoint folder, whose latents policies see and in which they imagine.
    """
    sizes = sizes or Sizes()
    setting = {**dataclasses.asdict(sizes), "world_model": world_model}
    results: dict[str, Any] = {**setting, "machine": machine(), "environments": {}}
    if out.is_file():
        before = json.loads(out.read_text())
        if all(before.get(name) == value for name, value in setting.items()):
            results["environments"] = before["environments"]
    for environment in ids:
        worlds = _Worlds(environment, world_model)
        told = results["environments"].get(environment, {})
        if told.get("num_steps") != worlds.num_steps:
            told = results["environments"][environment] = {"num_steps": worlds.num_steps, "agents": {}}
        for label, candidate in candidates(runs / environment).items():
            if label not in told["agents"]:
                told["agents"][label] = worlds.measure(candidate, sizes)
                told["ranking"] = ranking(told["agents"])
                write_json(out, rounded(results))
        worlds.close()
        told["runs"] = {kind: _told_of_run(runs / environment / kind) for kind in FINALS}
        write_json(out, rounded(results))
    return rounded(results)


@dataclass(frozen=True)
class Candidate:
    """A policy as `load_policy` names it, which acts at random in a share of its steps."""

    name: str
    random_share: float = 0.0


def candidates(runs: Path) -> dict[str, Candidate]:
    """Label -> policy: what every id has, what was learned, and on the way there; a clone by several shares."""
    found = {"random": Candidate("random"), "scripted expert": Candidate("expert"), "MPC": Candidate("mpc")}
    finals = {label: runs / kind / name for kind, (label, name) in FINALS.items()}
    found |= {label: Candidate(str(path)) for label, path in finals.items() if path.is_file()}
    for kind in ("imagination", "simulator"):
        steps = sorted(int(path.stem) for path in (runs / kind / CHECKPOINTS).glob("*.zip"))
        found |= {f"{kind}, {step} steps": Candidate(str(runs / kind / CHECKPOINTS / f"{step}.zip")) for step in steps}
    if (runs / "clone").is_dir():
        clone = str(runs / "clone")
        found["cloned"] = Candidate(clone)
        found |= {f"cloned, in {round(100 * share)} % of steps at random": Candidate(clone, share) for share in SHARES}
    return found


class Sometimes:
    """A policy that acts at random in a share of its steps, which the seed of an episode decides.

    With ``frames_of``, the world that it acts in, it is shown that world's newest frame instead of a latent.
    """

    def __init__(self, policy: Policy, space: Any, share: float, frames_of: LastInfo | None = None) -> None:
        self.policy, self.space, self.share, self._frames_of = policy, space, share, frames_of

    def reset(self, seed: int | None = None) -> Sometimes:
        """Begin the draws anew."""
        self.policy.reset(seed)
        self.space.seed(seed)
        self._rng = np.random.default_rng(seed)
        return self

    def act(self, observation: Any) -> Any:
        """The policy's action, or one of the space."""
        if self._rng.random() < self.share:
            return self.space.sample()
        return self.policy.act(observation if self._frames_of is None else self._frames_of.info["frames"][-1])


class SameStarts(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An imagined world whose episodes begin as the simulator's of the same seed: picture, speed, path to follow."""

    def __init__(self, imagined: gymnasium.Env[Any, Any], real: gymnasium.Env[Any, Any]) -> None:
        super().__init__(imagined)
        self._real, self._starts = real, dict[int, dict[str, Any]]()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Needs a seed."""
        if seed is None:
            raise ValueError("SameStarts begins as the simulator does for a seed; reset it with one.")
        if seed not in self._starts:
            told = self._real.reset(seed=seed)[1]
            self._starts[seed] = {"image": told["frames"][-1], "speed": told.get("speed"), "path": told.get("path")}
        return self.env.reset(seed=seed, options=self._starts[seed])


class _Worlds:
    """The simulator of an id and its imagined counterpart."""

    def __init__(self, environment: str, world_model: str) -> None:
        self.environment, self._world_model = environment, world_model
        whole = ENVIRONMENTS[environment].max_episode_steps
        self.num_steps = {"simulator": whole, "imagination": IMAGINED_STEPS.get(environment, whole)}
        imagined = make_imagined(
            environment,
            world_model=world_model,
            observation="latent",
            max_episode_steps=self.num_steps["imagination"],
        )
        reward = imagined.get_wrapper_attr("reward_function")
        if isinstance(reward, RememberedPlace):
            reward.slack = 0.0  # in so long a dream, an arm is where pictures alone show it
        if isinstance(reward, RememberedLift):
            reward.shaped = False  # as the simulator's
        self._real = make_real(environment, imagined.get_wrapper_attr("world_model"))
        self._imagined = LastInfo(SameStarts(imagined, self._real))

    def measure(self, candidate: Candidate, sizes: Sizes) -> dict[str, Any]:
        """What a policy comes to in the simulator and, where it can act there, in imagination."""
        name = candidate.name
        episodes = sizes.planned_episodes if name == "mpc" else sizes.episodes
        worlds = {"simulator": self._real}
        if name not in IN_SIMULATOR_ONLY:
            worlds["imagination"] = self._imagined
        told = {}
        for where, world in worlds.items():
            policy = load_policy(name, self.environment, world, world_model=self._world_model)
            frames_of = world if (Path(name) / CLONE_CONFIG).is_file() else None
            policy = Sometimes(policy, world.action_space, candidate.random_share, frames_of)
            told[where] = evaluate(world, policy, episodes, sizes.seed, progress=True).to_json(self.num_steps[where])
        return told

    def close(self) -> None:
        """The simulator's engine, for the next id."""
        self._imagined.close()
        self._real.close()


def ranking(agents: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Correlation of mean returns in imagination and in the simulator over policies.

    The interval is that of policies and of their episodes drawn with replacement. Policies that do the same in every
    episode count once: the best of a run is one of its checkpoints. None of fewer than three, and where all are alike.
    """
    places = ("imagination", "simulator")
    measured = [[told[where]["kept_returns"] for where in places] for told in agents.values() if places[0] in told]
    both = [told for index, told in enumerate(measured) if told not in measured[:index]]
    returns = [[np.array(told[place]) for told in both] for place in range(2)]
    means = [np.array([values.mean() for values in part]) for part in returns]
    if len(both) < 3 or any(np.std(part) == 0 for part in means):
        return None
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(2000):
        chosen = rng.integers(len(both), size=len(both))
        resampled = [[rng.choice(part[index], len(part[index])).mean() for index in chosen] for part in returns]
        if all(np.std(part) > 0 for part in resampled):
            drawn.append(pearson(*map(np.array, resampled)))
    return {
        "policies": len(both),
        "pearson": pearson(*means),
        "pearson_interval": np.quantile(drawn, [0.025, 0.975]).tolist(),
        "spearman": spearman(*means),
        "rank_violation": rank_violation(*means),
    }


def rank_violation(imagined: np.ndarray, real: np.ndarray) -> float:
    """Mean over policies of the largest real difference by which imagination ranks another one wrongly (SIMPLER)."""
    worse = (imagined[:, None] < imagined[None]) != (real[:, None] < real[None])
    return float((np.abs(real[:, None] - real[None]) * worse).max(1).mean())


def _told_of_run(folder: Path) -> dict[str, Any] | None:
    """Its configuration, and how many steps it learned from."""
    if not (folder / CONFIG).is_file():
        return None
    config = json.loads((folder / CONFIG).read_text())
    names = (
        "algorithm",
        "where",
        "observation",
        "episode_steps",
        "num_worlds",
        "gamma",
        "learning_rate",
        "seed",
        "read_by",
        "reward",
        "pessimism",
    )
    steps = max((int(path.stem) for path in (folder / CHECKPOINTS).glob("*.zip")), default=None)
    # the names of folders, not where they lie
    folders = {name: Path(config[name]).name for name in ("read_by", "reward") if config.get(name)}
    return {name: config.get(name) for name in names} | folders | {"steps": steps}


def render_policies(results: dict[str, Any]) -> str:
    """The figures of every id as Markdown."""
    return "\n\n".join(_rendered(name, told) for name, told in results["environments"].items())


def _rendered(name: str, told: dict[str, Any]) -> str:
    rows = []
    for label, agent in told["agents"].items():
        if " steps" in label:  # and what is at random in some of them
            continue  # on the way to what was learned, for the ranking
        real, imagined = agent["simulator"], agent.get("imagination")
        rows.append(
            [
                label,
                f"{percent(real['success_rate'])} {_interval(real['success_interval'], percent)}",
                f"{number(real['mean_kept_return'], 1)} {_interval(real['kept_return_interval'], _tenths)}",
                "–" if imagined is None else number(imagined["mean_kept_return"], 1),
                str(real["episodes"]),
            ]
        )
    steps = told["num_steps"]["imagination"]
    header = ["policy", "success (95 %)", "return (95 %)", f"return in {steps} imagined steps", "episodes"]
    text = f"**{name}**\n\n{table(header, rows)}"
    if told.get("ranking"):
        rank = told["ranking"]
        text += (
            f"\n\n{rank['policies']} policies: r = {number(rank['pearson'])} "
            f"{_interval(rank['pearson_interval'], number)}, ranks {number(rank['spearman'])}."
        )
    return text


def _tenths(value: float) -> str:
    return number(value, 1)


def _interval(ends: Sequence[float], shown: Callable[[float], str]) -> str:
    return f"({shown(ends[0])} to {shown(ends[1])})"
