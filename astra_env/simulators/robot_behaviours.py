"""How the recorded robot arm is moved: at random, towards cubes, pushing them, and mixtures of these.

Every behaviour is a function from the simulator's last ``info`` to an action (7,), which may leave the bounds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from astra_env.actions import ACTION_MODALITIES
from astra_env.simulators import arm
from astra_env.simulators.behaviours import Behaviour, interrupted

BEHAVIOURS: dict[str, float] = {"random": 0.40, "scripted": 0.35, "mixed": 0.25}
"""Name -> share of episodes."""

_HIGH = np.array(ACTION_MODALITIES["end_effector"].high)


def random_behaviour(rng: np.random.Generator) -> Behaviour:
    """A smooth random walk over all axes, broken by stretches that hold one axis, with a gripper that switches."""
    walk, closed, hold, axis_action = np.zeros(6), float(rng.random() < 0.3), 0, np.zeros(6)
    agility, drift = rng.uniform(0.3, 0.8), rng.uniform(0.5, 1.0)

    def act(info: dict[str, Any]) -> np.ndarray:
        nonlocal walk, closed, hold, axis_action
        if rng.random() < 0.2:
            closed = float(rng.choice([0.0, 1.0, rng.random()], p=[0.45, 0.45, 0.1]))
        walk = (1 - agility) * walk + drift * np.sqrt(agility) * rng.normal(size=6)
        if hold == 0 and rng.random() < 0.2:
            hold, axis_action = int(rng.integers(2, 6)), np.zeros(6)
            axis_action[rng.integers(6)] = rng.choice([-1, 1]) * rng.choice([1.0, rng.uniform(0.3, 1.0)])
        hold = max(hold - 1, 0)
        motion = axis_action if hold else np.clip(walk, -1, 1)
        return np.append(motion * _HIGH[:6], closed)

    return act


def scripted_behaviour(rng: np.random.Generator, cube: int = 0) -> Behaviour:
    """Reach for a cube, grasp it, lift it and carry it about; sometimes let it go and begin again."""
    phase, count, noise = "reach", 0, rng.uniform(0.0, 0.25)
    goal = np.zeros(3)
    upright = rng.random() < 0.8

    def act(info: dict[str, Any]) -> np.ndarray:
        nonlocal phase, count, goal
        position, target = info["pose"][:3, 3], info["objects"][cube]
        offset = target - position
        near = float(np.linalg.norm(offset[:2]))
        count += 1
        if phase == "reach" and near < 0.015 and offset[2] > -0.10:
            phase, count = "descend", 0
        elif phase == "descend" and near > 0.035:
            phase, count = "reach", 0
        elif phase == "descend" and abs(offset[2]) < 0.012:
            phase, count = "close", 0
        elif phase == "close" and count >= 2:
            phase, count, goal = "carry", 0, position + rng.uniform((-0.04, -0.04, 0.08), (0.04, 0.04, 0.13))
        elif phase == "carry" and (np.linalg.norm(offset) > 0.05 or (count > 3 and rng.random() < 0.06)):
            phase, count = "release", 0
        elif phase == "carry" and np.linalg.norm(goal - position) < 0.02:
            goal = rng.uniform(arm.WORKSPACE_LOW + np.array([0, 0, 0.04]), arm.WORKSPACE_HIGH)
        elif phase == "release" and count >= 3:
            phase, count = "reach", 0
        motion = _scripted_motion(phase, offset, goal - position, near)
        rpy = arm.wrist_rpy(info["pose"])
        turn = np.clip(-rpy, -0.25, 0.25) if upright or phase in ("reach", "descend") else np.zeros(3)
        action = np.concatenate([motion, turn, [float(phase in ("close", "carry"))]])
        if phase in ("reach", "carry"):
            action[:6] += noise * rng.normal(size=6) * _HIGH[:6]
        return action

    return act


def _scripted_motion(phase: str, offset: np.ndarray, to_goal: np.ndarray, near: float) -> np.ndarray:
    if phase == "reach":
        height = 0.06 if near > 0.02 else 0.03
        return offset + np.array([0, 0, height])
    if phase == "descend":
        return offset
    if phase == "carry":
        return to_goal
    return np.array([0.0, 0.0, 0.04 if phase == "release" else 0.0])


def reach_behaviour(info: dict[str, Any]) -> np.ndarray:
    """Go to the red cube from above with an open gripper, and stay there; nothing is drawn."""
    offset = info["objects"][0] - info["pose"][:3, 3]
    above = np.linalg.norm(offset[:2]) > 0.02
    turn = np.clip(-arm.wrist_rpy(info["pose"]), -0.25, 0.25)
    return np.concatenate([offset + np.array([0.0, 0.0, 0.06 * above]), turn, [0.0]])


def push_behaviour(rng: np.random.Generator, cube: int = 0) -> Behaviour:
    """Go down beside a cube with a closed gripper and push it across the table."""
    angle = rng.uniform(-np.pi, np.pi)
    direction = np.array([np.cos(angle), np.sin(angle), 0.0])
    pushing = False

    def act(info: dict[str, Any]) -> np.ndarray:
        nonlocal angle, direction, pushing
        position, target = info["pose"][:3, 3], info["objects"][cube]
        beside = target - 0.075 * direction
        away = np.linalg.norm((beside - position)[:2])
        if not pushing:
            height = 0.09 if away > 0.02 else 0.0
            pushing = bool(away < 0.02 and position[2] - target[2] < 0.02)
            motion = beside + np.array([0, 0, height]) - position
        else:
            motion = 0.04 * direction
            if rng.random() < 0.12:
                angle = rng.uniform(-np.pi, np.pi)
                direction, pushing = np.array([np.cos(angle), np.sin(angle), 0.0]), False
                motion = np.array([0.0, 0.0, 0.05])
        return np.concatenate([motion, 0.2 * rng.normal(size=3) * _HIGH[3:6], [1.0]])

    return act


def mixed_behaviour(rng: np.random.Generator, cube: int = 0) -> Behaviour:
    """Scripted or pushing behaviour that random bursts interrupt, or random behaviour that turns purposeful."""
    purposeful = push_behaviour(rng, cube) if rng.random() < 0.35 else scripted_behaviour(rng, cube)
    erratic = random_behaviour(rng)
    first = int(rng.integers(4, 12)) if rng.random() < 0.4 else 0
    return interrupted(purposeful, erratic, rng, (2, 6), first=first)


def make_behaviour(name: str, rng: np.random.Generator, num_cubes: int) -> Behaviour:
    """Behaviour by one of the names in ``BEHAVIOURS``; with two cubes it also handles the second one at times."""
    if name == "random":
        return random_behaviour(rng)
    cube = int(num_cubes > 1 and rng.random() < 0.35)
    return {"scripted": scripted_behaviour, "mixed": mixed_behaviour}[name](rng, cube)
