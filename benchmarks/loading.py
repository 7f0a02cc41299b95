"""How fast clips are read: windows through our readers, against decoding a whole recording for each of them.

The recordings are written for the purpose: moving noise at 320 x 240, which videos compress about as hard as real
scenes, as MP4 with CSV and as a LeRobot v3 data set, which holds several episodes in a file.
"""

from __future__ import annotations

import csv
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch.utils.data import DataLoader
from tqdm import tqdm

from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets import Clip, load_dataset
from astra_env.datasets.columns import ActionColumns
from astra_env.datasets.lerobot_writer import write_lerobot
from astra_env.datasets.reader import ClipReader
from astra_env.video import write_video
from astra_env.writing import write_json
from benchmarks.runtime import machine
from benchmarks.writing import rounded

CLIP_FRAMES, FPS = 33, 20.0
COLUMNS = ActionColumns("camera", meaning="poses", translation=("x", "y", "z"))


def loading(out: Path, *, recordings: int = 8, seconds: int = 30, clips: int = 40) -> dict[str, Any]:
    """Measure both formats, write the results to out, and return them."""
    results: dict[str, Any] = {
        "recordings": recordings,
        "seconds": seconds,
        "clip_frames": CLIP_FRAMES,
        "frame_size": [240, 320],
        "clips_per_s": {},
        "machine": machine(),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, write in WRITERS.items():
            root = Path(folder) / name
            write(root, [_recording(index, int(seconds * FPS)) for index in range(recordings)])
            results["clips_per_s"][name] = _measure(name, root, clips)
    write_json(out, rounded(results))
    return rounded(results)


def _recording(seed: int, count: int) -> Clip:
    """A wide picture of noise that a window moves over, and the camera's way to the right."""
    rng = np.random.default_rng(seed)
    wide = cv2.resize(rng.integers(0, 256, (60, 400, 3), dtype=np.uint8), (1600, 240), interpolation=cv2.INTER_CUBIC)
    frames = np.stack([wide[:, 2 * t % 1280 : 2 * t % 1280 + 320] for t in range(count)])
    poses = np.tile(np.eye(4, dtype=np.float32), (count, 1, 1))
    poses[:, 0, 3] = 0.01 * np.arange(count)
    actions = ACTION_MODALITIES["camera"].from_poses(poses, rate_hz=FPS)
    return Clip(frames, actions, "camera", FPS, poses, text="noise")


def _write_folder(root: Path, clips: list[Clip]) -> None:
    for index, clip in enumerate(clips):
        write_video(root / f"{index}.mp4", clip.frames, clip.fps)
        assert clip.poses is not None
        with (root / f"{index}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["x", "y", "z"])
            writer.writerows(clip.poses[:, :3, 3].tolist())


WRITERS: dict[str, Callable[[Path, list[Clip]], None]] = {"folder": _write_folder, "lerobot": write_lerobot}


def _open(name: str, root: Path, num_frames: int | None) -> ClipReader:
    options = {"columns": COLUMNS} if name == "folder" else {}
    return load_dataset(name, root, num_frames=num_frames, **options)


def _measure(name: str, root: Path, clips: int) -> dict[str, float]:
    """Clips a second at random places: whole recordings decoded, windows, and windows in worker processes."""
    whole, windows = _open(name, root, None), _open(name, root, CLIP_FRAMES)
    order = np.random.default_rng(0).permutation(len(windows))[:clips].tolist()
    few = order[: max(1, clips // 8)]

    def naive(index: int) -> Clip:
        recording, start, stop = windows.windows[index]
        clip = whole[recording]
        return Clip(clip.frames[start:stop], clip.actions[start : stop - 1], clip.modality, clip.fps)

    workers = os.cpu_count() or 1
    dataset: Any = windows  # it has `len` and integer indices, which is all that torch asks for
    loader = DataLoader(dataset, sampler=order, batch_size=None, num_workers=workers)
    return {
        "whole_recordings": _rate(tqdm(map(naive, few), desc=f"{name}, whole", total=len(few))),
        "windows": _rate(windows[index] for index in tqdm(order, desc=f"{name}, windows")),
        "windows_in_workers": _rate(tqdm(loader, desc=f"{name}, {workers} workers")),
    }


def _rate(clips: Any) -> float:
    begin, count = time.perf_counter(), sum(1 for _ in clips)
    return count / (time.perf_counter() - begin)


def render_loading(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    from benchmarks.writing import number, table

    rows = []
    for name, entry in results["clips_per_s"].items():
        rates = [number(entry[key], 1) for key in ("whole_recordings", "windows", "windows_in_workers")]
        rows.append([name, *rates, number(entry["windows"] / entry["whole_recordings"], 1)])
    header = ["clips/s", "whole recording decoded", "window", "window, in worker processes", "window / whole"]
    return table(header, rows)
