"""A pinhole camera at a car's windscreen that paints polygons, posts, blocks and cars with OpenCV.

World axes are right-handed, z up, in metres; the camera looks along the car's heading, turned down by ``PITCH``.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from astra_env.simulators import FRAME_SIZE

CAMERA_HEIGHT = 1.5
CAMERA_FORWARD = 1.9
"""Metres of the camera ahead of the rear axle: at the windscreen, and the bonnet is not seen."""
PITCH = np.deg2rad(7.0)
FIELD_OF_VIEW = np.deg2rad(72.0)
_SUPERSAMPLE = 3
CANVAS_SIZE = FRAME_SIZE * _SUPERSAMPLE
FOCAL = CANVAS_SIZE / 2 / np.tan(FIELD_OF_VIEW / 2)
HORIZON = CANVAS_SIZE / 2 - FOCAL * np.tan(PITCH)
_NEAR = 0.4
SHIFT = 4  # fixed-point bits of OpenCV's polygon corners
_SHADOW = (52, 54, 58)

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Box:
    """A car as it is drawn: centre of its ground rectangle, heading, size (length, width, height), colour."""

    position: np.ndarray
    heading: float
    size: tuple[float, float, float]
    colour: Colour


class Camera:
    """Projection of world points onto a canvas (S, S, 3), S being three times the frame's size."""

    def __init__(self, eye: np.ndarray, heading: float) -> None:
        self.canvas = np.zeros((CANVAS_SIZE, CANVAS_SIZE, 3), np.uint8)
        self.eye, self.heading = eye, heading
        cos, sin = np.cos(heading), np.sin(heading)
        forward, right = np.array([cos, sin, 0.0]), np.array([sin, -cos, 0.0])
        up = np.array([0.0, 0.0, 1.0])
        down = -np.cos(PITCH) * up - np.sin(PITCH) * forward
        axes = np.stack([right, down, np.cos(PITCH) * forward - np.sin(PITCH) * up])
        self._axes = axes
        intrinsic = np.array([[FOCAL, 0, CANVAS_SIZE / 2 - 0.5], [0, FOCAL, CANVAS_SIZE / 2 - 0.5], [0, 0, 1]])
        place = np.column_stack([np.eye(3)[:, :2], -eye])
        self.ground = intrinsic @ axes @ place
        """Homography (3, 3) from ground (x, y, 1) to pixels."""

    def local(self, points: np.ndarray) -> np.ndarray:
        """Distance ahead and offset to the left (N, 2) of ground points (N, 2)."""
        cos, sin = np.cos(self.heading), np.sin(self.heading)
        return (points - self.eye[:2]) @ np.array([[cos, -sin], [sin, cos]])

    def fill(self, pixels: np.ndarray, colour: Colour) -> None:
        """Fill a convex or simple polygon of pixel coordinates (N, 2)."""
        cv2.fillPoly(self.canvas, [fixed_point(pixels)], colour, cv2.LINE_8, SHIFT)

    def face(self, points: np.ndarray, colour: Colour, light: float = 1.0) -> None:
        """Fill a polygon of world points (N, 3), cut at the near plane."""
        seen = _cut_near((points - self.eye) @ self._axes.T)
        if len(seen) >= 3:
            pixels = seen[:, :2] / seen[:, 2:] * FOCAL + CANVAS_SIZE / 2 - 0.5
            self.fill(pixels, (int(colour[0] * light), int(colour[1] * light), int(colour[2] * light)))

    def disc(self, centre: tuple[float, float, float], radius: float, colour: Colour) -> None:
        """A ball, drawn as a filled circle."""
        x, y, depth = self._axes @ (np.array(centre) - self.eye)
        if depth > _NEAR:
            middle = fixed_point(np.array([x, y]) / depth * FOCAL + CANVAS_SIZE / 2 - 0.5)
            size = int(radius / depth * FOCAL * 2**SHIFT)
            cv2.circle(self.canvas, (int(middle[0]), int(middle[1])), size, colour, -1, cv2.LINE_8, SHIFT)

    def upright(
        self, place: tuple[float, float], width: float, top: float, colour: Colour, bottom: float = 0.0
    ) -> None:
        """A post that always faces the camera."""
        side = self._axes[0] * width / 2
        foot, head = np.array([*place, bottom]), np.array([*place, top])
        self.face(np.stack([foot - side, foot + side, head + side, head - side]), colour)

    def building(self, box: Box) -> None:
        """A plain block."""
        length, width, height = box.size
        self._block(box, (-length / 2, length / 2), (-width / 2, width / 2), (0.0, height), box.colour)

    def car(self, box: Box) -> None:
        """Body, cabin with windows, wheels' shadow, red lights behind and white ones in front."""
        length, width, height = box.size
        half, side, waist = length / 2, width / 2, 0.62 * height
        floor = np.array([[-half, -side], [half, -side], [half, side], [-half, side]]) * 1.06
        self.face(_placed(box, np.column_stack([floor, np.full(4, 0.02)])), _SHADOW)
        self._block(box, (-half, half), (-side, side), (0.22, waist), box.colour)
        for end, colour in ((-half - 0.02, (214, 24, 24)), (half + 0.02, (250, 248, 220))):
            for edge in (-1, 1):
                y = np.array([0.42, 0.95, 0.95, 0.42]) * side * edge
                z = np.array([0.66, 0.66, 0.92, 0.92]) * waist
                if self._faces(box, np.array([np.sign(end), 0.0]), abs(end)):
                    self.face(_placed(box, np.column_stack([np.full(4, end), y, z])), colour)
        self._block(box, (-0.36 * length, 0.2 * length), (-0.86 * side, 0.86 * side), (waist, height), (44, 52, 64))
        roof = np.array([[-0.34, -0.84], [0.16, -0.84], [0.16, 0.84], [-0.34, 0.84]]) * (length, side)
        self.face(_placed(box, np.column_stack([roof, np.full(4, height + 0.02)])), box.colour)

    def _block(
        self,
        box: Box,
        along: tuple[float, float],
        across: tuple[float, float],
        upward: tuple[float, float],
        colour: Colour,
    ) -> None:
        """The faces of a block in a car's axes that look at the camera."""
        (x0, x1), (y0, y1), (z0, z1) = along, across, upward
        if z1 < self.eye[2]:
            top = np.array([[x0, y0, z1], [x1, y0, z1], [x1, y1, z1], [x0, y1, z1]])
            self.face(_placed(box, top), colour, 1.0)
        sides = (
            ((-1, 0), -x0, 0.8, [[x0, y0], [x0, y1]]),
            ((1, 0), x1, 0.8, [[x1, y0], [x1, y1]]),
            ((0, -1), -y0, 0.62, [[x0, y0], [x1, y0]]),
            ((0, 1), y1, 0.7, [[x0, y1], [x1, y1]]),
        )
        for normal, offset, light, foot in sides:
            if self._faces(box, np.array(normal, float), offset):
                low, high = np.array([[*p, z0] for p in foot]), np.array([[*p, z1] for p in foot[::-1]])
                self.face(_placed(box, np.concatenate([low, high])), colour, light)

    def _faces(self, box: Box, normal: np.ndarray, offset: float) -> bool:
        """Whether a side of a box looks at the camera."""
        cos, sin = np.cos(box.heading), np.sin(box.heading)
        eye = (self.eye[:2] - box.position) @ np.array([[cos, -sin], [sin, cos]])
        return bool(eye @ normal > offset)


def _placed(box: Box, points: np.ndarray) -> np.ndarray:
    """Points (N, 3) of a box's axes in world axes."""
    cos, sin = np.cos(box.heading), np.sin(box.heading)
    ground = points[:, :2] @ np.array([[cos, sin], [-sin, cos]]) + box.position
    return np.column_stack([ground, points[:, 2]])


def _cut_near(points: np.ndarray) -> np.ndarray:
    """The part of a convex polygon (N, 3) in camera axes that lies beyond the near plane."""
    depth = points[:, 2] - _NEAR
    if (depth > 0).all():
        return points
    kept = []
    for i in range(len(points)):
        here, there = points[i - 1], points[i]
        a, b = depth[i - 1], depth[i]
        if (a > 0) != (b > 0):
            kept.append(here + (there - here) * a / (a - b))
        if b > 0:
            kept.append(there)
    return np.array(kept).reshape(-1, 3)


def fixed_point(points: np.ndarray) -> np.ndarray:
    """Pixel coordinates as OpenCV's integers with ``SHIFT`` fractional bits."""
    return np.round(np.clip(points, -20000, 20000) * 2**SHIFT).astype(np.int32)


def row_of(distance: float) -> float:
    """Row of the canvas where ground at a distance is seen."""
    angle = np.arctan(CAMERA_HEIGHT / distance) - PITCH
    return CANVAS_SIZE / 2 + FOCAL * np.tan(angle)
