"""Record episodes from the robot simulator: random, scripted and mixed behaviour, one npz file an episode.

An episode's file names its task and seed: ``RobotSimulator(task).reset(seed=seed)`` and the recorded actions
reproduce it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from astra_env.actions import ACTION_MODALITIES
from astra_env.simulators import CHUNK_FRAMES, FPS, FRAME_SIZE, arm
from astra_env.simulators.behaviours import Behaviour, interrupted

NUM_CHUNKS = 24
HELDOUT_SEED = 1_000_000
"""Seeds of held-out episodes begin this far above those of training episodes."""
BEHAVIOURS: dict[str, float] = {"random": 0.40, "scripted": 0.35, "mixed": 0.25}
TASK_SHARES: dict[str, float] = {"lift": 2 / 3, "stack": 1 / 3}

_MODALITY = ACTION_MODALITIES["end_effector"]
_HIGH = np.array(_MODALITY.high)
_worker_simulators: dict[str, Any] = {}


@dataclass(frozen=True)
class EpisodeJob:
    """One episode to record."""

    path: str
    split: str
    seed: int
    num_chunks: int


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
    """Behaviour by name; with two cubes it also handles the second one at times."""
    if name == "random":
        return random_behaviour(rng)
    cube = int(num_cubes > 1 and rng.random() < 0.35)
    return {"scripted": scripted_behaviour, "mixed": mixed_behaviour}[name](rng, cube)


def record_episode(simulator: Any, name: str, seed: int, num_chunks: int = NUM_CHUNKS) -> dict[str, np.ndarray]:
    """Play one episode from ``reset(seed=seed)``; returns the arrays of its file, but for ``meta``."""
    rng = np.random.default_rng([seed, 1])
    _, info = simulator.reset(seed=seed)
    behaviour = make_behaviour(name, rng, len(info["objects"]))
    infos, actions, rewards = [info], [], [simulator.reward()]
    for _ in range(num_chunks):
        action = _MODALITY.validate(behaviour(infos[-1]), clip=True)
        _, reward, _, _, info = simulator.step(action)
        infos.append(info)
        actions.append(action)
        rewards.append(reward)
    tracks = {
        "frames": "frames",
        "measured_poses": "poses",
        "commanded_poses": "commanded_poses",
        "gripper": "grippers",
        "objects": "object_tracks",
    }
    arrays = {key: np.concatenate([info[track] for info in infos]) for key, track in tracks.items()}
    arrays = {key: value if value.dtype == np.uint8 else value.astype(np.float32) for key, value in arrays.items()}
    success = np.array([info["success"] for info in infos])
    return arrays | {"actions": np.stack(actions), "reward": np.array(rewards, np.float32), "success": success}


def collect(
    out: str | Path,
    *,
    episodes: int = 4000,
    heldout: int = 200,
    workers: int = 2,
    seed: int = 0,
    num_chunks: int = NUM_CHUNKS,
) -> Path:
    """Record ``episodes`` training and ``heldout`` held-out episodes under ``out``; files that exist are kept.

    Returns the path of the manifest ``dataset.json``, which is written when all episodes are there.
    """
    out = Path(out)
    jobs = []
    for split, count, first in (("train", episodes, seed), ("heldout", heldout, HELDOUT_SEED + seed)):
        (out / split).mkdir(parents=True, exist_ok=True)
        paths = [out / split / f"episode_{index:05d}.npz" for index in range(count)]
        jobs += [EpisodeJob(str(p), split, first + i, num_chunks) for i, p in enumerate(paths) if not p.exists()]
    # both splits grow together, so that an interrupted collection is usable
    order = np.random.default_rng(seed).permutation(len(jobs))
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        done = pool.imap_unordered(_run_job, [jobs[i] for i in order])
        for _ in tqdm(done, total=len(jobs), unit="episode", mininterval=5):
            pass
    manifest = out / "dataset.json"
    _write(manifest, json.dumps(_manifest(out, seed, num_chunks), indent=2).encode())
    return manifest


def _run_job(job: EpisodeJob) -> None:
    from astra_env.simulators.robot import TASKS, TEXT, RobotSimulator

    choice = np.random.default_rng([job.seed, 0])
    task = str(choice.choice(list(TASK_SHARES), p=list(TASK_SHARES.values())))
    behaviour = str(choice.choice(list(BEHAVIOURS), p=list(BEHAVIOURS.values())))
    if task not in _worker_simulators:
        _worker_simulators[task] = RobotSimulator(task)
    arrays = record_episode(_worker_simulators[task], behaviour, job.seed, job.num_chunks)
    meta = {
        "task": task,
        "text": TEXT,
        "behaviour": behaviour,
        "seed": job.seed,
        "split": job.split,
        "objects": list(TASKS[task][1]),
        "fps": FPS,
        "chunk_frames": CHUNK_FRAMES,
        "modality": _MODALITY.name,
        "fields": _MODALITY.fields,
        "units": _MODALITY.units,
        "low": _MODALITY.low,
        "high": _MODALITY.high,
        "versions": _versions(),
    }
    temporary = f"{job.path}.{os.getpid()}.tmp"
    with open(temporary, "wb") as file:
        np.savez_compressed(file, meta=np.array(json.dumps(meta)), **arrays)  # type: ignore[arg-type]
    os.replace(temporary, job.path)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("robosuite", "mujoco", "numpy")}


def _manifest(out: Path, seed: int, num_chunks: int) -> dict[str, Any]:
    from astra_env.simulators import robot

    return {
        "counts": {split: len(list((out / split).glob("episode_*.npz"))) for split in ("train", "heldout")},
        "num_chunks": num_chunks,
        "chunk_frames": CHUNK_FRAMES,
        "fps": FPS,
        "frame_size": FRAME_SIZE,
        "camera": robot.CAMERA | {"field_of_view": robot.FIELD_OF_VIEW},
        "workspace_m": [arm.WORKSPACE_LOW.tolist(), arm.WORKSPACE_HIGH.tolist()],
        "max_tilt_rad": arm.MAX_TILT,
        "max_yaw_rad": arm.MAX_YAW,
        "behaviours": BEHAVIOURS,
        "tasks": TASK_SHARES,
        "first_seeds": {"train": seed, "heldout": HELDOUT_SEED + seed},
        "modality": {key: value for key, value in asdict(_MODALITY).items() if key != "keys"},
        "versions": _versions(),
    }


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
