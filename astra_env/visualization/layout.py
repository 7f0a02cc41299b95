"""Where the viewer shows what: pictures on the left, space in the middle, curves on the right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from astra_env.actions import ActionModality
from astra_env.kinematics import BicycleMotion, RigidMotion
from astra_env.visualization import shapes
from astra_env.visualization.sdk import rrb

Standpoint = tuple[tuple[float, float, float], float]
"""Where the eye stands, seen from what it looks at, and the metres around that which it sees at least."""
STANDPOINTS: Mapping[type, Standpoint] = {
    BicycleMotion: ((-1.0, -0.5, 0.9), 4.0),  # behind the car
    RigidMotion: ((0.8, -0.7, 0.7), 0.06),  # where the bundled robot's camera is
}
CAMERA_STANDPOINT: Standpoint = ((0.7, -0.8, -1.0), 0.15)  # behind the camera, y is down
CAPTIONED = 1.32
"""Height of a picture with captions below it."""
MOST_PICTURES = 13
"""Panels of pictures that a viewer opens with; those of further forks and rows can be added there by hand."""
CURVES = ("reward", "uncertainty", "plan", "routing", "guidance", "speed")


class Layout:
    """What has been recorded so far, and the blueprint that shows it all.

    Args:
        views: names of the pictures that stand first.
        modality: groups the action's fields by unit, and says which way is up.
    """

    def __init__(self, views: Sequence[str], modality: ActionModality | None) -> None:
        self._views, self._modality = tuple(views), modality
        self._parts: dict[str, set[str]] = {}
        self._low, self._high = np.zeros(3), np.zeros(3)
        self._shown = 0.0
        self.picture_size = (0, 0)
        """Height and width of the first view's pictures."""
        self.changed = False

    def add(self, prefix: str, part: str) -> None:
        """Remember that a part ("frames/goal", "world", "reward", ...) is recorded under a prefix ("rows/0/")."""
        parts = self._parts.setdefault(prefix, set())
        self.changed = self.changed or part not in parts
        parts.add(part)

    def reach(self, places: np.ndarray) -> None:
        """Let the view of space hold places (n, 3); the eye steps back when they need twice the room."""
        self._low, self._high = np.minimum(self._low, places.min(0)), np.maximum(self._high, places.max(0))
        self.changed = self.changed or self._radius > 2 * self._shown

    @property
    def _radius(self) -> float:
        """Of a ball around all places, and a little more."""
        return 0.5 * float(np.linalg.norm(self._high - self._low)) + _standpoint(self._modality)[1]

    def holds(self, prefix: str, part: str) -> bool:
        """Whether a part was added."""
        return part in self._parts.get(prefix, ())

    def views(self, prefix: str) -> list[str]:
        """Entities of pictures under a prefix, in the order of their panels."""
        found = [part for part in self._parts.get(prefix, ()) if part.startswith("frames/")]
        first = [f"frames/{name}" for name in self._views]
        return [name for name in first if name in found] + sorted(set(found) - set(first))

    def blueprint(self) -> rrb.Blueprint:
        """The arrangement of all that was added."""
        self.changed = False
        columns, shares = [self._pictures()], [3]
        if space := self._with("world"):
            columns.append(self._space(space))
            shares.append(4)
        columns.append(self._curves())
        return rrb.Blueprint(
            rrb.Horizontal(*columns, column_shares=[*shares, 3]),
            rrb.TimePanel(timeline="time", state="collapsed"),
            rrb.SelectionPanel(state="collapsed"),
            rrb.BlueprintPanel(state="collapsed"),
        )

    def _with(self, part: str) -> list[str]:
        """The prefixes under which a part was recorded."""
        return [prefix for prefix, parts in self._parts.items() if part in parts]

    def _pictures(self) -> rrb.Container:
        views = []
        for prefix, parts in self._parts.items():
            views += [self._picture(prefix, entity.removeprefix("frames/")) for entity in self.views(prefix)]
            if "denoising" in parts:
                views.append(rrb.Spatial2DView(origin=f"/{prefix}denoising", name=_title(prefix, "denoising steps")))
        views = views[:MOST_PICTURES]
        if len(views) <= 3:
            return rrb.Vertical(*views, row_shares=[CAPTIONED, 1, 1][: len(views)])
        return rrb.Vertical(views[0], rrb.Grid(*views[1:], grid_columns=math.ceil(math.sqrt(len(views) - 1))))

    def _picture(self, prefix: str, name: str) -> rrb.View:
        """One stream of pictures; below the first view there is room for what the action says."""
        bounds, (height, width) = None, self.picture_size
        if name == self._views[0] and self._modality is not None and "action" in self._parts[prefix]:
            bounds = rrb.VisualBounds2D(x_range=(0, width), y_range=(0, CAPTIONED * height))
        origin = f"/{prefix}frames/{name}"
        return rrb.Spatial2DView(origin=origin, name=_title(prefix, name), visual_bounds=bounds)

    def _space(self, prefixes: Sequence[str]) -> rrb.View:
        contents = [f"+ /{prefix}world/**" for prefix in prefixes]
        if self._modality is not None and shapes.looks_out(self._modality):  # its picture stands in the frustum
            contents += [f"+ /{prefix}frames/{self._views[0]}" for prefix in prefixes]
        direction, _ = _standpoint(self._modality)
        self._shown, middle = self._radius, (self._low + self._high) / 2
        position = middle + 2.0 * self._shown * np.array(direction) / np.linalg.norm(direction)
        eye = rrb.EyeControls3D(position=position, look_target=middle)
        return rrb.Spatial3DView(origin="/", contents=contents, name="poses and plans", eye_controls=eye)

    def _curves(self) -> rrb.Container:
        acting = self._with("action")
        rows: list[rrb.View | rrb.Container] = [self._action(unit, acting[0]) for unit in self._units() if acting]
        named = {name: prefixes for name in CURVES if (prefixes := self._with(name))}
        curves = {
            name: rrb.TimeSeriesView(contents=[f"+ /{prefix}{name}/**" for prefix in prefixes], origin="/", name=name)
            for name, prefixes in named.items()
        }
        if len(named.get("reward", ())) > 1:  # of many worlds, the sums alone
            totals = [f"+ /{prefix}reward/total" for prefix in named["reward"]]
            curves["reward"] = rrb.TimeSeriesView(contents=totals, origin="/", name="reward")
        if "reward" in curves:
            rows.append(curves.pop("reward"))
        events = [f"+ /{prefix}events" for prefix in self._with("events")]
        rest: list[rrb.View] = list(curves.values())
        if events:
            rest.append(rrb.TextLogView(contents=events, origin="/", name="events"))
        if rest:
            rows.append(rest[0] if len(rest) == 1 else rrb.Tabs(*rest))
        return rrb.Vertical(*rows)

    def _units(self) -> list[str]:
        return list(dict.fromkeys(self._modality.units)) if self._modality else [""]

    def _action(self, unit: str, prefix: str) -> rrb.View:
        """The action's fields of one unit, of the first world that acts."""
        if self._modality is None:
            return rrb.TimeSeriesView(origin=f"/{prefix}action", name="action")
        fields = [name for name, own in zip(self._modality.fields, self._modality.units, strict=True) if own == unit]
        contents = [f"+ /{prefix}action/{name}" for name in fields]
        return rrb.TimeSeriesView(contents=contents, origin="/", name=f"action [{unit}]")


def _standpoint(modality: ActionModality | None) -> Standpoint:
    """From where the space of a modality is looked at."""
    if modality is None or shapes.looks_out(modality):
        return CAMERA_STANDPOINT
    return STANDPOINTS[type(modality.kinematics)]


def _title(prefix: str, name: str) -> str:
    """Of a panel: "goal", "row 0", "fork left, row 2"."""
    places = [part for part in prefix.replace("rows/", "row ").replace("forks/", "fork ").split("/") if part]
    return ", ".join([*places, name] if name != "imagined" or not places else places)
