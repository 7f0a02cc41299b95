"""Contact sheets: rows of pictures with a line of text above each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from benchmarks.rare import Strip
from benchmarks.report import CONTACT_STEPS
from benchmarks.writing import write_png

LINE, GAP = 16, 2


def save_strips(path: Path, strips: Sequence[Strip], scale: int = 2) -> None:
    """PNG with a row of pictures for each strip, long ones at `CONTACT_STEPS`; nothing where there are no strips."""
    if not strips:
        return
    rows = [_row(strip, scale) for strip in strips]
    width = max(row.shape[1] for row in rows)
    write_png(path, np.concatenate([_padded(row, width) for row in rows]))


def _row(strip: Strip, scale: int) -> np.ndarray:
    length = len(strip.frames)
    steps = [step for step in (range(length) if length <= len(CONTACT_STEPS) else CONTACT_STEPS) if step < length]
    frames = strip.frames[steps].numpy().repeat(scale, axis=1).repeat(scale, axis=2)
    frames = np.pad(frames, ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
    line = np.full((LINE, sum(frame.shape[1] for frame in frames), 3), 255, np.uint8)
    label = f"{strip.label} (steps {', '.join(map(str, steps))})"
    cv2.putText(line, label, (2, LINE - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([line, np.concatenate(list(frames), axis=1)])


def _padded(row: np.ndarray, width: int) -> np.ndarray:
    return np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)
