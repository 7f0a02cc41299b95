"""The loading benchmark reads what it wrote, and its figures are figures."""

from __future__ import annotations

import numpy as np

from benchmarks.loading import WRITERS, _open, _recording, loading, render_loading


def test_every_format_is_measured_and_shown(tmp_path):
    results = loading(tmp_path / "loading.json", recordings=2, seconds=4, clips=3)
    assert results["clips_per_s"].keys() == WRITERS.keys()
    assert all(rate > 0 for entry in results["clips_per_s"].values() for rate in entry.values())
    assert render_loading(results).count("\n") == 1 + len(WRITERS)


def test_the_formats_hold_the_same_clips(tmp_path):
    written = [_recording(index, 40) for index in range(2)]
    for name, write in WRITERS.items():
        write(tmp_path / name, written)
        windows = _open(name, tmp_path / name, 20)
        assert len(windows) == 4
        np.testing.assert_allclose(windows[3].actions, written[1].actions[19:38], atol=1e-6)
        # videos keep colours at half the resolution, so greys are compared
        grey, expected = (frames.mean(-1) for frames in (windows[3].frames, written[1].frames[19:39]))
        assert np.abs(grey - expected).mean() < np.abs(grey[1:] - expected[:-1]).mean() / 4
