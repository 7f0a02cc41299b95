from __future__ import annotations

import json

from benchmarks.recording import Sizes, recording, render_recording


def test_time_bytes_and_memory_are_measured_and_told(checkpoint, tmp_path):
    sizes = Sizes(blocks=1, block_steps=2, large_steps=1, streamed_steps=20, memory_every=5)
    results = recording(tmp_path / "recording.json", sizes, checkpoint)
    assert results == json.loads((tmp_path / "recording.json").read_text())
    assert results["recording_step"]["plain_ms"] > 0
    for kind in results["recording_step"]["kinds"].values():
        assert kind["bytes_per_step"] > 1000
        assert kind["overhead_ms"] > 0
    for name, processes in (("file", ["process"]), ("viewer", ["process", "server"])):
        memory = results["streamed"][name]["memory_mb"]
        assert list(memory) == processes and all(len(values) == 4 for values in memory.values())
        assert all(value > 10 for values in memory.values() for value in values)
    text = render_recording(results)
    assert "| not recorded |" in text and "with routing and denoising steps" in text
    assert "Memory in the second half of 20 steps, streamed into a viewer: process " in text
