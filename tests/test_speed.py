from __future__ import annotations

import json

import pytest
import torch

from benchmarks.cli import main
from benchmarks.speed import alternate
from benchmarks.speed_sides import (
    old_world,
    one_forward,
    reference_pass,
    reference_step,
    small_reference,
    small_world,
)


def test_sides_take_turns_after_a_run_to_warm_up():
    order = []
    times = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 4 and times.keys() == {"a", "b"}


@torch.no_grad()
def test_the_reference_reads_its_history_in_every_pass_and_guides_in_a_pass_of_its_own():
    ours, theirs = small_world(torch.float32), small_reference(torch.float32)
    state = old_world(ours, 2)
    assert state.lengths.min() > ours.layout.size and state.prompt_embeds.shape[1] == 1
    sides = {"ours": (ours.transformer, one_forward(ours, 1)), "theirs": (theirs, reference_pass(theirs, 1))}
    tokens = {}
    for name, (transformer, run) in sides.items():
        seen: list[tuple[int, int]] = []
        hook = transformer.blocks[0].register_forward_hook(lambda _, args, out, seen=seen: seen.append(args[0].shape))
        assert run().isfinite().all()
        hook.remove()
        tokens[name] = [tuple(shape[:2]) for shape in seen]
    assert tokens == {"ours": [(1, 16)], "theirs": [(1, 56)]}, "16 tokens of a chunk, 40 of history"
    passes: list[int] = []
    theirs.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    reference_step(theirs, 3, 2.0)()
    assert len(passes) == 6, "three steps with and without actions"


@pytest.mark.slow
def test_the_command_measures_everything(tmp_path, capsys):
    out = tmp_path / "speed.json"
    main(["speed", "--quick", "--out", str(out)])
    results = json.loads(out.read_text())
    assert {row["id"] for row in results["demands"]} == {f"C{number}" for number in range(1, 11)}
    assert all(row["reached"] > 0 for row in results["demands"])
    assert results["sweep"]["vectorisation"]["wall_ms"].keys() == {"native", "sync", "async"}
    assert "| C3: " in capsys.readouterr().out
