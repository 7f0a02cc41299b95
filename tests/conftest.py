"""Settings shared by all tests."""

from __future__ import annotations

import os

# Read once, when OpenMP starts with the first import of torch: spinning threads make tiny models many times
# slower on a machine that does anything else.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Simulators draw off screen.
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("PYOPENGL_PLATFORM", "egl")
