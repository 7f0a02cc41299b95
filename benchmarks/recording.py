"""What it costs to record: time of a step, bytes, and memory over ten thousand streamed steps.

Within each step of a recorded world, the world's own time is told apart from that of `RecordRerun` around it, so that
both see the same machine; ways to record take turns. Memory is that of a recording of real frames that are replayed,
into a file and into a server of the viewer's.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from tqdm import tqdm

import astra_env  # noqa: F401  registers the ids
from astra_env.actions import ACTION_MODALITIES
from astra_env.demo import Demonstration
from astra_env.video import resize_frames
from astra_env.visualization import RecordRerun
from astra_env.visualization.stream import SERVER_MEMORY
from astra_env.writing import write_json
from benchmarks.runtime import machine, resident_mb
from benchmarks.writing import number, rounded, table

ENVIRONMENT, DOMAIN = "Astra-RT1-v0", "robot"
KINDS: dict[str, dict[str, bool]] = {
    "recorded": {},
    "with routing": {"routing": True},
    "with routing and denoising steps": {"routing": True, "denoising": True},
}
"""How it is recorded -> options of `RecordRerun`."""
LARGE = (32, 480, 832)
"""Frames of a step, height and width of the world over Wan-2.1."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    blocks: int = 20  # of each way to record, after one that warms up
    block_steps: int = 10
    large_steps: int = 10
    streamed_steps: int = 10_000
    memory_every: int = 1_000


QUICK = Sizes(blocks=2, block_steps=3, large_steps=2, streamed_steps=200, memory_every=50)


class Replay(gymnasium.Env[np.ndarray, np.ndarray]):
    """Shows recorded frames again and again, chunk by chunk, with poses and a reward: a world that costs nothing.

    Args:
        demonstration: frames and the actions between them.
        shape: frames of a step, height and width.
    """

    metadata = {"render_fps": 5}  # noqa: RUF012  (as Gymnasium declares it)
    action_modality = ACTION_MODALITIES["end_effector"]

    def __init__(self, demonstration: Demonstration, shape: tuple[int, int, int]) -> None:
        num, *size = shape
        frames = resize_frames(demonstration.frames, (size[0], size[1]))
        self.chunks = [frames[np.arange(k, k + num) % len(frames)] for k in range(0, len(frames) - 1, 4)]
        self.poses = self.action_modality.integrate(np.eye(4), demonstration.actions)
        self.action_space = self.action_modality.space()
        self.observation_space = gymnasium.spaces.Box(0, 255, (*size, 3), np.uint8)
        self._num_steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The first chunk."""
        super().reset(seed=seed)
        self._num_steps = 0
        return self._told()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """The next chunk."""
        self._num_steps += 1
        observation, info = self._told()
        return observation, 0.5, False, False, info

    def _told(self) -> tuple[np.ndarray, dict[str, Any]]:
        frames = self.chunks[self._num_steps % len(self.chunks)]
        pose = self.poses[self._num_steps % len(self.poses)]
        terms = {"task_reward": 0.5, "success_probability": 0.1, "reward_spread": 0.0}
        return frames[-1], {"frames": frames, "pose": pose, "reward_terms": terms}


def recording(out: Path, sizes: Sizes | None = None, world_model: str = "astra-tiny") -> dict[str, Any]:
    """Measure all of it and write the figures as JSON."""
    sizes = sizes or Sizes()
    with tempfile.TemporaryDirectory() as folder:
        steps = step_times(Path(folder), sizes, world_model)
        large = large_frames(Path(folder), sizes)
        streamed = {"file": streamed_to_file(Path(folder) / "streamed.rrd", sizes), "viewer": streamed_to_viewer(sizes)}
    results = rounded(
        {
            **asdict(sizes),
            "environment": ENVIRONMENT,
            "machine": machine(),
            "recording_step": steps,
            "large": large,
            "streamed": streamed,
        }
    )
    write_json(out, results)
    return results


class Stopwatch(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Tells the milliseconds of an environment's last step."""

    ms = 0.0

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See `AstraEnv.step`."""
        began = time.perf_counter()
        told = self.env.step(action)
        self.ms = 1000 * (time.perf_counter() - began)
        return told


def step_times(folder: Path, sizes: Sizes, world_model: str) -> dict[str, Any]:
    """Medians in ms of a world's steps, of what recording them takes besides in each way, and bytes of a step."""
    worlds: dict[str, tuple[Stopwatch, Stopwatch]] = {}  # around the world, and around its recording
    for index, (name, options) in enumerate(KINDS.items()):
        inner = Stopwatch(gymnasium.make(ENVIRONMENT, world_model=world_model, max_episode_steps=10**9))
        worlds[name] = inner, Stopwatch(RecordRerun(inner, folder / f"{index}.rrd", **options))
        worlds[name][1].action_space.seed(0)
        worlds[name][1].reset(seed=0)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in worlds}
    for block in tqdm(range(sizes.blocks + 1), desc="steps", unit="block"):
        for name, (inner, outer) in worlds.items():
            for _ in range(sizes.block_steps):
                outer.step(outer.action_space.sample())
                if block:
                    times[name].append((inner.ms, outer.ms))
    for _, outer in worlds.values():
        outer.close()
    base = float(np.median([inner for values in times.values() for inner, _ in values]))
    steps, kinds = (sizes.blocks + 1) * sizes.block_steps, {}
    for index, (name, values) in enumerate(times.items()):
        more = float(np.median([outer - inner for inner, outer in values]))
        size = (folder / f"{index}.rrd").stat().st_size / steps
        kinds[name] = {"overhead_ms": more, "overhead_share": more / base, "bytes_per_step": size}
    return {"plain_ms": base, "kinds": kinds}


def large_frames(folder: Path, sizes: Sizes) -> dict[str, float]:
    """Milliseconds and bytes of recording a step of a large world: its frames, compressed."""
    path = folder / "large.rrd"
    env = RecordRerun(_replay(LARGE), path)
    env.action_space.seed(0)
    env.reset(seed=0)
    times = _timed(env, sizes.large_steps)
    env.close()
    return {"ms": float(np.median(times)), "bytes_per_step": path.stat().st_size / (sizes.large_steps + 1)}


def streamed_to_file(path: Path, sizes: Sizes) -> dict[str, Any]:
    """Memory of this process while many steps are recorded into a file, time and bytes of a step."""
    told = _stream(str(path), sizes, {"process": os.getpid()})
    return told | {"bytes_per_step": path.stat().st_size / sizes.streamed_steps}


def streamed_to_viewer(sizes: Sizes) -> dict[str, Any]:
    """Memory of this process and of the viewer's server, which keeps no more than its limit."""
    with viewer_server() as (port, server):
        return _stream(f"rerun+http://127.0.0.1:{port}/proxy", sizes, {"process": os.getpid(), "server": server})


@contextlib.contextmanager
def viewer_server() -> Iterator[tuple[int, int]]:
    """Port and process id of a viewer's server without a window, with the memory that "spawn" gives it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--serve-grpc", "--bind", "127.0.0.1", "--port", str(port), "--server-memory-limit", SERVER_MEMORY]
    spec = importlib.util.find_spec("rerun_cli")  # the binary itself: `python -m rerun` would stand before it
    assert spec is not None and spec.submodule_search_locations is not None
    binary = Path(spec.submodule_search_locations[0]) / "rerun"
    server = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as caller:
                if caller.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port, server.pid
    finally:
        server.terminate()
        server.wait()


def _stream(target: str, sizes: Sizes, watched: dict[str, int]) -> dict[str, Any]:
    """Record many steps; the memory in MB of the watched processes now and then, by their names."""
    env = RecordRerun(_replay((4, 64, 64)), target)
    env.action_space.seed(0)
    env.reset(seed=0)
    actions = [env.action_space.sample() for _ in range(100)]
    memory: dict[str, list[float | None]] = {name: [] for name in watched}
    began = time.perf_counter()
    for step in tqdm(range(sizes.streamed_steps), desc="streamed", unit="step"):
        env.step(actions[step % len(actions)])
        if (step + 1) % sizes.memory_every == 0:
            for name, process in watched.items():
                memory[name].append(resident_mb(process))
    ms = 1000 * (time.perf_counter() - began) / sizes.streamed_steps
    env.close()
    return {"ms": ms, "memory_mb": memory}


def _replay(shape: tuple[int, int, int]) -> Replay:
    return Replay(Demonstration.load(Path(), DOMAIN, (64, 64)), shape)


def _timed(env: gymnasium.Env[Any, Any], num_steps: int) -> list[float]:
    """Milliseconds of steps under random actions; an episode goes on after its end."""
    times = []
    for _ in range(num_steps):
        action = env.action_space.sample()
        began = time.perf_counter()
        env.step(action)
        times.append(1000 * (time.perf_counter() - began))
    return times


def render_recording(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    plain, large = results["recording_step"]["plain_ms"], results["large"]
    rows: list[Sequence[Any]] = [["not recorded", number(plain, 1), "–", "–"]]
    rows += [
        [
            name,
            number(plain + kind["overhead_ms"], 1),
            f"{number(kind['overhead_ms'], 1)} ({100 * kind['overhead_share']:.0f} %)",
            number(kind["bytes_per_step"] / 1e3, 1),
        ]
        for name, kind in results["recording_step"]["kinds"].items()
    ]
    parts = [table(["a step of the bundled world", "ms", "more, ms", "kB"], rows)]
    for name, told in results["streamed"].items():
        later = {who: values[len(values) // 2 :] for who, values in told["memory_mb"].items()}
        held = [f"{who} {min(values):.0f} to {max(values):.0f} MB" for who, values in later.items()]
        steps = f"{results['streamed_steps']:,}"
        parts.append(f"Memory in the second half of {steps} steps, streamed into a {name}: {', '.join(held)}.")
    num, height, width = LARGE
    cost = f"{large['ms']:.0f} ms and {large['bytes_per_step'] / 1e6:.1f} MB a step"
    parts.append(f"{num} frames of {height} × {width} take {cost}.")
    return "\n\n".join(parts)
