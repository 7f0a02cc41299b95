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

    def recover(self, poses: np.ndarray, dt: float, speed: ArrayLike | None) -> np.ndarray:
        """Motion fields (T, num_fields) that lead through poses (T + 1, 4, 4); the inverse of `integrate`.

        ``speed`` (m/s) is that at the first pose or at each one (T + 1,); None where it is to be estimated.
        """

    def divide(self, actions: np.ndarray, n: int) -> np.ndarray:
        """Motion fields (..., n, num_fields) of n shorter steps that lead where one of (..., num_fields) leads."""

    def join(self, parts: np.ndarray) -> np.ndarray:
        """Motion fields (..., num_fields) of one step from those of shorter ones (..., n, num_fields).

        The inverse of `divide`.
        """


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
        for action, turn in zip(actions, self._turns(actions), strict=True):
            if self.moving:
                poses.append(geometry.compose(poses[-1], geometry.make_pose(turn, action[:3])))
            else:
                poses.append(geometry.make_pose(turn @ poses[-1][:3, :3], poses[-1][:3, 3] + action[:3]))
        return np.stack(poses)

    def recover(self, poses: np.ndarray, dt: float, speed: ArrayLike | None) -> np.ndarray:
        """See `Kinematics.recover`; time and speed do not matter."""
        if self.moving:
            steps = geometry.relative(poses[:-1], poses[1:])
            motion, rotation = steps[:, :3, 3], steps[:, :3, :3]
        else:
            motion = poses[1:, :3, 3] - poses[:-1, :3, 3]
            rotation = poses[1:, :3, :3] @ np.swapaxes(poses[:-1, :3, :3], -1, -2)
        return self._fields(motion, rotation)

    def divide(self, actions: np.ndarray, n: int) -> np.ndarray:
        """See `Kinematics.divide`: the way goes straight and turns evenly."""
        axis_angle = geometry.matrix_to_axis_angle(self._turns(actions))[..., None, :]
        motion = np.repeat(actions[..., None, :3] / n, n, axis=-2)
        if self.moving:  # the same way, seen from a frame that has turned
            turned = geometry.axis_angle_to_matrix(-np.arange(n)[:, None] / n * axis_angle)
            motion = (turned @ motion[..., None])[..., 0]
        return self._fields(motion, geometry.axis_angle_to_matrix(np.repeat(axis_angle / n, n, axis=-2)))

    def join(self, parts: np.ndarray) -> np.ndarray:
        """See `Kinematics.join`."""
        turns = self._turns(parts)
        motion, rotation = parts[..., 0, :3], turns[..., 0, :, :]
        for index in range(1, parts.shape[-2]):
            move, turn = parts[..., index, :3], turns[..., index, :, :]
            motion = motion + ((rotation @ move[..., None])[..., 0] if self.moving else move)
            rotation = rotation @ turn if self.moving else turn @ rotation
        return self._fields(motion, rotation)

    def _turns(self, actions: np.ndarray) -> np.ndarray:
        """Rotations (..., 3, 3) of motion fields (..., 6)."""
        return geometry.rpy_to_matrix(actions[..., 3:6][..., list(np.argsort(self.turn_axes))])

    def _fields(self, motion: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        """Motion fields (..., 6) of translations (..., 3) and rotations (..., 3, 3)."""
        return np.concatenate([motion, geometry.matrix_to_rpy(rotation)[..., list(self.turn_axes)]], axis=-1)


@dataclass(frozen=True)
class BicycleMotion:
    """Steering angle (rad, left positive) and acceleration (m/s^2) of a car, held for a step: the kinematic bicycle.

    The pose is that of the rear axle, x forward, y left, z up. In a step of dt seconds from a speed v the car drives an
    arc of length v dt + acceleration dt^2 / 2 and curvature tan(steering) / wheelbase.

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
            distance = (speed + acceleration * dt / 2) * dt
            poses.append(geometry.compose(poses[-1], self._arc(distance, steering)))
            speed = speed + acceleration * dt
        return np.stack(poses)

    def recover(self, poses: np.ndarray, dt: float, speed: ArrayLike | None) -> np.ndarray:
        """See `Kinematics.recover`; the steering of a car that stands is 0.

        From one speed the accelerations follow exactly, and so do the errors of poses that were measured: these ask for
        a speed at each pose, or None.
        """
        steps = geometry.relative(poses[:-1], poses[1:])
        yaw = geometry.matrix_to_rpy(steps[:, :3, :3])[:, 2]
        chord = np.linalg.norm(steps[:, :2, 3], axis=-1) * np.where(steps[:, 0, 3] < 0, -1.0, 1.0)
        distance = chord / np.sinc(yaw / 2 / np.pi)  # arc length over chord is (yaw / 2) / sin(yaw / 2)
        moved = np.abs(distance) > _STANDSTILL
        steering = np.where(moved, np.arctan(yaw * self.wheelbase / np.where(moved, distance, 1.0)), 0.0)
        return np.stack([steering, np.diff(_speeds(distance / dt, speed)) / dt], axis=-1)

    def divide(self, actions: np.ndarray, n: int) -> np.ndarray:
        """See `Kinematics.divide`: what is held for a step is held for its parts."""
        return np.repeat(actions[..., None, :], n, axis=-2)

    def join(self, parts: np.ndarray) -> np.ndarray:
        """See `Kinematics.join`: the mean, which leads to the same speed, and to the same pose if the parts agree."""
        return parts.mean(axis=-2)

    def _arc(self, distance: float, steering: float) -> np.ndarray:
        """Pose after an arc, seen from its start."""
        yaw = distance * np.tan(steering) / self.wheelbase
        chord = distance * np.sinc(yaw / 2 / np.pi)
        place = [chord * np.cos(yaw / 2), chord * np.sin(yaw / 2), 0.0]
        return geometry.make_pose(geometry.rpy_to_matrix([0.0, 0.0, yaw]), place)


def _speeds(means: np.ndarray, speed: ArrayLike | None) -> np.ndarray:
    """Speeds (T + 1,) between steps of mean speeds (T,), from the first one, all of them (T + 1,) or None."""
    if speed is None:
        # between two steps the mean of theirs, at the ends as the next ones go on
        before, after = means[:1] - np.diff(means[:2]).sum(), means[-1:] + np.diff(means[-2:]).sum()
        padded = np.concatenate([before, means, after])
        return (padded[:-1] + padded[1:]) / 2
    given = np.asarray(speed, dtype=np.float64)
    if given.ndim:
        if given.shape != (len(means) + 1,):
            raise ValueError(f"speed has shape {given.shape}, expected one number or one a pose: ({len(means) + 1},).")
        return given
    speeds = [float(given)]
    for mean in means:
        speeds.append(2 * mean - speeds[-1])
    return np.array(speeds)


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
