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

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.kinematics import BicycleMotion
from astra_env.simulators import CHUNK_FRAMES, FPS, FRAME_SIZE
from astra_env.simulators.driving_camera import Box
from astra_env.simulators.driving_roads import RoadMap, route_ahead
from astra_env.simulators.driving_view import RoadView
from astra_env.simulators.metadrive_shim import load_metadrive

try:
    from panda3d.core import Vec3, loadPrcFileData

    loadPrcFileData("", "notify-level fatal\nnotify-level-device fatal\naudio-library-name null")
    _METADRIVE, _ENGINE = load_metadrive()
except ImportError as error:
    raise ImportError(
        "The driving simulator needs metadrive and panda3d: install them with `make simulators`."
    ) from error

PHYSICS_STEP = 0.025
"""Seconds between two control updates."""
WHEELBASE = BicycleMotion().wheelbase
REAR_AXLE = 1.4166
"""Metres from the car's centre of mass back to its rear axle, whose pose is reported."""
MAX_SPEED, MAX_REVERSE_SPEED = 20.0, 5.0
"""Metres in a second: a speed beyond them is not commanded."""
GRIP = 8.0
"""Sideways acceleration in m/s^2 that the tyres hold: faster, a car turns less than it is steered."""
_MAX_ACCELERATION = np.array([15.0, 50.0])
"""Along and across, m/s^2: what the control may apply to a car that a collision has thrown off."""
_MAX_YAW_ACCELERATION = 60.0
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
    ``gap_speed`` (inf and 0 without one), ``success`` (arrived), ``out_of_road`` (the car's middle is off the road)
    and ``crashed`` (touched something in this step); and ``poses``, ``commanded_poses`` and ``speeds`` with one row
    for each frame.

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
        pose = self._pose()
        return self._frame, self._info([(pose, pose, self._speed())], [self._frame])

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold one action (2,) for 0.2 s; the reward is in [0, 1] and an episode never ends by itself."""
        steering, acceleration = (float(value) for value in self.modality.validate(action))
        self._crashed = False
        self._command_speed = speed = self._speed()
        actions = np.tile([steering, acceleration], (CHUNK_FRAMES, 1))
        # half a frame's change earlier, so that each frame's mean speed is held instead of its last one
        path = self.modality.kinematics.integrate(self._pose(), actions, 1 / FPS, speed - acceleration / FPS / 2)
        substeps = round(1 / (FPS * PHYSICS_STEP))
        records, frames = [], []
        for index in range(CHUNK_FRAMES):
            for _ in range(substeps):
                self._physics(steering, acceleration)
            records.append((self._pose(), path[index + 1], self._speed()))
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
        along = self._speed() * np.cos(heading - self._heading())
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
        others = np.array([other.position for other in self._traffic()]).reshape(-1, 2)
        lanes, start = self._roads.start_lanes, 2.0
        if rng.random() < NEAR_DESTINATION:
            lanes = car.navigation.final_road.get_lanes(self._world.current_map.road_network)
            start = max(start, lanes[0].length - 45.0)
        for _ in range(100):
            lane = lanes[int(rng.integers(len(lanes)))]
            along = float(rng.uniform(start, lane.length - 2))
            place = np.array(lane.position(along, 0.0))
            if not len(others) or np.linalg.norm(others - place, axis=1).min() > 12:
                break
        car.update_config({"spawn_lane_index": lane.index, "spawn_longitude": along}, allow_add_new_key=True)
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
        self._drive(steering)
        for manager in engine.managers.values():
            manager.step()
        # without substeps: with them, Bullet shows bodies one step late
        engine.physics_world.dynamic_world.doPhysics(PHYSICS_STEP, 0)
        self._crashed |= self._car.crash_vehicle or self._car.crash_object or self._car.crash_building
        self._tick += 1
        if self._tick % 4 == 0:
            engine.after_step()

    def _drive(self, steering: float) -> None:
        """Impulses that lead to the commanded speed and the yaw rate of the bicycle, rolling without sideways slip."""
        body, speed = self._car.body, self._command_speed
        limit = GRIP / max(abs(speed), 1e-3)
        yaw_rate = float(np.clip(speed * np.tan(steering) / WHEELBASE, -limit, limit))
        heading = self._heading() + yaw_rate * PHYSICS_STEP / 2
        axes = np.array([[np.cos(heading), np.sin(heading)], [-np.sin(heading), np.cos(heading)]])
        velocity, spin = body.getLinearVelocity(), body.getAngularVelocity()
        missing = np.array([speed, yaw_rate * REAR_AXLE]) - axes @ np.array([velocity[0], velocity[1]])
        bound = _MAX_ACCELERATION * PHYSICS_STEP
        push = axes.T @ np.clip(missing, -bound, bound) * body.getMass()
        body.applyCentralImpulse(Vec3(push[0], push[1], 0.0))
        turn = np.clip(yaw_rate - spin[2], -_MAX_YAW_ACCELERATION * PHYSICS_STEP, _MAX_YAW_ACCELERATION * PHYSICS_STEP)
        body.applyTorqueImpulse(Vec3(0.0, 0.0, float(turn) * body.getInertia()[2]))

    def _heading(self) -> float:
        return float(np.deg2rad(self._car.origin.getH() + 90.0))

    def _pose(self) -> np.ndarray:
        """Pose of the rear axle on the ground, from the upright part of the car's rotation."""
        place, heading = self._car.origin.getPos(), self._heading()
        x, y = place[0] - REAR_AXLE * np.cos(heading), place[1] - REAR_AXLE * np.sin(heading)
        return geometry.make_pose(geometry.rpy_to_matrix([0.0, 0.0, heading]), np.array([x, y, 0.0]))

    def _speed(self) -> float:
        body = self._car.body
        # a tick's velocity holds along the heading in the middle of the tick
        velocity, heading = body.getLinearVelocity(), self._heading() - body.getAngularVelocity()[2] * PHYSICS_STEP / 2
        return float(velocity[0] * np.cos(heading) + velocity[1] * np.sin(heading))

    def _traffic(self) -> list[Any]:
        return self._world.engine.traffic_manager.traffic_vehicles

    def _draw(self) -> np.ndarray:
        boxes = []
        for car in self._traffic():
            place, heading = np.array(car.origin.getPos())[:2], float(np.deg2rad(car.origin.getH() + 90.0))
            boxes.append(Box(place, heading, (car.LENGTH, car.WIDTH, car.HEIGHT), self._cars[car.id]))
        x, y = self._pose()[:2, 3]
        return self._view.draw(x, y, self._heading(), boxes)

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
            "out_of_road": self._off_road(),
            "crashed": bool(self._crashed),
            "poses": poses,
            "commanded_poses": targets,
            "speeds": speeds,
        }

    def _car_ahead(self, route: np.ndarray) -> tuple[float, float]:
        """Free metres to the nearest car on the way along ``route`` (R, 2), and that car's speed along it."""
        pose, nearest = self._pose(), (np.inf, 0.0)
        for car in self._traffic():
            ahead, left = (np.array(car.origin.getPos())[:2] - pose[:2, 3]) @ pose[:2, :2]
            if 0 < ahead < ROUTE_DISTANCES[-1] and abs(left - np.interp(ahead, route[:, 0], route[:, 1])) < 1.8:
                gap = float(ahead - car.LENGTH / 2 - self._car.LENGTH / 2 - REAR_AXLE)
                if gap < nearest[0]:
                    nearest = gap, float(np.array(car.body.getLinearVelocity())[:2] @ pose[:2, 0])
        return nearest
