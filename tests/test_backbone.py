"""The backbone's benchmark: counts at tiny size, and the full one where there is a GPU."""

from __future__ import annotations

import pytest
import torch

from astra_env.models.reference import RELEASED_1_3B
from benchmarks import backbone

TINY = {**RELEASED_1_3B, "dim": 256, "num_heads": 2, "ffn_dim": 512, "num_layers": 2, "text_dim": 16}


def test_reading_the_history_once_saves_arithmetic(monkeypatch):
    monkeypatch.setattr(backbone, "FRAME_SIZE", (64, 96))
    counted = {name: backbone.count(config) for name, config in backbone.configs(TINY).items()}
    assert counted["own"]["once_tflop"] > counted["released"]["once_tflop"], "ours runs the history through the blocks"
    assert counted["own"]["step_tflop"] < counted["released"]["step_tflop"]
    assert counted["own"]["chunk_tflop"] < counted["released"]["chunk_tflop"]
    layers = {name: backbone.count(config) for name, config in backbone.configs({**TINY, "num_layers": 4}).items()}
    for name, entry in counted.items():
        assert 1.9 < layers[name]["step_tflop"] / entry["step_tflop"] < 2.05


@pytest.mark.slow
def test_a_forward_at_full_size_costs_what_the_reference_costs():
    released = backbone.count(backbone.configs()["released"])
    assert released["step_tflop"] == pytest.approx(94.8, rel=0.01)


@pytest.mark.gpu
def test_a_chunk_at_full_size_runs_in_bfloat16():
    result = backbone.measure(backbone.configs()["own"], repeats=2)
    assert torch.cuda.is_available() and result["step_ms"] > 0 and result["peak_memory_gb"] < 24
