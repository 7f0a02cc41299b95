from __future__ import annotations

import subprocess
import sys

import gymnasium
import numpy as np
import pytest

from astra_env.actions import ACTION_MODALITIES
from astra_env.visualization import Recording, RecordRerun, log_rollout

MODALITY = ACTION_MODALITIES["end_effector"]


class ChunkEnv(gymnasium.Env):
    """Four new frames a step, like every environment of the package."""

    metadata = {"render_fps": 5}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    action_modality = MODALITY
    action_space = MODALITY.space()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        frames = np.zeros((1, 16, 16, 3), np.uint8)
        return frames[-1], {"frames": frames}

    def step(self, action):
        frames = self.np_random.integers(0, 255, (4, 16, 16, 3), np.uint8)
        return frames[-1], 0.5, False, False, {"frames": frames, "reward_terms": {"goal": 0.25}}


def content(path):
    """What the viewer's own command line reads in a recording."""
    command = [sys.executable, "-m", "rerun", "rrd", "print", "-vvv", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_an_episode_is_recorded_whole(tmp_path):
    path = tmp_path / "new" / "out.rrd"
    env = RecordRerun(ChunkEnv(), path)
    env.reset(seed=0)
    for _ in range(3):
        env.step(env.action_space.sample())
    assert env.recording.num_frames == 13
    assert not path.exists()
    env.close()
    env.close()
    assert [entry.name for entry in path.parent.iterdir()] == ["out.rrd"]
    subprocess.run([sys.executable, "-m", "rerun", "rrd", "verify", str(path)], check=True, capture_output=True)
    printed = content(path)
    for entity in ("frames/imagined", "reward/total", "reward/terms/goal", "events", *MODALITY.fields):
        assert entity in printed


def test_the_environment_is_not_changed_by_being_recorded(tmp_path):
    plain, recorded = ChunkEnv(), RecordRerun(ChunkEnv(), tmp_path / "out.rrd")
    plain.reset(seed=1)
    recorded.reset(seed=1)
    action = np.zeros(7, np.float32)
    np.testing.assert_array_equal(plain.step(action)[0], recorded.step(action)[0])
    recorded.close()


def test_an_environment_without_a_modality_is_recorded_too(tmp_path):
    class Plain(ChunkEnv):
        action_modality = None
        action_space = gymnasium.spaces.Discrete(3)

    env = RecordRerun(Plain(), tmp_path / "out.rrd")
    env.reset()
    env.step(2)
    env.close()
    assert "action/0" in content(tmp_path / "out.rrd")


def test_a_rollout_shows_real_frames_beside_imagined_ones(tmp_path):
    views = {name: np.zeros((9, 16, 16, 3), np.uint8) for name in ("imagined", "recorded")}
    with Recording(tmp_path / "out.rrd", views=tuple(views), modality=MODALITY) as recording:
        log_rollout(recording, views, np.zeros((2, 7), np.float32), rewards=np.ones(2))
        recording.log_plan(np.array([[0.1, 0.0], [0.4, 0.2]]))
        assert recording.num_frames == 9
    printed = content(tmp_path / "out.rrd")
    for entity in ("frames/imagined", "frames/recorded", "plan/best", "plan/gain", "dx [m]"):
        assert entity in printed


def test_lengths_that_do_not_fit_are_refused(tmp_path):
    frames = np.zeros((9, 16, 16, 3), np.uint8)
    with Recording(tmp_path / "out.rrd") as recording:
        with pytest.raises(ValueError, match="different numbers of frames"):
            recording.log_frames({"imagined": frames, "recorded": frames[:3]})
        with pytest.raises(ValueError, match="9 frames do not fit 3 actions"):
            log_rollout(recording, {"imagined": frames}, np.zeros((3, 7)))


def test_a_missing_package_is_named():
    script = "import sys; sys.modules['rerun'] = None; import astra_env.visualization"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ImportError: recording needs the package rerun-sdk" in done.stderr
