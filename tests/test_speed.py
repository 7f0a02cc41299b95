from __future__ import annotations

import json

import pytest
import torch

from benchmarks.cli import main
from benchmarks.speed import alternate
from benchmarks.speed_sides import REFERENCE, old_world, one_forward, small_world


def test_sides_take_turns_after_a_run_to_warm_up():
    order = []
    times = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 4 and times.keys() == {"a", "b"}


@torch.no_grad()
def test_the_reference_reads_its_history_in_every_pass():
    tokens = []
    for changes in ({}, REFERENCE):
        world_model = small_world(torch.float32, **changes)
        assert old_world(world_model, 2).lengths.min() > world_model.layout.size
        block = world_model.transformer.blocks[0]
        run = one_forward(world_model, 1)
        hook = block.register_forward_hook(lambda _, args, out: tokens.append(args[0].shape[1]))
        assert run().isfinite().all()
        hook.remove()
    assert tokens == [16, 56], "16 tokens of a chunk, and 40 of history where nothing is kept"


@pytest.mark.slow
def test_the_command_measures_everything(tmp_path, capsys):
    out = tmp_path / "speed.json"
    main(["speed", "--quick", "--out", str(out)])
    results = json.loads(out.read_text())
    assert {row["id"] for row in results["demands"]} == {f"C{number}" for number in range(1, 11)}
    assert all(row["reached"] > 0 for row in results["demands"])
    assert results["sweep"]["vectorisation"]["wall_ms"].keys() == {"native", "sync", "async"}
    assert "| C3: " in capsys.readouterr().out
