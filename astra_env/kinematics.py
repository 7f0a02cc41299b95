"""How actions move a pose, and which actions lead through given poses: one class for each kind of motion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from astra_env import geometry

_STANDSTILL = 1e-9


class Kinematics(Protocol):
    """Motion of a pose (4, 4) in steps of ``dt`` seconds."""

    @property
    def num_fields(self) -> int:
        """How many fields of an action, the first ones, describe the motion."""

    def integrate(self, pose: np.ndarray, actions: np.ndarray, dt: float, speed: float) -> np.ndarray:
        """Poses (T + 1, 4, 4) that the motion fields (T, num_fields) lead through, from a pose at a speed (m/s)."""

    def recover(self, poses: np.ndarray, dt: float, speed: float) -> np.ndarray:
        """Motion fields (T, num_fields) that lead through poses (T + 1, 4, 4); the inverse of `integrate`."""


@dataclass(frozen=True)
class RigidMotion:
    """Translation in metres and roll, pitch, yaw in radians, along and about the axes of a frame.

    Attributes:
        moving: whether the frame is the pose itself, or one that stands still.
        turn_axes: the axes that roll, pitch and yaw turn about, by the right-hand rule: 0 x, 1 y, 2 z.
    """

    moving: bool = False
    turn_axes: tuple[int, int, int] = (0, 1, 2)

    @property
    def num_fields(self) -> int:
        """Three of translation and three of rotation."""
        return 6

    def integrate(self, pose: np.ndarray, actions: np.ndarray, dt: float, speed: float) -> np.ndarray:
        """See `Kinematics.integrate`; time and speed do not matter."""
        poses = [pose]
        for action in actions:
            turn = geometry.rpy_to_matrix(action[3:6][list(np.argsort(self.turn_axes))])
            if self.moving:
                poses.append(geometry.compose(poses[-1], geometry.make_pose(turn, action[:3])))
            else:
                poses.append(geometry.make_pose(turn @ poses[-1][:3, :3], poses[-1][:3, 3] + action[:3]))
        return np.stack(poses)

    def recover(self, poses: np.ndarray, dt: float, speed: float) -> np.ndarray:
        """See `Kinematics.recover`."""
        if self.moving:
            steps = geometry.relative(poses[:-1], poses[1:])
            motion, rotation = steps[:, :3, 3], steps[:, :3, :3]
        else:
            motion = poses[1:, :3, 3] - poses[:-1, :3, 3]
            rotation = poses[1:, :3, :3] @ np.swapaxes(poses[:-1, :3, :3], -1, -2)
        return np.concatenate([motion, geometry.matrix_to_rpy(rotation)[:, list(self.turn_axes)]], axis=-1)


@dataclass(frozen=True)
class BicycleMotion:
    """Steering angle (rad, left positive) and acceleration (m/s^2) of a car: the kinematic bicycle.

    The pose is that of the rear axle, x forward, y left, z up. A step's acceleration changes the speed at once, which
    then holds for the step, so the car drives an arc of length speed times dt and curvature tan(steering) / wheelbase.

    Attributes:
        wheelbase: metres between the axles.
    """

    wheelbase: float = 2.7

    @property
    def num_fields(self) -> int:
        """Steering and acceleration."""
        return 2

    def integrate(self, pose: np.ndarray, actions: np.ndarray, dt: float, speed: float) -> np.ndarray:
        """See `Kinematics.integrate`."""
        poses = [pose]
        for steering, acceleration in actions[:, :2]:
            speed = speed + acceleration * dt
            poses.append(geometry.compose(poses[-1], self._arc(speed * dt, steering)))
        return np.stack(poses)

    def recover(self, poses: np.ndarray, dt: float, speed: float) -> np.ndarray:
        """See `Kinematics.recover`; the steering of a car that stands is 0."""
        steps = geometry.relative(poses[:-1], poses[1:])
        yaw = geometry.matrix_to_rpy(steps[:, :3, :3])[:, 2]
        chord = np.linalg.norm(steps[:, :2, 3], axis=-1) * np.where(steps[:, 0, 3] < 0, -1.0, 1.0)
        distance = chord / np.sinc(yaw / 2 / np.pi)  # arc length over chord is (yaw / 2) / sin(yaw / 2)
        moved = np.abs(distance) > _STANDSTILL
        steering = np.where(moved, np.arctan(yaw * self.wheelbase / np.where(moved, distance, 1.0)), 0.0)
        speeds = np.concatenate([[speed], distance / dt])
        return np.stack([steering, np.diff(speeds) / dt], axis=-1)

    def _arc(self, distance: float, steering: float) -> np.ndarray:
        """Pose after an arc, seen from its start."""
        yaw = distance * np.tan(steering) / self.wheelbase
        chord = distance * np.sinc(yaw / 2 / np.pi)
        place = [chord * np.cos(yaw / 2), chord * np.sin(yaw / 2), 0.0]
        return geometry.make_pose(geometry.rpy_to_matrix([0.0, 0.0, yaw]), place)


def interpolate_poses(poses: ArrayLike, times: ArrayLike, wanted: ArrayLike) -> np.ndarray:
    """Poses (W, 4, 4) at wanted times (W,), between poses (T, 4, 4) at increasing times (T,), in any unit.

    Positions go straight and rotations turn evenly; ValueError for times outside the given ones. Brings recorded poses
    to the rate of actions, or of an autoencoder's latents.
    """
    poses, times, wanted = (np.asarray(entry, dtype=np.float64) for entry in (poses, times, wanted))
    if len(times) < 2 or (np.diff(times) <= 0).any():
        raise ValueError(f"times are {times}, expected at least two that increase.")
    if wanted.size and (wanted.min() < times[0] or wanted.max() > times[-1]):
        raise ValueError(
            f"Poses are wanted from {wanted.min()} to {wanted.max()}, but known in [{times[0]}, {times[-1]}]."
        )
    index = np.clip(np.searchsorted(times, wanted, side="right") - 1, 0, len(times) - 2)
    share = ((wanted - times[index]) / (times[index + 1] - times[index]))[:, None]
    start, end = poses[index], poses[index + 1]
    turn = geometry.matrix_to_axis_angle(np.swapaxes(start[:, :3, :3], -1, -2) @ end[:, :3, :3])
    rotation = start[:, :3, :3] @ geometry.axis_angle_to_matrix(share * turn)
    return geometry.make_pose(rotation, (1 - share) * start[:, :3, 3] + share * end[:, :3, 3])
