"""What every benchmark writes with: JSON of few digits, Markdown tables, a marked part of a README."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def rounded(value: Any) -> Any:
    """The same JSON value with numbers of five significant digits, and None for what is not finite."""
    if isinstance(value, dict):
        return {str(key): rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    return value


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown of one table; the first column is aligned left, the others right."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def number(value: float | None, digits: int = 2) -> str:
    """A number of so many decimals; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A share as a whole percentage."""
    return "–" if value is None else f"{100 * value:.0f} %"


def markers(name: str) -> tuple[str, str]:
    """The lines of a Markdown file between which the tables of one benchmark stand."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def around_markers(path: str | os.PathLike[str], name: str) -> tuple[str, str]:
    """A Markdown file up to its first marker and from its second one on; ValueError where they are not there."""
    path, (begin, end) = Path(path), markers(name)
    text = path.read_text()
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(
            f"{path} needs one line {begin} and after it one line {end}; add them where the table belongs."
        )
    return text.split(begin)[0] + begin, end + text.split(end)[1]


def replace_marked(path: str | os.PathLike[str], name: str, content: str) -> None:
    """Replace what stands between the two markers of a Markdown file."""
    before, after = around_markers(path, name)
    partial = Path(path).with_name(Path(path).name + ".partial")
    partial.write_text(f"{before}\n{content}\n{after}")
    os.replace(partial, path)
