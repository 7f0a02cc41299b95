"""Record what `astra-env demo` compares imagination with: a scripted action sequence and a goal, in the simulator."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from astra_env.simulators import make_simulator

SEED = 1_000_007  # among the held-out seeds: no training episode starts here
HOLD = 4  # still chunks before the script, a history with known actions
SCRIPT = (
    # (field, share of its bound, chunks); the gripper field is absolute
    ("dx", 0.8, 2),
    ("dx", -0.8, 2),
    ("dy", 0.8, 2),
    ("dy", -0.8, 2),
    ("dz", 0.8, 2),
    ("dz", -0.8, 2),
    ("dyaw", 0.8, 2),
    ("dyaw", -0.8, 2),
    ("droll", 0.8, 1),
    ("droll", -0.8, 1),
    ("dpitch", 0.8, 1),
    ("dpitch", -0.8, 1),
    ("gripper", 1.0, 2),
    ("gripper", 0.0, 2),
)
CENTRE = (0.55, 0.0, -0.01)  # where the gripper begins, metres in the base frame
GOAL_MOTION = (0.035, -0.045, -0.03)  # metres a chunk, for three chunks


def record_demonstration(path: str | os.PathLike[str]) -> None:
    """Write frames uint8 (4 N + 1, H, W, 3), actions float32 (N, 7) and the goal picture uint8 (H, W, 3) to an npz."""
    simulator = make_simulator("Astra-RT1-v0")
    fields = simulator.unwrapped.modality.fields  # type: ignore[attr-defined]
    high = simulator.action_space.high  # type: ignore[attr-defined]

    def begin() -> np.ndarray:
        """Bring the gripper to the centre, open; the frame that the recording starts from."""
        _, info = simulator.reset(seed=SEED)
        for _ in range(8):
            action = np.zeros(7, np.float32)
            action[:3] = np.clip(np.array(CENTRE) - info["commanded_pose"][:3, 3], -high[:3], high[:3])
            frame, _, _, _, info = simulator.step(action)
        return frame

    script = [np.zeros(7, np.float32) for _ in range(HOLD)]
    for field, share, chunks in SCRIPT:
        action = np.zeros(7, np.float32)
        action[fields.index(field)] = share * high[fields.index(field)]
        script += [action] * chunks
    first = begin()
    frames = [first[None]] + [simulator.step(action)[4]["frames"] for action in script]
    begin()
    for _ in range(3):
        goal = simulator.step(np.array([*GOAL_MOTION, 0, 0, 0, 0], np.float32))[0]
    simulator.close()
    partial = Path(path).with_name("partial-" + Path(path).name)
    np.savez_compressed(partial, frames=np.concatenate(frames), actions=np.stack(script), goal=goal)
    os.replace(partial, path)
