"""Recorded episodes as a LeRobot data set and as a Rerun recording."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from astra_env.envs.env import AstraEnv
from astra_env.envs.export import clip_of, export
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


def save_takes(env: AstraEnv, takes: Sequence[Sequence[Moment]], path: Path) -> Saved:
    """Write episodes as PATH (a LeRobot data set), PATH.zip and PATH.rrd.

    Args:
        env: in which they were imagined.
        takes: the moments of each episode, two or more.
        path: a new folder.

    Raises:
        ValueError: there are no episodes.
    """
    if not takes:
        raise ValueError("Nothing is recorded yet; press Record and go on for a step at least.")
    clips = [
        clip_of(env, [take[0].info, *(moment.info for moment in take[1:])], _actions(take), f"{path.name}, {index}")
        for index, take in enumerate(takes)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    export(clips, path, "lerobot")
    # named unlike the folder while it grows, so that no half of it is taken for the whole
    partial = shutil.make_archive(f"{path}.partial", "zip", path)
    archive = Path(partial).replace(path.with_name(f"{path.name}.zip"))
    return Saved(path, archive, _save_rerun(env, takes, path.with_name(f"{path.name}.rrd"), clips[0].fps))


def _actions(take: Sequence[Moment]) -> np.ndarray:
    """Physical actions (N, A) between the N + 1 moments."""
    return np.stack([moment.action for moment in take[1:] if moment.action is not None])


def _save_rerun(env: AstraEnv, takes: Sequence[Sequence[Moment]], path: Path, fps: float) -> Path:
    """All episodes one after another on one time line."""
    with Recording(path, modality=env.action_modality, fps=fps) as recording:
        log = WorldLog(recording, discrete=False, chunks_per_s=fps / env.world_model.chunk_frames)
        for take in takes:
            log.begin(take[0].info, {})
            for moment in take[1:]:
                log.step(moment.action, moment.reward, moment.info)
    return path
