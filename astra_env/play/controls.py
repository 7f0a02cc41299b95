"""What a visitor holds down, as an action: keys, mouse, gamepad and sliders, by the table of modalities."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from astra_env.actions import ActionModality
from astra_env.kinematics import RigidMotion

ARROWS = {"up": "w", "down": "s", "left": "a", "right": "d"}
"""What the arrows stand for where a modality gives them no meaning of their own."""

WORDS: dict[str, dict[str, tuple[str, str]]] = {
    "end_effector": {
        "dx": ("forward", "back"),
        "dy": ("left", "right"),
        "dz": ("up", "down"),
        "droll": ("roll right", "roll left"),
        "dpitch": ("nose down", "nose up"),
        "dyaw": ("turn left", "turn right"),
        "gripper": ("close / open", "open"),
    },
    "camera": {
        "dx": ("right", "left"),
        "dy": ("down", "up"),
        "dz": ("forward", "back"),
        "droll": ("roll right", "roll left"),
        "dpitch": ("look up", "look down"),
        "dyaw": ("look right", "look left"),
    },
    "vehicle": {"steering": ("left", "right"), "acceleration": ("faster", "brake")},
}
"""Modality -> field -> what more of it and what less of it does, for people."""

KEY_SHARES = {"vehicle": 0.5}
"""Modality -> the share of its bound that a key means at first, where all of it would be much."""


class Controls:
    """The inputs of one visitor, each a share or a value of a field; together they make one action a step.

    Keys that were let go before the next step still count in it. A key of an absolute field toggles it.

    Args:
        modality: fields, bounds, keys and mouse.
    """

    def __init__(self, modality: ActionModality) -> None:
        self.modality = modality
        self.newest = 0
        """Number of the newest input."""
        arrows = {} if modality.keys.keys() & ARROWS.keys() else ARROWS
        self.aliases = {arrow: key for arrow, key in arrows.items() if key in modality.keys}
        self.settings = np.zeros(modality.action_dim, np.float32)
        """The sliders (A,); those of absolute fields are where their keys have put them."""
        self._held: dict[str, float] = {}
        self._tapped: dict[str, float] = {}
        self._mouse = np.zeros(2)

    def receive(self, message: Mapping[str, Any]) -> bool:
        """Take an input: ``id``, and all ``keys`` that are down, ``sliders`` that moved, pixels the ``mouse`` moved.

        Returns:
            Whether a key has gone down.

        Raises:
            ValueError: something in it is not known or no number.
        """
        held = {self._key(name): _number(share, f"key {name}") for name, share in _table(message, "keys").items()}
        moved = {self._index(name): _number(value, name) for name, value in _table(message, "sliders").items()}
        mouse = message.get("mouse", (0, 0))
        if not isinstance(mouse, list | tuple) or len(mouse) != 2:
            raise ValueError(f"The mouse moved by {mouse!r}, expected pixels [right, down].")
        right, down = (_number(pixels, "mouse") for pixels in mouse)
        number = int(_number(message.get("id", 0), "id"))
        pressed = held.keys() - self._held.keys()
        for key in pressed:
            self._toggle(key)
        self._held = {key: min(max(share, 0.0), 1.0) for key, share in held.items()}
        self._tapped |= self._held
        for index, value in moved.items():
            self.settings[index] = np.clip(value, self.modality.low[index], self.modality.high[index])
        self._mouse += right, down
        self.newest = max(self.newest, number)
        return bool(pressed)

    def action(self) -> np.ndarray:
        """The action float32 (A,) of the next step, within the bounds."""
        action = self.settings + self.modality.from_mouse(*self._mouse)
        for key, share in (self._tapped | self._held).items():
            if self.modality.keys[key][0] not in self.modality.absolute:
                action = action + share * self.modality.from_keys([key])
        self._tapped, self._mouse = {}, np.zeros(2)
        return self.modality.validate(action, clip=True)

    def _key(self, name: str) -> str:
        key = self.aliases.get(name, name)
        if key not in self.modality.keys:
            raise ValueError(f"{self.modality.name} knows no key {name!r}; its keys are {sorted(self.modality.keys)}.")
        return key

    def _index(self, name: str) -> int:
        if name not in self.modality.fields:
            raise ValueError(f"{self.modality.name} has no field {name!r}; its fields are {self.modality.fields}.")
        return self.modality.fields.index(name)

    def _toggle(self, key: str) -> None:
        """An absolute field goes to its other bound when its key is pressed."""
        field = self.modality.keys[key][0]
        if field in self.modality.absolute:
            index = self.modality.fields.index(field)
            low, high = self.modality.low[index], self.modality.high[index]
            self.settings[index] = low if self.settings[index] > (low + high) / 2 else high

    def legend(self) -> list[dict[str, Any]]:
        """Each key with the arrow that stands for it, and what it does: field, value, unit and a word."""
        arrows = {key: arrow for arrow, key in self.aliases.items()}
        rows = []
        for key, (field, share) in self.modality.keys.items():
            index = self.modality.fields.index(field)
            value = float(self.modality.from_keys([key])[index])
            more, less = WORDS.get(self.modality.name, {}).get(field, (f"more {field}", f"less {field}"))
            names = [key, arrows[key]] if key in arrows else [key]
            word, unit = (more if share > 0 else less), self.modality.units[index]
            toggles = field in self.modality.absolute
            rows.append({"keys": names, "field": field, "value": value, "unit": unit, "word": word, "toggles": toggles})
        return rows


def nearest_choice(action: np.ndarray, choices: np.ndarray, modality: ActionModality) -> int:
    """The number of the row of choices (N, A) that is nearest to an action (A,), by shares of the bounds."""
    return int(np.square((choices - action) / np.array(modality.high)).sum(-1).argmin())


def heading(pose: np.ndarray, modality: ActionModality) -> float:
    """How far a pose (4, 4) is turned to the left about the axis that points up, in radians."""
    kinematics = modality.kinematics
    if isinstance(kinematics, RigidMotion) and kinematics.turn_axes[2] == 1:  # yaw is about an axis that points down
        return math.atan2(-pose[0, 2], pose[2, 2])
    return math.atan2(pose[1, 0], pose[0, 0])


def _table(message: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = message.get(name, {})
    if not isinstance(table, dict):
        raise ValueError(f"{name} is {table!r}, expected names with numbers.")
    return table


def _number(value: Any, name: str) -> float:
    # JSON may tell NaN, and whole numbers that no float holds
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{name} is {value!r}, expected a number.")
    return float(value)
