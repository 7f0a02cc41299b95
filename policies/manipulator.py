"""Motions of a robot arm from its URDF file: inverse kinematics, limits and a timed path, imagined before it is made.

The kinematics are IKPy's (`ikpy`, the extra "manipulation"): a URDF chain solved by bounded least squares. Collisions
are not looked for; the imagined video shows them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import gymnasium
import numpy as np
import torch
from numpy.typing import ArrayLike

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES, ActionModality

PANDA = Path(__file__).with_name("panda.urdf")
"""The arm of the bundled world."""

_MOVING = ("revolute", "continuous", "prismatic")
_TOLERANCE = np.array([1e-4, 1e-3])
"""Metres and radians by which a solution may miss its pose."""
_ATTEMPTS = 8
"""Postures that the joints of a single pose are sought from."""


@dataclass(frozen=True)
class Motion:
    """A timed motion of T actions; poses are of the tool in the arm's base axes.

    Attributes:
        times: seconds (T + 1,) from 0.
        poses: (T + 1, 4, 4).
        joints: rad or m (T + 1, J).
        actions: float32 (T, 7), ``end_effector``: ``actions[t]`` leads from pose t to pose t + 1.
    """

    times: np.ndarray
    poses: np.ndarray
    joints: np.ndarray
    actions: np.ndarray


class Manipulator:
    """A chain of joints between the root link of a URDF file and one of its links, the tool.

    Args:
        urdf: the file; meshes that it names are not needed.
        tool: link whose poses are meant; the one without a child if None.
        modality: rate and bounds of the actions, ``end_effector`` or one like it.
    """

    def __init__(
        self,
        urdf: str | os.PathLike[str] = PANDA,
        tool: str | None = None,
        *,
        modality: ActionModality = ACTION_MODALITIES["end_effector"],
    ) -> None:
        try:
            from ikpy.chain import Chain
            from ikpy.link import OriginLink
            from ikpy.urdf.URDF import get_urdf_parameters
        except ImportError as error:
            raise ImportError("Manipulator needs ikpy: install it with `pip install ikpy`.") from error
        path, joints = _read_chain(Path(urdf), tool)
        # symbolic expressions cost more to prepare than they save; what hangs from the tool is left out
        links = [OriginLink(), *get_urdf_parameters(str(urdf), path, symbolic=False)[: len(joints)]]
        self._moving = np.array([False, *(joint.get("type") in _MOVING for joint in joints)])  # the base does not
        self._chain, self.modality = Chain(links, active_links_mask=self._moving), modality
        self.low, self.high = np.array([links[index].bounds for index in np.flatnonzero(self._moving)]).T
        moving = [joint for joint in joints if joint.get("type") in _MOVING]
        self.joint_names = tuple(str(joint.get("name")) for joint in moving)
        self.max_speeds = np.array([_max_speed(joint) for joint in moving])
        self._middle = np.where(np.isfinite(self.low + self.high), (self.low + self.high) / 2, 0.0)

    def forward(self, joints: ArrayLike) -> np.ndarray:
        """Pose (4, 4) of the tool, in the axes of the root link, at joints (J,) in rad or m."""
        return np.asarray(self._chain.forward_kinematics(self._padded(joints)))

    def inverse(self, pose: ArrayLike, near: ArrayLike | None = None) -> np.ndarray:
        """Joints (J,) within their limits that bring the tool to a pose (4, 4); ValueError where there are none.

        They are sought from ``near`` (J,), which leads to ones nearby; from several postures if it is None.
        """
        wanted = np.asarray(pose, dtype=np.float64)
        if near is not None:
            joints, miss = self._solve(wanted, np.asarray(near, dtype=np.float64))
        else:
            rng, span = np.random.default_rng(0), np.clip(self.high - self.low, 0, 2 * np.pi)
            for attempt in range(_ATTEMPTS):
                joints, miss = self._solve(wanted, self._middle + (attempt > 0) * rng.uniform(-0.4, 0.4) * span)
                if (miss <= _TOLERANCE).all():
                    break
        if (miss > _TOLERANCE).any():
            place = ", ".join(f"{value:.3f}" for value in wanted[:3, 3])
            raise ValueError(
                f"The arm does not reach the pose at ({place}) m within its joint limits: it misses it by "
                f"{miss[0]:.3f} m and {miss[1]:.2f} rad; choose one nearer to the arm, or turned less."
            )
        return joints

    def plan(
        self,
        way_points: Sequence[ArrayLike],
        *,
        grippers: Sequence[float] | float = 0.0,
        joints: ArrayLike | None = None,
    ) -> Motion:
        """The quickest motion through way points K x (4, 4), at rest at each: straight, turning evenly.

        Between two way points the share of the way grows by minimum jerk, in the fewest actions that keep within the
        bounds of the actions and the speeds of the joints. ``grippers`` (K,), 0 open .. 1 closed, are commanded on the
        way to each way point. ``joints`` (J,) are those at the first one, or found if None. ValueError names the way
        point that cannot be reached.
        """
        poses = [np.asarray(pose, dtype=np.float64) for pose in way_points]
        if len(poses) < 2 or any(pose.shape != (4, 4) for pose in poses):
            raise ValueError(f"The way points are {[pose.shape for pose in poses]}, expected at least two (4, 4).")
        closed = np.broadcast_to(np.asarray(grippers, dtype=np.float64), len(poses))
        postures = [self._reached(poses[0], joints, f"Way point 1 of {len(poses)}")]
        path, absolute = [poses[0]], [closed[0]]
        for index, (start, end) in enumerate(itertools.pairwise(poses)):
            label = f"Way point {index + 2} of {len(poses)}"
            way, solved = self._segment(start, end, postures[-1], label)
            path, postures = path + way[1:], postures + solved[1:]
            absolute += [closed[index + 1]] * (len(way) - 1)
        times = np.arange(len(path)) / self.modality.rate_hz
        actions = self.modality.from_timed_poses(path, times, absolute)
        return Motion(times, np.stack(path), np.stack(postures), self.modality.validate(actions))

    def _segment(
        self, start: np.ndarray, end: np.ndarray, joints: np.ndarray, label: str
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Poses and joints of the fewest steps that lead from start to end within all bounds."""
        self._reached(end, None, label)  # told at once, and not of a place on the way
        count = 1
        for _ in range(20):
            while not self._within_bounds(way := minimum_jerk(start, end, count)):
                count += 1
            solved = [joints]
            for number, pose in enumerate(way[1:], 1):
                solved.append(self._reached(pose, solved[-1], f"{label}, step {number} of {count} to it,"))
            speeds = np.abs(np.diff(solved, axis=0)) * self.modality.rate_hz / self.max_speeds
            if speeds.max() <= 1:
                return way, solved
            count = max(count + 1, min(int(np.ceil(count * speeds.max())), 2 * count))
        joint = self.joint_names[int(speeds.max(0).argmax())]
        raise ValueError(f"{label} is led to through a posture where {joint} would have to jump; go another way.")

    def _within_bounds(self, way: list[np.ndarray]) -> bool:
        moves = self.modality.from_poses(way, np.zeros((len(way), len(self.modality.absolute))))
        return bool(((moves >= self.modality.low) & (moves <= self.modality.high)).all())

    def _reached(self, pose: np.ndarray, near: ArrayLike | None, label: str) -> np.ndarray:
        """`inverse`, whose error tells which pose it was."""
        try:
            return self.inverse(pose, near)
        except ValueError as error:
            raise ValueError(f"{label} is out of reach. {error}") from error

    def _solve(self, pose: np.ndarray, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Joints (J,) from where least squares end, and by how many metres and radians they miss."""
        guess = self._padded(np.clip(near, self.low, self.high))
        full = self._chain.inverse_kinematics_frame(pose, initial_position=guess, orientation_mode="all")
        joints = np.asarray(full)[self._moving]
        miss = geometry.relative(self.forward(joints), pose)
        turn = geometry.matrix_to_axis_angle(miss[:3, :3])
        return joints, np.array([np.linalg.norm(miss[:3, 3]), np.linalg.norm(turn)])

    def _padded(self, joints: ArrayLike) -> np.ndarray:
        """Joints (J,) with a zero for each link that does not move."""
        given = np.asarray(joints, dtype=np.float64)
        if given.shape != self.low.shape:
            raise ValueError(f"The joints have shape {given.shape}, expected {self.low.shape}: {self.joint_names}.")
        full = np.zeros(len(self._moving))
        full[self._moving] = given
        return full


def minimum_jerk(start: np.ndarray, end: np.ndarray, count: int) -> list[np.ndarray]:
    """Poses (4, 4) of ``count`` steps from rest to rest: the straight way and the even turn of least jerk.

    The share of the way after a share t of the time is 10 t^3 - 15 t^4 + 6 t^5 (Flash and Hogan, 1985).
    """
    time = np.arange(count + 1)[:, None] / count
    share = time**3 * (10 - 15 * time + 6 * time**2)
    turn = geometry.matrix_to_axis_angle(end[:3, :3] @ start[:3, :3].T)
    rotation = geometry.axis_angle_to_matrix(share * turn) @ start[:3, :3]
    return list(geometry.make_pose(rotation, (1 - share) * start[:3, 3] + share * end[:3, 3]))


@torch.no_grad()
def imagine(env: gymnasium.Env[Any, Any], actions: np.ndarray) -> np.ndarray:
    """The video uint8 (T * F, H, W, 3), F frames a step, that an imagined environment predicts of actions (T, A).

    It begins where the environment is now, which stays there.
    """
    world: Any = env.unwrapped
    state, frames = world.save_state(), []
    for action in world.action_modality.validate(actions):
        state = world.world_model.step(state, torch.from_numpy(action)[None], **world.sampling)
        state, chunk = world.world_model.decode(state)
        frames.append(chunk[0].cpu().numpy())
    return np.concatenate(frames)


def _read_chain(urdf: Path, tool: str | None) -> tuple[list[str], list[ElementTree.Element]]:
    """Names of links and joints in turn from the root link to the tool, and the joints."""
    try:
        root = ElementTree.parse(urdf).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise ValueError(f"{urdf} cannot be read as a URDF file ({error}).") from error
    above = {_link(joint, "child"): joint for joint in root.findall("joint")}
    ends = [name for name in above if name not in {_link(joint, "parent") for joint in above.values()}]
    if tool is None and len(ends) != 1:
        raise ValueError(f"{urdf} has the ends {ends}; name the link that is the tool.")
    name = ends[0] if tool is None else tool
    if name not in above:
        raise ValueError(f"{urdf} has no joint that leads to a link {tool!r}; it has {sorted(above)}.")
    path: list[str] = [name]
    joints: list[ElementTree.Element] = []
    while name in above:
        joint = above[name]
        name = _link(joint, "parent")
        path, joints = [name, str(joint.get("name")), *path], [joint, *joints]
    return path, joints


def _link(joint: ElementTree.Element, end: str) -> str:
    """Name of the link at one end of a joint, "parent" or "child"."""
    element = joint.find(end)
    return "" if element is None else str(element.get("link"))


def _max_speed(joint: ElementTree.Element) -> float:
    """rad/s or m/s; infinite where the file tells none."""
    limit = joint.find("limit")
    return float("inf" if limit is None else limit.get("velocity", "inf"))
