"""Rerun recordings: frames, actions in their units, rewards and plans on one timeline. Open with `rerun FILE`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import gymnasium
import numpy as np

from astra_env.actions import ActionModality

try:
    import rerun as rr
    import rerun.blueprint as rrb
except ImportError as error:
    raise ImportError("recording needs the package rerun-sdk; install it with: pip install rerun-sdk") from error

JPEG_QUALITY = 92


class Recording:
    """One .rrd file with a clock of frames, complete once it is closed.

    Timelines: `frame` (index) and `time` (seconds). Entities: `frames/<view>` pictures, `action/<field>` in the
    field's unit, `reward/total`, `reward/terms/<name>`, `plan/<name>`, `events`.

    Args:
        path: file to write; it appears under this name when the recording is closed.
        views: names of the frame streams, one panel each.
        modality: names and units of the actions; without it they are numbered.
        fps: frames in a second; it may be set anew while recording.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        views: Sequence[str] = ("imagined",),
        modality: ActionModality | None = None,
        fps: float = 20.0,
    ) -> None:
        self.path = Path(path)
        self.modality, self.fps = modality, fps
        self.num_frames = 0
        self._seconds = 0.0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._unfinished = self.path.with_name(self.path.name + ".tmp")
        self._stream = rr.RecordingStream("astra_env")
        self._stream.set_log_time_enabled(False)
        self._stream.set_log_tick_enabled(False)
        self._stream.save(self._unfinished, default_blueprint=_blueprint(views))
        for field, unit in zip(modality.fields, modality.units, strict=True) if modality else ():
            self._stream.log(f"action/{field}", rr.SeriesLines(names=f"{field} [{unit}]", widths=1.5), static=True)

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def log_frames(self, views: Mapping[str, np.ndarray]) -> None:
        """Appends frames, uint8 (T, H, W, 3) of each view, and moves the clock on by T."""
        lengths = {len(frames) for frames in views.values()}
        if len(lengths) != 1:
            raise ValueError(f"views have different numbers of frames: {sorted(lengths)}; give equally many of each")
        for index in range(lengths.pop()):
            self._seconds += 1 / self.fps if self.num_frames else 0.0
            self.num_frames += 1
            self._set_time()
            for view, frames in views.items():
                picture = rr.Image(frames[index]).compress(jpeg_quality=JPEG_QUALITY)
                self._stream.log(f"frames/{view}", picture)

    def log_action(self, action: np.ndarray) -> None:
        """Logs an action (A,) at the present frame; call it before the frames that the action leads to."""
        values = np.atleast_1d(action).astype(float)
        fields = self.modality.fields if self.modality else [str(index) for index in range(len(values))]
        self.log_scalars({f"action/{field}": value for field, value in zip(fields, values, strict=True)})

    def log_reward(self, reward: float, terms: Mapping[str, float]) -> None:
        """Logs a reward and the terms that it is made of at the newest frame."""
        named = {f"reward/terms/{name}": float(value) for name, value in terms.items()}
        self.log_scalars({"reward/total": float(reward)} | named)

    def log_plan(self, values: np.ndarray) -> None:
        """Logs how good a plan is at the newest frame: best and mean objective, and the gain over the first mean.

        Args:
            values: best and mean objective of each iteration of the planner, (num_iterations, 2).
        """
        best, mean = (float(value) for value in values[-1])
        self.log_scalars({"plan/best": best, "plan/mean": mean, "plan/gain": best - float(values[0, 1])})

    def log_event(self, text: str) -> None:
        """Logs a line of text at the newest frame."""
        self._set_time()
        self._stream.log("events", rr.TextLog(text))

    def log_scalars(self, values: Mapping[str, float]) -> None:
        """Logs numbers by entity path at the newest frame."""
        self._set_time()
        for path, value in values.items():
            self._stream.log(path, rr.Scalars(value))

    def close(self) -> None:
        """Completes the file; closing twice does nothing."""
        if self._unfinished.exists():
            self._stream.disconnect()
            self._unfinished.replace(self.path)

    def _set_time(self) -> None:
        self._stream.set_time("frame", sequence=max(self.num_frames - 1, 0))
        self._stream.set_time("time", duration=self._seconds)


class RecordRerun(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Records every episode of an environment whose `info["frames"]` holds the frames (T, H, W, 3) of a step.

    `env.recording` is the open :class:`Recording`, for more to be logged beside. Closing the environment
    completes the file.

    Args:
        env: the environment.
        path: .rrd file to write.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], path: str | Path) -> None:
        super().__init__(env)
        modality = env.get_wrapper_attr("action_modality") if env.has_wrapper_attr("action_modality") else None
        self.recording = Recording(path, modality=modality)
        self._num_episodes = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Resets the environment and records the frames that the episode starts from."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._log_frames(info["frames"])
        self.recording.log_event(f"episode {self._num_episodes} starts")
        self._num_episodes += 1
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps the environment and records action, frames, reward and its terms."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.recording.log_action(action)
        self._log_frames(info["frames"])
        self.recording.log_reward(float(reward), info.get("reward_terms", {}))
        if terminated or truncated:
            self.recording.log_event("episode terminates" if terminated else "episode is truncated")
        return observation, reward, terminated, truncated, info

    def _log_frames(self, frames: np.ndarray) -> None:
        """Appends a chunk; Gymnasium's `render_fps` counts steps, each of which has as many frames as the chunk."""
        self.recording.fps = len(frames) * self.env.metadata.get("render_fps", 5)
        self.recording.log_frames({"imagined": frames})

    def close(self) -> None:
        """Completes the file and closes the environment."""
        self.recording.close()
        super().close()


def log_rollout(
    recording: Recording,
    views: Mapping[str, np.ndarray],
    actions: np.ndarray,
    rewards: np.ndarray | None = None,
    plans: Sequence[np.ndarray] | None = None,
) -> None:
    """Logs a whole rollout, for instance real frames beside imagined ones.

    Args:
        recording: the file to append to.
        views: uint8 frames (1 + N * n, H, W, 3) by view: the start, then n frames an action.
        actions: (N, A).
        rewards: (N,), the reward after each action.
        plans: N searches that chose the actions, each as in :meth:`Recording.log_plan`.
    """
    num_frames = len(next(iter(views.values()))) - 1
    if len(actions) == 0 or num_frames % len(actions):
        raise ValueError(f"{num_frames + 1} frames do not fit {len(actions)} actions; expected 1 + N * n frames")
    per_action = num_frames // len(actions)
    recording.log_frames({view: frames[:1] for view, frames in views.items()})
    for index, action in enumerate(actions):
        chunk = slice(1 + index * per_action, 1 + (index + 1) * per_action)
        if plans is not None:
            recording.log_plan(plans[index])
        recording.log_action(action)
        recording.log_frames({view: frames[chunk] for view, frames in views.items()})
        if rewards is not None:
            recording.log_reward(float(rewards[index]), {})


def _blueprint(views: Sequence[str]) -> rrb.Blueprint:
    """Pictures on the left; actions, rewards and plans on the right."""
    pictures = [rrb.Spatial2DView(origin=f"frames/{view}", name=view) for view in views]
    curves = [rrb.TimeSeriesView(origin=origin, name=origin) for origin in ("action", "reward", "plan")]
    return rrb.Blueprint(
        rrb.Horizontal(rrb.Vertical(*pictures), rrb.Vertical(*curves, rrb.TextLogView(origin="events", name="events"))),
        rrb.TimePanel(timeline="time"),
        collapse_panels=True,
    )
