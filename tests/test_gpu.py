"""What a GPU should reach: counted at tiny size, measured where there is one."""

from __future__ import annotations

import pytest
import torch
from test_backbone import TINY

from benchmarks import backbone, gpu


@pytest.fixture
def small(monkeypatch):
    for module in (backbone, gpu):
        monkeypatch.setattr(module, "FRAME_SIZE", (64, 96))
    monkeypatch.setattr(gpu, "decoders", lambda: {"tiny": gpu.TinyAutoencoder(), **_wans()})


def _wans():
    sizes = {"base_dim": 8, "num_res_blocks": 1}
    return {"wan": gpu.WanAutoencoder(**sizes), "wan tiled": gpu.WanAutoencoder((4, 4), (2, 2), **sizes)}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which measures")
def test_without_a_gpu_arithmetic_is_told_and_nothing_is_claimed(small):
    results = gpu.gpu(TINY, (1, 3))
    rows = results["demands"]
    assert {row["id"] for row in rows} == {"G1", "G2", "G3", "G4", "G5", "G6"}
    assert all(row["floor"] > 0 for row in rows)
    assert [row["id"] for row in rows if row["reached"] is not None] == ["G5"], "bytes need no GPU"
    assert gpu.render_gpu(results).count("| – |") == len(rows) - 1
    ratio = [row["floor"] for row in rows if row["id"] == "G1"]
    assert ratio[0] > ratio[1] > 1, "the shorter the chunk, the more a kept history saves"


def test_a_tiled_picture_costs_its_tiles(small):
    tflop = {name: gpu.decode_tflop(decoder) for name, decoder in gpu.decoders().items()}
    assert 1.5 < tflop["wan tiled"] / tflop["wan"] < 4.5, "tiles of 4 x 4, two apart"


def test_history_is_kept_in_two_bytes_a_channel(small):
    config = backbone.configs(TINY)["own"]
    tokens = {"1x": 2 * 4 * 6, "2x": 2 * 3, "4x": 4 * 2}
    assert gpu.state_bytes(config) == 2 * 2 * config.num_layers * config.dim * sum(tokens.values())


def test_times_become_what_was_reached(small, monkeypatch):
    steps = iter([40.0, 12.0, 10.0, 400.0])  # of the released form, of ours in both forms, of the default chunk
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "machine", dict)
    monkeypatch.setattr(gpu, "measure", lambda *_, **__: {"once_ms": 20.0, "step_ms": next(steps)})
    monkeypatch.setattr(gpu, "decode_ms", lambda decoder: 5.0)
    results = gpu.gpu(TINY, (1,))
    reached = [row["reached"] for row in results["demands"] if row["id"] in ("G1", "G3", "G4")]
    chunk = 20 + 4 * 10 + 5
    assert reached == pytest.approx([4.0, 4000 / chunk, (100 * 400 + 8 * 5) / 8 / chunk, 4 * 10 + 5])
    assert all(row["reached"] is not None for row in results["demands"])


@pytest.mark.gpu
def test_all_demands_are_measured_on_a_gpu(small):
    results = gpu.gpu(TINY, (1,))
    assert all(row["reached"] > 0 for row in results["demands"])
