"""Plans made in imagination for another world: from what it showed, after what was done, along what is left."""

from __future__ import annotations

from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest

from astra_env.actions import ACTION_MODALITIES
from astra_env.geometry import axis_angle_to_matrix, make_pose
from astra_env.models import WorldModel
from policies.agents import load_policy
from policies.evaluate import evaluate
from policies.replanning import ReplanningPolicy, path_ahead
from policies.worlds import LastInfo

SMALL = {"horizon": 2, "num_samples": 8, "num_iterations": 1}


class Strip(gym.Env):
    """A world of grey frames: each is one brighter than the one before, and ``info`` tells what it was made to."""

    def __init__(self, modality: str, told: dict[str, object] | None = None, *, discrete: int = 0) -> None:
        self.action_space = gym.spaces.Discrete(discrete) if discrete else ACTION_MODALITIES[modality].space()
        self.observation_space = gym.spaces.Box(0, 255, (32, 32, 3), np.uint8)
        self.told, self.done = told or {}, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.done = []
        return self._show(1)

    def step(self, action):
        assert self.action_space.contains(action)
        self.done.append(action)
        observation, info = self._show(4)
        return observation, 0.0, False, len(self.done) >= 7, info

    def _show(self, count):
        shades = 4 * len(self.done) + 1 - np.arange(count)[::-1]
        frames = np.broadcast_to(shades[:, None, None, None].astype(np.uint8), (count, 32, 32, 3))
        return frames[-1], {"frames": frames, "success": False, **self.told}


def watched(env):
    """The environment, and the list of options that it is reset with."""
    seen, reset = [], env.reset

    def remember(**given):
        seen.append(given["options"])
        return reset(**given)

    env.reset = remember
    return env, seen


def test_plans_begin_from_the_newest_frames_and_the_actions_between_them(make):
    world = LastInfo(Strip("end_effector"))
    env, seen = watched(make(observation="latent"))
    evaluate(world, ReplanningPolicy(env, world, **SMALL), episodes=1)
    done = world.unwrapped.done
    assert [len(begin["frames"]) for begin in seen] == [1, 5, 9, 13, 17, 17, 17]
    for step, begin in enumerate(seen):
        shades = begin["frames"][:, 0, 0, 0]
        assert shades[-1] == 4 * step + 1 and (np.diff(shades.astype(int)) == 1).all()
        if step == 0:
            assert "actions" not in begin
        else:
            np.testing.assert_array_equal(begin["actions"], np.stack(done[max(0, step - 4) : step]))
            assert len(begin["frames"]) == 4 * len(begin["actions"]) + 1


def test_an_episode_is_planned_as_if_there_had_been_none_before(make):
    world = LastInfo(Strip("end_effector"))
    policy = ReplanningPolicy(make(observation="latent"), world, **SMALL)
    evaluate(world, policy, episodes=1, seed=3)
    first = np.stack(world.unwrapped.done)
    evaluate(world, policy, episodes=2, seed=3)
    assert (np.stack(world.unwrapped.done) != first).any()  # the seed of the second one is another
    evaluate(world, policy, episodes=1, seed=3)
    np.testing.assert_array_equal(np.stack(world.unwrapped.done), first)


def test_the_world_tells_the_speed_and_the_user_the_goal(make):
    goal = np.full((32, 32, 3), 200, np.uint8)
    world = LastInfo(Strip("vehicle", {"speed": 7.5}))
    env, seen = watched(make(id="Astra-NuScenes-v0", observation="latent"))
    evaluate(world, ReplanningPolicy(env, world, goal=goal, **SMALL), episodes=1)
    assert all(begin["speed"] == 7.5 and begin["goal"] is goal for begin in seen)


def test_keys_are_planned_too(make):
    env = make(id="Astra-SpatialVID-v0", observation="latent")
    world = LastInfo(Strip("camera", discrete=int(env.action_space.n)))
    evaluate(world, ReplanningPolicy(env, world, **SMALL), episodes=1)
    assert len(world.unwrapped.done) == 7


def test_a_path_is_followed_from_where_one_is():
    """Its poses may be in any axes; past its end, the end stays."""
    path = np.stack([make_pose(np.eye(3), (x, 0.0, 0.0)) for x in range(4)])
    pose = make_pose(axis_angle_to_matrix([0.0, 0.1, 0.0]), (1.2, 0.3, 0.0))
    np.testing.assert_array_equal(path_ahead(path, pose, 1), np.stack([pose, path[2], path[3]]))
    for num_steps in (2, 3, 9):
        np.testing.assert_array_equal(path_ahead(path, pose, num_steps), np.stack([pose, path[3]]))


def test_plans_follow_the_path_of_the_world(make):
    path = np.stack([make_pose(np.eye(3), (0.1 * x, 0.0, 2.0)) for x in range(5)])
    world = LastInfo(Strip("camera", {"path": path, "pose": path[0]}))
    env, seen = watched(make(id="Astra-MultiCam-v0", observation="latent"))
    evaluate(world, ReplanningPolicy(env, world, **SMALL), episodes=1)
    assert [len(begin["path"]) for begin in seen] == [5, 4, 3, 2, 2, 2, 2]
    for earlier, later in pairwise(seen):
        np.testing.assert_array_equal(earlier["path"][-1], later["path"][-1])
    followed = env.unwrapped.path
    np.testing.assert_allclose(followed[-1, :3, 3], (0.4, 0.0, 0.0), atol=1e-9)  # seen from the start of the plan


def test_it_is_a_policy_by_name(checkpoint):
    world = LastInfo(Strip("end_effector"))
    policy = load_policy("mpc", "Astra-RT1-v0", world, world_model=checkpoint)
    assert isinstance(policy, ReplanningPolicy)
    assert policy.imagined.unwrapped.world_model.frame_size == (32, 32)
    with pytest.raises(ValueError, match="optimizer is 'magic'"):
        ReplanningPolicy(policy.imagined, world, optimizer="magic")


def test_its_options_stand_after_its_name(checkpoint, monkeypatch):
    world = LastInfo(Strip("end_effector"))
    imagined, step = [], WorldModel.step

    def watched(self, state, *args, **kwargs):
        imagined.append((len(state), len(state.seeds.unique())))
        return step(self, state, *args, **kwargs)

    monkeypatch.setattr(WorldModel, "step", watched)
    name = "mpc:futures=3,num_samples=4,horizon=1,num_iterations=1,optimizer=random_shooting"
    evaluate(world, load_policy(name, "Astra-RT1-v0", world, world_model=checkpoint), episodes=1)
    assert imagined == [(12, 3)] * 7
    with pytest.raises(ValueError, match=r"policy is 'mpc:magic=1', expected options of MPCPolicy \(.*'magic'"):
        load_policy("mpc:magic=1", "Astra-RT1-v0", world, world_model=checkpoint)
    with pytest.raises(ValueError, match="'futures' has no value, expected NAME=VALUE"):
        load_policy("mpc:futures", "Astra-RT1-v0", world, world_model=checkpoint)
