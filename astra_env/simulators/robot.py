"""A simulated 7-DoF arm at a table with cubes: robosuite's Panda and scenes, stepped and drawn by MuJoCo.

One action is held 0.2 s and shows four frames. An action moves a *commanded* pose inside a workspace box; operational
space control makes the arm follow it. ``reset(seed=s)`` and the same actions give the same poses and pixels.
"""

from __future__ import annotations

import atexit
from typing import Any

import gymnasium
import numpy as np

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.simulators import CHUNK_FRAMES, FPS, FRAME_SIZE, arm, robot_behaviours
from astra_env.simulators.arm import TABLE_Z, WORKSPACE_HIGH, WORKSPACE_LOW
from astra_env.simulators.drawing import mujoco, smooth_picture
from astra_env.simulators.recording import Recording
from astra_env.simulators.robot_scene import (
    CAMERA,
    CUBE_SIZE,
    FIELD_OF_VIEW,
    PHYSICS_STEP,
    TASKS,
    build_model,
    make_scene_renderer,
)

LIFT_HEIGHT = 0.04
"""Metres above its place on the table from where a cube counts as lifted."""
TEXT = "lift the red cube"

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
_BASE = np.array([-0.56, 0.0, 0.912])
"""Where the robot's base stands, in world axes."""


class RobotSimulator(gymnasium.Env):
    """Gymnasium environment over one robosuite scene.

    Observation: the last frame, uint8 (64, 64, 3). ``info``: ``frames`` uint8 (4, 64, 64, 3) (one frame at reset),
    ``pose`` and ``commanded_pose`` (4, 4) of the gripper in the robot's base frame, ``gripper`` 0 open .. 1 closed,
    ``objects`` (K, 3) cube positions, ``success``; and ``poses``, ``commanded_poses``, ``grippers``, ``object_tracks``
    with one row for each frame.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012

    def __init__(self, task: str = "lift", render_mode: str | None = "rgb_array") -> None:
        if task not in TASKS:
            raise ValueError(f"Unknown robot task {task!r}; the tasks are {sorted(TASKS)}.")
        self.task, self.render_mode = task, render_mode
        self.modality = ACTION_MODALITIES["end_effector"]
        self.action_space = self.modality.space()
        self.observation_space = gymnasium.spaces.Box(0, 255, (FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
        self._model = build_model(task)
        self._data = mujoco.MjData(self._model)
        self._renderer, self._camera, self._options = make_scene_renderer(self._model)
        # at exit the display ends before objects do, so a simulator left open is closed before it
        atexit.register(self._renderer.close)
        self._site = self._model.site("gripper0_right_grip_site").id
        self._cubes = [self._model.body(f"{name}_main").id for name in TASKS[task][1]]
        self._cube_qpos = [int(self._model.joint(f"{name}_joint0").qposadr[0]) for name in TASKS[task][1]]
        self._pads = [self._model.geom(f"gripper0_right_finger{i}_pad_collision").id for i in (1, 2)]
        self._red = self._model.geom(f"{TASKS[task][1][0]}_g0").id
        self._target, self._closed = np.eye(4), 0.0
        self._frame = np.zeros((FRAME_SIZE, FRAME_SIZE, 3), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Place cubes and gripper at random; everything follows from ``seed``."""
        super().reset(seed=seed)
        mujoco.mj_resetData(self._model, self._data)
        cubes = self._place_cubes(rng := self.np_random)
        self._closed = float(rng.random() < 0.25)
        while True:
            position = rng.uniform(WORKSPACE_LOW + 0.01, WORKSPACE_HIGH)
            clearance = np.linalg.norm(cubes[:, :2] - position[:2], axis=1).min()
            if clearance > 0.10 or position[2] > TABLE_Z + CUBE_SIZE + 0.04:
                break
        rpy = rng.uniform(-1, 1, 3) * 0.5 * np.array([arm.MAX_TILT, arm.MAX_TILT, arm.MAX_YAW])
        self._target = geometry.make_pose(geometry.rpy_to_matrix(rpy) @ arm.HOME_ROTATION, position)
        self._solve_joints()
        for _ in range(10):
            self._control(self._target, np.zeros(6))
        self._frame = self._draw()
        return self._frame, self._info([self._record(self._target)], [self._frame])

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold one action (7,) for 0.2 s; the reward is in [0, 1] and an episode never ends by itself."""
        action = self.modality.validate(action).astype(np.float64)
        start = arm.leashed(self._target, self._pose())
        end = arm.inside_workspace(self.modality.integrate(start, action[None])[1])
        turn = geometry.matrix_to_axis_angle(end[:3, :3] @ start[:3, :3].T)
        path = np.concatenate([end[:3, 3] - start[:3, 3], turn])
        velocity = path * FPS / CHUNK_FRAMES
        substeps = round(1 / (FPS * PHYSICS_STEP))
        total, closed = substeps * CHUNK_FRAMES, self._closed
        records, frames = [], []
        for index in range(1, total + 1):
            share = index / total
            rotation = geometry.axis_angle_to_matrix(share * turn) @ start[:3, :3]
            self._target = geometry.make_pose(rotation, start[:3, 3] + share * path[:3])
            self._closed = closed + share * (float(action[6]) - closed)
            self._control(self._target, velocity)
            if index % substeps == 0:
                records.append(self._record(self._target))
                frames.append(self._draw())
        self._frame = frames[-1]
        return self._frame, self.reward(), False, False, self._info(records, frames)

    def render(self) -> np.ndarray:
        """The last frame, uint8 (64, 64, 3)."""
        return self._frame

    def close(self) -> None:
        """Free the graphics context."""
        atexit.unregister(self._renderer.close)
        self._renderer.close()

    def get_state(self) -> dict[str, np.ndarray]:
        """All that the simulation needs to continue from here, as arrays."""
        physics = np.empty(mujoco.mj_stateSize(self._model, _STATE))
        mujoco.mj_getState(self._model, self._data, physics, _STATE)
        return {"physics": physics, "target": self._target.copy(), "closed": np.array(self._closed)}

    def set_state(self, state: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, Any]]:
        """Continue from a state of the same task; returns what ``reset`` returns."""
        mujoco.mj_setState(self._model, self._data, np.asarray(state["physics"], np.float64), _STATE)
        mujoco.mj_forward(self._model, self._data)
        self._target, self._closed = np.array(state["target"], np.float64), float(state["closed"])
        self._frame = self._draw()
        return self._frame, self._info([self._record(self._target)], [self._frame])

    def _place_cubes(self, rng: np.random.Generator) -> np.ndarray:
        """Lay the cubes on the table, apart from one another; returns their positions (K, 3) in the base frame."""
        placed: list[np.ndarray] = []
        for address in self._cube_qpos:
            while True:
                place = rng.uniform(arm.WORKSPACE_LOW[:2], arm.WORKSPACE_HIGH[:2])
                position = np.array([*place, TABLE_Z + CUBE_SIZE / 2])
                if all(np.linalg.norm(position - other) > 2 * CUBE_SIZE for other in placed):
                    break
            half_yaw = rng.uniform(-np.pi, np.pi) / 2
            self._data.qpos[address : address + 3] = position + _BASE
            self._data.qpos[address + 3 : address + 7] = (np.cos(half_yaw), 0, 0, np.sin(half_yaw))
            placed.append(position)
        return np.stack(placed)

    def _solve_joints(self) -> None:
        """Inverse kinematics by damped least squares: put the arm at the commanded pose at rest."""
        data, joints = self._data, arm.HOME_JOINTS.copy()
        finger = 0.04 * (1 - self._closed)
        data.qpos[7:9] = finger, -finger
        for _ in range(60):
            data.qpos[:7] = joints
            mujoco.mj_kinematics(self._model, data)
            mujoco.mj_comPos(self._model, data)
            joints = joints + arm.joint_step(joints, arm.pose_error(self._pose(), self._target), self._jacobian())
        data.qpos[:7] = joints
        mujoco.mj_forward(self._model, data)

    def _control(self, target: np.ndarray, velocity: np.ndarray) -> None:
        """One physics step towards ``target`` (4, 4), which moves with ``velocity`` (6,)."""
        model, data = self._model, self._data
        mujoco.mj_step1(model, data)
        mass = np.zeros((model.nv, model.nv))
        mujoco.mj_fullM(model, mass, data.qM)
        error, jacobian = arm.pose_error(self._pose(), target), self._jacobian()
        joints, speed = data.qpos[:7], data.qvel[:7]
        spring, posture = arm.joint_torques(error, velocity, jacobian, mass[:7, :7], joints, speed)
        torque = spring + (posture + data.qfrc_bias[:7])
        finger = 0.04 * (1 - self._closed)
        data.ctrl[:7] = np.clip(torque, model.actuator_ctrlrange[:7, 0], model.actuator_ctrlrange[:7, 1])
        data.ctrl[7:9] = finger, -finger
        mujoco.mj_step2(model, data)

    def _jacobian(self) -> np.ndarray:
        jacobian = np.zeros((6, self._model.nv))
        mujoco.mj_jacSite(self._model, self._data, jacobian[:3], jacobian[3:], self._site)
        return jacobian[:, :7]

    def _pose(self) -> np.ndarray:
        data = self._data
        return geometry.make_pose(data.site_xmat[self._site].reshape(3, 3), data.site_xpos[self._site] - _BASE)

    def _draw(self) -> np.ndarray:
        self._renderer.update_scene(self._data, self._camera, self._options)
        return smooth_picture(self._renderer)

    def _record(self, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
        mujoco.mj_kinematics(self._model, self._data)
        closed = float(np.clip(1 - (self._data.qpos[7] - self._data.qpos[8]) / 0.08, 0, 1))
        return self._pose(), target.copy(), closed, self._data.xpos[self._cubes] - _BASE

    def _info(self, records: list[tuple], frames: list[np.ndarray]) -> dict[str, Any]:
        poses, targets, closed, objects = (np.stack([record[i] for record in records]) for i in range(4))
        return {
            "frames": np.stack(frames),
            "pose": poses[-1],
            "commanded_pose": targets[-1],
            "gripper": float(closed[-1]),
            "objects": objects[-1],
            "success": self._lifted(),
            "poses": poses,
            "commanded_poses": targets,
            "grippers": closed,
            "object_tracks": objects,
        }

    def _lifted(self) -> bool:
        height = self._data.xpos[self._cubes[0]][2] - _BASE[2]
        return bool(height > TABLE_Z + CUBE_SIZE / 2 + LIFT_HEIGHT)

    def reward(self) -> float:
        """1 when the red cube is lifted, else up to 0.6 for being near it and 0.2 for holding it."""
        if self._lifted():
            return 1.0
        distance = np.linalg.norm(self._data.site_xpos[self._site] - self._data.xpos[self._cubes[0]])
        touching = {geom for pair in self._data.contact.geom if self._red in pair for geom in pair}
        return float(0.6 * (1 - np.tanh(8 * distance)) + 0.2 * touching.issuperset(self._pads))


RECORDING = Recording(
    make=RobotSimulator,
    variants={"lift": 2 / 3, "stack": 1 / 3},
    behaviours=robot_behaviours.BEHAVIOURS,
    make_behaviour=lambda name, rng, info: robot_behaviours.make_behaviour(name, rng, len(info["objects"])),
    text=TEXT,
    packages=("robosuite", "mujoco", "numpy"),
    tracks={"gripper": "grippers", "objects": "object_tracks"},
    scene={
        "camera": CAMERA | {"field_of_view": FIELD_OF_VIEW},
        "workspace_m": [WORKSPACE_LOW.tolist(), WORKSPACE_HIGH.tolist()],
        "max_tilt_rad": arm.MAX_TILT,
        "max_yaw_rad": arm.MAX_YAW,
    },
)
"""How `astra-env collect robot` records."""
