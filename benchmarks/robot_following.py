"""Whether the imagined arm follows single actions, measured by the estimator of the gripper's pose."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astra_env.actions import ACTION_MODALITIES
from benchmarks.imagination import Bench, begin
from benchmarks.pose_estimator import displacement, load_poses

FOLLOW_STEPS, FOLLOW_SHARE = 5, 0.8
"""A single-axis action is held for so many steps, at this share of its bound."""
ROOM = (0.04, 0.04, 0.04, 0.2, 0.2, 0.2, 0.7)
"""How far a start is from the workspace's end in the direction of the action: metres, radians, gripper."""
DIRECTIONS = {
    ("+" if sign > 0 else "-") + field: (axis, sign)
    for axis, field in enumerate(ACTION_MODALITIES["end_effector"].fields)
    for sign in (1, -1)
}
"""+dx, -dx and so on -> axis and sign; +gripper closes."""


@dataclass(frozen=True)
class Workspace:
    """Where the gripper was and may be."""

    vectors: Tensor  # (E, 4 N + 1, 7) measured poses of the held-out episodes
    low: Tensor  # (7,) ends of the workspace in the fields of a pose
    high: Tensor


def load_workspace(data: str | os.PathLike[str], episodes: int) -> Workspace:
    """Read what the held-out split and the manifest of a robot's data set tell."""
    manifest = json.loads((Path(data) / "dataset.json").read_text())
    if "workspace_m" not in manifest:
        raise ValueError(f"{Path(data) / 'dataset.json'} names no workspace_m; expected a recording of the robot.")
    turn = [manifest["max_tilt_rad"], manifest["max_tilt_rad"], manifest["max_yaw_rad"]]
    low = torch.tensor([*manifest["workspace_m"][0], *(-angle for angle in turn), 0.0])
    high = torch.tensor([*manifest["workspace_m"][1], *turn, 1.0])
    return Workspace(load_poses(data, "heldout", episodes), low, high)


@dataclass(frozen=True)
class RobotFollower:
    """Holds one axis of the action at a time and measures where the imagined gripper goes."""

    workspace: Workspace
    estimator: Callable[[Tensor], Tensor]  # frames (B, H, W, 3) -> poses (B, 7)
    names: tuple[str, ...] = tuple(DIRECTIONS)

    def starts(self, bench: Bench, name: str, count: int) -> list[tuple[int, int]]:
        """Up to count (episode, chunk) of the held-out split with room in a direction, in a fixed random order."""
        (axis, sign), space = DIRECTIONS[name], self.workspace
        num_episodes, num_chunks = bench.heldout.actions.shape[:2]
        candidates = [
            (episode, chunk) for episode in range(num_episodes) for chunk in range(bench.first, num_chunks, 5)
        ]
        order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(0)).tolist()
        room = (space.high - space.vectors if sign > 0 else space.vectors - space.low)[..., axis]
        chosen = [candidates[index] for index in order]
        return [start for start in chosen if room[start[0], 4 * start[1]] >= ROOM[axis]][:count]

    def follow(self, bench: Bench, name: str, count: int, **sampling: Any) -> dict[str, Any]:
        """Hold the action from several starts and measure how far the imagined gripper goes that way."""
        axis, sign = DIRECTIONS[name]
        starts = self.starts(bench, name, count)
        if not starts:
            return {"num_starts": 0}
        heldout, modality, space = bench.heldout, bench.world_model.modalities[bench.heldout.modality], self.workspace
        state, shown = bench.world_model.decode(begin(bench, starts))
        action = torch.zeros(len(starts), modality.action_dim)
        action[:, 6] = torch.stack([heldout.actions[e, k - 1, 6] for e, k in starts])
        action[:, axis] = float(sign > 0) if axis == 6 else sign * FOLLOW_SHARE * modality.high[axis]
        held = action[:, None].expand(-1, FOLLOW_STEPS, -1)
        _, after = bench.world_model.decode(bench.world_model.imagine(state, held, **sampling))
        before, end = self.estimator(shown[:, -1].cpu()), self.estimator(after[:, -1].cpu())
        moved = sign * displacement(before, end)[:, axis]
        now = torch.stack([space.vectors[e, 4 * k, axis] for e, k in starts])
        ideal = space.high[axis] - now if sign > 0 else now - space.low[axis]
        if axis != 6:
            ideal = ideal.clamp(max=FOLLOW_STEPS * FOLLOW_SHARE * modality.high[axis])
        return {
            "num_starts": len(starts),
            "right_way": float((moved > 0).float().mean()),
            "half_way": float((moved > 0.5 * ideal).float().mean()),
            "mean_displacement": float(moved.mean()),
            "ideal_displacement": float(ideal.mean()),
            "unit": modality.units[axis],
        }

    def report(self, bench: Bench, count: int) -> dict[str, Any]:
        """Every single-axis action from count starts."""
        return {
            "method": (
                f"Each axis is held at {FOLLOW_SHARE:g} of its bound (gripper: its end) for {FOLLOW_STEPS} steps, the "
                "other axes at 0, the gripper at its last recorded command. Motion is the estimated pose in the last "
                "imagined frame minus that in the decoded start frame; rotations are rotation vectors about base axes."
            ),
            "starts": (
                f"Held-out chunks whose measured pose is at least {ROOM[0]:g} m, {ROOM[3]:g} rad or {ROOM[6]:g} of the "
                "gripper's way from the workspace's end in that direction."
            ),
            "right_way": "share of starts whose motion has the commanded sign",
            "half_way": "share of starts that move more than half the ideal displacement, which ends at the workspace",
            "directions": {name: self.follow(bench, name, count) for name in self.names},
        }
