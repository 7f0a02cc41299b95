from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from policies.vehicle import PurePursuit, lay_out, pursuit_curvature

VEHICLE = ACTION_MODALITIES["vehicle"]
ALONG = np.linspace(0, np.pi, 60)[1:]
PATHS = {
    "straight": np.array([[120.0, 0.0]]),
    "arc": 40 * np.stack([np.sin(ALONG / 2), 1 - np.cos(ALONG / 2)], axis=-1),
    "curve to the right": 40 * np.stack([np.sin(ALONG / 2), np.cos(ALONG / 2) - 1], axis=-1),
    "s": np.stack([80 * ALONG / np.pi, 4 - 4 * np.cos(ALONG)], axis=-1),
}


def turned(angle: float, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """Pose (4, 4) on the ground."""
    return geometry.make_pose(geometry.rpy_to_matrix([0, 0, angle]), [x, y, 0])


def drive(driver: PurePursuit, pose: np.ndarray, speed: float, num_steps: int) -> list[tuple[float, float, np.ndarray]]:
    """Cross-track error, speed and action of each step of the kinematic bicycle."""
    told = []
    for _ in range(num_steps):
        info = {"pose": pose, "speed": speed}
        action = driver.act(None, info)
        told.append((driver.cross_track(info), speed, action))
        pose = VEHICLE.integrate(pose, action[None], speed=speed)[1]
        speed += float(action[1]) / VEHICLE.rate_hz
    return told


@pytest.mark.parametrize("speed", [3.0, 8.0, 14.0])
@pytest.mark.parametrize("name", PATHS)
def test_the_car_keeps_to_the_path(name, speed):
    start = turned(2.0, 30.0, -7.0)  # anywhere in the world
    driver = PurePursuit(PATHS[name], start, target_speed=speed, side_acceleration=6.0)
    told = drive(driver, start, speed, int(100 / speed * VEHICLE.rate_hz))
    assert max(abs(error) for error, *_ in told) < 0.35
    assert VEHICLE.validate(np.stack([action for *_, action in told])).shape == (len(told), 2)


@pytest.mark.parametrize("speed", [4.0, 12.0])
def test_a_car_beside_the_path_returns_to_it(speed):
    driver = PurePursuit([[200.0, 0.0]], target_speed=speed)
    told = drive(driver, turned(0.2, 0.0, 1.5), speed, 50)
    assert abs(told[0][0] - 1.5) < 1e-6
    assert max(abs(error) for error, *_ in told[30:]) < 0.05


def test_the_car_reaches_its_speed_slows_down_for_a_bend_and_stops_at_the_end():
    corner = np.array([[40.0, 0.0], [40.0, 40.0]])
    driver = PurePursuit(corner, target_speed=9.0, side_acceleration=3.0)
    speeds = np.array([speed for _, speed, _ in drive(driver, np.eye(4), 0.0, 120)])
    assert abs(speeds.max() - 9.0) < 0.1
    assert speeds[20:].min() < 0.05
    turn = speeds[np.argmax(speeds) :]
    assert turn[: len(turn) // 3].min() < 6.0
    assert driver.remaining < 0.5


def test_a_path_may_cross_itself():
    angles = np.linspace(0, 2 * np.pi, 80)[1:]
    eight = np.stack([25 * np.sin(angles), 25 * np.sin(angles) * np.cos(angles)], axis=-1)
    driver = PurePursuit(eight, turned(0), target_speed=5.0)
    told = drive(driver, turned(np.pi / 4), 5.0, 170)
    assert max(abs(error) for error, *_ in told) < 0.5
    assert driver.remaining < 1.0


def test_curvature_is_that_of_the_arc_through_the_point():
    pose = turned(0.7, 3.0, 4.0)
    for angle in (-0.9, 0.3, 1.2):
        arc = 12 * np.array([np.sin(abs(angle)), np.sign(angle) * (1 - np.cos(angle))])
        assert np.isclose(pursuit_curvature(pose[:2, :2] @ arc + pose[:2, 3], pose), np.sign(angle) / 12)


@pytest.mark.parametrize(
    ("way_points", "message"),
    [([1.0, 2.0], r"expected finite ones \(K, 2\)"), ([[0.0, np.nan]], "finite"), ([[0.0, 0.1]], "a way to drive")],
)
def test_way_points_are_checked(way_points, message):
    with pytest.raises(ValueError, match=message):
        lay_out(way_points)


def test_other_actions_than_a_cars_are_refused():
    with pytest.raises(ValueError, match=r"PurePursuit drives cars, .* got camera"):
        PurePursuit([[9.0, 0.0]], modality=ACTION_MODALITIES["camera"])


def test_it_drives_an_imagined_car(make):
    env: gymnasium.Env = make(id="Astra-NuScenes-v0")
    observation, info = env.reset(seed=0)
    driver = PurePursuit([[30.0, 0.0], [60.0, 6.0]], info["pose"], target_speed=5.0)
    for _ in range(3):
        observation, _, _, _, info = env.step(driver.act(observation, info))
        assert abs(driver.cross_track(info)) < 0.2
    assert info["speed"] > 0
