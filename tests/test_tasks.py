"""Tasks that a simulator is judged by: their rewards, the recordings that they relabel, the range that is explored."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from astra_env.actions import ACTION_MODALITIES
from astra_env.envs import ENVIRONMENTS
from astra_env.geometry import make_pose
from astra_env.simulators import REACHED, TASKS, Judged, reach
from astra_env.simulators.robot_behaviours import reach_behaviour
from policies.train import RECIPES, acting_space
from policies.worlds import Ending

REACH = "Astra-RT1-Reach-v0"


class Gripper(gymnasium.Env):
    """It is where actions have led it; the cube lies still."""

    action_space = ACTION_MODALITIES["end_effector"].space()
    observation_space = Box(0, 255, (1,), np.uint8)

    def reset(self, *, seed=None, options=None):
        self.place = np.array([0.5, 0.0, 0.1])
        return self._told()

    def step(self, action):
        self.place = self.place + action[:3]
        observation, info = self._told()
        return observation, 0.0, False, False, info

    def _told(self):
        pose = make_pose(np.diag([1.0, -1.0, -1.0]), self.place)
        info = {"pose": pose, "objects": np.array([[0.6, 0.05, 0.0], [0.0, 0.0, 0.0]]), "success": False}
        return np.zeros(1, np.uint8), info


def test_reach_is_told_of_one_moment_and_of_many():
    poses = np.stack([make_pose(np.eye(3), (0.1 * step, 0.0, 0.0)) for step in range(3)])
    objects = np.zeros((3, 2, 3)) + np.array([[0.2, 0.0, 0.0], [0.0, 0.0, 0.0]])
    rewards, success = reach({"pose": poses, "objects": objects})
    np.testing.assert_allclose(rewards, 1 - np.tanh([1.6, 0.8, 0.0]))
    assert success.tolist() == [False, False, True]
    alone = reach({"pose": poses[1], "objects": objects[1]})
    assert float(alone[0]) == rewards[1] and not alone[1]


def test_the_expert_reaches_the_cube_and_the_episode_goes_on_to_its_end():
    world = Ending(Judged(Gripper(), TASKS[REACH]), REACH, num_steps=12)
    _, info = world.reset(seed=0)
    assert info["success"] is False
    rewards, over = [], False
    while not over:
        action = ACTION_MODALITIES["end_effector"].validate(reach_behaviour(info), clip=True)
        _, reward, terminated, over, info = world.step(action)
        rewards.append(reward)
        assert not terminated
    assert len(rewards) == 12 and info["success"] and rewards[-1] > 1 - np.tanh(8 * REACHED) and rewards[0] < 0.5


def test_an_id_that_dwells_is_a_row_of_its_own():
    spec = ENVIRONMENTS[REACH]
    assert spec.dwells and spec.task == "reach" and spec.domain == ENVIRONMENTS["Astra-RT1-v0"].domain


@pytest.mark.parametrize("environment", [name for name, recipe in RECIPES.items() if recipe.limits])
def test_what_is_explored_lies_within_the_bounds_and_rest_within_that(environment):
    space = ACTION_MODALITIES[ENVIRONMENTS[environment].modality].space()
    acting = acting_space(space, RECIPES[environment].limits)
    assert (acting.low >= space.low).all() and (acting.high <= space.high).all() and acting != space
    assert acting.contains(np.zeros(space.shape, np.float32))
    assert acting_space(space, None) is space
