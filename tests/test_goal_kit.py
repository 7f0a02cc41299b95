"""Goal pictures judged by a learned distance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import random_actions, random_frames, tiny_world_model
from torch import nn

from astra_env.envs.goal_kit import LearnedGoal
from astra_env.envs.rewards import pose_error


class Brightness(nn.Module):
    """A goal model by hand: a metre along x for each unit of the mean latent or pixel, and half a radian about z."""

    def __init__(self, *, reads_pictures: bool = False) -> None:
        super().__init__()
        self.reads_pictures = reads_pictures

    def forward(self, latents, goals):
        apart = (goals - latents).mean((1, 2, 3))
        zero = torch.zeros_like(apart)
        return torch.stack([apart, zero, zero, zero, zero, apart / 2], dim=1)


@pytest.fixture(scope="module")
def world():
    return tiny_world_model()


def judged(world, **options):
    picture = random_frames(1, 1, seed=5)[0, 0].numpy()
    state = world.init_state(random_frames(3, 5), "end_effector")
    goal = LearnedGoal(Brightness(), world, picture, **options)
    apart = (goal.goal - state.newest).mean((1, 2, 3)).abs()
    return goal(state), apart


def test_the_reward_is_the_distance_in_multiples_of_the_limits(world):
    reward, apart = judged(world, metres=0.5)
    torch.testing.assert_close(reward.value, -apart / 0.5, atol=1e-4, rtol=1e-4)
    reward, apart = judged(world, metres=0.5, radians=0.1)
    torch.testing.assert_close(reward.value, -apart / 0.5 - apart / 2 / 0.1, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(reward.terms["goal_angle"], apart / 2, atol=1e-5, rtol=1e-4)
    assert not reward.done.any()


def test_what_is_within_the_limits_is_reached(world):
    apart = judged(world)[1]
    middle = apart.median().item()
    reached = (middle * 1.001 + 1e-5, 0.0)
    assert judged(world, reached=reached)[0].done.tolist() == (apart <= middle).tolist()  # only the place counts
    assert not judged(world, radians=1.0, reached=reached)[0].done.any()


def test_plans_can_follow_its_gradient(world):
    goal = LearnedGoal(Brightness(), world, random_frames(1, 1, seed=5)[0, 0].numpy())
    actions = random_actions(2, 1).requires_grad_()
    state = world.imagine(world.init_state(random_frames(2, 5), "end_effector"), actions)
    goal(state).value.sum().backward()
    assert actions.grad.isfinite().all() and actions.grad.abs().sum() > 0


def test_the_same_picture_is_at_distance_zero(world):
    frames = random_frames(1, 1)
    reward = LearnedGoal(Brightness(), world, frames[0, 0].numpy())(world.init_state(frames, "end_effector"))
    assert reward.value.item() == pytest.approx(0, abs=1e-4)


def test_pictures_are_read_off_decoded_worlds_or_as_they_were_seen(world):
    frames = random_frames(2, 9)
    goal = LearnedGoal(Brightness(reads_pictures=True), world, frames[0, -1].numpy())
    state = world.init_state(frames, "end_effector")
    state, shown = world.decode(state)
    brightness = (shown[:, -1].float() / 127.5 - 1).mean((1, 2, 3))
    wanted = (frames[0, -1].float() / 127.5 - 1).mean()
    torch.testing.assert_close(goal.distances(state)[0], (wanted - brightness).abs(), atol=5e-3, rtol=0)
    seen = goal.pose(state[:1], frames[0, -1].numpy())
    torch.testing.assert_close(seen, state[:1].poses)  # it is there
    assert (goal.pose(state[:1])[0, :3, 3] - state.poses[0, :3, 3]).norm() > 1e-4
    actions = random_actions(2, 1).requires_grad_()
    goal(world.imagine(state, actions)).value.sum().backward()
    assert actions.grad.isfinite().all() and actions.grad.abs().sum() > 0


@pytest.mark.parametrize("modality", ["end_effector", "camera"])
def test_the_pose_of_the_goal_is_a_motion_away(modality):
    world = tiny_world_model(action_dims={"end_effector": 7, "camera": 6})
    picture = random_frames(1, 1, seed=5)[0, 0].numpy()
    start = world.init_state(random_frames(2, 5), modality)
    state = world.step(start, random_actions(2, modality=modality))
    goal = LearnedGoal(Brightness(), world, picture)
    apart = pose_error(goal.pose(state), state.poses)
    for told, read in zip(apart, goal.distances(state), strict=True):
        torch.testing.assert_close(told.float(), read, atol=1e-4, rtol=1e-4)
    way = goal.pose(state)[:, :3, 3] - state.poses[:, :3, 3]
    along = state.poses[:, :3, 0] if modality == "camera" else torch.eye(4).double()[:3, 0].expand(2, 3)
    torch.testing.assert_close((way * along).sum(1).abs().float(), way.norm(dim=1).float(), atol=1e-5, rtol=1e-4)


def test_a_picture_of_another_size_is_told(world):
    with pytest.raises(ValueError, match=r"The goal picture is uint8 \(8, 8, 3\), expected uint8 \(32, 32, 3\)"):
        LearnedGoal(Brightness(), world, np.zeros((8, 8, 3), np.uint8))
