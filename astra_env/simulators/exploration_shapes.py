"""The shapes, textures, lights and camera that every exploration scene is made of, compiled once with MuJoCo."""

from __future__ import annotations

import numpy as np

from astra_env.simulators.drawing import mujoco

FIELD_OF_VIEW = 70.0
"""Of the camera, vertically, in degrees."""
BOX, BALL, POST = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CYLINDER
POOL: dict[str, tuple[mujoco.mjtGeom, int]] = {
    "slab": (BOX, 2),
    "picture": (BOX, 16),
    "wall": (BOX, 8),
    "box": (BOX, 8),
    "post": (POST, 6),
    "ball": (BALL, 4),
    "goal": (BALL, 1),
}
"""Kind -> shape and how many a scene can have; the kinds after the pictures are solid."""
SOLID_FROM = POOL["slab"][1] + POOL["picture"][1]
"""Index of the first solid shape."""


def _patterns() -> list[np.ndarray]:
    """Grey patterns uint8 (64, 64) that repeat without seams; tints colour them."""
    y, x = np.mgrid[:64, :64]
    row = y // 16
    bricks = (y % 16 < 2) | ((x + 16 * (row % 2)) % 32 < 2)
    tones = np.random.default_rng(0).uniform(size=(4, 4))[row, x // 16]
    shades = [
        np.where(bricks, 0.0, 0.6 + 0.4 * tones),
        (x // 32 + y // 32) % 2,
        (x // 16) % 2,
        ((x + y) // 16) % 2,
        np.where((x % 16 < 2) | (y % 64 < 2), 0.0, tones),
        (x % 32 - 16) ** 2 + (y % 32 - 16) ** 2 < 100,
        tones,
        ((np.abs(x % 32 - 16) + y) // 16) % 2,
        np.where((x % 32 < 3) | (y % 32 < 3), 0.0, 1.0),
        0.5 + 0.5 * np.sin(2 * np.pi * (x / 32 + 0.5 * np.sin(2 * np.pi * y / 64))),
    ]
    return [(255 * (0.8 + 0.2 * np.asarray(shade, np.float64))).astype(np.uint8) for shade in shades]


PATTERNS = _patterns()


def build_model() -> mujoco.MjModel:
    """Compile the pool of shapes, a material for each pattern, the lights and the camera."""
    spec = mujoco.MjSpec()
    for index, pattern in enumerate(PATTERNS):
        pixels = np.repeat(pattern[..., None], 3, axis=-1)
        texture = spec.add_texture(
            name=f"pattern{index}", type=mujoco.mjtTexture.mjTEXTURE_2D, nchannel=3, width=64, height=64
        )
        texture.data = pixels.tobytes()
        material = spec.add_material(name=texture.name, texuniform=True, texrepeat=(0.4, 0.4), specular=0.0)
        material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = texture.name
    for kind, (shape, count) in POOL.items():
        for index in range(count):
            spec.worldbody.add_geom(name=f"{kind}{index}", type=shape, size=(0.1, 0.1, 0.1))
    for direction in ((0.4, 0.3, -1.0), (-0.7, 0.45, -0.25)):
        light = spec.worldbody.add_light(dir=direction, diffuse=(0.32,) * 3, specular=(0.0,) * 3, castshadow=False)
        light.type = mujoco.mjtLightType.mjLIGHT_DIRECTIONAL
    spec.worldbody.add_camera(name="eye", fovy=FIELD_OF_VIEW)
    spec.visual.headlight.ambient, spec.visual.headlight.diffuse = (0.5,) * 3, (0.25,) * 3
    spec.visual.headlight.specular = (0.0,) * 3
    spec.visual.quality.offsamples, spec.visual.quality.shadowsize = 0, 0
    spec.visual.map.znear, spec.visual.map.zfar, spec.stat.extent = 0.03, 30.0, 1.0
    return spec.compile()
