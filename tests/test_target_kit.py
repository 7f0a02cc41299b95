"""Rewards that remember where the target was, and the models that tell it, learned from recordings."""

from __future__ import annotations

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch
from tiny import random_frames, save_checkpoint, tiny_world_model

from astra_env import geometry
from astra_env.envs import GOAL_ANGLE, GOAL_DISTANCE, REACHED, SLACK
from astra_env.envs.reward_kit import LearnedReward
from astra_env.envs.rewards import ELSEWHERE, LANE, Lane, Place, Remembering, Reward, Sight, joined
from astra_env.envs.target_kit import (
    RememberedLane,
    RememberedPlace,
    RememberedSight,
    has_reward,
    load_reward,
    load_target,
)
from astra_env.models.reward_model import RewardModel
from astra_env.models.target_model import FILE_NAME, TargetModel, read_all

REACH = "Astra-RT1-Reach-v0"


@pytest.fixture
def models():
    torch.manual_seed(0)
    return [TargetModel(dim=8, latent_size=4, num_outputs=6).eval() for _ in range(2)]


@pytest.fixture
def state():
    return tiny_world_model().init_state(random_frames(3, 5), "end_effector")


def moved(state, *places):
    poses = state.poses.clone()
    poses[:, :3, 3] = torch.tensor(places, dtype=torch.float64)
    return dataclasses.replace(state, poses=poses)


def shown(state):
    """Something that pictures tell of three numbers."""
    return state.newest.mean((2, 3))[:, :3]


def test_a_place_rewards_being_near_and_never_ends(state):
    reward = Place(torch.tensor([0.3, 0.0, 0.0], dtype=torch.float64))(
        moved(state, (0.3, 0, 0), (0.3, 0, 0.9 * REACHED), (0, 0, 0))
    )
    np.testing.assert_allclose(reward.value, 1 - np.tanh([0, 8 * 0.9 * REACHED, 2.4]), atol=1e-5)
    assert reward.success.tolist() == [True, True, False] and not reward.done.any()


def test_places_of_rows_are_joined(state):
    places = [Place(torch.tensor([x, 0.0, 0.0], dtype=torch.float64)) for x in (0.0, 0.1, 0.2)]
    for seen in (None, shown):
        rows = [Place(place.place, seen, torch.full((3,), 0.1 * row)) for row, place in enumerate(places)]
        together = joined(rows)
        assert isinstance(together, Place)
        expected = torch.cat([place(state[row]).value for row, place in enumerate(rows)])
        torch.testing.assert_close(together(state).value, expected)
    assert not isinstance(joined([places[0], Place(places[1].place, shown)]), Place)


@torch.no_grad()
def test_what_was_seen_at_the_beginning_does_not_change_with_the_dream(models, state):
    target = RememberedPlace(models)
    assert isinstance(target, Remembering)
    for model in models:
        model.features[-1].weight[3:] *= 0.01  # a dream shows the end effector nearly where it was
    place = state.poses[:, :3, 3] + torch.stack([model(state.newest) for model in models]).mean(0)[:, :3]
    begun = target.begun(state)
    there = moved(state, *place.tolist())
    dreamt = dataclasses.replace(there, latents=there.latents + torch.randn_like(there.latents))
    for row, reward in enumerate(begun):
        assert reward(dreamt[row]).terms["target_distance"] < place[row].norm() - 0.9 * SLACK
    shown_now = torch.stack([reward.place for reward in target.begun(dreamt)])
    assert not torch.allclose(shown_now, place, atol=1e-3)  # what the dream shows does


def test_an_arm_that_meets_a_resistance_is_where_it_is_seen(state):
    """As near as can be to where it was told to go, which is where it is while it meets none."""
    origin = torch.tensor([0.5, 0.0, 0.0], dtype=torch.float64)
    down = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64)
    for depth, expected in ((0.0, 0.0), (0.9 * SLACK, 0.9 * SLACK), (0.4, SLACK)):
        pressed = moved(state, *[(depth * down).tolist()] * 3)
        reward = Place(torch.zeros(3, dtype=torch.float64), lambda state: origin.expand(len(state), 3), origin)
        torch.testing.assert_close(reward.here(pressed), (expected * down).expand(3, 3), atol=1e-6, rtol=0)
        strict = Place(reward.place, reward.seen, origin, slack=0.0)
        torch.testing.assert_close(strict.here(pressed), torch.zeros_like(pressed.poses[:, :3, 3]))


def test_a_place_is_differentiable_where_nothing_resists(state):
    latents = state.latents.clone().requires_grad_()
    seen = dataclasses.replace(state, latents=latents)
    place = Place(torch.tensor([0.1, 0.0, 0.0], dtype=torch.float64), shown, shown(state)[0].detach())
    place(seen[0]).value.sum().backward()
    assert latents.grad is not None and latents.grad.isfinite().all()


def test_models_of_something_else_are_told(models, tmp_path):
    models[0].save(tmp_path)
    (tmp_path / "head_1").mkdir()
    TargetModel(dim=8, latent_size=4, num_outputs=4).save(tmp_path / "head_1")
    with pytest.raises(ValueError, match=r"tell \[6, 4\] numbers, expected 6 each"):
        load_target(tmp_path)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A checkpoint that knows where its target is."""
    folder = save_checkpoint(tmp_path_factory.mktemp("target"), domains=["robot"])
    task = folder / "domains" / "robot" / "reach"
    for index, part in enumerate((task, task / "head_1")):
        part.mkdir()
        torch.manual_seed(index)
        model = TargetModel(dim=8, latent_size=4, num_outputs=6)
        torch.nn.init.zeros_(model.features[-1].bias)
        model.scale.fill_(3.0)  # random pictures have their targets in different places
        model.save(part)
    return str(folder)


def test_every_row_remembers_its_own_beginning(world):
    """A row is rewarded as a single world that begins alike, also when its neighbours begin anew."""
    options = {"world_model": world, "device": "cpu", "observation": "latent"}
    worlds = gymnasium.make_vec(
        REACH, num_envs=2, vectorization_mode="vector_entry_point", max_episode_steps=2, **options
    )
    alone = gymnasium.make(REACH, **options)
    worlds.reset(seed=[3, 4])
    alone.reset(seed=4)
    action = np.full(7, 0.02, np.float32)
    for _ in range(2):
        _, rewards, *_ = worlds.step(np.stack([action, action]))
        expected = alone.step(action)[1]
        assert rewards[1] == pytest.approx(expected, abs=1e-5)
        assert rewards[0] != pytest.approx(expected, abs=1e-5)
    first = worlds.unwrapped.reward_function.place.clone()
    _, _, _, _, info = worlds.step(np.stack([action, action]))  # both begin anew, elsewhere
    assert (worlds.unwrapped.reward_function.place != first).any()
    assert info["success"].shape == (2,)


def test_a_folder_says_which_reward_it_holds(models, tmp_path):
    assert not has_reward(tmp_path)
    models[0].save(tmp_path)
    assert has_reward(tmp_path) and isinstance(load_reward(tmp_path), RememberedPlace)


def test_a_model_is_the_same_after_it_was_saved(models, tmp_path, state):
    models[0].centre.fill_(0.2)
    models[0].save(tmp_path)
    torch.testing.assert_close(TargetModel.load(tmp_path)(state.newest), models[0](state.newest))
    with pytest.raises(FileNotFoundError, match="astra-env fit-target"):
        TargetModel.load(tmp_path / "missing")
    (tmp_path / FILE_NAME).write_bytes(b"damaged")
    with pytest.raises(ValueError, match="truncated or damaged"):
        TargetModel.load(tmp_path)


# Lanes


def paid(state):
    """A task that is always worth 0.8, and has failed in the last world."""
    failed = torch.arange(len(state)) == len(state) - 1
    return Reward(torch.full((len(state),), 0.8), failed, {}, torch.zeros(len(state), dtype=torch.bool))


AHEAD = torch.tensor([[3.0, 0.0], [10.0, 0.0], [20.0, 10.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("place", "worth"),
    [
        ((0, 0, 0), 1.0),
        ((5, LANE, 0), 0.5),
        ((-4, -LANE, 0), 0.5),  # straight on behind the first point
        ((15, 5, 0), 1.0),  # in the bend
        ((17, 1.5, 0), 1 / (1 + (5.5 / LANE) ** 2 / 2)),
        ((25, 5, 0), 1.0),  # beyond what was seen
    ],
)
def test_a_lane_pays_for_its_middle_as_far_as_it_was_seen(state, place, worth):
    reward = Lane(AHEAD, paid)(moved(state, place, place, place))
    torch.testing.assert_close(reward.value, torch.full((3,), 0.8 * worth), atol=1e-5, rtol=0)
    assert reward.done.tolist() == [False, False, True] and not reward.success.any()


def test_lanes_of_one_task_are_joined(state):
    lanes = [Lane(AHEAD + shift, paid) for shift in (0.0, 0.5, 1.0)]
    together = joined(lanes)
    assert isinstance(together, Lane)
    expected = torch.cat([lane(state[row]).value for row, lane in enumerate(lanes)])
    torch.testing.assert_close(together(state).value, expected)


# Sights


def turned(state, *, yaw=0.0, pitch=0.0, place=(0, 0, 0)):
    """Worlds whose cameras have turned to the right and up, somewhere."""
    poses = torch.eye(4, dtype=torch.float64).repeat(len(state), 1, 1)
    rotation = geometry.axis_angle_to_matrix([0, yaw, 0]) @ geometry.axis_angle_to_matrix([pitch, 0, 0])
    poses[:, :3, :3] = torch.from_numpy(rotation)
    poses[:, :3, 3] = torch.tensor(place, dtype=torch.float64)
    return dataclasses.replace(state, poses=poses)


def sight(place=(0, 0, 3), seen=True):
    eye = torch.eye(4, dtype=torch.float64)
    return Sight(torch.tensor(place, dtype=torch.float64), torch.tensor(seen), eye)


def test_what_was_seen_is_reached_by_who_is_near_and_looks_at_it(state):
    there, beside = (0, 0, 3 - 0.9 * GOAL_DISTANCE), (1.1 * GOAL_DISTANCE, 0, 3)
    for place, yaw, reached in ((there, 0.9 * GOAL_ANGLE, True), (there, 1.1 * GOAL_ANGLE, False), (beside, 0, False)):
        reward = sight()(turned(state, yaw=yaw, place=place))
        distance = np.linalg.norm(np.subtract((0, 0, 3), place))
        assert reward.done.tolist() == [reached] * 3
        np.testing.assert_allclose(reward.value, 1.0 if reached else 1 - np.tanh(0.4 * distance), atol=1e-5)


def test_where_nothing_was_seen_looking_elsewhere_counts_and_nothing_is_reached(state):
    unseen = sight(place=(0, 0, 0.1), seen=False)
    worth = [
        unseen(turned(state, **where)).value[0].item()
        for where in ({}, {"yaw": 1.0}, {"yaw": np.pi}, {"yaw": np.pi, "place": (9, 0, 0)})
    ]
    np.testing.assert_allclose(worth, np.array([0, 1 - np.cos(1), 2, 3]) * ELSEWHERE / 3, atol=1e-5)
    for where in ({"pitch": 0.5}, {"place": (0, -2, 0)}):  # up is not elsewhere
        assert unseen(turned(state, **where)).value[0].item() == pytest.approx(0, abs=1e-5)
    back = [unseen(turned(state, yaw=np.pi, pitch=pitch)).value[0].item() for pitch in (0, 0.5)]
    assert back[1] == pytest.approx(np.cos(0.5) * back[0], abs=1e-5)
    assert not unseen(turned(state)).done.any()


def test_sights_are_joined(state):
    rows = [sight(), sight(seen=False), sight(place=(1, 0, 1))]
    together = joined(rows)
    assert isinstance(together, Sight)
    worlds = turned(state, yaw=0.3, place=(0.5, 0, 0.5))
    expected = torch.cat([row(worlds[index]).value for index, row in enumerate(rows)])
    torch.testing.assert_close(together(worlds).value, expected)


@torch.no_grad()
def test_a_thing_is_seen_from_the_camera_by_models_that_are_sure(state, tmp_path):
    for index, folder in enumerate((tmp_path, tmp_path / "head_1")):
        folder.mkdir(exist_ok=True)
        model = TargetModel(dim=8, latent_size=4, doubts=True)
        model.features[-1].weight.zero_()
        model.features[-1].bias.copy_(torch.tensor([0.0, 0.0, 2.0 + 0.2 * index, -4.0]))
        model.save(folder)
    RewardModel(dim=8, latent_size=4).save(tmp_path)  # of the first folder alone, and not needed
    target = load_reward(tmp_path)
    assert isinstance(target, RememberedSight)
    worlds = turned(state, yaw=np.pi / 2, place=(1, 0, 0))  # which looks along x
    for reward in target.begun(worlds):
        torch.testing.assert_close(reward.place, torch.tensor([3.1, 0, 0], dtype=torch.float64), atol=1e-5, rtol=0)
        assert reward.seen
    torch.testing.assert_close(target(worlds).value, torch.full((3,), 1 - np.tanh(0.4 * 2.1)).float())
    _, doubts = read_all(target.models, state.newest)
    np.testing.assert_allclose(doubts, np.sqrt(np.exp(-8) + 0.1**2 / 3), rtol=1e-4)  # its own, and of each other
    target.models[0].features[-1].bias[3] = 2.0
    assert not any(reward.seen for reward in target.begun(worlds))


@torch.no_grad()
def test_the_way_ahead_is_seen_from_the_car(state):
    model = TargetModel(dim=8, latent_size=4, num_outputs=4).eval()
    model.scale.fill_(1e-9)
    model.centre.copy_(torch.tensor([4.0, 0.0, 8.0, 0.0]))
    turned = moved(state, (1, 0, 0), (1, 0, 0), (1, 0, 0))
    turned.poses[:, :2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)  # to the left
    target = RememberedLane([model], paid)
    torch.testing.assert_close(
        target.targets(turned)[0], torch.tensor([[1.0, 4.0], [1.0, 8.0]], dtype=torch.float64), atol=1e-6, rtol=0
    )
    assert all(isinstance(reward, Lane) for reward in target.begun(turned))
    torch.testing.assert_close(target(turned).value, torch.full((3,), 0.8))


def test_a_folder_with_heads_and_a_way_ahead_holds_both(tmp_path):
    RewardModel(dim=8, latent_size=4, num_flags=2).save(tmp_path)
    assert isinstance(load_reward(tmp_path), LearnedReward)
    TargetModel(dim=8, latent_size=4, num_outputs=12).save(tmp_path)
    both = load_reward(tmp_path, pessimism=0.5)
    assert isinstance(both, RememberedLane) and isinstance(both.task, LearnedReward) and both.task.pessimism == 0.5
