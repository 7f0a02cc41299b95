"""Record what `astra-env demo` compares imagination with: scripted actions in a simulator, and the robot's goal."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from astra_env.actions import ActionModality
from astra_env.simulators import make_simulator

HOLD = 4  # still chunks before the script, a history with known actions


@dataclass(frozen=True)
class Script:
    """Actions that move one field at a time: (field, share of its bound, chunks); absolute fields hold their value."""

    seed: int  # among the held-out seeds: no training episode starts here
    rows: tuple[tuple[str, float, int], ...]

    def actions(self, modality: ActionModality) -> np.ndarray:
        """Actions (HOLD + N, A), the still ones first."""
        actions = [np.zeros(modality.action_dim, np.float32)] * HOLD
        for name, share, chunks in self.rows:
            index = modality.fields.index(name)
            action = np.zeros(modality.action_dim, np.float32)
            action[index] = share * modality.high[index] if share > 0 else -share * modality.low[index]
            actions += [action] * chunks
        return np.stack(actions)


SCRIPTS: dict[str, Script] = {
    "Astra-RT1-v0": Script(
        1_000_007,
        (
            *((name, 0.8 * sign, 2) for name in ("dx", "dy", "dz", "dyaw") for sign in (1, -1)),
            *((name, 0.8 * sign, 1) for name in ("droll", "dpitch") for sign in (1, -1)),
            ("gripper", 1.0, 2),
            ("gripper", 0.0, 2),
        ),
    ),
    "Astra-NuScenes-v0": Script(
        1_000_001,
        (
            ("acceleration", 0.7, 4),
            ("steering", 0.1, 3),
            ("steering", -0.1, 6),
            ("steering", 0.1, 3),
            ("acceleration", -0.6, 6),
        ),
    ),
    "Astra-Sekai-v0": Script(
        1_000_003,
        (
            ("dz", 0.8, 5),
            *((name, 0.7 * sign, 3) for name in ("dyaw", "dx", "dpitch") for sign in (1, -1)),
            ("dz", -0.8, 4),
        ),
    ),
    "Astra-MultiCam-v0": Script(
        1_000_001,
        (
            *((name, 0.6 * sign, 3) for name in ("dx", "dy", "dz") for sign in (1, -1)),
            ("dyaw", 0.4, 2),
            ("dyaw", -0.4, 2),
        ),
    ),
}
CENTRE = (0.55, 0.0, -0.01)  # where the robot's gripper begins, metres in the base frame
GOAL_MOTION = (0.035, -0.045, -0.03)  # metres a chunk, for three chunks


def record_demonstration(path: str | os.PathLike[str], env_id: str) -> None:
    """Write frames uint8 (4 N + 1, H, W, 3), actions float32 (N, A) and a car's speed where its script begins, in m/s.

    The robot's recording has a goal (H, W, 3) too. The file is an npz.
    """
    simulator: Any = make_simulator(env_id)
    script = SCRIPTS[env_id]
    actions = script.actions(simulator.unwrapped.modality)
    arrays: dict[str, Any] = {"actions": actions}
    first = _begin(simulator, script.seed)
    infos = [simulator.step(action)[4] for action in actions]
    arrays["frames"] = np.concatenate([first[None], *(info["frames"] for info in infos)])
    arrays["speed"] = np.float32(infos[HOLD - 1].get("speed", 0.0))
    if simulator.unwrapped.modality.name == "end_effector":
        _begin(simulator, script.seed)
        for _ in range(3):
            arrays["goal"] = simulator.step(np.array([*GOAL_MOTION, 0, 0, 0, 0], np.float32))[0]
    simulator.close()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    partial = Path(path).with_name("partial-" + Path(path).name)
    np.savez_compressed(partial, allow_pickle=False, **arrays)
    os.replace(partial, path)


def _begin(simulator: Any, seed: int) -> np.ndarray:
    """The frame that the recording starts from; a robot's open gripper is brought to the centre first."""
    frame, info = simulator.reset(seed=seed)
    if simulator.unwrapped.modality.name == "end_effector":
        for _ in range(8):
            action = np.zeros(7, np.float32)
            action[:3] = np.clip(np.array(CENTRE) - info["commanded_pose"][:3, 3], -0.05, 0.05)
            frame, _, _, _, info = simulator.step(action)
    return frame
