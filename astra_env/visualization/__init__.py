"""Rerun recordings: frames, actions in units, rewards, poses and plans on one timeline. Open with `rerun FILE`."""

from astra_env.visualization.recording import Recording
from astra_env.visualization.rollouts import log_rollout
from astra_env.visualization.wrappers import RecordRerun, RecordRerunVector

__all__ = ["RecordRerun", "RecordRerunVector", "Recording", "log_rollout"]
