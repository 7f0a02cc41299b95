"""Arrows point where the picture goes."""

from __future__ import annotations

import numpy as np
import pytest

from astra_env.actions import ACTION_MODALITIES
from astra_env.visualization.overlay import ROBOT_VIEW, action_marks, key_caps

SIZE = (60, 80)


def marks(name, **values):
    modality = ACTION_MODALITIES[name]
    action = np.array([values.get(field, 0.0) for field in modality.fields])
    return action_marks(modality, action, SIZE)


def way(mark):
    """Where a mark leads, in pixels right and down."""
    return mark.points[-1] - mark.points[0]


TURNS = [("up", 0, -1), ("down", 0, 1), ("left", -1, 0), ("right", 1, 0)]
WAYS = [("w", 0, -1), ("s", 0, 1), ("a", -1, 0), ("d", 1, 0), ("r", 0, -1), ("f", 0, 1)]


@pytest.mark.parametrize(("key", "right", "down"), [*WAYS, *TURNS])
def test_a_cameras_keys_point_as_a_walker_would_say(key, right, down):
    modality = ACTION_MODALITIES["camera"]
    (mark,) = action_marks(modality, modality.from_keys([key]), SIZE)
    assert mark.arrow
    assert np.sign(np.round(way(mark), 6)).tolist() == [right, down]
    assert "0.200" in mark.label


@pytest.mark.parametrize(("field", "unit"), [("dz", "m"), ("dyaw", "rad")])
def test_what_is_commanded_more_is_drawn_longer_and_said_in_units(field, unit):
    short, long = (marks("camera", **{field: value})[0] for value in (0.05, 0.2))
    assert np.linalg.norm(way(short)) < np.linalg.norm(way(long))
    assert long.label == f"{field} +0.200 {unit}"


def test_leaning_is_an_arc_that_turns_the_way_the_camera_does():
    (right,), (left,) = marks("camera", droll=0.2), marks("camera", droll=-0.2)
    assert way(right)[0] > 0 > way(left)[0]  # from the top of the picture on


@pytest.mark.parametrize(("steering", "side"), [(0.3, -1), (-0.3, 1)])
def test_a_steering_arc_bends_to_its_side_of_the_road(steering, side):
    arc, frame, filling = marks("vehicle", steering=steering, acceleration=-3.0)
    middle, horizon = SIZE[1] / 2, SIZE[0] / 2
    assert np.sign(arc.points[-1][0] - middle) == side
    assert (arc.points[:, 1] > horizon - SIZE[0] * 0.1).all()
    assert (np.diff(arc.points[:, 1]) < 0).all()  # away from the driver
    assert filling.label == "acceleration -3.0 m/s^2"
    assert filling.points[1][1] > filling.points[0][1]  # braking points down
    assert frame.points[0][1] > filling.points[1][1] > frame.points[1][1]


def test_a_grippers_arrows_are_those_of_the_bundled_robots_camera():
    up, left, forward = (marks("end_effector", **{field: 0.05})[0] for field in ("dz", "dy", "dx"))
    assert way(up)[1] < -10 * abs(way(up)[0])
    assert way(left)[0] > 0
    assert way(forward)[0] > 0
    scene = pytest.importorskip("astra_env.simulators.robot_scene")
    azimuth, elevation = (np.deg2rad(scene.CAMERA[name]) for name in ("azimuth", "elevation"))
    looking = [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    np.testing.assert_allclose(ROBOT_VIEW.rotation[2], looking)


def test_a_gripper_that_turns_shows_its_near_side_turning():
    (turn, *_) = marks("end_effector", dyaw=0.25)  # counterclockwise from above: its near side goes right
    assert way(turn)[0] > 0


def test_the_gripper_is_a_bar_that_fills():
    _, open_bar = marks("end_effector", gripper=-0.0)
    _, closed_bar = marks("end_effector", gripper=1.0)
    assert np.abs(way(open_bar)).max() == 0 and open_bar.label == "gripper 0.00 (0 open .. 1 closed)"
    assert way(closed_bar)[1] < 0
    assert closed_bar.label == "gripper 1.00 (0 open .. 1 closed)"


def test_held_keys_are_marked_and_all_caps_lie_in_the_picture():
    caps = key_caps(("w", "left"), SIZE)
    assert [cap.sign for cap in caps if cap.held] == ["W", "←"]
    assert len(caps) == 8
    for cap in caps:
        low, high = np.array(cap.centre) - cap.half, np.array(cap.centre) + cap.half
        assert (low > 0).all() and (high < SIZE[::-1]).all()
