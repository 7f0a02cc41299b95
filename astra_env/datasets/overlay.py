"""A video in which a person sees whether actions mean what was told: their values, and the way they lead."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets.clip import Clip
from astra_env.datasets.resample import path_of
from astra_env.video import draw_action, write_video

WIDTH = 480
MAP = 140
"""Pixels of the video's width and of the map in its corner."""
LEFTWARD = -1.0
PLANES = {
    "camera": [(0, 1.0, 2, "x right, z forward")],
    "vehicle": [(1, LEFTWARD, 0, "y left, x forward")],
    "end_effector": [
        (1, LEFTWARD, 0, "y left, x forward"),
        (1, LEFTWARD, 2, "y left, z up"),
        (0, 1.0, 2, "x forward, z up"),
    ],
}
"""Modality -> planes that the map may show: the axis to the right and its sign, the axis upwards, what they are. Shown
is the one in which it goes farthest."""
COMMANDED, MEASURED = (255, 176, 84), (96, 178, 255)


def write_overlay(path: str | os.PathLike[str], clips: Sequence[Clip]) -> Path:
    """Clips one after the other with bars of their actions in units, and a map from above: where the actions lead,
    and where it was measured to go.
    """
    frames, fps = [], clips[0].fps
    height = round(WIDTH * clips[0].frames.shape[1] / clips[0].frames.shape[2] / 2) * 2
    for clip in clips:
        modality = ACTION_MODALITIES[clip.modality]
        chart = _Map(clip)
        for index, (frame, action) in enumerate(zip(clip.frames, clip.actions, strict=False)):
            large = cv2.resize(frame, (WIDTH, height), interpolation=cv2.INTER_LINEAR)
            picture = draw_action(np.ascontiguousarray(large), modality, _at_own_rate(clip, action))
            chart.draw(picture, index)
            frames.append(picture)
    write_video(Path(path), np.stack(frames), fps)
    return Path(path)


def _at_own_rate(clip: Clip, action: np.ndarray) -> np.ndarray:
    """The action as it would be if it were held as long as the modality's are, which is what its bounds are for."""
    modality, scaled = ACTION_MODALITIES[clip.modality], action.copy()
    if clip.modality != "vehicle":
        scaled[: modality.kinematics.num_fields] *= clip.fps / modality.rate_hz
    return scaled


class _Map:
    """The way of one clip from above, in the corner of its pictures."""

    def __init__(self, clip: Clip) -> None:
        tracks = [("actions", COMMANDED, path_of(clip))]
        if clip.poses is not None:
            tracks.append(("measured", MEASURED, clip.poses))
        origin = tracks[0][2][0].astype(np.float64)
        if clip.modality == "end_effector":  # its axes are the base's
            origin = geometry.make_pose(np.eye(3), origin[:3, 3])
        seen = [(name, colour, geometry.relative(origin, track)[:, :3, 3]) for name, colour, track in tracks]
        everything = np.concatenate([points for _, _, points in seen])
        planes = PLANES.get(clip.modality, PLANES["end_effector"])
        right, sign, up, self.label = max(
            planes, key=lambda plane: np.ptp(everything[:, [plane[0], plane[2]]], 0).sum()
        )
        self.extent = float(np.abs(everything[:, [right, up]]).max()) or 1.0
        flat = [np.stack([sign * points[:, right], -points[:, up]], axis=-1) for _, _, points in seen]
        pixels = [np.rint(MAP / 2 + points / self.extent * (MAP / 2 - 14)).astype(np.int32) for points in flat]
        self.tracks = [(name, colour, line) for (name, colour, _), line in zip(seen, pixels, strict=True)]

    def draw(self, picture: np.ndarray, index: int) -> None:
        """Into the upper right corner, in place, up to a frame."""
        corner = picture[4 : MAP + 4, -MAP - 4 : -4]
        corner[:] = (0.3 * corner + 0.7 * np.array((18, 20, 26))).astype(np.uint8)
        board = np.ascontiguousarray(corner)
        for row, (name, colour, pixels) in enumerate(self.tracks):
            cv2.polylines(board, [pixels[:, None]], False, tuple(c // 2 for c in colour), 1, cv2.LINE_AA)
            cv2.polylines(board, [pixels[: index + 1, None]], False, colour, 2, cv2.LINE_AA)
            cv2.circle(board, tuple(int(v) for v in pixels[index]), 3, colour, -1)
            cv2.putText(board, name, (4, 12 + 12 * row), cv2.FONT_HERSHEY_SIMPLEX, 0.35, colour, 1, cv2.LINE_AA)
        text = f"{self.label}; {self.extent:.2g} m"
        cv2.putText(board, text, (4, MAP - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.3, (255, 255, 255), 1, cv2.LINE_AA)
        corner[:] = board
