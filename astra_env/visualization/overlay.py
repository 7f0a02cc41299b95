"""An action drawn over a picture: arrows, a steering arc, bars and keys, in pixels, with their values in units.

A camera's arrow for its way lies on the ground before it, as one would walk; that for its turn begins in the middle and
points where it will look. A gripper's arrows are seen as the camera of the bundled robot simulator sees it. Lengths are
shares of the field's bounds, directions are those of the picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from astra_env import geometry
from astra_env.actions import ActionModality
from astra_env.kinematics import BicycleMotion, RigidMotion

Colour = tuple[int, int, int]
COLOURS: Mapping[str, Colour] = {"m": (96, 178, 255), "rad": (255, 176, 84)}
OTHER_COLOUR: Colour = (122, 226, 140)
FRAME_COLOUR: Colour = (150, 154, 164)
KEY_PLACES: Mapping[str, tuple[float, float]] = {
    "w": (1, 0),
    "a": (0, 1),
    "s": (1, 1),
    "d": (2, 1),
    "up": (6, 0),
    "left": (5, 1),
    "down": (6, 1),
    "right": (7, 1),
}
"""Key -> column and row of its cap, at the lower edge of the picture."""
KEY_SIGNS: Mapping[str, str] = {"up": "↑", "left": "←", "down": "↓", "right": "→"}

MOVE_SIZE, TURN_SIZE = 0.6, 0.5
"""Lengths of full arrows, in halves of the picture's height."""
ROAD_AHEAD, EYE_HEIGHT, EYE_PITCH, EYE_FOCAL = 12.0, 1.5, np.deg2rad(7.0), 1 / np.tan(np.deg2rad(36.0))
"""Metres of road that a steering arc shows, and the bundled driver's eye: metres, radians, half heights."""


@dataclass(frozen=True)
class Mark:
    """One line over a picture.

    Attributes:
        points: (n, 2) pixels, x right and y down.
        label: what it says, with a unit.
        colour: by what it measures.
        arrow: whether the last point is an arrow's tip.
        width: half of the line's, in points of the screen.
    """

    points: np.ndarray
    label: str
    colour: Colour
    arrow: bool = True
    width: float = 3.0


@dataclass(frozen=True)
class Key:
    """A key cap: its centre (x, y) and half its size in pixels, its sign, and whether it is held."""

    centre: tuple[float, float]
    half: float
    sign: str
    held: bool


@dataclass(frozen=True)
class View:
    """How motions of a frame look in the picture.

    Attributes:
        rotation: (3, 3), from the frame's axes to the camera's: x right, y down, z forward.
        move_from: where arrows for the way begin, in half heights from the middle of the picture.
        turn_from: where arrows for the turn begin.
        facing: 1 for what looks out of the picture's plane with the camera, -1 for what the camera looks at.
    """

    rotation: np.ndarray
    move_from: tuple[float, float]
    turn_from: tuple[float, float]
    facing: int


def _camera_axes(azimuth: float, elevation: float) -> np.ndarray:
    """Rows x right, y down, z forward of a camera that looks in a direction, in degrees, of axes with z up."""
    azimuth, elevation = np.deg2rad(azimuth), np.deg2rad(elevation)
    forward = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    right = np.array([np.sin(azimuth), -np.cos(azimuth), 0.0])
    return np.stack([right, np.cross(forward, right), forward])


CAMERA_VIEW = View(np.eye(3), (0.0, 0.5), (0.0, 0.0), 1)
ROBOT_VIEW = View(_camera_axes(140.0, -28.0), (0.0, 0.0), (-0.5, -0.5), -1)


def action_marks(modality: ActionModality, action: np.ndarray, size: tuple[int, int]) -> list[Mark]:
    """Arrows, arcs and bars of an action (A,) in the modality's units, over a picture of size (H, W)."""
    values = np.asarray(action, dtype=float)
    if isinstance(modality.kinematics, BicycleMotion):
        marks = [_steering(modality.kinematics, values[0], size)]
        return marks + _bars(modality, values, modality.fields[1:], size)
    assert isinstance(modality.kinematics, RigidMotion)  # there is no third kind
    view = CAMERA_VIEW if modality.kinematics.moving else ROBOT_VIEW
    return _motion(modality, values, view, size) + _bars(modality, values, modality.absolute, size)


def key_caps(held: Iterable[str], size: tuple[int, int]) -> list[Key]:
    """W A S D and the arrow keys at the lower edge of a picture of size (H, W), the held ones marked."""
    (height, width), pressed = size, set(held)
    step = min(0.09 * height, width / 9)
    left, top = (width - 8 * step) / 2, height - 2.2 * step
    return [
        Key((left + (x + 0.5) * step, top + (y + 0.5) * step), 0.44 * step, KEY_SIGNS.get(name, name.upper()), held)
        for name, (x, y) in KEY_PLACES.items()
        for held in [name in pressed]
    ]


def _motion(modality: ActionModality, values: np.ndarray, view: View, size: tuple[int, int]) -> list[Mark]:
    """The way and the turn of a rigid motion."""
    full = np.maximum(np.abs(modality.low), np.abs(modality.high))
    pose = modality.to_pose(values)
    way = view.rotation @ pose[:3, 3] / full[:3].max()
    turn = view.rotation @ geometry.matrix_to_axis_angle(pose[:3, :3]) / full[3:6].max()
    marks = []
    if np.abs(way).max() > 1e-6:
        start = np.array(view.move_from)
        # nearer to the middle what goes into the picture, farther from it what comes out of it
        tip = (start + MOVE_SIZE * way[:2]) * np.exp(-0.7 * way[2])
        marks.append(Mark(_pixels([start, tip], size), _told(modality, values, slice(0, 3)), COLOURS["m"]))
    if np.abs(turn).max() > 1e-6:
        label, middle = _told(modality, values, slice(3, 6)), np.array(view.turn_from)
        aside = view.facing * TURN_SIZE * np.array([turn[1], -turn[0]])
        if np.abs(aside).max() > 1e-6:
            marks.append(Mark(_pixels([middle, middle + aside], size), label, COLOURS["rad"]))
            label = ""
        if abs(turn[2]) > 1e-6:
            angles = -np.pi / 2 + np.linspace(0.0, 2.0 * turn[2], 6)
            arc = middle + 0.3 * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
            marks.append(Mark(_pixels(arc, size), label, COLOURS["rad"]))
    return marks


def _steering(motion: BicycleMotion, steering: float, size: tuple[int, int]) -> Mark:
    """The arc on the road that a car drives at this angle, as its driver sees it."""
    way = np.geomspace(3.5, ROAD_AHEAD, 8)
    yaw = way * np.tan(steering) / motion.wheelbase
    chord = way * np.sinc(yaw / 2 / np.pi)
    ahead, left = chord * np.cos(yaw / 2), chord * np.sin(yaw / 2)
    seen = ahead > 1.0  # what has turned back is not before the driver
    ahead, left = ahead[seen], left[seen]
    depth = ahead * np.cos(EYE_PITCH) + EYE_HEIGHT * np.sin(EYE_PITCH)
    down = EYE_HEIGHT * np.cos(EYE_PITCH) - ahead * np.sin(EYE_PITCH)
    points = EYE_FOCAL * np.stack([-left, down], axis=-1) / depth[:, None]
    return Mark(_pixels(points, size), f"steering {steering:+.2f} rad", COLOURS["rad"])


def _bars(modality: ActionModality, values: np.ndarray, fields: Sequence[str], size: tuple[int, int]) -> list[Mark]:
    """A frame and a filling from zero for each field, at the right edge."""
    height, width = size
    marks = []
    for column, name in enumerate(fields):
        index = modality.fields.index(name)
        low, high, unit = min(modality.low[index], 0.0), max(modality.high[index], 0.0), modality.units[index]
        value = round(float(np.clip(values[index], low, high)), 2) + 0.0  # which makes -0.0 a plain 0
        x = width - height * (0.08 + 0.12 * column)
        bottom, zero, tip, top = (height * (0.6 - 0.5 * (at - low) / (high - low)) for at in (low, 0.0, value, high))
        label = f"{name} {value:+.1f} {unit}" if low < 0 else f"{name} {value:.2f} ({unit})"
        marks.append(Mark(np.array([[x, bottom], [x, top]]), "", FRAME_COLOUR, arrow=False, width=1.5))
        marks.append(Mark(np.array([[x, zero], [x, tip]]), label, OTHER_COLOUR, arrow=False, width=5.0))
    return marks


def _told(modality: ActionModality, values: np.ndarray, fields: slice) -> str:
    """Names and values of the fields that are not 0, with their unit."""
    named = zip(modality.fields[fields], values[fields], strict=True)
    return (
        ", ".join(f"{name} {value:+.3f}" for name, value in named if abs(value) > 5e-4)
        + f" {modality.units[fields][0]}"
    )


def _pixels(points: ArrayLike, size: tuple[int, int]) -> np.ndarray:
    """Half heights from the middle (n, 2) -> pixels (n, 2)."""
    height, width = size
    return np.asarray(points) * (height / 2) + np.array([width / 2, height / 2])
