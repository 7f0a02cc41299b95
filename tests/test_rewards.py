from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import MODALITY, random_actions, random_frames, tiny_world_model

from astra_env.envs.rewards import GoalReward, TaskReward, no_reward
from astra_env.models import WorldState
from astra_env.models.reward_model import RewardModel


@pytest.fixture(scope="module")
def world_model():
    return tiny_world_model()


@pytest.fixture(scope="module")
def state(world_model) -> WorldState:
    return world_model.init_state(random_frames(3, 5), MODALITY)


@pytest.fixture(scope="module")
def task() -> TaskReward:
    torch.manual_seed(0)
    return TaskReward(RewardModel(dim=8, latent_size=4))


def test_the_task_is_done_where_success_is_likelier_than_not(state, task):
    reward = task(state)
    value, success = task.model(state.newest)
    assert torch.equal(reward.value, value) and torch.equal(reward.done, success > 0.5)
    assert set(reward.terms) == {"task_reward", "success_probability"}
    bias = task.model.features[-1].bias.detach()
    for shift, done in ((-50.0, False), (50.0, True)):
        kept = bias.clone()
        bias[1] = shift
        assert task(state).done.tolist() == [done] * 3
        bias.copy_(kept)


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
    for function in (task, GoalReward(state.newest[0])):
        together = function(state).value
        alone = torch.cat([function(state[row]).value for row in range(3)])
        torch.testing.assert_close(together, alone)


def test_planners_can_follow_the_gradient_of_a_reward(world_model, state, task):
    for function in (task, GoalReward(state.newest[0])):
        actions = random_actions(3, 2).requires_grad_(True)
        function(world_model.imagine(state, actions)).value.sum().backward()
        assert (actions.grad.abs().sum(-1) > 0).all()


def test_the_gradient_is_finite_at_the_goal(state):
    latents = state.latents.clone().requires_grad_(True)
    GoalReward(state.newest[0])(dataclasses.replace(state, latents=latents)).value.sum().backward()
    assert latents.grad.isfinite().all()


def test_a_world_without_reward_is_worth_nothing_for_ever(state):
    reward = no_reward(state)
    assert reward.value.tolist() == [0.0] * 3 and reward.done.tolist() == [False] * 3 and reward.terms == {}
