"""Record episodes from a simulator: random, purposeful and mixed behaviour, one npz file an episode.

An episode's file names its variant and seed: that simulator, ``reset(seed=seed)`` and the recorded actions reproduce
it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from zipfile import BadZipFile

import numpy as np
from tqdm import tqdm

from astra_env.actions import ACTION_MODALITIES
from astra_env.simulators import CHUNK_FRAMES, FPS, FRAME_SIZE
from astra_env.simulators.recording import Recording
from astra_env.writing import write_json

NUM_CHUNKS = 24
HELDOUT_SEED = 1_000_000
"""Seeds of held-out episodes begin this far above those of training episodes."""
RECORDINGS: dict[str, str] = {
    "robot": "astra_env.simulators.robot:RECORDING",
    "driving": "astra_env.simulators.driving:RECORDING",
    "camera": "astra_env.simulators.exploration:RECORDING",
    "multicam": "astra_env.simulators.multicam:RECORDING",
}
"""Domain -> the recording that describes it."""
_TRACKS = {"frames": "frames", "measured_poses": "poses", "commanded_poses": "commanded_poses"}
_worker_simulators: dict[str, Any] = {}


@dataclass(frozen=True)
class EpisodeJob:
    """One episode to record."""

    domain: str
    recording: str
    path: str
    split: str
    seed: int
    num_chunks: int


def record_episode(
    recording: Recording, simulator: Any, behaviour_name: str, seed: int, num_chunks: int = NUM_CHUNKS
) -> dict[str, np.ndarray]:
    """Play one episode from ``reset(seed=seed)``; returns the arrays of its file, but for ``meta``."""
    _, info = simulator.reset(seed=seed)
    behaviour = recording.make_behaviour(behaviour_name, np.random.default_rng([seed, 1]), info)
    infos, actions, rewards = [info], [], [simulator.reward()]
    for _ in range(num_chunks):
        action = simulator.modality.validate(behaviour(infos[-1]), clip=True)
        _, reward, _, _, info = simulator.step(action)
        infos.append(info)
        actions.append(action)
        rewards.append(reward)
    tracks = _TRACKS | dict(recording.tracks)
    arrays = {key: np.concatenate([info[track] for info in infos]) for key, track in tracks.items()}
    arrays = {key: value if value.dtype == np.uint8 else value.astype(np.float32) for key, value in arrays.items()}
    arrays |= {
        key: np.stack([info[name] for info in infos], dtype=np.float32) for key, name in recording.moments.items()
    }
    success = np.array([info["success"] for info in infos])
    if "failure" in infos[0]:
        arrays["failure"] = np.array([info["failure"] for info in infos])
    return arrays | {"actions": np.stack(actions), "reward": np.array(rewards, np.float32), "success": success}


def collect(
    domain: str,
    out: str | Path,
    *,
    episodes: int = 4000,
    heldout: int = 200,
    workers: int = 2,
    seed: int = 0,
    num_chunks: int = NUM_CHUNKS,
) -> Path:
    """Record ``episodes`` training and ``heldout`` held-out episodes under ``out``; files that exist are kept.

    ``domain`` is a key of ``RECORDINGS``. Returns the path of the manifest ``dataset.json``, which is written when all
    episodes are there. ValueError where ``out`` has episodes of another domain, RuntimeError with the seed where an
    episode fails.
    """
    if domain not in RECORDINGS:
        raise ValueError(f"There is no domain {domain!r} to record; the domains are {sorted(RECORDINGS)}.")
    out = Path(out)
    _refuse_other_domain(out, domain)
    recording, jobs = RECORDINGS[domain], []
    for split, count, first in (("train", episodes, seed), ("heldout", heldout, HELDOUT_SEED + seed)):
        (out / split).mkdir(parents=True, exist_ok=True)
        paths = [out / split / f"episode_{index:05d}.npz" for index in range(count)]
        missing = [(index, str(path)) for index, path in enumerate(paths) if not path.exists()]
        jobs += [EpisodeJob(domain, recording, path, split, first + index, num_chunks) for index, path in missing]
    # both splits grow together, so that an interrupted collection is usable
    order = np.random.default_rng(seed).permutation(len(jobs))
    if jobs:
        with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
            done = pool.imap_unordered(_run_job, [jobs[i] for i in order])
            for _ in tqdm(done, total=len(jobs), unit="episode", mininterval=5):
                pass
    manifest = out / "dataset.json"
    write_json(manifest, _manifest(domain, out, seed, num_chunks))
    return manifest


def choose(recording: Recording, seed: int) -> tuple[str, str]:
    """Variant and behaviour of the episode with this seed, by their shares."""
    # a seed of its own: [seed] and [seed, 0] give the draws that the simulator lays out the scene with
    rng = np.random.default_rng([seed, 2])
    variant, behaviour = (
        str(rng.choice(list(shares), p=list(shares.values()))) for shares in (recording.variants, recording.behaviours)
    )
    return variant, behaviour


def _run_job(job: EpisodeJob) -> None:
    recording: Recording = resolve_name(job.recording)
    variant, behaviour = choose(recording, job.seed)
    key = f"{job.domain}/{variant}"
    if key not in _worker_simulators:
        _worker_simulators[key] = recording.make(variant)
    simulator = _worker_simulators[key]
    try:
        arrays = record_episode(recording, simulator, behaviour, job.seed, job.num_chunks)
    except Exception as error:
        raise RuntimeError(
            f"The {job.domain} episode with seed {job.seed} ({variant}, {behaviour}) failed with {error!r}; "
            "the episodes recorded before it are kept."
        ) from error
    meta = {
        "domain": job.domain,
        "task": variant,
        "text": recording.text,
        "behaviour": behaviour,
        "seed": job.seed,
        "split": job.split,
        "fps": FPS,
        "chunk_frames": CHUNK_FRAMES,
        "modality": simulator.modality.name,
        "fields": simulator.modality.fields,
        "units": simulator.modality.units,
        "low": simulator.modality.low,
        "high": simulator.modality.high,
        "versions": _versions(recording),
    }
    temporary = f"{job.path}.{os.getpid()}.tmp"
    with open(temporary, "wb") as file:
        np.savez_compressed(file, meta=np.array(json.dumps(meta)), **arrays)  # type: ignore[arg-type]
    os.replace(temporary, job.path)


def _refuse_other_domain(out: Path, domain: str) -> None:
    path = next(iter(sorted(out.glob("*/episode_*.npz"))), None)
    found = domain if path is None else _read_meta(path).get("domain", "robot")
    if found != domain:
        raise ValueError(f"{out} has episodes of {found!r}, expected {domain!r}; choose another folder.")


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return json.loads(str(file["meta"]))
    except (BadZipFile, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a whole episode ({error}); delete it and collect again.") from error


def _versions(recording: Recording) -> dict[str, str]:
    return {name: version(name) for name in recording.packages}


def _manifest(domain: str, out: Path, seed: int, num_chunks: int) -> dict[str, Any]:
    recording: Recording = resolve_name(RECORDINGS[domain])
    modality = ACTION_MODALITIES[_read_meta(next(out.glob("*/episode_*.npz")))["modality"]]
    return {
        "domain": domain,
        "counts": {split: len(list((out / split).glob("episode_*.npz"))) for split in ("train", "heldout")},
        "num_chunks": num_chunks,
        "chunk_frames": CHUNK_FRAMES,
        "fps": FPS,
        "frame_size": FRAME_SIZE,
        **recording.scene,
        "behaviours": dict(recording.behaviours),
        "tasks": dict(recording.variants),
        "first_seeds": {"train": seed, "heldout": HELDOUT_SEED + seed},
        "modality": {"name": modality.name} | modality.to_json(),
        "versions": _versions(recording),
    }
