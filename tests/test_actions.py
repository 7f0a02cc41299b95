"""Action modalities: every row of the table has spaces, bounds and motions that agree with one another."""

from __future__ import annotations

import numpy as np
import pytest

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES, DISCRETE_ACTIONS

RNG = np.random.default_rng(0)
START = geometry.make_pose(geometry.rpy_to_matrix([0.2, -0.1, 0.7]), [0.5, 0.1, 0.2])


@pytest.fixture(params=ACTION_MODALITIES.values(), ids=ACTION_MODALITIES)
def modality(request):
    return request.param


def random_actions(modality, *batch: int) -> np.ndarray:
    return RNG.uniform(modality.low, modality.high, (*batch, modality.action_dim)).astype(np.float32)


def test_a_row_is_consistent(modality):
    assert ACTION_MODALITIES[modality.name] is modality
    assert len(modality.units) == len(modality.low) == len(modality.high) == modality.action_dim
    assert set(modality.absolute) <= set(modality.fields)
    space = modality.space()
    assert space.shape == (modality.action_dim,)
    assert space.dtype == np.float32
    assert (space.low < space.high).all()


def test_every_field_has_a_key_and_every_key_a_legal_action(modality):
    assert {field for field, _ in modality.keys.values()} == set(modality.fields)
    for field, share in modality.keys.values():
        action = np.zeros(modality.action_dim, np.float32)
        index = modality.fields.index(field)
        action[index] = share * modality.high[index]
        assert modality.space().contains(action)


def test_validate_accepts_what_the_space_samples(modality):
    space = modality.space()
    for action in (space.sample(), space.low, space.high, space.sample().astype(np.float64).tolist()):
        valid = modality.validate(action)
        assert valid.dtype == np.float32
        np.testing.assert_allclose(valid, action, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_validate_refuses_what_is_not_finite_even_to_clip(modality, value):
    action = np.zeros(modality.action_dim)
    action[0] = value
    with pytest.raises(ValueError, match="not finite"):
        modality.validate(action, clip=True)


def test_validate_refuses_shape_dtype_and_bounds(modality):
    with pytest.raises(ValueError, match="shape"):
        modality.validate(np.zeros(modality.action_dim + 1))
    with pytest.raises(ValueError, match="shape"):
        modality.validate(np.float32(0))
    with pytest.raises(ValueError, match="dtype"):
        modality.validate(np.zeros(modality.action_dim, bool))
    for index, field in enumerate(modality.fields):
        action = np.zeros(modality.action_dim)
        action[index] = modality.high[index] * 1.01
        with pytest.raises(ValueError, match=rf"bounds .* of {field}"):
            modality.validate(action)
        np.testing.assert_allclose(modality.validate(action, clip=True)[index], modality.high[index], rtol=1e-6)


def test_combine_undoes_split(modality):
    actions = random_actions(modality, 3, 6)
    parts = modality.split(actions, 4)
    assert parts.shape == (3, 6, 4, modality.action_dim)
    np.testing.assert_allclose(modality.combine(parts), actions, atol=1e-6)


def test_split_actions_lead_the_same_way_at_the_finer_rate(modality):
    actions = random_actions(modality, 6)
    whole = modality.integrate(START, actions, speed=5.0)
    parts = modality.split(actions, 4).reshape(24, -1)
    fine = modality.integrate(START, parts, speed=5.0, rate_hz=4 * modality.rate_hz)
    np.testing.assert_allclose(fine[::4], whole, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "action", "share"),
    [
        ("end_effector", [0.04, 0, -0.02, 0, 0, 0.2, 0.7], [0.01, 0, -0.005, 0, 0, 0.05, 0.7]),
        ("camera", [0.2, -0.1, 0, 0, 0, 0], [0.05, -0.025, 0, 0, 0, 0]),
        ("camera", [0, 0, 0, 0, 0.2, 0], [0, 0, 0, 0, 0.05, 0]),
        ("vehicle", [0.3, -2.0], [0.3, -2.0]),
    ],
)
def test_split_divides_changes_and_repeats_what_is_held(name, action, share):
    np.testing.assert_allclose(ACTION_MODALITIES[name].split(action, 4), np.tile(share, (4, 1)), atol=1e-7)


def test_the_parts_of_a_turning_camera_go_straight():
    modality = ACTION_MODALITIES["camera"]
    parts = modality.split([0.1, 0, 0.2, 0, 0.1, 0.2], 4)
    places = modality.integrate(np.eye(4), parts)[:, :3, 3]
    np.testing.assert_allclose(places, np.linspace(0, 1, 5)[:, None] * [0.1, 0, 0.2], atol=1e-7)


def test_a_car_combines_to_the_mean_of_what_it_held():
    combined = ACTION_MODALITIES["vehicle"].combine([[0.1, 2.0], [0.3, -1.0]])
    np.testing.assert_allclose(combined, [0.2, 0.5], rtol=1e-6)


def test_actions_found_from_poses_lead_through_them(modality):
    actions = random_actions(modality, 12)
    poses = modality.integrate(START, actions, speed=20.0)
    assert poses.shape == (13, 4, 4)
    motion_fields = modality.kinematics.num_fields
    assert motion_fields + len(modality.absolute) == modality.action_dim
    absolute = np.concatenate([np.zeros((1, len(modality.absolute))), actions[:, motion_fields:]])
    np.testing.assert_allclose(modality.from_poses(poses, absolute, speed=20.0), actions, atol=1e-5)
    np.testing.assert_allclose(
        modality.to_pose(actions[0], speed=20.0), modality.integrate(np.eye(4), actions[:1], speed=20.0)[1]
    )


def test_actions_from_poses_at_another_rate_are_those_of_the_modality(modality):
    """Poses of 20 frames a second, their times and the gripper's course give the five actions a second behind them."""
    actions = random_actions(modality, 6)
    parts = modality.split(actions, 4).reshape(24, -1)
    frames = modality.integrate(START, parts, speed=10.0, rate_hz=20.0)
    times = 3.0 + np.arange(25) / 20
    absolute = np.concatenate([parts[:1], parts])[:, modality.kinematics.num_fields :]
    found = modality.from_timed_poses(frames, times, absolute, speed=10.0)
    np.testing.assert_allclose(found, actions, atol=1e-4)
    shares = modality.from_timed_poses(frames, times, absolute, speed=10.0, rate_hz=20.0)
    np.testing.assert_allclose(shares, parts, atol=1e-3)
    rest = modality.from_timed_poses(frames[:-1], times[:-1], absolute[:-1], speed=10.0)
    np.testing.assert_allclose(rest, found[:-1], atol=1e-12)


def test_poses_between_the_wanted_times_are_interpolated_and_speeds_too():
    camera, car = ACTION_MODALITIES["camera"], ACTION_MODALITIES["vehicle"]
    end = geometry.compose(START, geometry.make_pose(np.eye(3), [0.0, 0.0, 1.0]))
    actions = camera.from_timed_poses(np.stack([START, end]), [0.0, 1.0])
    np.testing.assert_allclose(actions, np.tile([0, 0, 0.2, 0, 0, 0], (5, 1)), atol=1e-6)
    moved = car.from_timed_poses(np.stack([START, end]), [0.0, 1.0], speed=[2.0, 4.0])
    np.testing.assert_allclose(moved[:, 1], 2.0, atol=1e-5)


def test_poses_that_last_shorter_than_one_action_are_refused(modality):
    with pytest.raises(ValueError, match=r"last 0.1 s, expected at least 0.2 s"):
        modality.from_timed_poses(np.stack([START, START]), [5.0, 5.1], np.zeros((2, len(modality.absolute))))


def test_keys_add_up_to_an_action(modality):
    assert not modality.from_keys([]).any()
    for key, (name, share) in modality.keys.items():
        index = modality.fields.index(name)
        bound = modality.high[index] if share > 0 else modality.low[index]
        np.testing.assert_allclose(modality.from_keys([key])[index], abs(share) * bound, rtol=1e-6)
    assert modality.space().contains(modality.from_keys(modality.keys))
    with pytest.raises(ValueError, match="no key 'pause'"):
        modality.from_keys(["pause"])


def test_the_mouse_moves_its_fields_within_the_bounds(modality):
    assert not modality.from_mouse(0, 0).any()
    assert set(modality.mouse) <= {"right", "down"}
    for direction, (name, change) in modality.mouse.items():
        pixels = {"right": 0.0, "down": 0.0}
        others = [field for field in modality.fields if field != name]
        for count in (10.0, -10.0, 1e6):
            action = dict(zip(modality.fields, modality.from_mouse(**pixels | {direction: count}), strict=True))
            index = modality.fields.index(name)
            bounded = np.clip(change * count, modality.low[index], modality.high[index])
            assert action[name] == pytest.approx(bounded)
            assert not any(action[other] for other in others)
    with pytest.raises(ValueError, match="not finite"):
        modality.from_mouse(np.nan, 0.0)


def test_the_mouse_looks_to_the_right_and_up_and_steers_to_the_right():
    right, up = (geometry.relative(START, pose) for pose in camera_after_mouse((50, 0), (0, -50)))
    assert right[0, 2] > 0.09, "the view turns along x"
    assert up[1, 2] < -0.09, "the view turns against y"
    car = ACTION_MODALITIES["vehicle"]
    assert car.integrate(np.eye(4), car.from_mouse(50, 0)[None], speed=5.0)[1, 1, 3] < 0, "y is left"


def camera_after_mouse(*motions):
    modality = ACTION_MODALITIES["camera"]
    return [modality.integrate(START, modality.from_mouse(*motion)[None])[1] for motion in motions]


@pytest.mark.parametrize("name", DISCRETE_ACTIONS)
def test_a_discrete_space_is_a_table_of_different_actions(name):
    table = ACTION_MODALITIES[name].discrete(DISCRETE_ACTIONS[name])
    assert not table[0].any()
    assert len(np.unique(table, axis=0)) == len(DISCRETE_ACTIONS[name])


def test_an_end_effector_turns_about_the_base_axes_and_stays_in_place():
    modality = ACTION_MODALITIES["end_effector"]
    action = np.array([0, 0, 0, 0, 0, 0.25, 1.0])
    end = modality.integrate(START, action[None])[1]
    np.testing.assert_allclose(end[:3, 3], START[:3, 3])
    np.testing.assert_allclose(end[:3, :3], geometry.rpy_to_matrix([0, 0, 0.25]) @ START[:3, :3], atol=1e-12)


def test_a_camera_moves_and_turns_in_its_own_axes():
    modality = ACTION_MODALITIES["camera"]

    def move(**fields: float) -> np.ndarray:
        action = [fields.get(name, 0.0) for name in modality.fields]
        return geometry.relative(START, modality.integrate(START, np.array([action]))[1])

    np.testing.assert_allclose(move(dz=0.1)[:3, 3], [0, 0, 0.1], atol=1e-12)
    forward = {name: move(**{name: 0.1})[:3, 2] for name in ("droll", "dpitch", "dyaw")}  # where it looks afterwards
    np.testing.assert_allclose(forward["droll"], [0, 0, 1], atol=1e-12)
    assert forward["dpitch"][1] < -0.09, "looks up, against y"
    assert forward["dyaw"][0] > 0.09, "looks right, along x"
