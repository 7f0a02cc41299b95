"""What a driver sees: roads, cars, trees and hills painted with OpenCV, the same pixels in every run.

World axes are right-handed, z up, in metres; the camera looks along a car's heading, turned down by ``PITCH``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from astra_env.simulators.driving_camera import (
    CAMERA_FORWARD,
    CAMERA_HEIGHT,
    CANVAS_SIZE,
    FOCAL,
    FRAME_SIZE,
    HORIZON,
    PITCH,
    SHIFT,
    Box,
    Camera,
    Colour,
    fixed_point,
    row_of,
)

_FAR = 140.0
"""Metres up to which things that stand are drawn."""
_RESOLUTION = 0.125
_LEVELS = ((0, 13.0), (1, 26.0), (2, np.inf))
"""Ground pictures by halving (resolution 0.125 m times 2 ** level) and the distance in metres that each serves to."""
_MARGIN = 90.0
_GRASS, _ASPHALT, _KERB = (96, 142, 66), (88, 90, 96), (188, 180, 168)
_WHITE, _YELLOW = (238, 238, 232), (246, 190, 30)


@dataclass(frozen=True)
class RoadMarks:
    """Painted things on the ground: polygons (N, 2) in the order in which they cover one another."""

    kerbs: Sequence[np.ndarray]
    asphalt: Sequence[np.ndarray]
    white: Sequence[np.ndarray]
    yellow: Sequence[np.ndarray]


@dataclass
class Scenery:
    """Trees (N, 3: x, y, height), posts (N, 2) and buildings beside the roads, and the hills at the horizon."""

    trees: np.ndarray
    posts: np.ndarray
    tints: np.ndarray
    buildings: list[Box] = field(default_factory=list)
    hills: np.ndarray = field(default_factory=lambda: np.zeros(360))


class RoadView:
    """The pictures of one map; ``draw`` shows it from a pose among cars."""

    def __init__(self, marks: RoadMarks, posts: np.ndarray, rng: np.random.Generator) -> None:
        corners = np.concatenate([*marks.kerbs, *marks.asphalt])
        self._origin = np.floor(corners.min(axis=0)) - _MARGIN
        extent = corners.max(axis=0) + _MARGIN - self._origin
        self._shape = tuple(int(np.ceil(side / _RESOLUTION / 4)) * 4 for side in extent[::-1])
        self._levels, road = self._paint_ground(marks, rng)
        self._scenery = self._plant(road, posts, rng)

    def draw(self, x: float, y: float, heading: float, cars: Sequence[Box]) -> np.ndarray:
        """Frame uint8 (64, 64, 3), RGB, seen from the car whose rear axle is at (x, y)."""
        eye = np.array([x + CAMERA_FORWARD * np.cos(heading), y + CAMERA_FORWARD * np.sin(heading), CAMERA_HEIGHT])
        camera = Camera(eye, heading)
        self._draw_sky(camera)
        self._draw_ground(camera)
        scenery = self._scenery
        items: list[tuple[float, int, object]] = []
        trees, posts = camera.local(scenery.trees[:, :2]), camera.local(scenery.posts)
        items += [(d, 0, i) for i, (d, s) in enumerate(trees) if 1.5 < d < _FAR and abs(s) < d + 6]
        items += [(d, 1, i) for i, (d, s) in enumerate(posts) if 1.0 < d < 60 and abs(s) < d + 2]
        for kind, boxes in ((2, scenery.buildings), (3, cars)):
            places = camera.local(np.stack([box.position for box in boxes])) if boxes else np.zeros((0, 2))
            items += [(d, kind, boxes[i]) for i, (d, s) in enumerate(places) if -5 < d < _FAR and abs(s) < d + 25]
        for distance, kind, item in sorted(items, key=lambda entry: -entry[0]):
            if isinstance(item, int):
                (self._draw_post if kind else self._draw_tree)(camera, item, distance)
            elif isinstance(item, Box):
                camera.building(item) if kind == 2 else camera.car(item)
        return cv2.resize(camera.canvas, (FRAME_SIZE, FRAME_SIZE), interpolation=cv2.INTER_AREA)

    def _paint_ground(self, marks: RoadMarks, rng: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
        """Ground pictures (H, W, 3) of each level, and a mask of what is not grass at the last one."""
        rows, columns = self._shape
        noise = rng.normal(size=(rows // 16 + 1, columns // 16 + 1)).astype(np.float32)
        patches = cv2.resize(noise, (columns, rows), interpolation=cv2.INTER_LINEAR)
        tones = [cv2.convertScaleAbs(patches, alpha=a, beta=b) for a, b in zip((14, 13, 9), _GRASS, strict=True)]
        ground = np.asarray(cv2.merge(tones))
        self._fill(ground, marks.kerbs, _KERB, 0)
        self._fill(ground, marks.asphalt, _ASPHALT, 0)
        self._fill(ground, marks.white, _WHITE, 0)
        self._fill(ground, marks.yellow, _YELLOW, 0)
        # on road and grass alike, so that speed shows where there are no lines
        grain = rng.integers(0, 26, (rows // 5 + 1, columns // 5 + 1), np.uint8)
        grain = np.asarray(cv2.resize(grain, (columns, rows), interpolation=cv2.INTER_LINEAR))
        levels = [np.asarray(cv2.subtract(ground, cv2.merge([grain] * 3)))]
        for _ in _LEVELS[1:]:
            half = (levels[-1].shape[1] // 2, levels[-1].shape[0] // 2)
            levels.append(np.asarray(cv2.resize(levels[-1], half, interpolation=cv2.INTER_AREA)))
        road = np.zeros(levels[-1].shape[:2], np.uint8)
        self._fill(road, [*marks.kerbs, *marks.asphalt], (1, 1, 1), _LEVELS[-1][0])
        return levels, road > 0

    def _fill(self, picture: np.ndarray, polygons: Sequence[np.ndarray], colour: Colour, level: int) -> None:
        """Fill polygons (N, 2) in world axes on a ground picture of a level."""
        for polygon in polygons:
            corners = (polygon - self._origin) / (_RESOLUTION * 2**level) - 0.5
            smooth = cv2.LINE_AA if picture.ndim == 3 else cv2.LINE_8
            cv2.fillPoly(picture, [fixed_point(corners)], colour, smooth, SHIFT)

    def _plant(self, road: np.ndarray, posts: np.ndarray, rng: np.random.Generator) -> Scenery:
        """Trees and buildings where there is room beside the road, posts along it."""
        resolution = _RESOLUTION * 2 ** _LEVELS[-1][0]
        free = cv2.distanceTransform((~road).astype(np.uint8), cv2.DIST_L2, 3) * resolution

        def room(points: np.ndarray) -> np.ndarray:
            cells = ((points - self._origin) / resolution).astype(int)
            inside = ((cells >= 0) & (cells < free.shape[::-1])).all(axis=1)
            cells = np.where(inside[:, None], cells, 0)
            return np.where(inside, free[cells[:, 1], cells[:, 0]], 0.0)

        extent = np.array(road.shape[::-1]) * resolution
        count = int(extent.prod() / 130)
        places = self._origin + rng.uniform(0, 1, (count, 2)) * extent
        gap = room(places)
        keep = (gap > 1.5) & (gap < 45)
        heights = np.where(gap < 5, rng.uniform(0.6, 1.5, count), rng.uniform(3.5, 8.0, count))
        trees = np.column_stack([places, heights])[keep]
        sites = self._origin + rng.uniform(0, 1, (count // 14, 2)) * extent
        gap = room(sites)
        sites = sites[(gap > 16) & (gap < 50)]
        shades = rng.integers(90, 225, (len(sites), 3))
        sizes = rng.uniform((8, 8, 5), (18, 16, 16), (len(sites), 3))
        turns = rng.uniform(-np.pi, np.pi, len(sites))
        buildings = [
            Box(site, float(turn), (float(a), float(b), float(c)), (int(shade[0]), int(shade[1]), int(shade[2])))
            for site, turn, (a, b, c), shade in zip(sites, turns, sizes, shades, strict=True)
        ]
        waves = np.arange(0, 2 * np.pi, np.pi / 180)
        hills = sum(rng.uniform(0.6, 1.4) / k * np.sin(k * waves + rng.uniform(0, 6.3)) for k in (2, 3, 5, 9, 17))
        posts = posts[room(posts) > 0.2] if len(posts) else np.zeros((0, 2))
        return Scenery(trees, posts, rng.uniform(-1, 1, len(trees)), buildings, 0.05 + 0.022 * np.asarray(hills))

    def _draw_sky(self, camera: Camera) -> None:
        canvas, rows = camera.canvas, int(np.ceil(HORIZON)) + 1
        share = np.linspace(0, 1, rows)[:, None, None]
        canvas[:rows] = (1 - share) * np.array([96, 148, 214]) + share * np.array([206, 222, 236])
        canvas[rows:] = _GRASS
        across = np.arange(0, CANVAS_SIZE + 4, 4)
        bearing = camera.heading - np.arctan((across - CANVAS_SIZE / 2) / FOCAL * np.cos(PITCH))
        hills = self._scenery.hills
        heights = np.interp(np.rad2deg(bearing) % 360, np.arange(361), np.append(hills, hills[0]))
        skyline = np.column_stack([across, HORIZON - FOCAL * np.maximum(heights, 0.004)])
        camera.fill(np.concatenate([skyline, [[CANVAS_SIZE, HORIZON + 2], [0, HORIZON + 2]]]), (112, 136, 138))

    def _draw_ground(self, camera: Camera) -> None:
        """Warp the ground pictures into view, a band of rows from each: fine ones near, coarse ones far away."""
        start = CANVAS_SIZE
        for level, distance in _LEVELS:
            end = start
            start = max(int(np.ceil(HORIZON)), 0) if np.isinf(distance) else int(row_of(distance))
            scale = _RESOLUTION * 2**level
            to_world = np.array([[scale, 0, self._origin[0]], [0, scale, self._origin[1]], [0, 0, 1]])
            shift = np.array([[1, 0, 0], [0, 1, -start], [0, 0, 1]])
            band = camera.canvas[start:end]
            cv2.warpPerspective(
                self._levels[level],
                shift @ camera.ground @ to_world,
                (CANVAS_SIZE, end - start),
                dst=band,
                flags=cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_CONSTANT,
                borderValue=_GRASS,
            )

    def _draw_tree(self, camera: Camera, index: int, distance: float) -> None:
        x, y, height = self._scenery.trees[index]
        tint = self._scenery.tints[index]
        green = (int(58 + 22 * tint), int(104 + 18 * tint), int(46 + 10 * tint))
        if height < 2:
            camera.disc((x, y, 0.35 * height), 0.55 * height, green)
            return
        camera.upright((x, y), 0.28, height * 0.5, (92, 70, 52))
        camera.disc((x, y, 0.62 * height), 0.30 * height, green)
        camera.disc((x, y, 0.82 * height), 0.20 * height, (green[0] + 14, green[1] + 16, green[2] + 10))

    def _draw_post(self, camera: Camera, index: int, distance: float) -> None:
        place = self._scenery.posts[index]
        camera.upright((place[0], place[1]), 0.16, 1.0, (236, 236, 236))
        camera.upright((place[0], place[1]), 0.16, 0.8, (214, 60, 40), bottom=0.62)
