"""The benchmark of `astra-env play`: its client asks the real server, and its table shows what was measured."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import asdict
from pathlib import Path

from play_pages import serving

from astra_env.play.server import PlayConfig
from benchmarks import play
from benchmarks.play import Sizes, render_play

RESULTS = Path(play.__file__).with_name("results") / "play.json"


def test_the_client_measures_what_the_server_does(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(play, "find_browser", lambda: None)
    sizes = Sizes(presses=2, streamed_steps=6, memory_points=3)

    async def measure() -> dict:
        config = PlayConfig(play.IDS[1], {"world_model": checkpoint, "device": "cpu"}, out=str(tmp_path))
        async with serving(config) as address:
            told = await play._one_visitor(address, sizes)
            several = await play._several(address, 2, sizes.presses)
            memory = await play._stream(address, os.getpid(), sizes)
        several = {"environment": play.IDS[1], "visitors": {"2": several}}
        return {"key_to_picture": {play.IDS[1]: told}, "several": several, "memory": memory}

    results = asdict(sizes) | asyncio.run(asyncio.wait_for(measure(), 60))
    told = results["key_to_picture"][play.IDS[1]]
    assert told["page"] is None
    for entry in (told["running"], told["single_step"]):
        assert 0 < entry["p50"] <= entry["p95"] < 5000 and entry["n"] == 2
    assert results["several"]["visitors"]["2"]["n"] == 2 and results["several"]["visitors"]["2"]["pace"] > 0
    assert [entry["steps"] for entry in results["memory"]["resident"]] == [2, 4, 6]
    text = render_play(results)
    assert "2 visitors at once" in text and "95th of 2, ms | page in Chromium (of 60)" in text


def test_the_table_shows_the_committed_results():
    text = render_play(json.loads(RESULTS.read_text()))
    assert all(name in text for name in play.IDS) and "10,000" in text


def test_what_is_written_is_what_is_shown(monkeypatch, tmp_path):
    committed = json.loads(RESULTS.read_text())
    measured = {"key_to_picture", "several", "running_programs"}

    async def latencies(*_) -> dict:
        return {name: committed[name] for name in measured}

    async def memory(*_) -> dict:
        return {"memory": committed["memory"]}

    monkeypatch.setattr(play, "_latencies", latencies)
    monkeypatch.setattr(play, "_memory", memory)
    results = play.play(tmp_path / "play.json")
    assert results == json.loads((tmp_path / "play.json").read_text())
    assert render_play(results) == render_play(committed | asdict(Sizes()))
