"""Recorded episodes as a LeRobot data set and as a Rerun recording."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from astra_env.datasets import Clip
from astra_env.envs.env import AstraEnv
from astra_env.envs.export import clip_of, export
from astra_env.play.take import Take
from astra_env.play.timeline import Moment
from astra_env.visualization import Recording
from astra_env.visualization.wrappers import WorldLog


@dataclass(frozen=True)
class Saved:
    """Where recorded episodes have gone."""

    dataset: Path
    """Folder that `load_dataset("lerobot", …)` reads."""
    archive: Path
    """The same as a zip."""
    rerun: Path


def save_takes(env: AstraEnv, takes: Sequence[Take], path: Path) -> Saved:
    """Write episodes as PATH (a LeRobot data set), PATH.zip and PATH.rrd, which tells of their forks too.

    Args:
        env: in which they were imagined.
        takes: the episodes, of a step or more each.
        path: a new folder.

    Raises:
        ValueError: there are no episodes.
    """
    if not takes:
        raise ValueError("Nothing is recorded yet; press Record and go on for a step at least.")
    clips = [_clip(env, take, f"{path.name}, {index}") for index, take in enumerate(takes)]
    path.parent.mkdir(parents=True, exist_ok=True)
    export(clips, path, "lerobot")
    # named unlike the folder while it grows, so that no half of it is taken for the whole
    partial = shutil.make_archive(f"{path}.partial", "zip", path)
    archive = Path(partial).replace(path.with_name(f"{path.name}.zip"))
    return Saved(path, archive, _save_rerun(env, takes, path.with_name(f"{path.name}.rrd"), clips[0].fps))


def _clip(env: AstraEnv, take: Take, source: str) -> Clip:
    """An episode under its own text, or that of the environment."""
    actions = np.stack([moment.action for moment in take.moments[1:] if moment.action is not None])
    clip = clip_of(env, [moment.info for moment in take.moments], actions, source)
    return dataclasses.replace(clip, text=take.text or clip.text)


def _save_rerun(env: AstraEnv, takes: Sequence[Take], path: Path, fps: float) -> Path:
    """All episodes one after another, each with its forks, whose names are numbers."""
    numbers = itertools.count(1)
    with Recording(path, modality=env.action_modality, fps=fps) as recording:
        log = WorldLog(recording, discrete=False, chunks_per_s=fps / env.world_model.chunk_frames)
        forks: list[Recording] = []
        for take in takes:
            log.begin(take.moments[0].info, {})
            for fork in forks:  # of the last episode
                fork.clock = recording.clock
                fork.clear()
            forks = _log_take(log, take, numbers)
            recording.clock = max((part.clock for part in (recording, *forks)), key=lambda clock: clock.num_frames)
    return path


def _log_take(log: WorldLog, take: Take, numbers: Iterator[int]) -> list[Recording]:
    """An episode that has begun, and its forks, each from where it parts from the episode on; their recordings."""
    parts = [_parting(take.moments, fork) for fork in take.forks]
    forks = []
    for index, moment in enumerate(take.moments):
        if index:
            log.step(moment.action, moment.reward, moment.info)
        for fork, part in zip(take.forks, parts, strict=True):
            if part == index and len(fork) > part + 1:
                recording = log.recording.fork(str(next(numbers)))
                beside = WorldLog(recording, discrete=False, chunks_per_s=log.chunks_per_s)
                for other in fork[part + 1 :]:
                    beside.step(other.action, other.reward, other.info)
                recording.log_event("the fork ends")
                forks.append(recording)
    return forks


def _parting(trunk: Sequence[Moment], fork: Sequence[Moment]) -> int:
    """The index of the last moment that both have in common; 0 where they have none."""
    same = [one is other for one, other in zip(trunk, fork, strict=False)]
    return max(0, (same.index(False) if False in same else len(same)) - 1)
