"""The scene of the simulated arm: robosuite's Panda at a table with cubes, compiled and drawn by MuJoCo."""

from __future__ import annotations

import logging

from astra_env.simulators.drawing import make_renderer, mujoco

try:
    # robosuite warns at import about optional robots that nothing here uses
    logging.getLogger("robosuite_logs").disabled = True
    import robosuite
except ImportError as error:
    raise ImportError("The robot simulator needs robosuite and mujoco: install them with `make simulators`.") from error

PHYSICS_STEP = 0.005
"""Seconds between two control updates."""
CUBE_SIZE = 0.05
"""Edge of the cubes in metres; the gripper opens 0.08."""
CAMERA = {"azimuth": 140.0, "elevation": -28.0, "distance": 0.98, "lookat": (0.006, 0.008, 0.92)}
"""A free MuJoCo camera: degrees, metres, and a point in world axes."""
FIELD_OF_VIEW = 27.0
"""Of the camera, vertically, in degrees: narrow, so that near and far grippers look alike in size."""
TASKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "lift": ("Lift", ("cube",)),
    "stack": ("Stack", ("cubeA", "cubeB")),
}
"""Task -> robosuite environment and its cubes, the red one first."""

_ARM_LINKS = tuple(f"robot0_link{i}_collision" for i in range(8))
_HIDDEN = ("wall_", "table_leg", "fixed_mount0_", "robot0_g", "gripper0_right_hand_visual")
_PLAIN_COLOURS = {
    **dict.fromkeys(_ARM_LINKS, (0.92, 0.92, 0.92)),
    "gripper0_right_hand_collision": (0.25, 0.3, 0.42),
    "table_visual": (0.72, 0.66, 0.56),
    "floor": (0.42, 0.4, 0.4),
}
_FINGER_COLOUR = (1.0, 0.6, 0.05)
_FINGER_SIZE = (0.016, 0.012, 0.032)
"""Half edges in metres of the block that shows a finger: its own shape is two pixels wide."""


def build_model(task: str) -> mujoco.MjModel:
    """Compile robosuite's scene with larger cubes, without the collisions and ornaments that nothing here needs."""
    environment, cubes = TASKS[task]
    scene = robosuite.make(
        environment, robots="Panda", has_renderer=False, has_offscreen_renderer=False, use_camera_obs=False
    )
    spec = mujoco.MjSpec.from_string(scene.sim.model.get_xml())
    scene.close()
    spec.option.timestep = PHYSICS_STEP
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    for geom in spec.geoms:
        _simplify(geom)
    for body, side in (("leftfinger", 1), ("rightfinger", -1)):
        _show_finger(spec.body(f"gripper0_right_{body}"), side)
    for cube in cubes:
        for name in (f"{cube}_g0", f"{cube}_g0_vis"):
            spec.geom(name).size = [CUBE_SIZE / 2] * 3
    model = spec.compile()
    model.mat_reflectance[:] = 0
    model.vis.global_.fovy = FIELD_OF_VIEW
    model.vis.quality.offsamples = 0
    model.vis.quality.shadowsize = 0
    # the wrist motors are too weak to turn the hand by 0.25 rad in 0.2 s
    model.actuator_ctrlrange[5:7] = (-60.0, 60.0)
    return model


def _simplify(geom: mujoco.MjsGeom) -> None:
    """Show the arm by its coarse collision shapes in plain colours; its upper links collide with nothing."""
    name = geom.name
    if name in _ARM_LINKS:
        geom.contype = geom.conaffinity = 0
    if name in _PLAIN_COLOURS:
        geom.material, geom.rgba, geom.group = "", (*_PLAIN_COLOURS[name], 1.0), 1
    elif name.startswith(_HIDDEN):
        geom.group = 4


def _show_finger(body: mujoco.MjsBody, side: int) -> None:
    """Draw a finger as a block whose inner face grips; it weighs nothing and touches nothing."""
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=_FINGER_SIZE,
        pos=(0, side * _FINGER_SIZE[1], 0.026),
        rgba=(*_FINGER_COLOUR, 1.0),
        contype=0,
        conaffinity=0,
        mass=0,
        group=1,
    )


def make_scene_renderer(model: mujoco.MjModel) -> tuple[mujoco.Renderer, mujoco.MjvCamera, mujoco.MjvOption]:
    """What draws the scene: the renderer, its camera and which groups of shapes it shows."""
    renderer = make_renderer(model)
    camera, options = mujoco.MjvCamera(), mujoco.MjvOption()
    mujoco.mjv_defaultFreeCamera(model, camera)
    camera.azimuth, camera.elevation, camera.distance = CAMERA["azimuth"], CAMERA["elevation"], CAMERA["distance"]
    camera.lookat[:] = CAMERA["lookat"]
    options.geomgroup[:] = (0, 1, 0, 0, 0, 0)
    options.sitegroup[:] = 0
    return renderer, camera, options
