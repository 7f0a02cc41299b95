"""The page of all results: it holds everything itself, and every results file is in it."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.cli import COMMANDS, main
from benchmarks.html_report import SECTIONS, from_markdown, write_html
from benchmarks.plots import PLOTS

pytest.importorskip("markdown")
pytest.importorskip("matplotlib")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
VOID = {"meta", "img", "input", "br", "hr", "link"}


class Page(HTMLParser):
    """All tags with their attributes, and whether each that opens is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "new" / "report.html"
    main(["html", "--results", str(RESULTS), "--out", str(out)])
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_every_results_file_has_its_part_and_its_link(page):
    names = {path.stem for path in RESULTS.glob("*.json")}
    assert {part["data-results"] for part in page.all("section")} == {f"{name}.json" for name in names}
    links = {link["href"] for link in page.all("a")}
    assert links == {"#top"} | {f"#{name}" for name in names}
    assert page.open == [] and {part["id"] for part in page.all("section")} == names


def test_nothing_is_asked_of_a_network(text, page):
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/webp;base64,"))
    assert not re.search(r"@import|url\((?!#)", text)
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_all_pictures_of_the_results_are_inside(page):
    pictures = page.all("img")
    expected = [path for path in RESULTS.glob("*.png") if path.name.startswith(("contact", "rare"))]
    assert len(pictures) == len(expected) and all(picture["alt"] for picture in pictures)
    sizes = set()
    for picture in pictures:
        encoded = base64.b64decode(picture["src"].partition(",")[2])
        sizes.add(cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR).shape)
    assert sizes == {cv2.imread(str(path)).shape for path in expected}


def test_all_plots_are_inside(page):
    drawn = [name for name, plot in PLOTS.items() if (RESULTS / f"{plot.results}.json").is_file()]
    assert len(page.all("svg")) == len(drawn) and all("viewbox" in svg for svg in page.all("svg"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_it_is_told_how_everything_was_measured(text):
    for path in RESULTS.glob("*.json"):
        part = text.split(f'data-results="{path.name}"')[1].split("</section>")[0]
        how = part.split("How this was measured")[1]
        assert "astra-bench " in how and ("torch: 2" in how or path.stem not in SECTIONS)
    assert "<td>seed</td><td>7000000</td>" in text  # of policies
    assert "color-scheme: light dark" in text and "prefers-color-scheme: dark" in text


@pytest.mark.parametrize("name", SECTIONS)
def test_what_stands_there_as_a_command_is_one(name, monkeypatch):
    program, command, *arguments = SECTIONS[name].command.split()
    given = []
    monkeypatch.setitem(COMMANDS, command, dataclasses.replace(COMMANDS[command], run=given.append))
    main([command, *arguments])
    assert program == "astra-bench" and len(given) == 1
    if name == "policies" and (RESULTS / "policies.json").is_file():
        assert set(given[0].ids) == json.loads((RESULTS / "policies.json").read_text())["environments"].keys()


def test_markdown_becomes_tables_folded_parts_and_pictures(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((8, 8, 3), 90, np.uint8))
    markdown = "| a | b |\n| --- | --: |\n| `x` & y | 1 |"
    folded = f"<details><summary>more</summary>\n\n{markdown}\n\n![some](benchmarks/results/a.png)\n\n</details>"
    html = from_markdown(f"**{markdown[2]}**\n\n{folded}\n\n![none](benchmarks/results/b.png)", tmp_path)
    found = Page(html)
    assert found.open == [] and len(found.all("table")) == 1 and len(found.all("img")) == 1
    assert html.index("<summary>") < html.index("<table>") < html.index("</details>")
    assert "<code>x</code> &amp; y" in html and "b.png is not there" in html


def test_unknown_results_are_shown_as_they_are(tmp_path, capsys):
    results = {"notes": {"ms": "of a step <b>"}, "ms": {"mean": 1.5, "worst": [2, None]}}
    (tmp_path / "new_thing.json").write_text(json.dumps(results))
    write_html(tmp_path, tmp_path / "out.html")
    text = (tmp_path / "out.html").read_text()
    assert "<h2>New thing" in text and "mean: 1.5, worst: 2; –" in text and "of a step &lt;b&gt;" in text
    with pytest.raises(SystemExit):
        main(["html", "--results", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out.html")])
    assert "holds no results" in capsys.readouterr().err
