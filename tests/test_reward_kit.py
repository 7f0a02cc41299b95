"""The kit of rewards: what each is worth where, its terms, its ends, its gradients; alone and in sums."""

from __future__ import annotations

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch
from tiny import MODALITY, random_actions, random_frames, tiny_world_model

from astra_env.envs.reward_kit import (
    LaneKeeping,
    LearnedReward,
    PerceptualGoal,
    PoseGoal,
    WeightedSum,
    colours,
    from_function,
)
from astra_env.envs.rewards import GoalReward, Reward, joined
from astra_env.geometry import axis_angle_to_matrix, make_pose
from astra_env.models import WorldState
from astra_env.models.reward_model import RewardModel

B = 3


@pytest.fixture(scope="module")
def world_model():
    return tiny_world_model()


@pytest.fixture(scope="module")
def state(world_model) -> WorldState:
    return world_model.init_state(random_frames(B, 5), MODALITY)


def head(seed: int, num_flags: int = 1, *, reads_speed: bool = False) -> RewardModel:
    torch.manual_seed(seed)
    return RewardModel(dim=8, latent_size=4, num_flags=num_flags, reads_speed=reads_speed)


def saying(*probabilities: float) -> RewardModel:
    """A head that says the same of all latents: reward, success and, of two flags, failure."""
    model = head(0, len(probabilities) - 1)
    model.features[-1].weight.data.zero_()
    model.features[-1].bias.data = torch.tensor(probabilities).logit()
    return model


def at(state: WorldState, poses: np.ndarray, speeds: list[float] | None = None) -> WorldState:
    """Worlds that have come to poses (B, 4, 4) at so many m/s."""
    told = torch.tensor(speeds or [0.0] * len(poses), dtype=torch.float64)
    return dataclasses.replace(state, poses=torch.from_numpy(poses), speeds=told)


def flat(x: float, y: float, yaw: float = 0.0) -> np.ndarray:
    """A car's pose on the ground."""
    return make_pose(axis_angle_to_matrix([0.0, 0.0, yaw]), (x, y, 0.0))


# Learned


def test_one_head_is_the_task_and_several_are_their_mean(state):
    heads = [head(seed) for seed in range(3)]
    alone, together = LearnedReward(heads[:1])(state), LearnedReward(heads)(state)
    assert torch.equal(alone.value, heads[0](state.newest)[0])
    assert alone.terms["reward_spread"].tolist() == [0.0] * B
    values = torch.stack([entry(state.newest)[0] for entry in heads])
    torch.testing.assert_close(together.value, values.mean(0))
    torch.testing.assert_close(together.terms["reward_spread"], values.std(0, correction=0))
    cautious = LearnedReward(heads, pessimism=2.0)(state).value
    torch.testing.assert_close(cautious, values.mean(0) - 2 * values.std(0, correction=0))
    assert (LearnedReward(heads, pessimism=1e3)(state).value == 0).all()


def test_a_learned_failure_is_worth_nothing(state):
    model = head(0, num_flags=2)
    model.features[-1].bias.data[1:] = torch.tensor([50.0, 50.0])
    reward = LearnedReward([model])(state)
    assert reward.value.tolist() == [0.0] * B and reward.done.all() and not reward.success.any()


@pytest.mark.parametrize(
    ("success", "failure", "pessimism", "solved", "failed"),
    [
        ((0.9, 0.3), (0.1, 0.1), 0.0, True, False),  # the mean is 0.6
        ((0.9, 0.3), (0.1, 0.1), 1.0, False, False),  # less 0.3
        ((0.6, 0.6), (0.1, 0.1), 1.0, True, False),  # where heads agree, nothing is taken off
        ((0.1, 0.1), (0.2, 0.6), 0.0, False, False),  # the mean is 0.4
        ((0.1, 0.1), (0.2, 0.6), 1.0, False, True),  # and 0.2
        ((0.9, 0.9), (0.2, 0.6), 1.0, False, True),  # who may have failed has not solved it
    ],
)
def test_doubt_counts_against_success_and_for_failure(state, success, failure, pessimism, solved, failed):
    heads = [saying(0.5, *flags) for flags in zip(success, failure, strict=True)]
    reward = LearnedReward(heads, pessimism=pessimism)(state)
    assert reward.success.tolist() == [solved] * B and reward.done.tolist() == [solved or failed] * B
    torch.testing.assert_close(reward.value, torch.full((B,), 0.0 if failed else 0.5))
    torch.testing.assert_close(reward.terms["success_probability"], torch.full((B,), sum(success) / 2))
    torch.testing.assert_close(reward.terms["failure_probability"], torch.full((B,), sum(failure) / 2))


def test_what_ends_nothing_still_tells_success(state):
    heads = [saying(0.5, 0.9)]
    reward = LearnedReward(heads, ends=False)(state)
    assert reward.success.all() and not reward.done.any() and LearnedReward(heads)(state).done.all()


def test_heads_may_read_the_speed_of_the_worlds(state):
    worlds = at(state, np.stack([np.eye(4)] * B), [0.0, 10.0, 20.0])
    model, function = head(0, reads_speed=True), LearnedReward([head(0, reads_speed=True)])
    torch.testing.assert_close(function(worlds).value, model(worlds.newest, worlds.speeds)[0])
    assert (function(worlds).value != function(state).value).sum() == 2


def test_one_head_has_gradients_though_it_has_no_spread(state):
    latents = state.newest.clone().requires_grad_(True)
    worlds = dataclasses.replace(state, latents=torch.cat([state.latents[:, :, :-1], latents[:, :, None]], 2))
    for pessimism in (0.0, 1.0):
        (gradient,) = torch.autograd.grad(LearnedReward([head(0)], pessimism=pessimism)(worlds).value.sum(), latents)
        assert gradient.isfinite().all() and (gradient.flatten(1).abs().sum(1) > 0).all()


def test_heads_are_read_as_they_were_written(tmp_path, state):
    for index in range(2):
        folder = tmp_path / f"head_{index}" if index else tmp_path
        folder.mkdir(exist_ok=True)
        head(index).save(folder)
    assert torch.equal(LearnedReward.load(tmp_path)(state).value, LearnedReward([head(0), head(1)])(state).value)
    with pytest.raises(ValueError, match="the same flags"):
        LearnedReward([head(0), head(0, num_flags=2)])


# Goal pictures


def test_a_picture_is_nearest_to_itself(world_model):
    """Worlds that show the goal, a shifted copy of it and something else."""
    goal = random_frames(1, 1, seed=1)
    other = random_frames(1, 1, seed=2)
    frames = torch.cat([goal, (goal.float() * 0.7 + other.float() * 0.3).byte(), other]).expand(-1, 9, -1, -1, -1)
    state = world_model.init_state(frames, MODALITY)
    reward = PerceptualGoal(world_model, goal[0, 0].numpy())(state)
    near, between, far = reward.terms["perceptual_distance"].tolist()
    assert near < between < far
    torch.testing.assert_close(reward.value, -reward.terms["perceptual_distance"])
    assert not reward.done.any()
    reached = PerceptualGoal(world_model, goal[0, 0].numpy(), reached=(near + between) / 2)(state)
    assert reached.done.tolist() == [True, False, False]


def test_the_picture_is_what_the_world_shows(world_model):
    """Of a world that is older than what the decoder remembers, and of a young one beside it."""
    old = world_model.init_state(random_frames(1, 25), MODALITY)
    young = world_model.init_state(random_frames(1, 1), MODALITY)
    function = PerceptualGoal(world_model, random_frames(1, 1, seed=3)[0, 0].numpy())
    together = function(WorldState.cat([old, young])).value
    torch.testing.assert_close(together, torch.cat([function(old).value, function(young).value]))
    pixels = world_model.decode(old)[1][:, -1].movedim(-1, 1).float() / 127.5 - 1
    shown = [(a - b).abs().mean() for a, b in zip(colours(pixels), function.goal, strict=True)]
    assert together[0].item() == pytest.approx(-torch.stack(shown).mean().item(), abs=2e-3)


def test_an_image_network_serves_as_well(world_model, state):
    pytest.importorskip("efficientnet_lite_pytorch")
    from astra_env.models.image_network import ImageNetwork

    goal = random_frames(B, 5)[0, -1].numpy()
    reward = PerceptualGoal(world_model, goal, features=ImageNetwork())(state)
    assert reward.value.shape == (B,) and (reward.value < 0).all() and reward.value.std() > 0


def test_a_picture_of_another_size_is_refused(world_model):
    with pytest.raises(ValueError, match=r"expected uint8 \(32, 32, 3\)"):
        PerceptualGoal(world_model, np.zeros((64, 64, 3), np.uint8))


# Geometry


def test_a_pose_is_worth_what_is_left_to_it(state):
    goal = make_pose(axis_angle_to_matrix([0.0, 0.2, 0.0]), (0.1, 0.0, 0.3))
    near = make_pose(axis_angle_to_matrix([0.0, 0.3, 0.0]), (0.1, 0.0, 0.3))
    poses = np.stack([goal, goal @ make_pose(np.eye(3), (0.0, 0.3, 0.4)), near])
    reward = PoseGoal(goal, metres=0.5, radians=1.0, reached=(0.05, 0.2))(at(state, poses))
    np.testing.assert_allclose(reward.terms["pose_distance"], [0, 0.5, 0], atol=1e-5)
    np.testing.assert_allclose(reward.terms["pose_angle"], [0, 0, 0.1], atol=1e-5)
    np.testing.assert_allclose(reward.value, 1 - np.tanh([0, 1.0, 0.1]), atol=1e-5)
    assert reward.done.tolist() == [True, False, True]
    place_alone = PoseGoal(goal, radians=None)(at(state, poses))
    assert place_alone.value[2].item() == pytest.approx(1, abs=1e-4) and place_alone.done[2]


def test_worlds_may_have_a_pose_each(state):
    poses = np.stack([flat(x, 0.0) for x in range(B)])
    assert PoseGoal(poses)(at(state, poses)).done.all()
    assert PoseGoal(poses[1])(at(state, poses)).done.tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"expected \(4, 4\)"):
        PoseGoal(np.eye(3))


LANE = np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 10.0]])


def test_a_lane_pays_for_speed_along_its_middle(state):
    poses = np.stack([flat(4, 0), flat(4, 1), flat(10, 5, np.pi / 2)])
    reward = LaneKeeping(LANE, half_width=2.0, speed=10.0)(at(state, poses, [5.0, 5.0, 20.0]))
    np.testing.assert_allclose(reward.terms["lane_distance"], [0, 1, 0], atol=1e-5)
    np.testing.assert_allclose(reward.terms["lane_progress"], [0.2, 0.2, 0.75], atol=1e-6)
    np.testing.assert_allclose(reward.value, [0.5, 0.5 * 0.75, 1.0], atol=1e-5)
    assert not reward.done.any()


def test_across_and_backwards_is_no_way_along_a_lane(state):
    poses = np.stack([flat(4, 0, np.pi / 2), flat(4, 0, np.pi), flat(4, 0, 0.5)])
    reward = LaneKeeping(LANE, speed=10.0)(at(state, poses, [5.0] * B))
    np.testing.assert_allclose(reward.value, [0.0, -0.5, 0.5 * np.cos(0.5)], atol=1e-5)


def test_a_lane_ends_in_success_and_beside_it_in_failure(state):
    poses = np.stack([flat(10, 10.5, np.pi / 2), flat(4, 2.5), flat(12.5, 10.5)])
    reward = LaneKeeping(LANE, half_width=2.0)(at(state, poses, [5.0] * B))
    assert reward.done.all() and reward.success.tolist() == [True, False, False]
    assert reward.value[1:].tolist() == [0.0, 0.0]


def test_a_lane_of_poses_is_that_of_its_places(state):
    worlds = at(state, np.stack([flat(3, 0.5, 0.1)] * B), [4.0] * B)
    poses = np.stack([flat(x, y) for x, y in LANE])
    assert torch.equal(LaneKeeping(poses)(worlds).value, LaneKeeping(LANE)(worlds).value)
    for wrong in (LANE[:1], LANE[[0, 0, 1]]):
        with pytest.raises(ValueError, match="each different from the one before"):
            LaneKeeping(wrong)


# Sums, functions, gradients


def test_a_sum_weighs_and_names_its_parts(state):
    parts = {"still": (0.5, PoseGoal(np.eye(4))), "task": (2.0, LearnedReward([head(0)]))}
    reward, values = WeightedSum(parts)(state), [function(state).value for _, function in parts.values()]
    torch.testing.assert_close(reward.value, 0.5 * values[0] + 2 * values[1])
    assert torch.equal(reward.terms["task"], values[1])
    assert {"still", "still/pose_distance", "task/success_probability"} <= reward.terms.keys()
    with pytest.raises(ValueError, match="nothing to sum"):
        WeightedSum({})


def test_any_part_ends_a_sum_and_a_failure_is_no_success(state):
    lane = LaneKeeping(LANE, half_width=2.0)
    worlds = at(state, np.stack([np.eye(4), flat(1, 0), flat(0.0, 3.0)]), [1.0] * B)
    reward = WeightedSum({"goal": (1.0, PoseGoal(np.eye(4))), "lane": (1.0, lane)})(worlds)
    assert reward.done.tolist() == [True, False, True] and reward.success.tolist() == [True, False, False]
    both = WeightedSum({"goal": (1.0, PoseGoal(flat(0.0, 3.0))), "lane": (1.0, lane)})(worlds)
    assert both.done[2] and not both.success[2]


def test_the_users_function_is_a_reward_and_a_wrong_one_is_told(state):
    reward = from_function(lambda worlds: worlds.newest.mean((1, 2, 3)), "brightness")(state)
    assert torch.equal(reward.terms["brightness"], reward.value) and not reward.done.any()
    with pytest.raises(ValueError, match=r"returned \(\), expected a tensor \(3,\)"):
        from_function(lambda worlds: worlds.newest.mean())(state)


def all_of_them(world_model, state):
    return {
        "learned": LearnedReward([head(0), head(1)], pessimism=0.5),
        "picture": PerceptualGoal(world_model, random_frames(1, 1, seed=1)[0, 0].numpy()),
        "pose": PoseGoal(flat(0.3, 0.1, 0.2)),
        "sum": WeightedSum({"a": (1.0, PoseGoal(flat(0.3, 0.1))), "b": (2.0, GoalReward(state.newest[0]))}),
        "lane": LaneKeeping(LANE),
    }


def test_a_batch_is_worth_what_its_rows_are(world_model, state):
    worlds = at(state, np.stack([flat(0.1 * row, 0.2, 0.1 * row) for row in range(B)]), [1.0, 2.0, 3.0])
    for function in all_of_them(world_model, state).values():
        alone = torch.cat([function(worlds[row]).value for row in range(B)])
        torch.testing.assert_close(function(worlds).value, alone)


def test_planners_can_follow_the_gradients(world_model, state):
    for name, function in all_of_them(world_model, state).items():
        if name == "lane":
            continue  # an arm has no speed
        actions = random_actions(B, 2).requires_grad_(True)
        function(world_model.imagine(state, actions)).value.sum().backward()
        assert actions.grad.isfinite().all() and (actions.grad.abs().sum(-1) > 0).all(), name
    poses = torch.from_numpy(np.stack([flat(3, 0), flat(3, 0.5), flat(9, 1)])).requires_grad_(True)
    speeds = torch.ones(B, dtype=torch.float64).requires_grad_(True)
    LaneKeeping(LANE)(dataclasses.replace(state, poses=poses, speeds=speeds)).value.sum().backward()
    assert poses.grad.isfinite().all() and (speeds.grad > 0).all()


def test_rows_with_different_rewards_keep_their_terms(state):
    functions = [PoseGoal(np.eye(4)), LearnedReward([head(0)]), LaneKeeping(LANE)]
    reward = joined(functions)(state)
    for row, function in enumerate(functions):
        alone = function(state[row])
        torch.testing.assert_close(reward.value[row], alone.value[0].float())
        for name, value in alone.terms.items():
            torch.testing.assert_close(reward.terms[name][row], value[0], check_dtype=False)
    assert reward.terms["pose_distance"][1:].isnan().all()


def test_environments_take_them_and_tell_the_terms(make, checkpoint):
    function = WeightedSum({"near": (1.0, PoseGoal(flat(0.1, 0.0))), "user": (0.1, from_function(lambda s: s.speeds))})
    env = make(reward=function, observation="latent")
    env.reset(seed=0)
    _, reward, _, _, info = env.step(env.action_space.sample())
    assert reward == pytest.approx(info["reward_terms"]["near"], abs=1e-6)
    worlds = gym.make_vec(
        "Astra-RT1-v0",
        num_envs=2,
        vectorization_mode="vector_entry_point",
        world_model=checkpoint,
        device="cpu",
        reward=function,
        observation="latent",
    )
    worlds.reset(seed=0)
    _, rewards, _, _, info = worlds.step(worlds.action_space.sample())
    np.testing.assert_allclose(rewards, info["reward_terms"]["near"], atol=1e-6)
    assert isinstance(function(env.unwrapped.save_state()), Reward)
