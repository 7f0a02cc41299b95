"""Figures of one look, as PNG files on white and as SVG that takes the colour of the text around it."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from astra_env.pictures import write_image

INK = "#1f2329"
"""Colour of text and axes, which becomes that of the page in SVG."""
COLOURS = ("#3f7fd9", "#e0802f", "#2f9e73", "#bb5a9c", "#8a8f98", "#c9a227")
"""Of lines, in turn; they can be told apart on white and on black."""
GREY = COLOURS[4]
SCREEN = 1.5
"""Pixels of a web page for a point of a figure."""
SHADE = 5
"""PNG files have shades of whole multiples of this."""
STYLE: dict[str, Any] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "axes.titleweight": "bold",
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9,
    "grid.alpha": 0.25,
    "grid.color": GREY,
    "axes.grid": True,
    "legend.fontsize": 8,
    "legend.framealpha": 0.0,
    "legend.handlelength": 3,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "svg.fonttype": "none",
    "svg.hashsalt": "astra-env",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def styled() -> Iterator[None]:
    """Whatever is drawn meanwhile has this project's look; ImportError where matplotlib is missing."""
    try:
        import matplotlib.rcsetup
    except ImportError as error:
        raise ImportError("Plots need matplotlib: install it with `pip install 'astra-env[benchmark]'`.") from error
    style: Any = {**STYLE, "axes.prop_cycle": matplotlib.rcsetup.cycler(color=COLOURS)}
    with matplotlib.rc_context(style):
        yield


def new_figure(width: float, height: float) -> Any:
    """An empty figure of that size in inches."""
    with styled():
        from matplotlib.figure import Figure

        return Figure(figsize=(width, height), layout="constrained")


def write_figure(path: str | os.PathLike[str], figure: Any) -> None:
    """Write a figure as PNG on white, in few shades so that the file is small; it appears only when complete."""
    with styled():
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    write_image(path, (np.round(pixels / SHADE) * SHADE).astype(np.uint8))


def figure_svg(figure: Any, name: str) -> str:
    """A figure as an <svg> element for an HTML page, which scales with it and whose ids begin with a name."""
    buffer = io.StringIO()
    with styled():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    box = re.search(r'viewBox="0 0 ([\d.]+) [^"]*"', svg)
    assert box is not None
    width = f'style="width: {SCREEN * float(box[1]):.0f}px"'
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = re.sub(r"<svg [^>]*>", f"<svg {spaces} {box[0]} {width}>", svg, count=1)
    return svg.replace(INK, "currentColor").strip()
