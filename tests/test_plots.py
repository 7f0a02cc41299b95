"""Plots of the committed results and of small made-up ones: what is drawn, and what its labels say."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from astra_env.video import read_image
from benchmarks.cli import main
from benchmarks.figures import INK
from benchmarks.plots import LINES, PLOTS

pytest.importorskip("matplotlib")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
LOOP = {
    "horizons": [1, 2],
    "psnr": {key: [30.0 - i, 25.0 - i] for i, key in enumerate(LINES)},
    "ssim": {key: [0.9 - i / 10, 0.8 - i / 10] for i, key in enumerate(LINES)},
}
FOLLOWED = {"num_starts": 4, "right_way": 0.75, "half_way": 0.5}
TIMED = {"success": 0.5, "success_interval": [0.2, 0.8], "median_ms": 250.0}
RETURNED = {"mean_kept_return": 3.0, "kept_return_interval": [2.0, 4.5]}
BOTH = {"simulator": RETURNED, "imagination": {**RETURNED, "mean_kept_return": 5.0, "kept_return_interval": [4, 7]}}
MADE_UP = {
    "domains": {
        "domains": {
            name: {"open_loop": LOOP, "following": dict.fromkeys("abc", FOLLOWED) | {"never": {"num_starts": 0}}}
            for name in ("robot", "driving", "camera")
        }
    },
    "first_light": {"open_loop": LOOP},
    "inertia": {
        "lengths": [1, 4],
        "steps": [1, 5],
        "domains": {
            "robot": {
                key: value
                for name, of in (("psnr_1", 20.0), ("psnr_5", 15.0), ("margin_1", 3.0), ("margin_5", 2.0))
                for key, value in ((name, [of, of + 1]), (f"{name}_interval", [[of - 1, of + 1], [of, of + 2]]))
            }
            | {"followed": [0.9, 0.7], "followed_interval": [[0.8, 0.95], [0.6, 0.8]]},
            "driving": {f"{name}{end}": [None, None] for name in ("followed",) for end in ("", "_interval")}
            | {
                f"{measure}_{step}{end}": [[1.0, 2.0], [1.0, 2.0]] if end else [1.5, 1.5]
                for measure in ("psnr", "margin")
                for step in (1, 5)
                for end in ("", "_interval")
            },
        },
    },
    "uncertainty": {
        "domains": {"robot": {"calibration": {"reliability": {"predicted": [0.1, 0.4], "true": [0.2, 0.5]}}}}
    },
    "planning": {
        "tasks": {
            "robot": {
                "steps": 6,
                "agents": {
                    "random actions": {**TIMED, "median_ms": None},
                    "icem, pose of the goal": TIMED,
                    "icem, 250 ms": TIMED,
                    "icem, 500 ms": {**TIMED, "median_ms": 500.0, "success": 0.7},
                },
            }
        }
    },
    "policies": {
        "environments": {
            "Astra-RT1-Reach-v0": {
                "num_steps": {"simulator": 10, "imagination": 5},
                "agents": {
                    "random": BOTH,
                    "imagination, 10 steps": BOTH,
                    "simulator, 9 steps": BOTH,
                    "MPC": {"simulator": RETURNED},
                },
                "ranking": None,
            }
        }
    },
    "speed": {
        "sweep": {
            "native": {
                "worlds": [1, 4],
                **{f"{seen}_{key}": [10.0, 20.0] for seen in ("frame", "latent") for key in ("ms", "frames_per_s")},
            }
        }
    },
}
SERIES = {  # lines with names, by panel
    "horizon": [4, 4, 4],
    "following": [3, 3, 3],
    "inertia": [4, 4, 1],
    "first_light": [4, 4],
    "uncertainty": [2],
    "planning": [3],
    "policies": [4],
    "speed": [2, 2],
}


def named(axes):
    """Series that a legend would list."""
    return axes.get_legend_handles_labels()[1]


def test_policies_are_compared_by_the_step():
    figure = PLOTS["policies"].draw(MADE_UP["policies"])
    line = next(line for line in figure.axes[0].get_lines() if line.get_marker() == "o")
    assert line.get_xydata().tolist() == [[5.0 / 5, 3.0 / 10]]


def test_a_kind_of_policies_looks_the_same_in_every_panel():
    """Whatever kinds the ids have; and panels go on in a second row."""
    (one,) = MADE_UP["policies"]["environments"].values()
    others = {"MPC": {"simulator": RETURNED}, "cloned": BOTH, "random": BOTH}
    figure = PLOTS["policies"].draw({"environments": {"a": one, "b": one | {"agents": others}, "c": one, "d": one}})
    marks = [{bars.get_label(): bars[0].get_marker() for bars in axes.containers} for axes in figure.axes]
    assert marks[1]["random"] == marks[0]["random"] and marks[1]["cloned"] not in marks[0].values()
    assert [axes.get_subplotspec().rowspan.start for axes in figure.axes] == [0, 0, 0, 1]


def test_every_plot_is_tried():
    assert PLOTS.keys() == SERIES.keys() and {plot.results for plot in PLOTS.values()} == MADE_UP.keys()


@pytest.mark.parametrize("name", PLOTS)
def test_made_up_results_are_drawn_series_by_series(name):
    figure = PLOTS[name].figure(MADE_UP[PLOTS[name].results])
    assert [len(named(axes)) for axes in figure.axes] == SERIES[name]
    for axes in figure.axes:
        assert name == "following" or (axes.get_xlabel() and (axes.get_ylabel() or axes is not figure.axes[0]))


def test_lines_are_at_the_measured_values():
    axes = PLOTS["horizon"].figure(MADE_UP["domains"]).axes[1]
    assert axes.get_title() == "driving" and named(axes) == [label for label, _, _ in LINES.values()]
    for line, key in zip(axes.get_lines(), LINES, strict=True):
        np.testing.assert_array_equal(line.get_xydata(), np.stack([LOOP["horizons"], LOOP["psnr"][key]], axis=1))
    right, half, chance = PLOTS["following"].figure(MADE_UP["domains"]).axes[0].get_lines()
    assert set(right.get_ydata()) == {75} and set(half.get_ydata()) == set(chance.get_ydata()) == {50}
    assert len(right.get_ydata()) == 4  # three actions that were measured, and back to the first
    obeyed = PLOTS["inertia"].figure(MADE_UP["inertia"]).axes[2].get_lines()
    assert [line.get_label() for line in obeyed] == ["robot"] and list(obeyed[0].get_ydata()) == [90, 70]


@pytest.mark.parametrize("name", PLOTS)
def test_no_two_series_of_a_panel_look_alike(name):
    source = RESULTS / f"{PLOTS[name].results}.json"
    if not source.is_file():
        pytest.skip(f"{source.name} has not been measured")
    for axes in PLOTS[name].figure(json.loads(source.read_text())).axes:
        handles, labels = axes.get_legend_handles_labels()
        lines = [handle[0] if isinstance(handle, tuple) else handle for handle in handles]  # one with its bars
        looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}
        assert len(looks) == len(set(labels)) == len(labels)


@pytest.mark.parametrize("name", PLOTS)
def test_committed_results_are_drawn_as_text_and_lines(name):
    source = RESULTS / f"{PLOTS[name].results}.json"
    if not source.is_file():
        pytest.skip(f"{source.name} has not been measured")
    results = json.loads(source.read_text())
    svg = PLOTS[name].svg(results, name)
    root = ET.fromstring(svg)
    texts = {"".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")}
    panels = results.get("domains") or results.get("tasks") or {}
    shown = " ".join(texts)
    assert len(texts) > 5 and all(panel in shown for panel in panels)
    assert not re.search(r"https?://(?!www\.w3\.org/)", svg) and "<metadata" not in svg
    assert INK not in svg and "currentColor" in svg
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) and all(one.startswith(f"{name}-") for one in ids)
    for used in re.findall(r'(?:url\(|href=")#([^")]+)', svg):
        assert used in ids


def test_the_command_writes_small_pictures(tmp_path, capsys):
    for name, results in MADE_UP.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(results))
    main(["plots", "--results", str(tmp_path), "--out", str(tmp_path / "pictures")])
    written = sorted(path.stem for path in (tmp_path / "pictures").iterdir())
    assert written == sorted(PLOTS) and len(capsys.readouterr().out.splitlines()) == len(PLOTS)
    for path in (tmp_path / "pictures").iterdir():
        picture = read_image(path)
        assert path.stat().st_size < 150_000 and (picture[0] == 255).all() and (picture < 128).any()
    with pytest.raises(SystemExit):
        main(["plots", "--results", str(tmp_path / "pictures")])
    assert "holds none of the results that are drawn" in capsys.readouterr().err
