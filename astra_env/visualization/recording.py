"""One recording of one or more worlds: frames, actions, rewards, poses and plans on common time lines."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from astra_env.actions import ActionModality
from astra_env.visualization import shapes
from astra_env.visualization.layout import Layout
from astra_env.visualization.overlay import action_marks, key_caps
from astra_env.visualization.sdk import rr
from astra_env.visualization.stream import Clock, Stream

WAY_LENGTH = 256
"""Newest poses that the line of the way so far goes through."""


class Recording:
    """A .rrd file that is complete once it is closed, or a stream to a Rerun viewer.

    Time lines: `time` (seconds of the world, frame by frame), `frame`, `step` (of the environment) and `wall_time`.
    Entities: `frames/<view>` pictures, with the action drawn over the first view; `action/<field>` in the field's
    unit; `reward/total`, `reward/terms/<name>`; `world/way`, `world/body`, `world/target`, `world/plans/<which>` in
    space; `plan/<name>`, `events`, and whatever `log_scalars` is given. Those of rows and forks have a prefix.

    Args:
        target: a file to write, which appears under this name when the recording is closed; "spawn" opens a viewer,
            "connect" sends to the one that is open here, "rerun+http://HOST:PORT/proxy" to one elsewhere.
        views: names of the frame streams, in the order of their panels.
        modality: names, units and motion of the actions; without it they are numbered, and nothing stands in space.
        fps: frames in a second; it may be set anew while recording.
        jpeg_quality: of the pictures, 1 to 100; None keeps every bit.
    """

    def __init__(
        self,
        target: str | Path,
        *,
        views: Sequence[str] = ("imagined",),
        modality: ActionModality | None = None,
        fps: float = 20.0,
        jpeg_quality: int | None = 92,
    ) -> None:
        self.modality, self.fps, self.jpeg_quality = modality, fps, jpeg_quality
        self.clock, self._closed = Clock(), False
        self.pose: np.ndarray | None = None  # (4, 4), the newest one of this episode
        self._view, self._prefix, self._size = views[0], "", (0, 0)
        self._way: deque[np.ndarray] = deque(maxlen=WAY_LENGTH)
        self._layout = Layout(views, modality)
        name = "astra_env" if modality is None else f"astra_env_{modality.name}"  # one modality looks alike
        self._stream = Stream(name, str(target))
        if modality is not None:
            self._stream.log_static("/", shapes.axes(modality))

    @property
    def num_frames(self) -> int:
        """Frames so far."""
        return self.clock.num_frames

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # 1. Several worlds

    def fork(self, name: str) -> Recording:
        """A recording of what else might come, under `forks/<name>/`, from the present time and place on."""
        return self._part(f"forks/{name}/")

    def row(self, index: int) -> Recording:
        """A recording of one of several worlds, under `rows/<index>/`, from the present time on."""
        return self._part(f"rows/{index}/")

    def _part(self, prefix: str) -> Recording:
        part = copy.copy(self)
        part._prefix, part._way = self._prefix + prefix, deque(self._way, maxlen=WAY_LENGTH)
        return part

    # 2. What the world shows

    def begin_episode(self, text: str = "episode starts") -> None:
        """Start a new episode at the next step: what was shown of the last one is taken away, and an event says so."""
        if self.clock.num_frames:
            self.clock = self.clock.next_step()
            self._darken([view for view in self._layout.views(self._prefix) if view != f"frames/{self._view}"])
            for entity in ("world/target", "world/plans"):
                self._log(entity, shapes.nothing())
        self.pose = None
        self._way.clear()
        self.log_event(text)

    def clear(self) -> None:
        """Take away what is shown of this world, such as a fork that is over."""
        self._darken(self._layout.views(self._prefix))
        for entity in (f"frames/{self._view}/action", "world"):
            self._log(entity, shapes.nothing())

    def _darken(self, views: Iterable[str]) -> None:
        """Turn pictures black, since viewers go on to show compressed ones that were taken away."""
        for view in views:
            self.log_picture(view, np.zeros((*self._size, 3), np.uint8))

    def log_frames(self, views: Mapping[str, np.ndarray], poses: np.ndarray | None = None) -> None:
        """Appends frames and moves the clock on by as many.

        Args:
            views: uint8 frames (T, H, W, 3) by view.
            poses: (T, 4, 4) of what moves, seen from the start of the episode, where they are known.
        """
        lengths = {len(frames) for frames in views.values()}
        if len(lengths) != 1:
            raise ValueError(f"views have different numbers of frames: {sorted(lengths)}; give equally many of each")
        for index in range(lengths.pop()):
            self.clock = self.clock.next_frame(self.fps)
            for view, frames in views.items():
                self.log_picture(f"frames/{view}", frames[index])
            if self._view in views and poses is not None:
                self._log_pose(poses[index], views[self._view].shape[1:3])
        if poses is not None and len(self._way) > 1:
            self._log("world/way", shapes.way(np.stack(self._way)))
        self._arrange()

    def log_picture(self, entity: str, picture: np.ndarray) -> None:
        """Logs a picture uint8 (H, W, 3), such as `frames/goal`, at the newest frame."""
        self._layout.add(self._prefix, entity)
        if entity == f"frames/{self._view}":
            self._size = self._layout.picture_size = picture.shape[:2]
        self._log(entity, shapes.image(picture, self.jpeg_quality))

    def _log_pose(self, pose: np.ndarray, size: tuple[int, int]) -> None:
        """Move what stands for who moves: the camera of the first view, or a car or gripper."""
        self.pose = pose
        if self.modality is None:
            return
        moving = f"frames/{self._view}" if shapes.looks_out(self.modality) else "world/body"
        if not self._layout.holds(self._prefix, "world"):
            self._layout.add(self._prefix, "world")
            self._log(moving, shapes.frustum(size) if shapes.looks_out(self.modality) else shapes.body(self.modality))
        self._log(moving, shapes.pose(pose))
        self._way.append(pose[:3, 3])
        self._layout.reach(pose[None, :3, 3])

    # 3. What was commanded

    def log_action(self, action: np.ndarray, keys: Iterable[str] | None = None) -> None:
        """Logs an action (A,) at the present frame, and over it; call it before the frames that it leads to.

        Args:
            action: in the modality's units.
            keys: names of the keys that stand for it, where keys do.
        """
        values = np.atleast_1d(action).astype(float)
        fields = self.modality.fields if self.modality else [str(index) for index in range(len(values))]
        if values.shape != (len(fields),):
            raise ValueError(f"the action has shape {values.shape}, expected ({len(fields)},): {', '.join(fields)}")
        if not self._layout.holds(self._prefix, "action"):
            self._name_curves()
        self.log_scalars({f"action/{field}": value for field, value in zip(fields, values, strict=True)})
        if self.modality is not None and self.num_frames:
            over, marks = f"frames/{self._view}/action", action_marks(self.modality, values, self._size)
            self._log(f"{over}/lines", shapes.lines(marks))
            self._log(f"{over}/arrows", shapes.tips(marks))
            self._log(f"{over}/captions", shapes.captions(marks, self._size))
            if keys is not None:
                caps = key_caps(keys, self._size)
                self._log(f"{over}/keys", shapes.caps(caps))
                self._log(f"{over}/signs", shapes.signs(caps))
        self.clock = self.clock.next_step()

    # 4. What it was worth, and what else was considered

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

    def log_candidates(self, poses: np.ndarray, scores: np.ndarray) -> None:
        """Shows plans as a fan of lines in space, coloured by score, the best of them, which is chosen, in front.

        Args:
            poses: (N, horizon + 1, 4, 4) that each plan leads through, seen from the start of the episode.
            scores: (N,), larger is better; plans whose score is not finite are left out.
        """
        if len(poses) != len(scores) or len(scores) == 0 or np.shape(poses)[2:] != (4, 4):
            raise ValueError(
                f"plans have poses {np.shape(poses)} and scores {np.shape(scores)}, expected (N, horizon + 1, 4, 4) "
                "and (N,), at least one."
            )
        order = np.argsort(scores, kind="stable")
        order = order[np.isfinite(scores)[order]]
        if len(order) == 0:
            return
        poses, scores = poses[order], scores[order]
        self._layout.add(self._prefix, "world")
        self._layout.reach(poses[..., :3, 3].reshape(-1, 3))
        self._log("world/plans/considered", shapes.fan(poses, scores))
        self._log("world/plans/chosen", shapes.chosen(poses[-1], float(scores[-1])))

    def log_target(self, path: np.ndarray) -> None:
        """Shows the path (T + 1, 4, 4) that the episode is to follow."""
        self._layout.reach(path[:, :3, 3])
        self._log("world/target", shapes.target(path))

    def log_event(self, text: str) -> None:
        """Logs a line of text at the newest frame."""
        self._layout.add(self._prefix, "events")
        self._log("events", rr.TextLog(text))

    def log_scalars(self, values: Mapping[str, float]) -> None:
        """Logs numbers by entity path at the newest frame."""
        for path, value in values.items():
            self._layout.add(self._prefix, path.split("/")[0])
            self._log(path, rr.Scalars(float(value)))

    # 5. The stream

    def close(self) -> None:
        """Completes the file, or sends what is left; closing twice does nothing, nor does closing a row or fork."""
        if self._prefix == "" and not self._closed:
            self._stream.arrange(self._layout.blueprint())  # from where all is seen
            self._stream.close()
            self._closed = True

    def _arrange(self) -> None:
        """Send the arrangement of panels, where something new is there to show and somebody looks on."""
        if self._layout.changed and self._stream.live:
            self._stream.arrange(self._layout.blueprint())

    def _name_curves(self) -> None:
        """Curves of actions are named by field and unit, and held for a step."""
        for field, unit in zip(self.modality.fields, self.modality.units, strict=True) if self.modality else ():
            self._stream.log_static(f"{self._prefix}action/{field}", shapes.held_curve(f"{field} [{unit}]"))

    def _log(self, entity: str, content: rr.AsComponents) -> None:
        """Log at the present time under the recording's prefix."""
        self._stream.log(self.clock, f"{self._prefix}{entity}", content)
