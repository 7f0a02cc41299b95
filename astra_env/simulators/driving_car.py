"""The car of the driving simulator as a kinematic bicycle: where it is, and the impulses that make it roll as told."""

from __future__ import annotations

from typing import Any

import numpy as np
from panda3d.core import Vec3

from astra_env import geometry
from astra_env.kinematics import BicycleMotion

WHEELBASE = BicycleMotion().wheelbase
REAR_AXLE = 1.4166
"""Metres from the car's centre of mass back to its rear axle, whose pose is reported."""
GRIP = 8.0
"""Sideways acceleration in m/s^2 that the tyres hold: faster, a car turns less than it is steered."""
_MAX_ACCELERATION = np.array([15.0, 50.0])
"""Along and across, m/s^2: what the control may apply to a car that a collision has thrown off."""
_MAX_YAW_ACCELERATION = 60.0


class Car:
    """MetaDrive's ``vehicle``, whose wheels have no grip of their own, driven in physics ticks of ``tick`` seconds."""

    def __init__(self, vehicle: Any, tick: float) -> None:
        self._vehicle, self._tick = vehicle, tick

    def drive(self, steering: float, speed: float) -> None:
        """Impulses that lead to a speed (m/s) and the yaw rate of the bicycle, rolling without sideways slip."""
        body = self._vehicle.body
        limit = GRIP / max(abs(speed), 1e-3)
        yaw_rate = float(np.clip(speed * np.tan(steering) / WHEELBASE, -limit, limit))
        heading = self.heading() + yaw_rate * self._tick / 2
        axes = np.array([[np.cos(heading), np.sin(heading)], [-np.sin(heading), np.cos(heading)]])
        velocity, spin = body.getLinearVelocity(), body.getAngularVelocity()
        missing = np.array([speed, yaw_rate * REAR_AXLE]) - axes @ np.array([velocity[0], velocity[1]])
        bound = _MAX_ACCELERATION * self._tick
        push = axes.T @ np.clip(missing, -bound, bound) * body.getMass()
        body.applyCentralImpulse(Vec3(push[0], push[1], 0.0))
        turn = np.clip(yaw_rate - spin[2], -_MAX_YAW_ACCELERATION * self._tick, _MAX_YAW_ACCELERATION * self._tick)
        body.applyTorqueImpulse(Vec3(0.0, 0.0, float(turn) * body.getInertia()[2]))

    def heading(self) -> float:
        """Radians to the left of the world's x."""
        return float(np.deg2rad(self._vehicle.origin.getH() + 90.0))

    def pose(self) -> np.ndarray:
        """Pose (4, 4) of the rear axle on the ground, from the upright part of the car's rotation."""
        place, heading = self._vehicle.origin.getPos(), self.heading()
        x, y = place[0] - REAR_AXLE * np.cos(heading), place[1] - REAR_AXLE * np.sin(heading)
        return geometry.make_pose(geometry.rpy_to_matrix([0.0, 0.0, heading]), np.array([x, y, 0.0]))

    def speed(self) -> float:
        """Metres in a second along the heading, negative in reverse."""
        body = self._vehicle.body
        # a tick's velocity holds along the heading in the middle of the tick
        velocity, heading = body.getLinearVelocity(), self.heading() - body.getAngularVelocity()[2] * self._tick / 2
        return float(velocity[0] * np.cos(heading) + velocity[1] * np.sin(heading))
