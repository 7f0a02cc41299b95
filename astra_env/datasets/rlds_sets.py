"""What the well known sets of Open X-Embodiment mean, which their files do not say: one row a set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from astra_env.datasets.columns import ActionColumns

Steps = dict[str, np.ndarray]
"""Path of a feature in a step, such as ``observation/state`` -> its values in all steps (N, ...)."""


class SetRow(NamedTuple):
    """What a set does not say of itself."""

    fps: float = 0.0
    """Steps in a second; 0 where nobody told."""
    image: str | None = None
    """Path of the picture in a step."""
    columns: ActionColumns | None = None
    """Of the actions."""
    state: ActionColumns | None = None
    """Of the measured poses, where the actions are not made of them."""
    gripper: Callable[[Steps], np.ndarray] | None = None
    """Makes a column "gripper" (N,), where no feature is one."""


def switched(changes: np.ndarray) -> np.ndarray:
    """How closed a gripper is told to be (N,) by commands that close it (above 0.1), open it (below -0.1) or hold it.

    Before the first command it is what that changes, and open where there is none.
    """
    told = np.flatnonzero(np.abs(changes) > 0.1)
    latest = np.searchsorted(told, np.arange(len(changes)), side="right") - 1
    closed = np.append(changes[told] > 0, len(told) > 0 and changes[told[0]] < 0)  # latest is -1 before the first
    return np.where(np.isnan(changes), np.nan, closed[latest])


def _rt1_gripper(steps: Steps) -> np.ndarray:
    return switched(steps["action/gripper_closedness_action"].reshape(-1))


def _no_gripper(steps: Steps) -> np.ndarray:
    return np.zeros(len(steps["is_first"]))


def _fields(feature: str, start: int, stop: int) -> tuple[str, ...]:
    return tuple(f"{feature}_{index}" for index in range(start, stop))


def _deltas(names: tuple[str, ...], gripper: str, opened: float = 0.0, closed: float = 1.0) -> ActionColumns:
    """Motions in metres and roll, pitch, yaw until the next frame, of six columns."""
    translation, rotation = names[:3], names[3:]
    return ActionColumns(
        meaning="deltas",
        translation=translation,
        rotation=rotation,
        rotation_kind="rpy",
        gripper=gripper,
        gripper_open=opened,
        gripper_closed=closed,
    )


_OPEN_X = (*_fields("action/world_vector", 0, 3), *_fields("action/rotation_delta", 0, 3))
_BRIDGE_STATE = ActionColumns(
    translation=_fields("observation/state", 0, 3),
    rotation=_fields("observation/state", 3, 6),
    rotation_kind="rpy",
    gripper="observation/state_6",
    gripper_open=1.0,
    gripper_closed=0.0,
)
_DROID = ActionColumns(
    translation=_fields("observation/cartesian_position", 0, 3),
    rotation=_fields("observation/cartesian_position", 3, 6),
    rotation_kind="rpy",
    gripper="observation/gripper_position_0",
)

KNOWN: Mapping[str, SetRow] = {
    # BridgeData V2 as its authors publish it; angles are those to a gripper that points down
    "bridge_dataset": SetRow(
        fps=5.0,
        image="observation/image_0",
        columns=_deltas(_fields("action", 0, 6), "action_6", opened=1.0, closed=0.0),
        state=_BRIDGE_STATE,
    ),
    # the same in Open X-Embodiment
    "bridge": SetRow(
        fps=5.0,
        image="observation/image",
        columns=_deltas(_OPEN_X, "action/open_gripper", opened=1.0, closed=0.0),
        state=_BRIDGE_STATE,
    ),
    # RT-1
    "fractal20220817_data": SetRow(
        fps=3.0,
        image="observation/image",
        columns=_deltas(_OPEN_X, "gripper"),
        state=ActionColumns(
            translation=_fields("observation/base_pose_tool_reached", 0, 3),
            rotation=_fields("observation/base_pose_tool_reached", 3, 7),
            rotation_kind="quaternion_xyzw",
            gripper="gripper",
        ),
        gripper=_rt1_gripper,
    ),
    # the commands are velocities in units of the controller, so that actions are made of the measured poses
    "droid": SetRow(fps=15.0, image="observation/exterior_image_1_left", columns=_DROID),
    "droid_100": SetRow(fps=15.0, image="observation/exterior_image_1_left", columns=_DROID),
    # a stick that moves over a table: it neither turns nor grips
    "language_table": SetRow(
        fps=10.0,
        image="observation/rgb",
        columns=ActionColumns(meaning="deltas", translation=_fields("action", 0, 2), gripper="gripper"),
        state=ActionColumns(translation=_fields("observation/effector_translation", 0, 2), gripper="gripper"),
        gripper=_no_gripper,
    ),
}
"""Name in tensorflow-datasets -> its row."""
