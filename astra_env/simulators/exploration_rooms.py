"""Rooms that a camera flies through: built and drawn with MuJoCo, different for every seed, solid to the camera.

World axes: x and y along the walls, z up, the floor at 0; metres. All shapes are compiled once and moved, sized, tinted
and textured anew for each seed, so a new scene costs no compilation.
"""

from __future__ import annotations

import atexit
import colorsys
import itertools
from dataclasses import dataclass

import numpy as np

from astra_env import geometry
from astra_env.simulators.drawing import make_renderer, mujoco, smooth_picture
from astra_env.simulators.exploration_shapes import BALL, PATTERNS, POOL, POST, SOLID_FROM, build_model

RADIUS = 0.25
"""The camera keeps this far from everything, metres."""
LOWEST, HIGHEST = 0.3, 2.0
"""Heights that the camera may have, metres."""
GOAL_RADIUS = 0.2

_HEIGHT, _DOOR, _THICKNESS = 2.6, 1.2, 0.12
_LEVEL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""Rotation of a level camera that looks along the world's x."""
_SHOWN = ("geom_size", "geom_rgba", "geom_matid")


@dataclass(frozen=True)
class Scene:
    """What a seed has laid out: the camera's first pose (4, 4), the goal (3,), things to walk to (K, 3)."""

    start: np.ndarray
    goal: np.ndarray
    objects: np.ndarray


def camera_pose(position: np.ndarray, yaw: float, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """Camera-to-world pose (4, 4): ``yaw`` to the left from the world's x, ``pitch`` up, ``roll`` clockwise."""
    turn = geometry.rpy_to_matrix([0.0, 0.0, yaw]) @ _LEVEL
    lean = geometry.rpy_to_matrix([pitch, 0.0, 0.0]) @ geometry.rpy_to_matrix([0.0, 0.0, roll])
    return geometry.make_pose(turn @ lean, position)


def camera_angles(pose: np.ndarray) -> np.ndarray:
    """Yaw, pitch and roll (3,) of a camera-to-world pose; the inverse of `camera_pose`."""
    right, down, forward = pose[:3, :3].T
    return np.array(
        [np.arctan2(forward[1], forward[0]), np.arcsin(np.clip(forward[2], -1, 1)), np.arctan2(-right[2], -down[2])]
    )


class Rooms:
    """The scene: what stands where, what the camera sees, and where it cannot go."""

    def __init__(self) -> None:
        self._model = build_model()
        self._data = mujoco.MjData(self._model)
        mujoco.mj_forward(self._model, self._data)
        self._renderer = make_renderer(self._model)
        # at exit the display ends before objects do, so a renderer left open is closed before it
        atexit.register(self._renderer.close)
        self._free: dict[str, list[int]] = {}
        self._centres, self._turns, self._halves = np.zeros((0, 3)), np.zeros((0, 3, 3)), np.zeros((0, 3))

    def furnish(self, rng: np.random.Generator) -> Scene:
        """Lay out rooms, doors, pictures and furniture, all drawn from ``rng``."""
        self._model.geom_rgba[:, 3] = 0
        counts = [count for _, count in POOL.values()]
        ends = np.cumsum(counts)
        self._free = {kind: list(range(end - count, end)) for kind, end, count in zip(POOL, ends, counts, strict=True)}
        extent = rng.uniform(5.5, 8.5, 2)
        areas, doors = self._put_walls(rng, extent)
        taken = [np.append(door, 0.9) for door in doors]
        goal = np.append(_spot(rng, areas, taken, 0.5), rng.uniform(0.5, 1.4))
        self._put("goal", goal, np.eye(3), np.array([GOAL_RADIUS, 0, 0]), (0.95, 0.05, 0.05), -1)
        half = (goal[2] - GOAL_RADIUS) / 2
        self._put("post", np.append(goal[:2], half), np.eye(3), np.array([0.06, half, 0]), (0.2, 0.2, 0.22), -1)
        taken.append(np.append(goal[:2], 0.5))
        objects = [self._put_thing(rng, areas, taken) for _ in range(rng.integers(5, 10))]
        self._find_solids()
        start = self._first_pose(rng, areas, taken)
        return Scene(start, goal, np.stack(objects))

    def _first_pose(self, rng: np.random.Generator, areas: list[np.ndarray], taken: list[np.ndarray]) -> np.ndarray:
        """Somewhere free, with room before the camera."""
        for _ in range(60):
            place = np.append(_spot(rng, areas, taken, 0.35), rng.uniform(0.7, 1.6))
            yaw, pitch = rng.uniform(-np.pi, np.pi), rng.uniform(-0.25, 0.15)
            ahead = np.array([np.cos(yaw), np.sin(yaw), 0.0])
            if min(self.clearance(place + step * ahead) for step in np.arange(0.0, 2.8, 0.4)) > 0.3:
                break
        return camera_pose(place, yaw, pitch)

    def draw(self, pose: np.ndarray) -> np.ndarray:
        """What a camera at ``pose`` (4, 4) sees, uint8 (64, 64, 3)."""
        self._data.cam_xpos[0] = pose[:3, 3]
        self._data.cam_xmat[0] = (pose[:3, :3] * (1, -1, -1)).ravel()
        self._renderer.update_scene(self._data, camera=0)
        return smooth_picture(self._renderer)

    def slide(self, position: np.ndarray, motion: np.ndarray) -> np.ndarray:
        """Move from a free ``position`` (3,): what stands in the way pushes the camera aside or stops it."""
        place = position + motion
        for _ in range(6):
            place[2] = np.clip(place[2], LOWEST, HIGHEST)
            offsets, distances = self._offsets(place)
            nearest = int(distances.argmin())
            if distances[nearest] >= RADIUS - 1e-9:
                return place
            if distances[nearest] == 0:
                break
            place = place + offsets[nearest] * (RADIUS / distances[nearest] - 1)
        return position.copy()

    def clearance(self, position: np.ndarray) -> float:
        """Metres from a position (3,) to the nearest solid thing."""
        return float(self._offsets(position)[1].min())

    def get_state(self) -> dict[str, np.ndarray]:
        """The scene as arrays."""
        shown = {name: getattr(self._model, name).copy() for name in _SHOWN}
        return shown | {"geom_xpos": self._data.geom_xpos.copy(), "geom_xmat": self._data.geom_xmat.copy()}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Show a scene that `get_state` gave."""
        for name in _SHOWN:
            getattr(self._model, name)[:] = state[name]
        self._data.geom_xpos[:], self._data.geom_xmat[:] = state["geom_xpos"], state["geom_xmat"]
        self._find_solids()

    def close(self) -> None:
        """Free the graphics context."""
        atexit.unregister(self._renderer.close)
        self._renderer.close()

    def _offsets(self, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vectors (N, 3) from each solid thing's nearest point to ``place``, and their lengths (N,)."""
        local = np.einsum("nij,ni->nj", self._turns, place - self._centres)
        outside = local - np.clip(local, -self._halves, self._halves)
        return np.einsum("nij,nj->ni", self._turns, outside), np.linalg.norm(outside, axis=1)

    def _find_solids(self) -> None:
        """Collide with boxes around whatever is shown and solid."""
        solid = np.flatnonzero(self._model.geom_rgba[:, 3] > 0)
        solid = solid[solid >= SOLID_FROM]
        size, shape = self._model.geom_size[solid], self._model.geom_type[solid][:, None]
        ball, post = size[:, [0, 0, 0]], size[:, [0, 0, 1]]
        self._halves = np.where(shape == BALL, ball, np.where(shape == POST, post, size))
        self._centres = self._data.geom_xpos[solid].copy()
        self._turns = self._data.geom_xmat[solid].reshape(-1, 3, 3).copy()

    def _put_walls(self, rng: np.random.Generator, extent: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Floor, ceiling, walls with doors and pictures; returns the rooms (x, y, x, y) and the doors (x, y)."""
        half = np.append(extent / 2, 0.05)
        floor = _tint(rng, (0.1, 0.4), (0.45, 0.75)), _texture(rng)
        for z, (tint, texture) in ((-0.05, floor), (_HEIGHT + 0.05, ((0.95, 0.95, 0.93), -1))):
            self._put("slab", np.append(extent / 2, z), np.eye(3), half, tint, texture)
        width, depth = extent
        corners = np.array([[0, 0], [width, 0], [width, depth], [0, depth], [0, 0]])
        for start, end in itertools.pairwise(corners):
            self._put_wall(rng, start, end)
        areas, doors = [np.array([0, 0, width, depth])], []
        for _ in range(rng.choice(3, p=[0.5, 0.35, 0.15])):
            index = int(np.argmax([(a[2] - a[0]) * (a[3] - a[1]) for a in areas]))
            pieces, door = self._split(rng, areas.pop(index))
            areas += pieces
            doors.append(door)
        return areas, doors

    def _split(self, rng: np.random.Generator, area: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Divide a room across its longer side by a wall with a door."""
        along = int(area[3] - area[1] > area[2] - area[0])
        cut = rng.uniform(0.4, 0.6) * (area[along + 2] - area[along]) + area[along]
        across = 1 - along
        low, high = area[across], area[across + 2]
        gap = rng.uniform(low + 0.5, high - 0.5 - _DOOR)
        points = np.full((4, 2), cut)
        points[:, across] = low, gap, gap + _DOOR, high
        tint, texture = _tint(rng, (0.03, 0.3), (0.75, 1.0)), _texture(rng)
        for start, end in (points[:2], points[2:]):
            self._put_wall(rng, start, end, (tint, texture))
        first, second = area.copy(), area.copy()
        first[along + 2], second[along] = cut, cut
        return [first, second], (points[1] + points[2]) / 2

    def _put_wall(
        self, rng: np.random.Generator, start: np.ndarray, end: np.ndarray, look: tuple[tuple, int] | None = None
    ) -> None:
        """A wall from ``start`` (2,) to ``end`` (2,), perhaps with a picture on both sides."""
        length = float(np.linalg.norm(end - start))
        along = np.append((end - start) / length, 0.0)
        # textures spread over a shape's own x and y: along the wall and up
        turn = np.stack([along, [0, 0, 1], np.cross(along, [0, 0, 1])], axis=1)
        centre = np.append((start + end) / 2, _HEIGHT / 2)
        tint, texture = look or (_tint(rng, (0.03, 0.3), (0.75, 1.0)), _texture(rng))
        self._put("wall", centre, turn, np.array([length, _HEIGHT, _THICKNESS]) / 2, tint, texture)
        for _ in range(int(length > 1.2) + int(length > 4)):
            place = centre + along * rng.uniform(-0.5, 0.5) * (length - 1)
            place[2] = rng.uniform(1.1, 1.7)
            size = np.array([*rng.uniform(0.25, 0.5, 2), _THICKNESS / 2 + 0.02])
            self._put("picture", place, turn, size, _tint(rng, (0.5, 1.0), (0.5, 1.0)), -1)

    def _put_thing(self, rng: np.random.Generator, areas: list[np.ndarray], taken: list[np.ndarray]) -> np.ndarray:
        """A box, post or ball on the floor, apart from what is ``taken`` (x, y, radius), which grows; its position."""
        kind = str(rng.choice([kind for kind in ("box", "box", "post", "ball") if self._free[kind]]))
        radius = rng.uniform(0.15, 0.35)
        half = rng.choice([rng.uniform(0.15, 0.5), rng.uniform(0.5, 1.0), _HEIGHT / 2], p=[0.6, 0.3, 0.1])
        half = radius if kind == "ball" else half
        sizes = {
            "box": (radius * rng.uniform(0.6, 1), radius, half),
            "post": (0.7 * radius, half, 0),
            "ball": (radius, 0, 0),
        }
        spot = _spot(rng, areas, taken, radius * 1.3 + 0.05)
        turn = geometry.rpy_to_matrix([0, 0, rng.uniform(-np.pi, np.pi)])
        position = np.append(spot, half)
        self._put(kind, position, turn, np.array(sizes[kind]), _tint(rng, (0.6, 1.0), (0.6, 1.0)), -1)
        taken.append(np.append(spot, radius * 1.3))
        return position

    def _put(
        self, kind: str, place: np.ndarray, turn: np.ndarray, size: np.ndarray, tint: tuple, material: int
    ) -> None:
        index = self._free[kind].pop()
        self._model.geom_size[index], self._model.geom_rgba[index] = size, (*tint, 1.0)
        self._model.geom_matid[index] = material
        self._data.geom_xpos[index], self._data.geom_xmat[index] = place, turn.ravel()


def _spot(rng: np.random.Generator, areas: list[np.ndarray], taken: list[np.ndarray], radius: float) -> np.ndarray:
    """A place (2,) on the floor, ``radius`` away from walls and from what is taken."""
    margin = radius + _THICKNESS / 2
    while True:
        area = areas[rng.integers(len(areas))]
        spot = rng.uniform(area[:2] + margin, area[2:] - margin)
        # a crowded room lets things come a little nearer at each attempt
        radius *= 0.995
        if all(np.linalg.norm(spot - other[:2]) > other[2] + radius for other in taken):
            return spot


def _tint(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> tuple:
    """A colour of any hue but red, which belongs to the goal."""
    return colorsys.hsv_to_rgb(rng.uniform(0.07, 0.92), rng.uniform(*saturation), rng.uniform(*value))


def _texture(rng: np.random.Generator) -> int:
    return int(rng.integers(len(PATTERNS)))
