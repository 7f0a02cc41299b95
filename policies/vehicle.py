"""Driving along way points: pure pursuit steers towards a point ahead on the path, a speed controller keeps a speed.

Pure pursuit follows R. C. Coulter, "Implementation of the Pure Pursuit Path Tracking Algorithm", CMU-RI-TR-92-01: from
the rear axle, an arc of curvature 2 y / (x^2 + y^2) leads through a point (x, y) in the car's axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES, ActionModality
from astra_env.kinematics import BicycleMotion

_SPACING = 0.25
"""Metres between the points that a path is laid out in."""
_WINDOW = 15.0
"""Metres beyond the last place on the path in which the next one is looked for, so that paths may cross themselves."""
_SETTLING = 2
"""Steps in which an error of speed is made good."""


class PurePursuit:
    """Drives a car through way points at a speed, and stops at the last one.

    It reads ``info["pose"]`` and ``info["speed"]`` alone, which imagined worlds and the driving simulator both tell,
    so the same object drives in either. Way points are joined by straight lines; what lies nearer together than the
    look-ahead is rounded off.

    Args:
        way_points: (K, 2), K >= 1, metres in the car's axes at ``start``: x forward, y left. The path begins at the
            car.
        start: pose (4, 4) that they are seen from: ``info["pose"]`` of ``reset``.
        target_speed: m/s, reached where the path is straight enough.
        look_ahead: seconds of driving between the car and the point that it steers for.
        min_look_ahead: metres that this point is away at least.
        side_acceleration: m/s^2 across the car that bends are slowed down for.
        braking: m/s^2 by which the car slows down towards the last way point.
        modality: bounds, rate and wheelbase of the actions.
    """

    def __init__(
        self,
        way_points: ArrayLike,
        start: ArrayLike = np.eye(4),  # noqa: B008  (read only)
        *,
        target_speed: float = 6.0,
        look_ahead: float = 0.7,
        min_look_ahead: float = 3.0,
        side_acceleration: float = 3.0,
        braking: float = 2.0,
        modality: ActionModality = ACTION_MODALITIES["vehicle"],
    ) -> None:
        if not isinstance(modality.kinematics, BicycleMotion):
            raise ValueError(f"PurePursuit drives cars, expected actions of a bicycle, got {modality.name} actions.")
        self.path = lay_out(way_points)
        self.target_speed, self.braking, self.side_acceleration = target_speed, braking, side_acceleration
        self.look_ahead, self.min_look_ahead = look_ahead, min_look_ahead
        self.modality, self._wheelbase = modality, modality.kinematics.wheelbase
        self._from_world = geometry.inverse(start)
        self._place = 0  # index of the path's point that the car has come to

    @property
    def remaining(self) -> float:
        """Metres of the path that are left."""
        return (len(self.path) - 1 - self._place) * _spacing(self.path)

    def act(self, observation: Any, info: Mapping[str, Any]) -> np.ndarray:
        """The action float32 (2,), within the bounds, from where ``info`` says that the car is."""
        pose, speed = self._from_world @ np.asarray(info["pose"]), float(info["speed"])
        self._advance(pose)
        reach = max(self.min_look_ahead, self.look_ahead * abs(speed))
        curvature = pursuit_curvature(self._ahead(reach), pose)
        step = 1 / self.modality.rate_hz
        bend = np.sqrt(self.side_acceleration / max(abs(curvature), 1e-6))
        # the speed from which even braking, begun after this step, ends at the last way point
        stopping = np.sqrt(2 * self.braking * max(self.remaining - abs(speed) * step, 0.0))
        wanted = min(self.target_speed, bend, stopping)
        action = np.array([np.arctan(self._wheelbase * curvature), (wanted - speed) / (_SETTLING * step)])
        return self.modality.validate(action, clip=True)

    def cross_track(self, info: Mapping[str, Any]) -> float:
        """Metres from the car's rear axle to the path, positive to its left."""
        pose = self._from_world @ np.asarray(info["pose"])
        self._advance(pose)
        before, after = self.path[max(self._place - 1, 0)], self.path[min(self._place + 1, len(self.path) - 1)]
        along, away = (after - before) / np.linalg.norm(after - before), pose[:2, 3] - self.path[self._place]
        return float(along[0] * away[1] - along[1] * away[0])

    def _advance(self, pose: np.ndarray) -> None:
        """Move on to the nearest point of the path, never back."""
        window = self.path[self._place : self._place + int(_WINDOW / _SPACING)]
        self._place += int(np.linalg.norm(window - pose[:2, 3], axis=1).argmin())

    def _ahead(self, reach: float) -> np.ndarray:
        """The point (2,) so many metres further along the path, which goes straight on after its end."""
        spacing, last = _spacing(self.path), len(self.path) - 1
        index = self._place + reach / spacing
        end = self.path[last] + max(index - last, 0.0) * (self.path[last] - self.path[last - 1])
        low = min(int(index), last - 1)
        share = min(index - low, 1.0)
        return end if index >= last else (1 - share) * self.path[low] + share * self.path[low + 1]


def pursuit_curvature(point: ArrayLike, pose: ArrayLike) -> float:
    """Curvature (1/m, left positive) of the arc from a car at ``pose`` (4, 4) through a ``point`` (2,)."""
    x, y = (np.asarray(point) - np.asarray(pose)[:2, 3]) @ np.asarray(pose)[:2, :2]
    return float(2 * y / max(x**2 + y**2, 1e-6))


def lay_out(way_points: ArrayLike) -> np.ndarray:
    """Points (N, 2), evenly spaced by about 0.25 m, on the lines from the origin through way points (K, 2)."""
    points = np.asarray(way_points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1:] != (2,) or not len(points) or not np.isfinite(points).all():
        raise ValueError(f"The way points are {points.shape} numbers, expected finite ones (K, 2): x forward, y left.")
    corners = np.concatenate([np.zeros((1, 2)), points])
    lengths = np.linalg.norm(np.diff(corners, axis=0), axis=1)
    corners, along = corners[np.append(True, lengths > 1e-9)], np.append(0.0, np.cumsum(lengths[lengths > 1e-9]))
    if along[-1] < _SPACING:
        raise ValueError(f"The way points lie within {along[-1]:.2f} m of the car, expected a way to drive.")
    places = np.linspace(0, along[-1], int(np.ceil(along[-1] / _SPACING)) + 1)
    return np.stack([np.interp(places, along, corners[:, axis]) for axis in (0, 1)], axis=-1)


def _spacing(path: np.ndarray) -> float:
    """Metres between two points of a path, the same everywhere but at corners."""
    return float(np.linalg.norm(path[1] - path[0]))
