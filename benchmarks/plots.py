"""What people would rather see than read: one plot for each question, drawn from a committed results file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import COLOURS, GREY, figure_svg, new_figure, styled, write_figure

Results = Mapping[str, Any]
ON_THE_WAY = ": on the way of learning"
LINES = {
    "true": ("imagined, true actions", "o-", COLOURS[0]),
    "shuffled": ("imagined, another episode's actions", "s-", COLOURS[1]),
    "still": ("last frame repeated", "^-", COLOURS[3]),
    "ceiling": ("autoencoder alone (ceiling)", "--", GREY),
}


@dataclass(frozen=True)
class Plot:
    """One question, the file that answers it, and how the answer is drawn."""

    results: str
    """Stem of the results file."""
    title: str
    caption: str
    draw: Callable[[Results], Any]
    """Results -> figure."""

    def figure(self, results: Results) -> Any:
        """The plot of some results, in the look of all."""
        with styled():
            return self.draw(results)

    def write(self, path: str | os.PathLike[str], results: Results) -> None:
        """The plot as a PNG file."""
        write_figure(path, self.figure(results))

    def svg(self, results: Results, name: str) -> str:
        """The plot as an <svg> element."""
        return figure_svg(self.figure(results), name)


def write_plots(folder: Path, out: Path) -> list[Path]:
    """Draw every plot whose results are in a folder into PNG files of another; ValueError where there are none."""
    written = []
    for name, plot in PLOTS.items():
        source = folder / f"{plot.results}.json"
        if source.is_file():
            written.append(out / f"{name}.png")
            plot.write(written[-1], json.loads(source.read_text()))
    if not written:
        raise ValueError(f"{folder} holds none of the results that are drawn; run astra-bench, or name its folder.")
    return written


def _panels(count: int, width: float, height: float, columns: int = 4, **options: Any) -> tuple[Any, list[Any]]:
    """A figure with panels of a size in inches, so many a row."""
    rows, columns = -(-count // columns), min(count, columns)
    figure = new_figure(width * columns, height * rows)
    panels = figure.subplots(rows, columns, squeeze=False, **options).flat
    for axes in panels[count:]:
        axes.remove()
    return figure, list(panels[:count])


def draw_horizon(results: Results) -> Any:
    """PSNR over the steps ahead, a panel for each domain: true actions, their rivals, and the ceiling."""
    figure, panels = _panels(len(results["domains"]), 2.75, 3.1, sharey=True)
    for axes, (name, report) in zip(panels, results["domains"].items(), strict=True):
        _over_horizon(axes, report["open_loop"], "psnr")
        axes.set_title(name)
    panels[0].set_ylabel("PSNR, dB")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def draw_first_light(results: Results) -> Any:
    """PSNR and SSIM over the steps ahead, of the robot."""
    figure, panels = _panels(2, 4.0, 3.3)
    for axes, (measure, label) in zip(panels, (("psnr", "PSNR, dB"), ("ssim", "SSIM")), strict=True):
        _over_horizon(axes, results["open_loop"], measure)
        axes.set_ylabel(label)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _over_horizon(axes: Any, loop: Results, measure: str) -> None:
    for key, (label, style, colour) in LINES.items():
        axes.plot(loop["horizons"], loop[measure][key], style, color=colour, label=label)
    axes.set(xlabel="steps of 0.2 s ahead", xticks=loop["horizons"][1::2])


def draw_following(results: Results) -> Any:
    """Radar of every action: shares of starts that go the right way and more than half of it; the rim is 100 %."""
    figure, panels = _panels(len(results["domains"]), 3.75, 3.55, columns=2, subplot_kw={"projection": "polar"})
    for axes, (name, report) in zip(panels, results["domains"].items(), strict=True):
        entries = {key: entry for key, entry in report["following"].items() if entry["num_starts"]}
        angles = np.arange(len(entries) + 1) / max(1, len(entries)) * 2 * np.pi
        measures = (("right_way", "the right way"), ("half_way", "more than half the commanded way"))
        for (key, label), colour in zip(measures, COLOURS, strict=False):
            shares = [100 * entry[key] for entry in entries.values()]
            axes.plot(angles, [*shares, *shares[:1]], "o-", color=colour, label=label, markersize=3)
            axes.fill(angles, [*shares, *shares[:1]], color=colour, alpha=0.12)
        axes.plot(np.linspace(0, 2 * np.pi, 90), np.full(90, 50), ":", color=GREY, label="right way by chance")
        axes.set_xticks(angles[:-1], [key.replace(", ", ",\n") for key in entries], fontsize=8)
        for angle, label in zip(angles, axes.get_xticklabels(), strict=False):  # labels keep off the circle
            side = round(float(np.sin(angle)), 1)
            label.set_horizontalalignment("left" if side > 0 else "right" if side < 0 else "center")
        axes.set_yticks([25, 50, 75, 100], ["", "50 %", "", ""], fontsize=7)
        axes.set(ylim=(0, 104), theta_offset=np.pi / 2, theta_direction=-1)
        axes.tick_params(axis="x", pad=-2)
        axes.set_rlabel_position(180 / max(1, len(entries)))  # between the first two
        axes.set_title(name, pad=14)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def draw_inertia(results: Results) -> Any:
    """Quality, what the actions are worth, and obedience, against the recorded latents in memory."""
    figure, panels = _panels(3, 3.4, 3.5)
    lengths = results["lengths"]
    for colour, (name, entry) in zip(COLOURS, results["domains"].items(), strict=False):
        for step, style in zip(results["steps"], ("-", "--"), strict=False):
            label = f"{name}, {step} step{'s' * (step > 1)} ahead"
            for axes, measure in zip(panels, ("psnr", "margin"), strict=False):
                _band(axes, lengths, entry, f"{measure}_{step}", color=colour, linestyle=style, label=label)
        _band(panels[2], lengths, entry, "followed", scale=100, color=colour, label=name)
    titles = ("Quality", "What actions are worth", "Actions that go the right way")
    for axes, title, label in zip(panels, titles, ("PSNR, dB", "dB more than under another's", "%"), strict=True):
        axes.set(title=title, ylabel=label, xlabel="recorded latents in memory", xscale="log")
        axes.set_xticks(lengths, list(map(str, lengths)))
        axes.minorticks_off()
    panels[1].set_ylim(bottom=min(0, panels[1].get_ylim()[0]))
    panels[2].set_ylim(50, 101)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _band(axes: Any, x: Sequence[float], entry: Results, key: str, *, scale: float = 1, **line: Any) -> None:
    """A line with its intervals; nothing where nothing was measured."""
    if any(value is None for value in entry[key]):
        return
    low, high = scale * np.array(entry[f"{key}_interval"]).T
    axes.plot(x, scale * np.array(entry[key]), marker="o", **line)
    axes.fill_between(x, low, high, color=line["color"], alpha=0.15, linewidth=0)


def draw_reliability(results: Results) -> Any:
    """Expected against true error on episodes that the calibration has not seen, one line a domain."""
    figure = new_figure(4.6, 4.2)
    axes, highest = figure.add_subplot(), 0.0
    for colour, (name, entry) in zip(COLOURS, results["domains"].items(), strict=False):
        lines = entry["calibration"]["reliability"]
        axes.plot(lines["predicted"], lines["true"], "o-", color=colour, label=name)
        highest = max(highest, *lines["predicted"], *lines["true"])
    axes.plot([0, 1.05 * highest], [0, 1.05 * highest], "--", color=GREY, linewidth=1, label="as expected")
    axes.set(xlabel="expected error of the latent", ylabel="true error, root mean square", aspect="equal")
    axes.legend()
    return figure


def draw_speed(results: Results) -> Any:
    """Frames a second and time per world, by number of worlds."""
    native, (figure, (left, right)) = results["sweep"]["native"], _panels(2, 4.2, 3.1)
    for observation, style, name in (("frame", "o-", "pictures"), ("latent", "s-", "latents")):
        left.plot(native["worlds"], native[f"{observation}_frames_per_s"], style, label=name)
        times = [ms / num for num, ms in zip(native["worlds"], native[f"{observation}_ms"], strict=True)]
        right.plot(native["worlds"], times, style, label=name)
    for axes, label in ((left, "frames a second, all worlds together"), (right, "ms a step and world")):
        axes.set(xlabel="worlds in one batch", ylabel=label, xscale="log", ylim=(0, None))
        axes.set_xticks(native["worlds"], [str(num) for num in native["worlds"]])
        axes.minorticks_off()
    left.legend()
    return figure


def draw_planning(results: Results) -> Any:
    """Success against the time that a planner takes for an action; budgets are joined, random actions a line."""
    figure, panels = _panels(len(results["tasks"]), 4.2, 3.6, sharey=True)
    for axes, (name, task) in zip(panels, results["tasks"].items(), strict=True):
        axes.set(title=f"{name}: to a goal picture in {task['steps']} steps", xlabel="ms an action (median)")
        axes.set(xscale="log", ylim=(-3, 103))
        timed = {agent: row for agent, row in task["agents"].items() if row["median_ms"] is not None}
        budgets = {agent: row for agent, row in timed.items() if agent.endswith(" ms")}
        _successes(axes, budgets, "o-", COLOURS[0], "time budget")
        others = {agent: row for agent, row in timed.items() if agent not in budgets}
        for colour, style, agent in zip(cycle((*COLOURS[1:4], COLOURS[5])), cycle("s^D*X"), others, strict=False):
            _successes(axes, {agent: others[agent]}, style, colour, agent)
        for agent in task["agents"].keys() - timed.keys():
            axes.axhline(100 * task["agents"][agent]["success"], linestyle=":", color=GREY, label=agent)
        times = [round(row["median_ms"] / 10) * 10 for row in budgets.values()]
        axes.set_xticks(times, list(map(str, times)))
        axes.minorticks_off()
    panels[0].set_ylabel("goals reached, % (95 %)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _successes(axes: Any, rows: Results, style: str, colour: str, label: str) -> None:
    """Shares of success with their intervals over the time of an action."""
    times = [row["median_ms"] for row in rows.values()]
    shares = 100 * np.array([row["success"] for row in rows.values()])
    ends = 100 * np.array([row["success_interval"] for row in rows.values()])
    axes.errorbar(times, shares, abs(ends.T - shares), fmt=style, color=colour, label=label, capsize=2, elinewidth=0.8)


def draw_policies(results: Results) -> Any:
    """What policies reach in imagination against what they reach in the simulator, a panel for each id."""
    figure, panels = _panels(len(results["environments"]), 4.6, 3.7, columns=3)
    sides, shown = ("imagination", "simulator"), dict[str, Any]()
    for axes, (name, told) in zip(panels, results["environments"].items(), strict=True):
        groups: dict[str, list[Any]] = {}
        for label, agent in told["agents"].items():
            kind = re.sub(r", \d+ steps$", ON_THE_WAY, label)
            if agent.get("imagination"):
                groups.setdefault("cloned, partly random" if "at random" in label else kind, []).append(agent)
        for kind, members in groups.items():
            (x, x_bars), (y, y_bars) = (_returns(members, side, told["num_steps"][side]) for side in sides)
            index = list(shown).index(kind) if kind in shown else len(shown)
            style = {"color": COLOURS[index % len(COLOURS)], "marker": "osD^vPX*"[index % 8], "markersize": 5}
            style |= {"linestyle": "-" if kind.endswith(ON_THE_WAY) else "", "linewidth": 0.8, "label": kind}
            shown[kind] = axes.errorbar(x, y, y_bars, x_bars, zorder=4 - len(members) / 50, **style)
        ends = [min(*axes.get_xlim(), *axes.get_ylim()), max(*axes.get_xlim(), *axes.get_ylim())]
        (alike,) = axes.plot(ends, ends, "--", color=GREY, linewidth=1, label="the same in both")
        rank = told.get("ranking")
        title = name + (f" (r = {rank['pearson']:.2f}, {rank['policies']} policies)" if rank else "")
        axes.set(title=title, xlabel="reward a step in imagination", ylabel="reward a step in the simulator")
    figure.legend(handles=[*shown.values(), alike], loc="outside lower center", ncols=4)
    return figure


def _returns(agents: Sequence[Results], side: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a step, (N,), and how far their intervals reach below and above (2, N)."""
    means = np.array([agent[side]["mean_kept_return"] for agent in agents])
    ends = np.array([agent[side]["kept_return_interval"] for agent in agents]).T
    return means / steps, abs(ends - means) / steps


PLOTS: dict[str, Plot] = {
    "horizon": Plot(
        "domains",
        "Quality over the horizon",
        "Held-out episodes, imagined open loop. The gap to the ceiling is what imagination loses, that to another "
        "episode's actions is what the actions tell it.",
        draw_horizon,
    ),
    "following": Plot(
        "domains",
        "Does it do what it is told?",
        "Actions held from held-out starts; estimators of real motion read it. The rim is 100 % of the starts.",
        draw_following,
    ),
    "inertia": Plot(
        "inertia",
        "Visual inertia",
        "Held-out moments by length of memory: inertia gains quality and loses obedience. Bands: 95 % intervals.",
        draw_inertia,
    ),
    "first_light": Plot(
        "first_light",
        "The robot's world over the horizon",
        "As above for 200 episodes of the robot, with structural similarity.",
        draw_first_light,
    ),
    "uncertainty": Plot(
        "uncertainty",
        "Does it know when it is wrong?",
        "Reliability: expected against true error of the latent on episodes that the calibration has not seen.",
        draw_reliability,
    ),
    "planning": Plot(
        "planning",
        "Planning time against success",
        "Plans are made in imagination, actions happen in the real simulator, goals are pictures.",
        draw_planning,
    ),
    "policies": Plot(
        "policies",
        "Imagination against the simulator",
        "In both worlds, with 95 % intervals: what lies below the dashed line, imagination promised too much.",
        draw_policies,
    ),
    "speed": Plot(
        "speed",
        "Speed by number of worlds",
        "All worlds of a batch step in one call of the network, on one thread of a CPU.",
        draw_speed,
    ),
}
"""Name of a plot and of its PNG file -> the plot."""
