from __future__ import annotations

import itertools

import gymnasium
import numpy as np
import pytest
import torch

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES, DISCRETE_ACTIONS
from policies.frontier import FrontierExplorer, PoseGrid, explore

CAMERA = ACTION_MODALITIES["camera"]
KEYS = CAMERA.discrete(DISCRETE_ACTIONS["camera"])


@pytest.fixture
def env(make) -> gymnasium.Env:
    return make(id="Astra-Sekai-v0")


@pytest.fixture
def keyed(make) -> gymnasium.Env:
    return make(id="Astra-SpatialVID-v0")


def camera_at(x: float, z: float, yaw: float = 0.0) -> np.ndarray:
    """Pose with x right, z ahead, turned to the right."""
    return geometry.make_pose(geometry.rpy_to_matrix([0, yaw, 0]), [x, 0, z])


def test_cells_are_places_and_headings_seen_from_the_first_pose():
    start = geometry.make_pose(geometry.rpy_to_matrix([0.3, 1.0, -2.0]), [3.0, -2.0, 1.0])
    grid = PoseGrid(start, cell_size=0.5, num_headings=8)
    assert grid.visited == {(0, 0, 0)}
    assert grid.cell(start @ camera_at(0.0, 1.0)) == (0, 2, 0)
    assert grid.cell(start @ camera_at(-0.5, 0.0, np.pi / 4)) == (-1, 0, 1)
    assert grid.cell(start @ camera_at(0.0, 0.0, -np.pi / 4)) == (0, 0, 7)
    assert grid.cell(start @ camera_at(0.0, 0.0, np.pi)) == (0, 0, 4)


def test_the_frontier_lies_around_what_was_visited_and_not_in_what_is_blocked():
    grid = PoseGrid(np.eye(4), cell_size=1.0, num_headings=4)
    assert grid.frontier() == {(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, 3)}
    grid.blocked.add((1, 0, 0))
    grid.visited.add((0, 1, 0))
    frontier = grid.frontier()
    assert (1, 0, 0) not in frontier
    assert {(0, 2, 0), (1, 1, 0), (0, 1, 3)} <= frontier
    assert grid.way([camera_at(0, 0.6), camera_at(0, 2), camera_at(1, 0), camera_at(2, 0)]) == [(0, 1, 0), (0, 2, 0)]
    assert grid.distance((0, 2, 0)) == 0
    assert grid.distance((0, 5, 0)) == 0
    grid.visited |= {(0, 0, 1), (0, 0, 2), (0, 0, 3), (-1, 0, 0), (0, -1, 0)}
    assert grid.distance((0, 0, 0)) == 2  # all its neighbours are known
    assert grid.distance((0, 0, 2)) == 1


@pytest.mark.parametrize("name", ["env", "keyed"])
def test_a_choice_is_legal_predicted_and_leaves_the_world_as_it_is(name, request):
    env = request.getfixturevalue(name)
    observation, info = env.reset(seed=0)
    before = env.unwrapped.save_state()
    choice = FrontierExplorer(env, horizon=2).choose(info)
    assert env.unwrapped.save_state() is before
    assert env.action_space.contains(choice.action if name == "env" else np.int64(choice.action))
    assert choice.frames.shape == (8, *observation.shape)
    assert np.isfinite(choice.value)
    env.step(choice.action)


def test_the_seed_decides(env):
    _, info = env.reset(seed=0)
    explorer = FrontierExplorer(env, horizon=2)
    first, again, other = (explorer.reset(seed).choose(info).frames for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_new_cells_draw_and_visited_ones_do_not(env):
    """With nothing else to go by, it takes no motion that leads where it was; a trail of visited cells repels it."""
    _, info = env.reset(seed=0)
    only = {"novelty_scale": 0.0, "blocked_scale": 0.0, "distance_scale": 0.0, "horizon": 3, "still": 0.0}
    motions = np.array([[0, 0, 0.2, 0, 0, 0], [0.2, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], np.float32)
    explorer = FrontierExplorer(env, motions=motions, **only)
    choice = explorer.choose(info)
    np.testing.assert_array_equal(choice.action, motions[0])
    assert choice.terms["new"] == 2
    explorer.grid.visited |= {(0, 1, 0), (0, 2, 0)}
    np.testing.assert_array_equal(explorer.choose(info).action, motions[1])


def test_a_picture_that_stands_still_under_motion_is_taken_off(env, monkeypatch):
    _, info = env.reset(seed=0)
    explorer = FrontierExplorer(env, horizon=1)
    step = env.unwrapped.world_model.step

    def blocked_ahead(states, actions, generators=None, **sampling):
        """A world in which whatever goes ahead leaves all as it is."""
        after, stuck = step(states, actions, generators, **sampling), actions[:, 2] > 0
        latents = torch.where(stuck[:, None, None, None, None], states.latents, after.latents)
        return type(after)(**{**vars(after), "latents": latents})

    monkeypatch.setattr(env.unwrapped.world_model, "step", blocked_ahead)
    choice = explorer.choose(info)
    assert choice.terms["blocked"] == 0
    assert choice.action[2] <= 0
    explorer.motions = KEYS[1:2]  # ahead alone
    assert explorer.choose(info).terms["blocked"] == 1


def test_a_place_that_was_not_reached_becomes_blocked(env):
    _, info = env.reset(seed=0)
    ahead = np.array([[0, 0, 0.2, 0, 0, 0]], np.float32)
    explorer = FrontierExplorer(env, horizon=3, motions=ahead, cell_size=0.5)
    assert explorer.choose(info).terms["new"] == 1
    assert explorer.choose(info).terms["new"] == 0  # the pose is what it was, as in front of a wall
    assert explorer.grid.blocked == {(0, 1, 0)}
    assert (0, 1, 0) not in explorer.grid.frontier()


def test_exploring_covers_more_than_holding_still(keyed):
    choices = list(explore(keyed, 4, seed=0, horizon=1, cell_size=0.2, still=0.0))
    assert len(choices) == 4
    assert all(choice.frames.dtype == np.uint8 for choice in choices)
    assert any(choice.action != other.action or choice.action != 0 for choice, other in itertools.pairwise(choices))
    assert sum(choice.terms["new"] > 0 for choice in choices) >= 3


def test_worlds_without_a_camera_are_refused(make, keyed):
    with pytest.raises(ValueError, match="FrontierExplorer moves cameras"):
        FrontierExplorer(make())
    with pytest.raises(ValueError, match="numbers of keys, with motions"):
        FrontierExplorer(keyed, motions=KEYS)
