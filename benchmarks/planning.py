"""Whether plans made in imagination reach goal pictures in the real simulator, and what they cost.

A goal is the picture after one random action was held for a few steps in the simulator. From the same start an agent
takes a few more steps than that: before each, the imagined world begins anew from all real frames so far, a plan is
made in it, and its first action is taken in the simulator. What counts is the real pose at the end. The agent knows
pictures and the actions it took, and no pose.

Plans are judged in one of three ways: ``pose`` reads the goal's pose off what was really seen last and the picture, as
`astra-env fit-goal` has learned it, and plans lead there; ``picture`` reads off every imagined latent how far it is
from the picture; ``latents`` takes the distance of the latents themselves.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import astra_env  # noqa: F401  registers the ids
from astra_env import geometry
from astra_env.envs.goal_kit import LearnedGoal
from astra_env.envs.reward_kit import PoseGoal
from astra_env.envs.rewards import RewardFunction
from astra_env.models import WorldState
from astra_env.models.goal_model import load_goal_model
from astra_env.simulators import make_simulator
from astra_env.writing import write_json
from benchmarks.runtime import machine
from benchmarks.writing import number, percent, rounded, table
from policies.evaluate import bootstrap_interval, share_interval
from policies.mpc import MPCPolicy
from policies.objectives import Score, mean_reward

HISTORY_STEPS = 2
"""Random actions before the start: their frames are known to the agent."""


@dataclass(frozen=True)
class Task:
    """Goals of one domain: how far away they are made and how near the end has to be."""

    env_id: str
    metres: float
    radians: float = np.inf
    turn: float = 0.3  # radians that weigh as much as `metres` do in a plan; an arm is seen best in the goal's attitude
    goal_steps: int = 3
    extra_steps: int = 3

    def near(self, pose: np.ndarray, goal: np.ndarray) -> bool:
        """Whether a pose (4, 4) is within the limits of another."""
        metres, radians = separation(pose, goal)
        return metres < self.metres and radians < self.radians

    def judge(self, env: Any, newest: np.ndarray, picture: np.ndarray, judged: str) -> RewardFunction | None:
        """What plans from the newest real frame to a picture (H, W, 3) are judged by; None: the world's own goal."""
        if judged == "latents":
            return None
        world = env.unwrapped
        model = load_goal_model(world.folder, world.world_model.device)
        goal = LearnedGoal(model, world.world_model, picture, metres=self.metres, radians=self.turn)
        if judged == "picture":
            return goal
        pose = goal.pose(world.save_state(), newest)[0]
        return PoseGoal(pose, metres=WIDE * self.metres, radians=WIDE * self.turn)


WIDE = 10.0
"""Multiples of the limits within which the reward of a pose falls evenly."""
TASKS = {
    "robot": Task("Astra-RT1-v0", metres=0.03),
    "camera": Task("Astra-Sekai-v0", metres=0.25, radians=0.2, turn=0.2),
    "multicam": Task("Astra-MultiCam-v0", metres=0.25, radians=0.2, turn=0.2),
}

PLAN: dict[str, Any] = {"horizon": 2, "num_samples": 16, "num_iterations": 3}
"""What all planners have in common unless an agent says otherwise."""
PLANNERS: dict[str, dict[str, Any]] = {
    "icem, pose of the goal": {"optimizer": "icem", "judged": "pose"},
    "icem, learned distance": {"optimizer": "icem", "judged": "picture"},
    "icem, distance of latents": {"optimizer": "icem", "judged": "latents"},
}
"""Agent -> how its plans are judged, and options of `MPCPolicy`."""
BUDGETS_MS = (250, 500, 1000, 2000)
BUDGET_PLAN: dict[str, Any] = {"horizon": 2, "num_samples": 16, "num_iterations": 1000, "judged": "pose"}
"""Short rounds, and more of them than any budget has time for."""
BUDGETED = ("icem",)
"""Optimisers that are given less and less time."""


@dataclass(frozen=True)
class Goal:
    """A start in the simulator and a picture to get to."""

    state: dict[str, np.ndarray]  # of the simulator
    frames: np.ndarray  # uint8 (T, H, W, 3) up to the start
    actions: np.ndarray  # float32 (HISTORY_STEPS, A) between them
    picture: np.ndarray  # uint8 (H, W, 3)
    pose: np.ndarray  # (4, 4) where it was taken
    start: np.ndarray  # (4, 4)


@dataclass
class Outcome:
    """How an agent did at one goal."""

    success: bool = False
    metres: float = 0.0
    radians: float = 0.0
    ms: list[float] = field(default_factory=list)  # planning time of each action
    rounds: list[int] = field(default_factory=list)


class Planner:
    """Chooses actions by planning in an imagined world that begins anew from the real frames before each of them.

    Plans are judged by the mean over their steps, so that the earlier one arrives, the better it is.
    """

    def __init__(self, env: gymnasium.Env, seed: int, task: Task, *, judged: str = "latents", **options: Any) -> None:
        self.env, self.task, self.judged = env, task, judged
        self.policy = MPCPolicy(env, **PLAN | options).reset(seed=seed)

    def act(self, frames: np.ndarray, actions: np.ndarray, picture: np.ndarray, outcome: Outcome) -> np.ndarray:
        """The next action towards a picture, after frames (T, H, W, 3) and the actions (N, A) between them."""
        begin = time.perf_counter()
        observation, _ = self.env.reset(seed=0, options={"frames": frames, "actions": actions, "goal": picture})
        judge = self.task.judge(self.env, frames[-1], picture, self.judged)
        self.policy.score = mean_reward if judge is None else judged_by(judge)
        action = self.policy.act(observation)
        outcome.ms.append(1000 * (time.perf_counter() - begin))
        assert self.policy.plan is not None
        outcome.rounds.append(self.policy.plan.num_iterations)
        return action


class RandomActor:
    """What any planner has to beat."""

    def __init__(self, space: gymnasium.spaces.Box, seed: int) -> None:
        self.space, self.rng = space, np.random.default_rng(seed)

    def act(self, *_: Any) -> np.ndarray:
        """A uniform action."""
        return self.rng.uniform(self.space.low, self.space.high).astype(np.float32)


def judged_by(reward: RewardFunction) -> Score:
    """The mean of a reward over the steps of a plan."""

    def score(env: Any, states: Sequence[WorldState], actions: Tensor) -> Tensor:
        return torch.stack([reward(state).value for state in states]).mean(0)

    return score


def separation(pose: np.ndarray, goal: np.ndarray) -> tuple[float, float]:
    """Metres and radians between two poses (4, 4)."""
    turn = geometry.matrix_to_axis_angle(goal[:3, :3].T @ pose[:3, :3])
    return float(np.linalg.norm(pose[:3, 3] - goal[:3, 3])), float(np.linalg.norm(turn))


def make_goal(simulator: Any, task: Task, seed: int) -> Goal:
    """The first goal that a seed leads to which is not already reached where it begins."""
    rng, space = np.random.default_rng(seed), simulator.action_space
    while True:
        _, info = simulator.reset(seed=int(rng.integers(2**31)))
        frames, actions = [info["frames"]], []
        for _ in range(HISTORY_STEPS):
            actions.append(rng.uniform(space.low, space.high).astype(np.float32))
            info = simulator.step(actions[-1])[4]
            frames.append(info["frames"])
        state, start = simulator.get_state(), info["pose"]
        held = rng.uniform(space.low, space.high).astype(np.float32)
        for _ in range(task.goal_steps):
            info = simulator.step(held)[4]
        if not task.near(start, info["pose"]):
            picture = info["frames"][-1]
            return Goal(state, np.concatenate(frames), np.stack(actions), picture, info["pose"], start)


def pursue(simulator: Any, task: Task, goal: Goal, agent: Planner | RandomActor) -> Outcome:
    """One closed loop towards a goal; what counts is where the simulator ends."""
    _, info = simulator.set_state(goal.state)
    frames, actions, outcome = goal.frames, goal.actions, Outcome()
    for _ in range(task.goal_steps + task.extra_steps):
        action = agent.act(frames, actions, goal.picture, outcome)
        info = simulator.step(action)[4]
        frames, actions = np.concatenate([frames, info["frames"]]), np.concatenate([actions, action[None]])
    outcome.metres, outcome.radians = separation(info["pose"], goal.pose)
    outcome.success = task.near(info["pose"], goal.pose)
    return outcome


def planning(
    out: Path, episodes: int = 20, seed: int = 0, tasks: Sequence[str] = tuple(TASKS), world_model: str = "astra-tiny"
) -> dict[str, Any]:
    """Measure all agents on the same goals and write the figures as JSON; other tasks that ``out`` has stay there."""
    if unknown := sorted(set(tasks) - set(TASKS)):
        raise ValueError(f"tasks are {unknown}, expected some of {sorted(TASKS)}.")
    budgeted = {
        f"{name}, {ms} ms": {**BUDGET_PLAN, "optimizer": name, "budget_ms": ms}
        for name in BUDGETED
        for ms in BUDGETS_MS
    }
    results: dict[str, Any] = {
        "episodes": episodes,
        "seed": seed,
        "plan": PLAN,
        "budget_plan": BUDGET_PLAN,
        "machine": machine(),
        "tasks": {},
    }
    before = json.loads(out.read_text()) if out.is_file() else {}
    if all(before.get(name) == results[name] for name in ("episodes", "seed", "plan", "budget_plan")):
        results["tasks"] = before["tasks"]
    for name in tasks:
        task = TASKS[name]
        results["tasks"][name] = {
            "goal_steps": task.goal_steps,
            "steps": task.goal_steps + task.extra_steps,
            "metres": task.metres,
            "radians": task.radians,
            "turn": task.turn,
            **measure(task, world_model, {**PLANNERS, **budgeted}, range(seed, seed + episodes)),
        }
        write_json(out, rounded(results))
    return rounded(results)


def measure(
    task: Task, world_model: str, planners: Mapping[str, dict[str, Any]], seeds: Sequence[int]
) -> dict[str, Any]:
    """Random actions and all planners on one task, one goal a seed."""
    env: Any = gymnasium.make(task.env_id, world_model=world_model)
    simulator: Any = make_simulator(task.env_id)
    goals = [make_goal(simulator, task, seed) for seed in tqdm(seeds, desc=f"goals of {task.env_id}", unit="goal")]
    apart = [separation(goal.start, goal.pose) for goal in goals]
    pairs = list(zip(goals, seeds, strict=True))
    chance = [pursue(simulator, task, goal, RandomActor(simulator.action_space, seed)) for goal, seed in pairs]
    agents = {"random actions": summary(chance)}
    for name, options in planners.items():
        outcomes = []
        for goal, seed in tqdm(pairs, desc=name, unit="goal"):
            outcomes.append(pursue(simulator, task, goal, Planner(env, seed, task, **options)))
        agents[name] = summary(outcomes)
    simulator.close()
    metres, radians = np.median(np.array(apart), axis=0).tolist()
    return {"start_metres": metres, "start_radians": radians, "agents": agents}


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Success with its interval, where agents end, and what an action cost."""
    success, metres = np.array([(outcome.success, outcome.metres) for outcome in outcomes], float).T
    ms = [value for outcome in outcomes for value in outcome.ms]
    rounds = [count for outcome in outcomes for count in outcome.rounds]
    return {
        "success": float(success.mean()),
        "success_interval": list(share_interval(success)),
        "metres": float(metres.mean()),
        "metres_interval": list(bootstrap_interval(metres)),
        "radians": float(np.median([outcome.radians for outcome in outcomes])),
        "median_ms": float(np.median(ms)) if ms else None,
        "p95_ms": float(np.quantile(ms, 0.95)) if ms else None,
        "rounds": float(np.mean(rounds)) if rounds else None,
    }


def render_planning(results: dict[str, Any]) -> str:
    """The figures of every task as Markdown."""
    return "\n\n".join(_rendered(name, task, results["episodes"]) for name, task in results["tasks"].items())


def _rendered(name: str, task: dict[str, Any], episodes: int) -> str:
    within = f"{100 * task['metres']:g} cm" + (f" and {task['radians']:g} rad" if task["radians"] else "")
    head = (
        f"**{name}**: {episodes} goals, {task['goal_steps']} steps of one random action away "
        f"(median {number(100 * task['start_metres'], 1)} cm, {number(task['start_radians'])} rad); "
        f"{task['steps']} steps to end within {within}."
    )
    rows = [
        [
            agent,
            " ".join([percent(row["success"]), _interval(row["success_interval"], percent)]),
            " ".join([number(100 * row["metres"], 1), _interval(row["metres_interval"], lambda m: number(100 * m, 1))]),
            number(row["radians"]),
            number(row["median_ms"], 0),
            number(row["p95_ms"], 0),
            number(row["rounds"], 1),
        ]
        for agent, row in task["agents"].items()
    ]
    header = ["agent", "success (95 %)", "cm at the end (95 %)", "rad", "ms an action", "ms, 95th of 100", "rounds"]
    return f"{head}\n\n{table(header, rows)}"


def _interval(ends: Sequence[float], shown: Callable[[float], str]) -> str:
    return f"({shown(ends[0])} to {shown(ends[1])})"
