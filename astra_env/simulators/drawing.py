"""Pictures that MuJoCo draws off screen: one size, one rate and one smoothing for all simulators built on it."""

from __future__ import annotations

import os

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("LP_NUM_THREADS", "0")

import numpy as np

from astra_env.simulators import FRAME_SIZE

try:
    import mujoco
except ImportError as error:
    raise ImportError("The simulators need mujoco: install it with `make simulators`.") from error

_SUPERSAMPLE = 2


def make_renderer(model: mujoco.MjModel) -> mujoco.Renderer:
    """A renderer of larger pictures than `smooth_picture` returns, without shadows and reflections."""
    _wake_display()
    renderer = mujoco.Renderer(model, FRAME_SIZE * _SUPERSAMPLE, FRAME_SIZE * _SUPERSAMPLE)
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        renderer.scene.flags[flag] = 0
    return renderer


def _wake_display() -> None:
    """MuJoCo opens its display once; another engine of the process may have ended it since then."""
    if os.environ["MUJOCO_GL"] == "egl":
        from mujoco import egl

        if egl.EGL_DISPLAY is not None:
            egl.EGL.eglInitialize(egl.EGL_DISPLAY, None, None)


def smooth_picture(renderer: mujoco.Renderer) -> np.ndarray:
    """The scene that the renderer holds, uint8 (64, 64, 3), every pixel the mean of four."""
    parts = renderer.render().reshape(FRAME_SIZE, _SUPERSAMPLE, FRAME_SIZE, _SUPERSAMPLE, 3)
    return ((parts.sum(axis=(1, 3), dtype=np.uint16) + _SUPERSAMPLE) // _SUPERSAMPLE**2).astype(np.uint8)
