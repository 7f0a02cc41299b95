"""MetaDrive's road network as ground to paint and ways to follow, in right-handed axes (its own y points right)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from astra_env.simulators.driving_view import RoadMarks

_STEP = 2.0
"""Metres between the corners that outline a lane."""
_DASH, _DASH_GAP = 3.0, 4.5
_LINE_WIDTH = 0.2
_SHOULDER, _KERB = 0.6, 2.2
"""Metres of asphalt beyond the outermost line, and of pavement beyond that."""
_POST_GAP = 12.0

Graph = Mapping[str, Mapping[str, Sequence[Any]]]


class RoadMap:
    """What a map holds: ground marks and posts to draw, and lanes where a car may start."""

    def __init__(self, road_map: Any) -> None:
        self.graph: Graph = road_map.road_network.graph
        self._blocks = road_map.blocks
        roads = [road for block in road_map.blocks for road in block.get_respawn_roads()]
        lanes = [lane for road in roads for lane in road.get_lanes(road_map.road_network)]
        self.start_lanes = [lane for lane in lanes if lane.length > 15]
        self.marks, self.posts = _ground(self.graph)

    def destination(self, lane: Any, rng: np.random.Generator) -> str:
        """The node where a way from ``lane`` may end: another exit of the last block, or of the first one backwards."""
        # MetaDrive's own choice fails at times where the car begins in the block that it is to arrive at
        backwards = "-" in lane.index[1]
        exits = self._blocks[0 if backwards else -1].get_socket_list()
        others = [socket for socket in exits if not socket.is_socket_node(lane.index[0])] or exits
        socket = others[int(rng.integers(len(others)))]
        return (socket.negative_road if backwards else socket.positive_road).end_node

    def on_route(self, car: Any) -> bool:
        """Whether the car's lane belongs to its way from start to destination."""
        points = car.navigation.checkpoints
        return tuple(car.lane.index[:2]) in set(itertools.pairwise(points))


def route_ahead(car: Any, distances: Sequence[float], graph: Graph) -> np.ndarray:
    """Points (N, 2) on the middle of the lane, ``distances`` metres ahead of the car, along its route."""
    lane = car.lane
    along = lane.local_coordinates(car.position)[0]
    start, points = 0.0, []
    for distance in distances:
        while along + distance - start > lane.length:
            following = _next_lane(car.navigation.checkpoints, lane, graph)
            if following is None:
                break
            start, along = start + lane.length - along, 0.0
            lane = following
        points.append(lane.position(along + distance - start, 0.0))
    return np.array(points) * (1, -1)


def _next_lane(checkpoints: Sequence[str], lane: Any, graph: Graph) -> Any:
    """The lane that follows, on the route where there is a choice; None where the road ends."""
    exits = graph.get(lane.index[1], {})
    if not exits:
        return None
    wanted = [b for a, b in itertools.pairwise(checkpoints) if a == lane.index[1] and b in exits]
    lanes = exits[wanted[0] if wanted else next(iter(exits))]
    return lanes[min(lane.index[2], len(lanes) - 1)]


def _ground(graph: Graph) -> tuple[RoadMarks, np.ndarray]:
    kerbs, asphalt, posts = [], [], []
    lines: dict[bool, list[np.ndarray]] = {False: [], True: []}
    lanes = [lane for ends in graph.values() for road in ends.values() for lane in road]
    for lane in lanes:
        sides = dict(zip((-1, 1), lane.line_types, strict=True))
        edges = {side: lane.width / 2 + (_SHOULDER if kind == "side" else 0.0) for side, kind in sides.items()}
        asphalt.append(_strip(lane, 0, lane.length, -edges[-1] - 0.05, edges[1] + 0.05))
        for side, kind in sides.items():
            middle = side * (lane.width / 2 - 0.05)
            colour = lines[tuple(lane.line_colors[0 if side < 0 else 1])[2] < 0.5]
            if kind == "broken":
                starts = np.arange(0, lane.length, _DASH + _DASH_GAP)
                colour += [_line(lane, s, min(s + _DASH, lane.length), middle) for s in starts]
            elif kind != "none":
                colour.append(_line(lane, 0, lane.length, middle))
            if kind == "side":
                outer = side * (edges[side] + _KERB)
                kerbs.append(_strip(lane, 0, lane.length, *sorted((0.0, outer))))
                place = np.arange(_POST_GAP / 2, lane.length, _POST_GAP)
                posts += [lane.position(s, side * (edges[side] + _KERB + 0.7)) for s in place]
    return RoadMarks(kerbs, asphalt, lines[False], lines[True]), np.array(posts).reshape(-1, 2) * (1, -1)


def _line(lane: Any, start: float, end: float, lateral: float) -> np.ndarray:
    return _strip(lane, start, end, lateral - _LINE_WIDTH / 2, lateral + _LINE_WIDTH / 2)


def _strip(lane: Any, start: float, end: float, low: float, high: float) -> np.ndarray:
    """Outline (N, 2) of the part of a lane between two lengths along it and two offsets to its right."""
    along = np.linspace(start, end, max(2, int(np.ceil((end - start) / _STEP)) + 1))
    there = [lane.position(s, low) for s in along]
    back = [lane.position(s, high) for s in along[::-1]]
    return np.array(there + back) * (1, -1)
