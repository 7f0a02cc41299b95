"""`astra-env ingest PATH`: other people's recordings, checked and brought into the layout of our own.

What comes out is what `astra-env collect` writes, so that `astra-env train` reads it as it is: OUT/train and
OUT/heldout with one npz an episode, OUT/dataset.json, and beside them a report and a video for a person to look at.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
from tqdm import tqdm

from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets import DATASETS, load_dataset
from astra_env.datasets.clip import Clip
from astra_env.datasets.columns import ActionColumns
from astra_env.datasets.doctor import Report, examine
from astra_env.datasets.overlay import write_overlay
from astra_env.datasets.reader import ClipReader
from astra_env.datasets.resample import CHUNK_FRAMES, frames_needed, to_episode
from astra_env.flags import flag
from astra_env.writing import write_json

OVERLAY_CLIPS, CHECKED_CLIPS = 4, 64


@dataclass(frozen=True)
class IngestConfig:
    """One import; each field is a flag of `astra-env ingest` and says in its metadata what it means."""

    data: str  # folder, or the address of one
    out: str | None = flag(None, "folder of the episodes; those it has are kept")
    format: str | None = flag(None, f"{', '.join(DATASETS)}; recognised by the files where it is not told")
    name: str | None = flag(None, "what to call this kind of world; by the folder's name")
    frame_size: tuple[int, ...] = flag((64, 64), "height and width of the frames")
    num_chunks: int = flag(24, "actions in an episode; recordings are cut into as many as fill it")
    heldout: float = flag(0.1, "share of the recordings that is kept from training")
    limit: int | None = flag(None, "most recordings to read")
    skip_bad: bool = flag(False, "go on without recordings that cannot be read, and list them in the report")
    workers: int = flag(os.cpu_count() or 1, "processes")


@dataclass(frozen=True)
class Source:
    """How to open the data again, in any process."""

    format: str
    root: str
    options: tuple[tuple[str, Any], ...]

    @property
    def columns(self) -> dict[str, Any] | None:
        """What was told of the columns."""
        told = dict(self.options).get("columns")
        return dataclasses.asdict(told) if isinstance(told, ActionColumns) else None

    def open(self) -> ClipReader:
        """The reader, made once in a process."""
        return _opened(self)


@functools.lru_cache(maxsize=2)
def _opened(source: Source) -> ClipReader:
    return load_dataset(source.format, source.root, **dict(source.options))


def recognise(root: str) -> str:
    """The format of a folder by what lies in it.

    Raises:
        ValueError: when it is none of ours, or looks like several.
    """
    if "://" in root:
        raise ValueError(f"{root} lies elsewhere; tell its --format, one of {sorted(DATASETS)}.")
    if not Path(root).is_dir() or not any(Path(root).iterdir()):
        what = "empty" if Path(root).is_dir() else "no folder"
        raise ValueError(f"{root} is {what}; give a folder with recordings in it.")
    found = [name for name, place in DATASETS.items() if resolve_name(place).recognises(Path(root))]
    if len(found) != 1:
        raise ValueError(
            f"{root} looks like {found or 'none of the formats'}; tell its --format, one of {sorted(DATASETS)}."
        )
    return found[0]


def open_source(config: IngestConfig, columns: ActionColumns | None, options: dict[str, Any]) -> Source:
    """What to read, with the options that its reader was given."""
    size = tuple(config.frame_size) * (2 // len(config.frame_size))
    if len(size) != 2 or min(size) < 8:
        raise ValueError(f"frame_size is {config.frame_size}, expected a height and a width of at least 8 pixels.")
    more = options | ({} if columns is None else {"columns": columns})
    return Source(config.format or recognise(config.data), config.data, tuple({"frame_size": size, **more}.items()))


def check(source: Source, *, limit: int | None = None, skip_bad: bool = False) -> tuple[Report, dict[int, str]]:
    """The doctor's report, and what is wrong with each recording (by its number) that cannot be read.

    Raises:
        ValueError: for the first such recording, unless `skip_bad`.
    """
    reader, bad = source.open(), {}
    count = min(len(reader.lengths), limit or len(reader.lengths))

    def clips() -> Any:
        for recording in tqdm(range(count), desc="checking", unit="recording", mininterval=5):
            try:
                yield reader.read(recording, 0, reader.lengths[recording])
            except ValueError as error:
                if not skip_bad:
                    raise
                bad[recording] = str(error)

    return examine(clips()), bad


@dataclass(frozen=True)
class _Job:
    source: Source
    recording: int
    start: int
    stop: int
    path: str
    meta: dict[str, Any]


def ingest(config: IngestConfig, source: Source, confirm: Callable[[Path], bool] = lambda video: True) -> Path:
    """Check, show, convert; returns the manifest. What an earlier call wrote is kept.

    `confirm` is asked with the overlay video before anything is converted; if it says no, nothing is.

    Raises:
        ValueError: when nothing is long enough, when a recording cannot be read, or when it was not confirmed.
    """
    if config.out is None:
        raise ValueError("There is no folder to write to; give --out.")
    out, reader = Path(config.out), source.open()
    for split in ("train", "heldout"):
        (out / split).mkdir(parents=True, exist_ok=True)
    report, bad = check(source, limit=min(config.limit or CHECKED_CLIPS, CHECKED_CLIPS), skip_bad=config.skip_bad)
    if not report.num_clips:
        raise ValueError(f"{config.data}: none of the recordings can be read: {next(iter(bad.values()), 'no file')}")
    shown = _readable(reader, OVERLAY_CLIPS)
    video = write_overlay(out / "overlay.mp4", shown)
    if not confirm(video):
        raise ValueError(f"Nothing was written but {video}; tell the columns, units and axes otherwise and call again.")
    jobs = _jobs(config, source, [n for n in range(len(reader.lengths)) if n not in bad], shown[0])
    failed = [*bad.values(), *_convert([job for job in jobs if not Path(job.path).exists()], config)]
    counts = {split: len(list((out / split).glob("episode_*.npz"))) for split in ("train", "heldout")}
    if not counts["train"]:
        raise ValueError(f"{config.data}: no episode came of it; {failed[0] if failed else 'nothing is long enough'}")
    if columns := source.columns:
        write_json(out / "columns.json", columns)  # what another import of such data can be told
    write_json(out / "report.json", report.to_json() | {"not_read": failed})
    write_json(out / "dataset.json", _manifest(config, source, shown[0], counts))
    return out / "dataset.json"


def _readable(reader: ClipReader, count: int) -> Sequence[Clip]:
    """The first clips that can be read, five seconds of each at most."""
    found: list[Clip] = []
    for recording, length in enumerate(reader.lengths):
        if len(found) == count:
            break
        try:
            fps = reader.read(recording, 0, 2).fps
            found.append(reader.read(recording, 0, min(length, int(5 * fps) + 1)))
        except ValueError:
            continue  # `check` has told of it
    return found


def _jobs(config: IngestConfig, source: Source, recordings: Sequence[int], example: Clip) -> list[_Job]:
    """One job for each episode of some recordings; a recording is wholly in training or wholly held out."""
    reader, out = source.open(), Path(config.out or "")
    needed = frames_needed(config.num_chunks, example.modality, example.fps)
    chosen = recordings[: config.limit]
    long_enough = [index for index in chosen if reader.lengths[index] >= needed]
    if not long_enough:
        longest = (max(reader.lengths) - 1) / example.fps * ACTION_MODALITIES[example.modality].rate_hz
        raise ValueError(
            f"{config.data}: an episode of {config.num_chunks} actions needs {needed} frames at {example.fps:g} Hz, "
            f"the longest recording has {max(reader.lengths)}; choose --num-chunks {int(longest)} or fewer."
        )
    order = np.random.default_rng(0).permutation(len(long_enough))
    num_heldout = max(1, round(config.heldout * len(long_enough))) if len(long_enough) > 1 else 0
    held = {long_enough[index] for index in order[:num_heldout]}
    meta = {
        "domain": config.name or _name(config.data),
        "fps": CHUNK_FRAMES * ACTION_MODALITIES[example.modality].rate_hz,
        "chunk_frames": CHUNK_FRAMES,
        "modality": example.modality,
        "format": source.format,
    }
    jobs, numbers = [], {"train": 0, "heldout": 0}
    for recording in long_enough:
        windows = range(0, reader.lengths[recording] - needed + 1, needed - 1)
        for place, start in enumerate(windows):
            # of a single recording, the last window is held out
            alone = len(long_enough) == 1 and place == len(windows) - 1
            split = "heldout" if recording in held or alone else "train"
            path = out / split / f"episode_{numbers[split]:05d}.npz"
            numbers[split] += 1
            jobs.append(_Job(source, recording, start, start + needed, str(path), meta | {"split": split}))
    return jobs


def _convert(jobs: Sequence[_Job], config: IngestConfig) -> list[str]:
    """Run the jobs; returns a sentence for each that failed, or raises for the first unless `skip_bad`."""
    failed: list[str] = []
    progress = tqdm(total=len(jobs), desc="importing", unit="episode", mininterval=5)
    workers = min(config.workers, len(jobs))
    pool = multiprocessing.get_context("spawn").Pool(workers) if workers > 1 else None
    try:
        for error in pool.imap_unordered(_run, jobs) if pool else map(_run, jobs):
            progress.update()
            if error and not config.skip_bad:
                raise ValueError(f"{error} What was imported before is kept; --skip-bad goes on without it.")
            failed += [error] if error else []
    finally:
        if pool:
            pool.terminate()
    return failed


def _run(job: _Job) -> str:
    """Write one episode; returns what is wrong, if something is."""
    try:
        clip = job.source.open().read(job.recording, job.start, job.stop)
    except ValueError as error:
        return str(error)
    arrays = to_episode(clip)
    meta = job.meta | {"text": clip.text, "source": clip.source, "frames": [job.start, job.stop]}
    temporary = f"{job.path}.{os.getpid()}.tmp"
    with open(temporary, "wb") as file:
        np.savez_compressed(file, meta=np.array(json.dumps(meta)), **arrays)  # type: ignore[arg-type]
    os.replace(temporary, job.path)
    return ""


def _manifest(config: IngestConfig, source: Source, example: Clip, counts: dict[str, int]) -> dict[str, Any]:
    modality = ACTION_MODALITIES[example.modality]
    return {
        "domain": config.name or _name(config.data),
        "counts": counts,
        "num_chunks": config.num_chunks,
        "chunk_frames": CHUNK_FRAMES,
        "fps": CHUNK_FRAMES * modality.rate_hz,
        "frame_size": list(example.frames.shape[1:3]),
        "source": {"format": source.format, "fps": example.fps, "convention": _convention(source)}
        | ({"columns": source.columns} if source.columns else {}),
        "modality": {"name": modality.name} | modality.to_json(),
    }


def _convention(source: Source) -> dict[str, str]:
    return dataclasses.asdict(resolve_name(DATASETS[source.format]).convention)


def _name(root: str) -> str:
    return Path(root.rstrip("/")).name or "own"
