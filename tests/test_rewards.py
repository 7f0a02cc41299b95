from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny import MODALITY, random_actions, random_frames, tiny_world_model

from astra_env.actions import ACTION_MODALITIES
from astra_env.envs.paths import random_path
from astra_env.envs.reward_kit import LearnedReward
from astra_env.envs.rewards import ON_PATH, GoalReward, PathReward, no_reward
from astra_env.geometry import axis_angle_to_matrix, make_pose, matrix_to_axis_angle
from astra_env.models import WorldState
from astra_env.models.reward_model import RewardModel


@pytest.fixture(scope="module")
def world_model():
    return tiny_world_model()


@pytest.fixture(scope="module")
def state(world_model) -> WorldState:
    return world_model.init_state(random_frames(3, 5), MODALITY)


@pytest.fixture(scope="module")
def task() -> LearnedReward:
    torch.manual_seed(0)
    return LearnedReward([RewardModel(dim=8, latent_size=4)])


def test_the_task_is_done_where_success_is_likelier_than_not(state, task):
    reward = task(state)
    value, success = task.heads[0](state.newest)
    assert torch.equal(reward.value, value) and torch.equal(reward.done, success > 0.5)
    assert set(reward.terms) == {"task_reward", "success_probability", "reward_spread"}
    bias = task.heads[0].features[-1].bias.detach()
    for shift, done in ((-50.0, False), (50.0, True)):
        kept = bias.clone()
        bias[1] = shift
        assert task(state).done.tolist() == [done] * 3
        bias.copy_(kept)


@pytest.mark.parametrize(
    ("success", "failure", "over", "solved"),
    [(-50, -50, False, False), (50, -50, True, True), (-50, 50, True, False), (50, 50, True, False)],
)
def test_a_failure_ends_the_task_and_is_worth_nothing(state, success, failure, over, solved):
    torch.manual_seed(0)
    task = LearnedReward([RewardModel(dim=8, latent_size=4, num_flags=2)])
    task.heads[0].features[-1].bias.data[1:] = torch.tensor([success, failure])
    reward = task(state)
    assert reward.done.tolist() == [over] * 3 and reward.success.tolist() == [solved] * 3
    value, *probabilities = task.heads[0](state.newest)
    assert torch.equal(reward.value, torch.zeros(3) if failure > 0 else value)
    assert torch.equal(reward.terms["failure_probability"], probabilities[1])


CAMERA = ACTION_MODALITIES["camera"]


def at(state: WorldState, poses: np.ndarray, num_steps: list[int]) -> WorldState:
    """Worlds that have come to poses (B, 4, 4) in so many steps."""
    return dataclasses.replace(state, poses=torch.from_numpy(poses), num_steps=torch.tensor(num_steps))


def test_a_path_is_worth_what_distance_and_angle_from_its_pose_tell(state):
    """As in the simulator: 1 - tanh(3 (metres + radians / 2)), of worlds that are at different steps."""
    path = CAMERA.integrate(np.eye(4), random_actions(4, modality="camera").numpy())
    offsets = [make_pose(np.eye(3), (0.03, -0.04, 0.0)), make_pose(axis_angle_to_matrix([0.0, 0.3, 0.4]), np.zeros(3))]
    poses = np.stack([path[1] @ offsets[0], path[4] @ offsets[1], path[4]])
    reward = PathReward(torch.from_numpy(path))(at(state, poses, [1, 4, 9]))
    np.testing.assert_allclose(reward.terms["path_distance"], [0.05, 0, 0], atol=1e-5)
    np.testing.assert_allclose(reward.terms["path_angle"], [0, 0.5, 0], atol=1e-5)
    np.testing.assert_allclose(reward.value, [1 - np.tanh(0.15), 1 - np.tanh(0.75), 1], atol=1e-5)


@pytest.mark.parametrize(
    ("metres", "radians", "num_steps", "reached"),
    [
        (0.04, 0.09, 4, True),
        (0.04, 0.09, 7, True),
        (0.04, 0.09, 3, False),
        (0.06, 0.0, 4, False),
        (0.0, 0.11, 4, False),
    ],
)
def test_a_path_is_done_at_its_end_and_on_it(state, metres, radians, num_steps, reached):
    path = np.tile(np.eye(4), (5, 1, 1))
    near = make_pose(axis_angle_to_matrix([radians, 0.0, 0.0]), (0.0, metres, 0.0))
    reward = PathReward(torch.from_numpy(path))(at(state, np.stack([near] * 3), [num_steps] * 3))
    assert reward.done.tolist() == [reached] * 3


def test_a_half_turn_from_the_path_is_measured(state):
    """Where the sine of the angle is 0 as well."""
    turned = make_pose(axis_angle_to_matrix([0.0, np.pi, 0.0]), np.zeros(3))
    reward = PathReward(torch.eye(4, dtype=torch.float64).repeat(2, 1, 1))(at(state, np.stack([turned] * 3), [1] * 3))
    np.testing.assert_allclose(reward.terms["path_angle"], [np.pi] * 3, atol=1e-5)


def test_a_path_is_what_the_simulator_rewards():
    pytest.importorskip("robosuite")
    from astra_env.simulators import multicam

    assert multicam.ON_PATH == ON_PATH


def test_random_paths_can_be_followed_and_differ():
    paths = [random_path(CAMERA, np.random.default_rng(seed), 24) for seed in range(40)]
    for path in paths:
        assert path.shape == (25, 4, 4) and np.array_equal(path[0], np.eye(4))
        actions = CAMERA.validate(CAMERA.from_poses(path))
        np.testing.assert_allclose(CAMERA.integrate(np.eye(4), actions), path, atol=1e-5)
        assert np.abs(np.diff(actions, axis=0)).max() < 0.05, "the motion changes slowly"
        assert (
            np.linalg.norm(path[-1, :3, 3]) + np.linalg.norm(matrix_to_axis_angle(path[:, :3, :3]), axis=1).max() > 0.05
        )
    assert np.array_equal(paths[0], random_path(CAMERA, np.random.default_rng(0), 24))
    assert len({path.tobytes() for path in paths}) == 40


def test_a_goal_is_worth_nothing_less_at_the_goal_itself(world_model, state):
    goal = GoalReward(state.newest[1])
    reward = goal(state)
    assert reward.value.shape == reward.done.shape == (3,)
    assert reward.value.argmax() == 1 and reward.value[1] == pytest.approx(0, abs=1e-5)
    assert (reward.value <= 0).all() and not reward.done.any()
    torch.testing.assert_close(reward.terms["goal_distance"], -reward.value)
    away = dataclasses.replace(state, latents=state.latents + 2.0)
    assert goal(away).value[1].item() == pytest.approx(-2.0, rel=1e-4)


def test_rewards_of_a_batch_are_those_of_its_rows(state, task):
    path = torch.from_numpy(random_path(CAMERA, np.random.default_rng(0), 4))
    state = at(state, random_path(CAMERA, np.random.default_rng(1), 2), [0, 2, 9])
    for function in (task, GoalReward(state.newest[0]), PathReward(path)):
        together = function(state).value
        alone = torch.cat([function(state[row]).value for row in range(3)])
        torch.testing.assert_close(together, alone)


def test_planners_can_follow_the_gradient_of_a_reward(world_model, state, task):
    path = torch.from_numpy(random_path(CAMERA, np.random.default_rng(0), 4))
    for function in (task, GoalReward(state.newest[0]), PathReward(path)):
        actions = random_actions(3, 2).requires_grad_(True)
        function(world_model.imagine(state, actions)).value.sum().backward()
        assert (actions.grad.abs().sum(-1) > 0).all()


def test_the_gradient_is_finite_at_the_goal(state):
    latents = state.latents.clone().requires_grad_(True)
    GoalReward(state.newest[0])(dataclasses.replace(state, latents=latents)).value.sum().backward()
    assert latents.grad.isfinite().all()


def test_the_gradient_is_finite_on_the_path(state):
    poses = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1).requires_grad_(True)
    reward = PathReward(torch.eye(4, dtype=torch.float64).repeat(2, 1, 1))
    reward(dataclasses.replace(state, poses=poses)).value.sum().backward()
    assert poses.grad.isfinite().all()


def test_a_world_without_reward_is_worth_nothing_for_ever(state):
    reward = no_reward(state)
    assert reward.value.tolist() == [0.0] * 3 and reward.done.tolist() == [False] * 3 and reward.terms == {}
