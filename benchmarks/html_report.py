"""Everything that was measured on one HTML page: plots, contact sheets, tables, and how each was made.

The page holds all of it and asks no network for anything.
"""

from __future__ import annotations

import base64
import html
import json
import os
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astra_env.pictures import encode_image
from astra_env.video import read_image
from benchmarks.plots import PLOTS

Results = dict[str, Any]
ALL = "robot=data/robot driving=data/driving camera=data/camera multicam=data/multicam"
TWO = "robot=data/robot driving=data/driving"
SHEETS = tuple(f"contact_{name}.png" for name in ("robot", "driving", "camera", "multicam"))


@dataclass(frozen=True)
class Section:
    """What one results file is about, the command that wrote it, and what gives its figures as Markdown."""

    title: str
    command: str
    render: str | None = None
    """Function from results to Markdown, "module:name", since some modules are heavy; None: names and values."""
    pictures: tuple[str, ...] = ()
    """Files beside it that are shown before its tables."""


SECTIONS: dict[str, Section] = {
    "domains": Section(
        "Four kinds of world", f"astra-bench domains --data {ALL}", "benchmarks.domains_report:render_domains", SHEETS
    ),
    "inertia": Section("Memory and inertia", f"astra-bench inertia --data {TWO}", "benchmarks.inertia:render_inertia"),
    "first_light": Section(
        "The robot's world in detail",
        "astra-bench first-light --data data/robot",
        "benchmarks.report:render_table",
        ("contact_sheet.png",),
    ),
    "first_light_teacher": Section(
        "The same of the teacher it was distilled from",
        "astra-bench first-light --data data/robot --world-model TEACHER --out …/first_light_teacher.json",
        "benchmarks.report:render_table",
    ),
    "uncertainty": Section(
        "Uncertainty", f"astra-bench uncertainty --data {ALL}", "benchmarks.uncertainty:render_uncertainty"
    ),
    "planning": Section(
        "Planning in imagination, acting for real", "astra-bench planning", "benchmarks.planning:render_planning"
    ),
    "policies": Section(
        "Policies",
        "astra-bench policies --runs RUNS --ids Astra-RT1-Reach-v0 Astra-RT1-v0 Astra-NuScenes-v0 "
        "Astra-Sekai-v0 Astra-SpatialVID-v0 Astra-MultiCam-v0",
        "benchmarks.policies:render_policies",
    ),
    "learning": Section("Learning: steps a second", "astra-bench learning", "benchmarks.learning:render_learning"),
    "speed": Section("Speed on a CPU", "astra-bench speed", "benchmarks.speed_report:render_speed"),
    "gpu": Section("Speed on a GPU", "astra-bench gpu", "benchmarks.gpu:render_gpu"),
    "play": Section("Driving in a browser: from key to picture", "astra-bench play", "benchmarks.play:render_play"),
    "recording": Section("Recording for Rerun", "astra-bench recording", "benchmarks.recording:render_recording"),
    "backbone": Section(
        "Arithmetic of the 1.3B backbone", "astra-bench backbone", "benchmarks.backbone:render_backbone"
    ),
    "loading": Section("Loading recordings", "astra-bench loading", "benchmarks.loading:render_loading"),
}
"""Results file -> its part of the page, in this order; others follow with their names and values."""
MANY_ROWS = 25
"""Longer tables are folded away, as are those beside a plot."""
SETTINGS = ("world_model", "dtype", "data", "default_sampling", "num_inference_steps", "sizes", "seed", "machine")
"""What tells how a file was measured; the other numbers and short texts of its top level do so too."""


def write_html(folder: Path, out: Path) -> None:
    """Write the page of all results files in a folder, which appears under its name only when complete.

    ValueError where there are no results.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.json"))}
    if not files:
        raise ValueError(f"{folder} holds no results; run astra-bench, or name its folder.")
    names = [name for name in SECTIONS if name in files] + [name for name in files if name not in SECTIONS]
    parts = [_section(name, json.loads(files[name].read_text()), folder) for name in names]
    links = "".join(f'<li><a href="#{name}">{html.escape(_titled(name))}</a></li>' for name in names)
    page = _PAGE.format(style=_STYLE, links=links, parts="\n".join(parts))
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".tmp")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, out)


def _titled(name: str) -> str:
    return SECTIONS[name].title if name in SECTIONS else name.replace("_", " ").capitalize()


def _section(name: str, results: Results, folder: Path) -> str:
    """One results file: its plots, its figures, its pictures, and how it was measured."""
    section = SECTIONS.get(name, Section(_titled(name), f"astra-bench {name.replace('_', '-')}"))
    drawn = [
        f'<figure><div class="plot">{plot.svg(results, key)}</div>'
        f"<figcaption><b>{html.escape(plot.title)}</b> {html.escape(plot.caption)}</figcaption></figure>"
        for key, plot in PLOTS.items()
        if plot.results == name
    ]
    pictures = [_sheet(folder / file) for file in section.pictures]
    text = pkgutil.resolve_name(section.render)(results) if section.render else ""
    for file in section.pictures:  # which is shown already
        text = re.sub(rf"[^\n]*:\n\n!\[[^\]]*\]\([^)]*{re.escape(file)}\)", "", text)
    figures = from_markdown(text, folder) if section.render else _values(results)
    if drawn or figures.count("<tr>") > MANY_ROWS:
        figures = f"<details><summary>All figures as tables</summary>{figures}</details>"
    heading = f'<h2>{html.escape(section.title)} <a href="#top" title="up">↑</a></h2>'
    sheets = [f'<div class="sheets">{"".join(pictures)}</div>'] if pictures else []
    parts = [heading, *drawn, *sheets, figures, _how(section.command, results)]
    return f'<section id="{name}" data-results="{name}.json">' + "\n".join(parts) + "</section>"


def from_markdown(text: str, folder: Path) -> str:
    """HTML of Markdown with tables and folded parts; pictures of results are put in from a folder."""
    try:
        from markdown import markdown
    except ImportError as error:
        raise ImportError("The page needs markdown: install it with `pip install 'astra-env[benchmark]'`.") from error
    text = text.replace("<details>", '<details markdown="1">')
    page: str = markdown(text, extensions=["tables", "md_in_html", "sane_lists"])
    page = page.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")
    return re.sub(
        r'<img alt="([^"]*)" src="([^"]*)" ?/>', lambda m: _picture(folder / Path(m[2]).name, html.unescape(m[1])), page
    )


def _sheet(path: Path) -> str:
    """A contact sheet with its name below, which a click enlarges."""
    name = path.stem.replace("contact_sheet", "robot").removeprefix("contact_")
    text = "recorded, and below it imagined under the same actions from the same start; click to enlarge"
    caption = f"<figcaption><b>{name}</b> {text}</figcaption>"
    return f'<figure><label><input type="checkbox" hidden>{_picture(path, path.name)}</label>{caption}</figure>'


def _picture(path: Path, text: str) -> str:
    """A picture inside the page, compressed; a remark where the file is missing."""
    name = html.escape(text)
    if not path.is_file():
        return f"<p><i>{name}: {html.escape(path.name)} is not there.</i></p>"
    data = base64.b64encode(encode_image(read_image(path), ".webp", quality=80)).decode()
    return f'<img alt="{name}" loading="lazy" src="data:image/webp;base64,{data}">'


def _how(command: str, results: Results) -> str:
    """The command, the machine, seeds and sizes, and what the file says of its measures."""
    told = {key: results[key] for key in SETTINGS if key in results}
    told |= {k: v for k, v in results.items() if k not in told and isinstance(v, str | int | float)}
    notes = "".join(f"<p><b>{html.escape(k)}</b>: {html.escape(v)}</p>" for k, v in results.get("notes", {}).items())
    return (
        f'<details class="how"><summary>How this was measured</summary><pre>{html.escape(command)}</pre>'
        f"{_values(told)}{notes}</details>"
    )


def _values(values: Mapping[str, Any]) -> str:
    """Names and values, nested ones in one line each."""
    rows = "".join(
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(_shown(value))}</td></tr>"
        for key, value in values.items()
        if key != "notes"
    )
    return f'<div class="table"><table class="values"><tbody>{rows}</tbody></table></div>'


def _shown(value: Any) -> str:
    """A value of JSON in words; nested ones in parentheses."""
    if isinstance(value, dict):
        return ", ".join(
            f"{key}: ({_shown(entry)})" if isinstance(entry, dict) else f"{key}: {_shown(entry)}"
            for key, entry in value.items()
        )
    if isinstance(value, list):
        return "; ".join(map(_shown, value))
    return "–" if value is None else str(value)


_STYLE = """
:root { color-scheme: light dark; --ink: #1f2329; --paper: #ffffff; --soft: #6a7280; --line: #dfe3e8;
  --shade: #f6f8fa; --link: #2566c4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e6ea; --paper: #14171c; --soft: #98a1ad; --line: #2f3640;
  --shade: #1c2128; --link: #7fb2ff; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0 auto; padding: 1.5rem 1.2rem 4rem; max-width: 1080px; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.9rem; margin: 0.5rem 0; }
h2 { font-size: 1.4rem; margin: 3rem 0 1rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h2 a { font-size: 1rem; text-decoration: none; color: var(--soft); }
a { color: var(--link); }
nav { background: var(--shade); border: 1px solid var(--line); border-radius: 8px; padding: 0.8rem 1.2rem; }
nav ol { columns: 2 18rem; margin: 0; padding-left: 1.3rem; }
figure { margin: 1.2rem 0; padding: 0.8rem; border: 1px solid var(--line); border-radius: 8px; }
.plot { overflow-x: auto; }
.plot svg { display: block; margin: auto; max-width: 100%; }
figcaption { color: var(--soft); font-size: 0.92rem; margin-top: 0.6rem; }
figcaption b { color: var(--ink); }
img { max-width: 100%; height: auto; border-radius: 6px; }
.sheets { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 1rem; }
.sheets figure { margin: 0; }
.sheets img { width: 100%; cursor: zoom-in; }
.sheets figure:has(:checked) { grid-column: 1 / -1; }
.sheets figure:has(:checked) img { cursor: zoom-out; }
.table { overflow-x: auto; margin: 0.8rem 0; }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { border-bottom: 2px solid var(--line); }
th:first-child { text-align: left !important; }
tbody tr:hover { background: var(--shade); }
.values td:first-child { white-space: nowrap; color: var(--soft); }
code, pre { font: 0.86em ui-monospace, "DejaVu Sans Mono", monospace; background: var(--shade); border-radius: 4px; }
code { padding: 0.1em 0.3em; }
pre { padding: 0.7rem; overflow-x: auto; }
details { margin: 0.8rem 0; border: 1px solid var(--line); border-radius: 8px; padding: 0.5rem 0.9rem; }
summary { cursor: pointer; color: var(--soft); }
"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>astra-env: what was measured</title>
<style>{style}</style>
</head>
<body id="top">
<h1>astra-env: what was measured</h1>
<p>Every figure comes from a command and a results file of the repository; below each part stands how it was made, on
which machine and with which sizes and seeds. Held-out episodes are never trained on.</p>
<nav><ol>{links}</ol></nav>
{parts}
</body>
</html>
"""
