"""Settings shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

# Read once, when OpenMP starts with the first import of torch: spinning threads make tiny models many times
# slower on a machine that does anything else.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Simulators draw off screen.
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("PYOPENGL_PLATFORM", "egl")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """Folder of a whole tiny checkpoint."""
    from tiny import save_checkpoint

    return str(save_checkpoint(tmp_path_factory.mktemp("world")))


@pytest.fixture
def make(checkpoint):
    """Makes an environment over the tiny checkpoint."""
    import gymnasium

    import astra_env  # noqa: F401  registers the ids

    def make_env(**options: Any) -> gymnasium.Env:
        return gymnasium.make(options.pop("id", "Astra-RT1-v0"), world_model=checkpoint, device="cpu", **options)

    return make_env


@pytest.fixture
def run_pages(checkpoint, tmp_path):
    """Runs a scenario of pages against a server of `astra-env play` over the tiny checkpoint."""
    from play_pages import CAR, run_scenario

    from astra_env.play.server import PlayConfig

    def run(scenario: Callable[..., Awaitable[None]], **config: Any) -> None:
        options = {"world_model": checkpoint, "device": "cpu"}
        run_scenario(scenario, PlayConfig(CAR, options, out=str(tmp_path / "out"), **config))

    return run


@pytest.fixture(scope="module")
def world():
    """A tiny world model with fresh weights, training episodes with their latents, held-out episodes."""
    from tiny import synthetic_episodes, tiny_world_model

    from astra_env.training.episodes import encode_episodes

    world_model = tiny_world_model(perturbed=False).requires_grad_(True)
    episodes, heldout = synthetic_episodes(3), synthetic_episodes(2)
    return world_model, episodes, encode_episodes(world_model.autoencoder, episodes), heldout
