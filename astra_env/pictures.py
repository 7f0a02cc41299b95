"""Pictures to look at: small frames enlarged, with the action below them, in rows on one sheet, as files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from astra_env.actions import ActionModality
from astra_env.video import draw_action

SIZE = 448
"""Pixels that the longer side of an enlarged frame has at most, unless it is longer by itself."""
BAND = 4
"""The action's band below a picture has one part in so many of the picture's height."""
PAPER, INK, LINE, GAP = 255, (0, 0, 0), 16, 2
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def enlarged(frames: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Frames uint8 (..., H, W, 3) with every pixel a square, the longer side at most `size` if it is not longer now."""
    times = max(1, size // max(frames.shape[-3:-1]))
    return frames.repeat(times, axis=-3).repeat(times, axis=-2)


def with_action(frames: np.ndarray, modality: ActionModality, action: np.ndarray | None) -> np.ndarray:
    """Pictures with a band below them that shows an action as labelled bars.

    Args:
        frames: uint8 (T, H, W, 3), H of at least 192 so that the band is as high as its labels need.
        modality: names, units and bounds of the action.
        action: float (A,) in the modality's units; None leaves the band empty.

    Returns:
        uint8 (T, H + H // 4, W, 3).
    """
    framed = np.pad(frames, ((0, 0), (0, frames.shape[1] // BAND), (0, 0), (0, 0)))
    if action is None:
        return framed
    return np.stack([draw_action(frame, modality, action) for frame in framed])


def contact_sheet(rows: Sequence[np.ndarray], labels: Sequence[str] | None = None, *, scale: int = 1) -> np.ndarray:
    """One picture of many: a row for each video, a line of text above each where there are labels.

    Args:
        rows: uint8 (K, H, W, 3) each; K and the sizes may differ, short rows end in white.
        labels: one for each row.
        scale: times that pictures are enlarged, every pixel a square.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: when there are no rows, a row has no pictures, or the labels are not as many as the rows.
    """
    if not rows or any(row.ndim != 4 or not len(row) for row in rows):
        raise ValueError(f"a contact sheet needs rows (K, H, W, 3) of pictures, got {[row.shape for row in rows]}")
    if labels is not None and len(labels) != len(rows):
        raise ValueError(f"a contact sheet of {len(rows)} rows got {len(labels)} labels, expected one for each")
    strips = []
    for index, row in enumerate(rows):
        pictures = row.repeat(scale, axis=1).repeat(scale, axis=2)
        pictures = np.pad(pictures, ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=PAPER)
        strip = np.concatenate(list(pictures), axis=1)
        strips.append(strip if labels is None else np.concatenate([_line(labels[index], strip.shape[1]), strip]))
    width = max(strip.shape[1] for strip in strips)
    return np.concatenate(
        [np.pad(strip, ((0, 0), (0, width - strip.shape[1]), (0, 0)), constant_values=PAPER) for strip in strips]
    )


def _line(text: str, width: int) -> np.ndarray:
    """Text on white, cut off where it is wider."""
    line = np.full((LINE, width, 3), PAPER, np.uint8)
    return cv2.putText(line, text, (2, LINE - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.4, INK, 1, cv2.LINE_AA)


def encode_image(picture: np.ndarray, suffix: str = ".png", *, quality: int = 85) -> bytes:
    """The bytes of a picture file of uint8 (H, W, 3) RGB; `quality` (1 to 100) is that of JPEG and WebP.

    Raises:
        ValueError: when the suffix is none of `SUFFIXES`.
    """
    if suffix not in SUFFIXES:
        raise ValueError(f"a picture cannot be written as {suffix!r}, expected one of {SUFFIXES}")
    options = {".webp": [cv2.IMWRITE_WEBP_QUALITY, quality], ".png": [cv2.IMWRITE_PNG_COMPRESSION, 9]}
    chosen = options.get(suffix, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return bytes(cv2.imencode(suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), chosen)[1])


def write_image(path: str | os.PathLike[str], picture: np.ndarray) -> None:
    """Writes uint8 (H, W, 3) RGB as the file's suffix says; it appears under its name only when complete."""
    path = Path(path)
    encoded = encode_image(picture, path.suffix.lower())
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_bytes(encoded)
    unfinished.replace(path)
