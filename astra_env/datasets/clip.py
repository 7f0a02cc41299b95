"""Clip: a piece of video with the actions that move it from frame to frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from astra_env.actions import ACTION_MODALITIES


@dataclass(frozen=True)
class Clip:
    """`actions[t]` moves frame t to frame t + 1, in the units and frame of the modality.

    The actions are at the frame rate: the modality's `integrate` with ``rate_hz=fps`` follows them, and its `combine`
    makes one action of those of a chunk. ValueError where the shapes do not fit together.
    """

    frames: np.ndarray
    """uint8 (T, H, W, 3)."""
    actions: np.ndarray
    """float32 (T - 1, A)."""
    modality: str
    """A key of `ACTION_MODALITIES`."""
    fps: float
    """Frames in a second."""
    poses: np.ndarray | None = None
    """Measured pose of each frame, float32 (T, 4, 4): of what the actions move, in the modality's axes."""
    speeds: np.ndarray | None = None
    """A vehicle's speed at each frame, float32 (T,) in m/s, where it was measured."""
    text: str = ""
    """What a person would tell the agent to do, or what there is to see."""
    source: str = ""
    """The file that it comes from, for messages."""

    def __post_init__(self) -> None:
        if self.modality not in ACTION_MODALITIES:
            raise ValueError(f"{self.source}: modality {self.modality!r} is not one of {sorted(ACTION_MODALITIES)}.")
        if self.frames.dtype != np.uint8 or self.frames.ndim != 4 or self.frames.shape[-1] != 3:
            shape = self.frames.shape
            raise ValueError(f"{self.source}: frames are {self.frames.dtype} {shape}, expected uint8 (T, H, W, 3).")
        expected = (len(self.frames) - 1, ACTION_MODALITIES[self.modality].action_dim)
        if self.actions.shape != expected:
            raise ValueError(f"{self.source}: actions have shape {self.actions.shape}, expected {expected}.")
        for name, rows in (("actions", self.actions), ("poses", self.poses)):
            if rows is not None and not np.isfinite(rows).all():
                row = int((~np.isfinite(rows)).reshape(len(rows), -1).any(axis=1).argmax())
                raise ValueError(f"{self.source}: row {row} of the {name} is not finite: {rows[row].tolist()}.")
        if self.poses is not None and self.poses.shape != (len(self.frames), 4, 4):
            raise ValueError(f"{self.source}: poses have shape {self.poses.shape}, expected one (4, 4) a frame.")
        if self.speeds is not None and self.speeds.shape != (len(self.frames),):
            raise ValueError(f"{self.source}: speeds have shape {self.speeds.shape}, expected one a frame.")
