"""How the simulated arm follows commanded poses: limits, inverse kinematics and operational space control, in numpy.

Poses (4, 4) are of the gripper in the robot's base frame; joints are the arm's seven, in radians.
"""

from __future__ import annotations

import numpy as np

from astra_env import geometry

TABLE_Z = -0.112
"""Height of the table top in the robot's base frame, metres."""
WORKSPACE_LOW = np.array([0.46, -0.10, TABLE_Z + 0.015])
WORKSPACE_HIGH = np.array([0.66, 0.10, TABLE_Z + 0.16])
MAX_TILT, MAX_YAW = 0.4, 0.8
LEASH = (0.03, 0.15)
"""Metres and radians that the commanded pose may be away from the measured pose when an action begins."""
HOME_JOINTS = np.array([0.0, np.pi / 16, 0.0, -5 * np.pi / 6, 0.0, np.pi - 0.2, np.pi / 4])
HOME_ROTATION = np.diag([1.0, -1.0, -1.0])
"""The gripper points straight down."""

_STIFFNESS = np.array([400.0] * 6)
_POSTURE_STIFFNESS = 10.0


def pose_error(pose: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Motion (6,) from ``pose`` to ``target``: translation in metres, then axis times angle in radians."""
    turn = geometry.matrix_to_axis_angle(target[:3, :3] @ pose[:3, :3].T)
    return np.concatenate([target[:3, 3] - pose[:3, 3], turn])


def leashed(target: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Bring a commanded pose near the measured one, so that pushing against the table does not pile up."""
    error = pose_error(pose, target).reshape(2, 3)
    lengths = np.linalg.norm(error, axis=1)
    move, turn = error * np.minimum(1.0, np.array(LEASH) / np.maximum(lengths, 1e-9))[:, None]
    return geometry.make_pose(geometry.axis_angle_to_matrix(turn) @ pose[:3, :3], pose[:3, 3] + move)


def inside_workspace(pose: np.ndarray) -> np.ndarray:
    """Clip a commanded pose to the workspace box and to the tilt and yaw that the wrist may have."""
    limits = np.array([MAX_TILT, MAX_TILT, MAX_YAW])
    rotation = geometry.rpy_to_matrix(np.clip(wrist_rpy(pose), -limits, limits)) @ HOME_ROTATION
    return geometry.make_pose(rotation, np.clip(pose[:3, 3], WORKSPACE_LOW, WORKSPACE_HIGH))


def wrist_rpy(pose: np.ndarray) -> np.ndarray:
    """Roll, pitch, yaw (3,) of the gripper away from pointing straight down."""
    return geometry.matrix_to_rpy(pose[:3, :3] @ HOME_ROTATION.T)


def joint_step(joints: np.ndarray, error: np.ndarray, jacobian: np.ndarray) -> np.ndarray:
    """Change of the joints (7,) that reduces a pose error (6,), by damped least squares drawn to the home posture."""
    pull = 0.02 * (HOME_JOINTS - joints)
    damped = jacobian @ jacobian.T + 1e-4 * np.eye(6)
    return jacobian.T @ np.linalg.solve(damped, error - jacobian @ pull) + pull


def joint_torques(
    error: np.ndarray,
    velocity: np.ndarray,
    jacobian: np.ndarray,
    mass: np.ndarray,
    joints: np.ndarray,
    speed: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Torques (7,) by operational space control; their sum and gravity's compensation drive the arm.

    The first makes the gripper behave like a damped spring to a moving target. The arm has one joint more than that
    needs: the second pulls it home without moving the gripper.

    Args:
        error: motion (6,) that is left to the target.
        velocity: of the target (6,), fed forward so that the gripper does not lag behind.
        jacobian: (6, 7).
        mass: joint-space inertia (7, 7).
        joints: positions (7,).
        speed: joint velocities (7,).
    """
    wanted = _STIFFNESS * error + 2 * np.sqrt(_STIFFNESS) * (velocity - jacobian @ speed)
    mass_inverse_jt = np.linalg.solve(mass, jacobian.T)
    inertia = np.linalg.pinv(jacobian @ mass_inverse_jt, rcond=1e-3)
    spring = jacobian.T @ (inertia @ wanted)
    posture = mass @ (_POSTURE_STIFFNESS * (HOME_JOINTS - joints) - 2 * _POSTURE_STIFFNESS**0.5 * speed)
    return spring, posture - jacobian.T @ (inertia @ (mass_inverse_jt.T @ posture))
