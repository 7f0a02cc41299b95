"""A simulated car on roads with traffic: MetaDrive's road networks, traffic and physics, drawn by `driving_view`.

One action is held 0.2 s and shows four frames. The car does what the kinematic bicycle says: its speed changes by
acceleration times time and its rear axle rolls on an arc of curvature tan(steering) / wheelbase, as far as the grip of
its tyres allows; bounded forces bring this about, so collisions stay physical. ``reset(seed=s)`` and the same actions
give the same poses and pixels.
"""

from __future__ import annotations

import atexit
from typing import Any

import gymnasium
import numpy as np

from astra_env.actions import ACTION_MODALITIES
from astra_env.simulators import CHUNK_FRAMES, FPS, FRAME_SIZE, driving_behaviours
from astra_env.simulators.driving_camera import Box
from astra_env.simulators.driving_roads import RoadMap, route_ahead
from astra_env.simulators.driving_view import RoadView
from astra_env.simulators.metadrive_shim import load_metadrive
from astra_env.simulators.recording import Recording

try:
    from panda3d.core import loadPrcFileData

    loadPrcFileData("", "notify-level fatal\nnotify-level-device fatal\naudio-library-name null")
    _METADRIVE, _ENGINE = load_metadrive()
    from astra_env.simulators.driving_car import REAR_AXLE, Car
except ImportError as error:
    raise ImportError(
        "The driving simulator needs metadrive and panda3d: install them with `make simulators`."
    ) from error

PHYSICS_STEP = 0.025
"""Seconds between two control updates."""
MAX_SPEED, MAX_REVERSE_SPEED = 20.0, 5.0
"""Metres in a second: a speed beyond them is not commanded."""
ROUTE_DISTANCES = (3.0, 6.0, 10.0, 15.0, 22.0, 30.0)
"""Metres ahead at which ``info["route"]`` gives the middle of the lane."""
CRUISE_SPEED = 12.0
"""Speed along the route, in m/s, that earns the full reward."""
NEAR_DESTINATION = 0.1
"""Share of episodes that begin within 45 m of the destination; the others begin anywhere."""
TEXT = "drive along the road"

_COLOURS = ((200, 36, 36), (232, 232, 236), (40, 84, 180), (34, 36, 42), (236, 184, 32), (150, 156, 164), (36, 130, 92))
_CONFIG = {
    "environment_num": 1,
    "horizon": None,
    "need_inverse_traffic": True,
    "random_lane_num": True,
    "physics_world_step_size": PHYSICS_STEP,
    "force_destroy": True,
    "num_buffering_objects": 0,
}


class DrivingSimulator(gymnasium.Env):
    """Gymnasium environment over MetaDrive; one may be open in a process.

    Observation: the last frame, uint8 (64, 64, 3). ``info``: ``frames`` uint8 (4, 64, 64, 3) (one frame at reset),
    ``pose`` (4, 4) of the rear axle in world axes (x forward, y left, z up, metres), ``commanded_pose`` where the
    action would have led the kinematic bicycle from the step's first pose, ``speed`` (m/s, negative in reverse),
    ``route`` (6, 2) the middle of the lane 3 to 30 m ahead in the car's axes, ``gap`` metres to the car ahead and its
    ``gap_speed`` (inf and 0 without one), ``success`` (arrived), ``out_of_road`` (the car's middle is off the road),
    ``crashed`` (touched something in this step), ``failure`` (either of them); and ``poses``, ``commanded_poses`` and
    ``speeds`` with one row for each frame.

    Args:
        traffic: cars for each 10 m of lane.
        num_blocks: curves, intersections, ramps, roundabouts and straights that a map is made of.
        render_mode: ``rgb_array`` or None.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012

    def __init__(self, traffic: float = 0.12, num_blocks: int = 3, render_mode: str | None = "rgb_array") -> None:
        if _ENGINE.engine_initialized():
            raise RuntimeError("MetaDrive has one engine in a process: close the open DrivingSimulator first.")
        self.render_mode = render_mode
        self.modality = ACTION_MODALITIES["vehicle"]
        self.action_space = self.modality.space()
        self.observation_space = gymnasium.spaces.Box(0, 255, (FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
        self._world = _METADRIVE({**_CONFIG, "traffic_density": traffic, "map": num_blocks})
        self._world.lazy_init()
        atexit.register(self.close)
        self._frame = np.zeros((FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
        self._tick, self._command_speed, self._crashed = 0, 0.0, False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Build a road network with traffic and put the car on a lane; everything follows from ``seed``."""
        super().reset(seed=seed)
        rng = self.np_random
        self._build(int(rng.integers(2**31)))
        self._place(rng)
        self._view = RoadView(self._roads.marks, self._roads.posts, rng)
        cars = self._traffic()
        self._cars = {car.id: _COLOURS[int(rng.integers(len(_COLOURS)))] for car in cars}
        for car in cars:
            car.set_velocity(car.heading, float(rng.uniform(4, 9)))
        self._tick, self._crashed = 0, False
        for _ in range(4):
            self._physics(0.0, 0.0)
        self._crashed = False
        self._frame = self._draw()
        pose = self._bicycle.pose()
        return self._frame, self._info([(pose, pose, self._bicycle.speed())], [self._frame])

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold one action (2,) for 0.2 s; the reward is in [0, 1] and an episode never ends by itself."""
        steering, acceleration = (float(value) for value in self.modality.validate(action))
        self._crashed = False
        self._command_speed = speed = self._bicycle.speed()
        actions = np.tile([steering, acceleration], (CHUNK_FRAMES, 1))
        path = self.modality.integrate(self._bicycle.pose(), actions, speed=speed, rate_hz=FPS)
        substeps = round(1 / (FPS * PHYSICS_STEP))
        records, frames = [], []
        for index in range(CHUNK_FRAMES):
            for _ in range(substeps):
                self._physics(steering, acceleration)
            records.append((self._bicycle.pose(), path[index + 1], self._bicycle.speed()))
            frames.append(self._draw())
        self._frame = frames[-1]
        return self._frame, self.reward(), False, False, self._info(records, frames)

    def render(self) -> np.ndarray:
        """The last frame, uint8 (64, 64, 3)."""
        return self._frame

    def close(self) -> None:
        """Free the engine, so that another simulator may be opened."""
        atexit.unregister(self.close)
        if _ENGINE.engine_initialized():
            self._world.close()

    def reward(self) -> float:
        """Speed along the route as a share of ``CRUISE_SPEED``, in [0, 1]; 1 on arrival, 0 off the road or touching."""
        if self._arrived():
            return 1.0
        if self._crashed or self._off_road():
            return 0.0
        heading = -self._car.lane.heading_theta_at(self._car.lane.local_coordinates(self._car.position)[0])
        along = self._bicycle.speed() * np.cos(heading - self._bicycle.heading())
        return float(np.clip(along / CRUISE_SPEED, 0, 1)) if self._roads.on_route(self._car) else 0.0

    def _build(self, seed: int) -> None:
        """A new map and its traffic; the map before it is given up."""
        world, engine = self._world, self._world.engine
        manager = engine.map_manager
        if manager.current_map is not None:
            old = manager.current_map
            # nodes hold their Python halves, and with them the lanes, until they are told to let go
            nodes = [node for block in old.blocks for node in (*block.static_nodes, *block.dynamic_nodes)]
            manager.unload_map(old)
            engine.clear_objects([old.id], force_destroy=True)
            for node in nodes:
                if node.hasPythonTag(node.getName()):
                    node.getPythonTag(node.getName()).destroy()
        manager.maps = {seed: None}
        if world.vehicles:  # MetaDrive would send the car to where it went on the map before
            world.vehicle.update_config({"destination": None}, allow_add_new_key=True)
        world.reset(force_seed=seed)
        self._roads = RoadMap(engine.current_map)
        traffic = engine.traffic_manager
        # all cars drive from the start, instead of each block's when the car comes near
        for block in traffic.block_triggered_vehicles:
            traffic._traffic_vehicles += traffic.get_objects(block.vehicles).values()
        traffic.block_triggered_vehicles = []

    def _place(self, rng: np.random.Generator) -> None:
        """Put the car on a lane anywhere in the map, away from other cars, at a random speed."""
        self._car = car = self._world.vehicle
        self._bicycle = Car(car, PHYSICS_STEP)
        others = np.array([other.position for other in self._traffic()]).reshape(-1, 2)
        lanes, start = self._roads.start_lanes, 2.0
        near = rng.random() < NEAR_DESTINATION
        if near:
            lanes = car.navigation.final_road.get_lanes(self._world.current_map.road_network)
            start = max(start, lanes[0].length - 45.0)
        for _ in range(100):
            lane = lanes[int(rng.integers(len(lanes)))]
            along = float(rng.uniform(start, lane.length - 2))
            place = np.array(lane.position(along, 0.0))
            if not len(others) or np.linalg.norm(others - place, axis=1).min() > 12:
                break
        destination = car.navigation.final_road.end_node if near else self._roads.destination(lane, rng)
        place_on_road = {"spawn_lane_index": lane.index, "spawn_longitude": along, "destination": destination}
        car.update_config(place_on_road, allow_add_new_key=True)
        offset, turn = float(np.clip(rng.normal(0, 0.3), -0.8, 0.8)), float(rng.normal(0, 0.04))
        heading = lane.heading_theta_at(along) + turn
        car.reset(position=lane.position(along, offset), heading=np.rad2deg(heading))
        # the references in car.wheels do not follow the vehicle's own list, which moves as it grows
        for index in range(car.system.getNumWheels()):
            car.system.getWheel(index).setFrictionSlip(0.0)
        self._command_speed = float(rng.uniform(0, 12)) if rng.random() < 0.85 else 0.0
        car.set_velocity(car.heading, self._command_speed)

    def _physics(self, steering: float, acceleration: float) -> None:
        """One physics tick; every fourth, the other cars decide."""
        engine = self._world.engine
        if self._tick % 4 == 0:
            engine.before_step({"default_agent": [0.0, 0.0]})
        self._command_speed += acceleration * PHYSICS_STEP
        self._command_speed = float(np.clip(self._command_speed, -MAX_REVERSE_SPEED, MAX_SPEED))
        self._bicycle.drive(steering, self._command_speed)
        for manager in engine.managers.values():
            manager.step()
        # without substeps: with them, Bullet shows bodies one step late
        engine.physics_world.dynamic_world.doPhysics(PHYSICS_STEP, 0)
        self._crashed |= self._car.crash_vehicle or self._car.crash_object or self._car.crash_building
        self._tick += 1
        if self._tick % 4 == 0:
            engine.after_step()

    def _traffic(self) -> list[Any]:
        return self._world.engine.traffic_manager.traffic_vehicles

    def _draw(self) -> np.ndarray:
        boxes = []
        for car in self._traffic():
            place, heading = np.array(car.origin.getPos())[:2], float(np.deg2rad(car.origin.getH() + 90.0))
            boxes.append(Box(place, heading, (car.LENGTH, car.WIDTH, car.HEIGHT), self._cars[car.id]))
        x, y = self._bicycle.pose()[:2, 3]
        return self._view.draw(x, y, self._bicycle.heading(), boxes)

    def _arrived(self) -> bool:
        return bool(self._world._is_arrive_destination(self._car))

    def _off_road(self) -> bool:
        return not self._car.on_lane

    def _info(self, records: list[tuple], frames: list[np.ndarray]) -> dict[str, Any]:
        poses, targets, speeds = (np.stack([record[i] for record in records]) for i in range(3))
        pose = poses[-1]
        route = (route_ahead(self._car, ROUTE_DISTANCES, self._roads.graph) - pose[:2, 3]) @ pose[:2, :2]
        gap, gap_speed = self._car_ahead(route)
        return {
            "frames": np.stack(frames),
            "pose": pose,
            "commanded_pose": targets[-1],
            "speed": float(speeds[-1]),
            "route": route,
            "gap": gap,
            "gap_speed": gap_speed,
            "success": self._arrived(),
            "failure": self._off_road() or bool(self._crashed),
            "out_of_road": self._off_road(),
            "crashed": bool(self._crashed),
            "poses": poses,
            "commanded_poses": targets,
            "speeds": speeds,
        }

    def _car_ahead(self, route: np.ndarray) -> tuple[float, float]:
        """Free metres to the nearest car on the way along ``route`` (R, 2), and that car's speed along it."""
        pose, nearest = self._bicycle.pose(), (np.inf, 0.0)
        for car in self._traffic():
            ahead, left = (np.array(car.origin.getPos())[:2] - pose[:2, 3]) @ pose[:2, :2]
            if 0 < ahead < ROUTE_DISTANCES[-1] and abs(left - np.interp(ahead, route[:, 0], route[:, 1])) < 1.8:
                gap = float(ahead - car.LENGTH / 2 - self._car.LENGTH / 2 - REAR_AXLE)
                if gap < nearest[0]:
                    nearest = gap, float(np.array(car.body.getLinearVelocity())[:2] @ pose[:2, 0])
        return nearest


RECORDING = Recording(
    make=lambda variant: DrivingSimulator(),
    variants={"route": 1.0},
    behaviours=driving_behaviours.BEHAVIOURS,
    make_behaviour=lambda name, rng, info: driving_behaviours.make_behaviour(name, rng),
    text=TEXT,
    packages=("metadrive-simulator", "panda3d", "opencv-python-headless", "numpy"),
    tracks={"speed": "speeds"},
    moments={"route": "route"},
)
"""How `astra-env collect driving` records."""
