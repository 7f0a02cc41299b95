"""The driving simulator and how its cars are driven; parts that need MetaDrive skip where it is missing."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
from simulator_contract import check_contract

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.simulators import driving_behaviours as driving
from astra_env.simulators.driving_camera import Box
from astra_env.simulators.driving_view import RoadMarks, RoadView

MODALITY = ACTION_MODALITIES["vehicle"]
STRAIGHT = np.column_stack([np.array([3.0, 6.0, 10.0, 15.0, 22.0, 30.0]), np.zeros(6)])

needs_metadrive = [
    pytest.mark.simulator,
    pytest.mark.skipif(importlib.util.find_spec("metadrive") is None, reason="metadrive: make simulators"),
]


class BicycleOnStraight:
    """A kinematic bicycle on a straight road that a standing car may block: a stand-in for the physics."""

    def __init__(self, speed: float = 8.0, gap: float = np.inf) -> None:
        self.pose, self.speed, self.gap = np.eye(4), speed, gap

    def info(self):
        points = np.column_stack([STRAIGHT[:, 0] + self.pose[0, 3], np.zeros(6)])
        route = (points - self.pose[:2, 3]) @ self.pose[:2, :2]
        gap = self.gap - self.pose[0, 3]
        return {"route": route, "speed": self.speed, "gap": gap, "gap_speed": 0.0, "crashed": gap < 0, "success": False}

    def drive(self, behaviour, steps):
        actions = []
        for _ in range(steps):
            actions.append(MODALITY.validate(behaviour(self.info())))
            self.pose = MODALITY.integrate(self.pose, actions[-1][None], speed=self.speed)[1]
            self.speed += float(actions[-1][1]) / MODALITY.rate_hz
            if self.info()["crashed"]:
                self.speed = min(self.speed, 0.0)
        return np.stack(actions)


@pytest.fixture(scope="module")
def car():
    from astra_env.simulators.driving import DrivingSimulator

    simulator = DrivingSimulator()
    yield simulator
    simulator.close()


def small_view(seed=0):
    road = np.array([[-20.0, -4], [80, -4], [80, 4], [-20, 4]])
    line = np.array([[-20.0, -0.1], [80, -0.1], [80, 0.1], [-20, 0.1]])
    return RoadView(RoadMarks([], [road], [line], []), np.zeros((0, 2)), np.random.default_rng(seed))


@pytest.mark.parametrize("name", driving.BEHAVIOURS)
def test_behaviours_follow_their_seed_and_are_not_alike(name):
    def play(seed):
        return BicycleOnStraight().drive(driving.make_behaviour(name, np.random.default_rng(seed)), 25)

    np.testing.assert_array_equal(play(1), play(1))
    assert np.abs(play(1) - play(2)).max() > 0.01


def test_behaviours_together_use_both_fields_to_their_bounds():
    actions = np.concatenate(
        [
            BicycleOnStraight().drive(driving.make_behaviour(name, np.random.default_rng(seed)), 40)
            for name in driving.BEHAVIOURS
            for seed in range(8)
        ]
    )
    assert (actions.max(axis=0) > 0.9 * np.array(MODALITY.high)).all()
    assert (actions.min(axis=0) < 0.9 * np.array(MODALITY.low)).all()


def test_braking_and_turning_also_go_backwards():
    for name in ("brake", "turn"):
        speeds = []
        for seed in range(6):
            bicycle, behaviour = BicycleOnStraight(), driving.make_behaviour(name, np.random.default_rng(seed))
            for _ in range(12):
                bicycle.drive(behaviour, 4)
                speeds.append(bicycle.speed)
        assert min(speeds) < -1 < 3 < max(speeds)


def test_following_stops_behind_a_standing_car():
    for seed in range(4):
        bicycle = BicycleOnStraight(gap=60.0)
        bicycle.drive(driving.follow_behaviour(np.random.default_rng(seed)), 100)
        assert 0 < bicycle.info()["gap"] < 60


def test_the_lane_is_kept_at_the_speed_that_earns_most():
    bicycle = BicycleOnStraight()
    bicycle.drive(driving.lane_behaviour, 60)
    assert abs(bicycle.info()["speed"] - 12) < 0.5
    same = BicycleOnStraight()
    same.drive(driving.lane_behaviour, 60)
    assert (same.pose == bicycle.pose).all()


def test_bends_and_cars_ahead_slow_the_lane_keeper_down():
    told = {"speed": 10.0, "gap": np.inf, "gap_speed": 0.0, "success": False}
    ahead = np.linspace(3, 30, 6)
    straight = np.stack([ahead, np.zeros(6)], axis=-1)
    left = np.stack([12 * np.sin(ahead / 12), 12 * (1 - np.cos(ahead / 12))], axis=-1)  # of 12 m radius
    steering, acceleration = driving.lane_behaviour({**told, "route": straight})
    assert steering == pytest.approx(0) and acceleration > 0
    steering, acceleration = driving.lane_behaviour({**told, "route": left})
    assert steering > 0 and acceleration < 0
    assert driving.bend_speed(np.arctan(driving._WHEELBASE / 12)) == pytest.approx(6)  # 3 m/s^2 = 6^2 / 12 m
    assert driving.lane_behaviour({**told, "route": straight, "gap": 5.0})[1] < -2


def test_ramming_runs_into_a_standing_car_and_backs_off():
    for seed in range(4):
        bicycle = BicycleOnStraight(gap=40.0)
        behaviour, gaps = driving.ram_behaviour(np.random.default_rng(seed)), []
        for _ in range(60):
            bicycle.drive(behaviour, 1)
            gaps.append(bicycle.info()["gap"])
        hit = int(np.argmax(np.array(gaps) < 0))
        assert gaps[hit] < 0 < gaps[0]
        assert max(gaps[hit:]) > gaps[hit] + 0.5


def test_pictures_follow_their_seed_and_show_the_road_and_cars():
    red = Box(np.array([12.0, 0.0]), 0.0, (4.5, 1.9, 1.4), (220, 20, 20))
    view = small_view()
    empty, shown = view.draw(0.0, 0.0, 0.0, []), view.draw(0.0, 0.0, 0.0, [red])
    np.testing.assert_array_equal(empty, small_view().draw(0.0, 0.0, 0.0, []))
    assert empty.shape == (64, 64, 3) and empty.dtype == np.uint8
    changed = np.abs(shown.astype(int) - empty).sum(axis=2) > 60
    rows, columns = np.nonzero(changed)
    assert 20 < changed.sum() < 600
    assert abs(columns.mean() - 31.5) < 2 and 24 < rows.mean() < 44
    sky, road, grass = empty[2, 32].astype(int), empty[60, 20].astype(int), empty[33, 1].astype(int)
    assert sky[2] > sky[0]
    assert np.ptp(road) < 20
    assert grass[1] > grass[2] + 20


def test_what_lies_to_the_left_is_seen_on_the_left():
    view = small_view()
    empty = view.draw(0.0, 0.0, 0.3, []).astype(int)
    box = Box(np.array([12.0, 6.5]), 0.0, (4.5, 1.9, 1.4), (220, 20, 20))
    columns = np.nonzero(np.abs(view.draw(0.0, 0.0, 0.3, [box]) - empty).sum(axis=2) > 60)[1]
    assert columns.mean() < 26


def test_a_missing_simulator_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "panda3d.core", None)
    monkeypatch.delitem(sys.modules, "astra_env.simulators.driving", raising=False)
    with pytest.raises(ImportError, match="make simulators"):
        importlib.import_module("astra_env.simulators.driving")


class TestDrivingSimulator:
    pytestmark = needs_metadrive

    def test_it_has_the_spaces_and_timing_of_its_modality(self, car):
        info = check_contract(car, MODALITY, np.array([0.1, 1.0], np.float32))
        assert info["speeds"].shape == (4,)

    def test_actions_out_of_bounds_are_refused(self, car):
        car.reset(seed=0)
        with pytest.raises(ValueError, match="steering"):
            car.step(np.array([0.9, 0.0], np.float32))

    def test_a_second_engine_in_the_process_is_refused(self, car):
        from astra_env.simulators.driving import DrivingSimulator

        with pytest.raises(RuntimeError, match="close"):
            DrivingSimulator()

    @pytest.mark.parametrize("seed", [11, 12])
    def test_the_car_does_what_it_is_told(self, car, seed):
        rng = np.random.default_rng(seed)
        _, before = car.reset(seed=seed)
        checked = 0
        for _ in range(16):
            speed = before["speed"]
            steering = rng.uniform(-1, 1) * driving.steering_limit(max(speed, speed + 0.6))
            action = np.array([steering, rng.uniform(-6, 3) if speed > 0 else 3.0], np.float32)
            info = car.step(action)[4]
            if not info["crashed"]:
                checked += 1
                assert (info["speed"] - speed) * 5 == pytest.approx(action[1], abs=0.1)
                moved = geometry.relative(before["pose"], info["pose"])
                yaw = geometry.matrix_to_rpy(moved[:3, :3])[2]
                expected = (speed + action[1] * 0.1) * np.tan(action[0]) / MODALITY.kinematics.wheelbase
                assert yaw * 5 == pytest.approx(expected, abs=0.03)
                np.testing.assert_allclose(info["pose"][:3, 3], info["commanded_pose"][:3, 3], atol=0.03)
            before = info
        assert checked > 8

    def test_the_car_backs_up(self, car):
        _, info = car.reset(seed=4)
        start = info["pose"]
        while info["speed"] > -2:
            start = info["pose"] if info["speed"] >= 0 else start
            info = car.step(np.array([0.0, np.clip(-5 * info["speed"] - 10, -6, 0)], np.float32))[4]
        assert geometry.relative(start, info["pose"])[0, 3] < -0.1

    def test_a_seed_and_actions_reproduce_poses_and_pixels(self, car):
        actions = np.random.default_rng(1).uniform((-0.2, -2), (0.2, 3), (5, 2)).astype(np.float32)

        def play(seed):
            infos = [car.reset(seed=seed)[1]] + [car.step(action)[4] for action in actions]
            return [np.concatenate([info[key] for info in infos]) for key in ("frames", "poses", "speeds")]

        first, other, second = play(5), play(6), play(5)
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a, b)
        assert all(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))

    def test_following_stays_on_the_road_and_moves_on(self, car):
        on_road, travelled = [], []
        for seed in range(30, 34):
            _, info = car.reset(seed=seed)
            behaviour, start = driving.follow_behaviour(np.random.default_rng(1)), info["pose"][:3, 3]
            for _ in range(20):
                info = car.step(MODALITY.validate(behaviour(info), clip=True))[4]
                on_road.append(not info["out_of_road"])
            travelled.append(np.linalg.norm(info["pose"][:3, 3] - start))
        assert np.mean(on_road) > 0.9
        assert np.median(travelled) > 8

    def test_leaving_the_road_is_reported_and_earns_nothing(self, car):
        _, info = car.reset(seed=1)
        for _ in range(60):
            steering = driving.steer_along(info["route"], info["speed"], -25.0)
            action = [steering, np.clip(6 - info["speed"], -6, 3)]
            _, reward, _, _, info = car.step(MODALITY.validate(action, clip=True))
            if info["out_of_road"]:
                break
        assert info["out_of_road"]
        assert reward == 0

    def test_failure_is_leaving_the_road_or_touching_and_is_over_when_it_is_over(self, car):
        failures = []
        for seed in range(40, 44):
            _, info = car.reset(seed=seed)
            behaviour = driving.make_behaviour("ram", np.random.default_rng(seed))
            for _ in range(24):
                _, reward, _, _, info = car.step(MODALITY.validate(behaviour(info), clip=True))
                assert info["failure"] == (info["crashed"] or info["out_of_road"])
                assert not (info["failure"] and reward > 0 and not info["success"])
                failures.append(info["failure"])
        assert 0 < np.mean(failures) < 0.8

    def test_ramming_touches_the_car_ahead_more_often_than_following(self, car):
        seeds = [seed for seed in range(40, 80) if car.reset(seed=seed)[1]["gap"] < 25][:5]

        def touches(name):
            crashed = []
            for seed in seeds:
                _, info = car.reset(seed=seed)
                behaviour = driving.make_behaviour(name, np.random.default_rng(seed))
                for _ in range(24):
                    info = car.step(MODALITY.validate(behaviour(info), clip=True))[4]
                    crashed.append(info["crashed"])
            return np.mean(crashed)

        assert touches("ram") > touches("follow")

    def test_the_route_follows_the_seed_whatever_was_driven_before(self, car):
        """Seeds whose destination MetaDrive itself fails to find, and one after which it kept the old one."""

        def route(seed):
            return car.reset(seed=seed)[1]["route"], list(car._car.navigation.checkpoints)

        first = {seed: route(seed) for seed in (429, 236, 5)}
        for seed in (5, 429, 236):
            points, checkpoints = route(seed)
            np.testing.assert_array_equal(points, first[seed][0])
            assert checkpoints == first[seed][1]
            assert len(checkpoints) >= 2
