"""Contact sheets of strips: rows of pictures with a line of text above each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from astra_env.pictures import contact_sheet, write_image
from benchmarks.rare import Strip
from benchmarks.report import CONTACT_STEPS


def save_strips(path: Path, strips: Sequence[Strip], scale: int = 2) -> None:
    """PNG with a row of pictures for each strip, long ones at `CONTACT_STEPS`; nothing where there are no strips."""
    if not strips:
        return
    chosen = [_moments(len(strip.frames)) for strip in strips]
    rows = [strip.frames[moments].numpy() for strip, moments in zip(strips, chosen, strict=True)]
    labels = [f"{strip.label} (steps {', '.join(map(str, m))})" for strip, m in zip(strips, chosen, strict=True)]
    write_image(path, contact_sheet(rows, labels, scale=scale))


def _moments(length: int) -> list[int]:
    """All steps of a short strip, some of a long one."""
    steps = range(length) if length <= len(CONTACT_STEPS) else CONTACT_STEPS
    return [step for step in steps if step < length]
