"""Lifting counts where a gripper can have grasped something, whatever pictures look like."""

from __future__ import annotations

import gymnasium
import pytest
import torch
from tiny import random_frames, save_checkpoint, tiny_world_model

from astra_env.envs.lifting import ABOVE, AROUND, OPEN, RISEN, Lift
from astra_env.envs.rewards import Reward, joined
from astra_env.envs.target_kit import RememberedLift, RememberedPlace, load_reward
from astra_env.models.target_model import TargetModel

CUBE = torch.tensor([0.02, 0.0, -0.08], dtype=torch.float64)
"""Metres from where the gripper is at the beginning."""
DOWN, UP, STAY = (0.01, 0.0, -0.04), (0.0, 0.0, 1.1 * RISEN), (0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def world_model():
    return tiny_world_model()


def seems_lifted(state):
    """A head that is fooled by every picture."""
    ones = torch.ones(len(state))
    return Reward(0.9 * ones, ones > 0, {"task_reward": 0.9 * ones})


def seems_to_lie(state):
    """One that sees nothing lifted."""
    ones = torch.ones(len(state))
    return Reward(0.3 * ones, ones < 0, {"task_reward": 0.3 * ones})


def led(world_model, *steps, worlds=1):
    """Worlds in which these steps were done, of metres (3,) and what the gripper is told."""
    state = world_model.init_state(random_frames(worlds, 5), "end_effector")
    for metres, gripper in steps:
        action = torch.tensor([*metres, 0.0, 0.0, 0.0, gripper]).expand(worlds, 7)
        state = world_model.step(state, action)
    return state


GRASP = [(DOWN, 0.0), (DOWN, 0.0), (STAY, 1.0)]


@pytest.mark.parametrize(
    ("steps", "held", "lifted"),
    [
        (GRASP, True, False),
        ([*GRASP, (UP, 1.0)], True, True),
        ([*GRASP, (UP, 1.0), (UP, 1.0)], True, True),
        ([*GRASP, ((0.0, 0.0, 0.9 * RISEN), 1.0)], True, False),  # not yet
        ([(DOWN, 0.0), (DOWN, 0.0), (UP, 0.0)], False, False),  # never closed
        ([(DOWN, 1.0), (DOWN, 1.0), (STAY, 1.0), (UP, 1.0)], False, False),  # never open
        ([*GRASP, (UP, 1.0), (STAY, 0.0), (STAY, 1.0)], False, False),  # dropped
        ([(STAY, 0.0), (STAY, 1.0), (UP, 1.0)], False, False),  # of air
        ([(DOWN, 0.0), ((0.05, 0.0, -0.04), 0.0), (STAY, 1.0), (UP, 1.0)], False, False),  # beside it
    ],
)
def test_what_was_grasped_can_be_lifted_and_nothing_else(world_model, steps, held, lifted):
    state = led(world_model, *steps)
    reward = Lift(CUBE, seems_lifted)(state)
    assert bool(reward.terms["held"]) == held
    assert bool(reward.done) == bool(reward.success) == lifted
    if held:
        assert float(reward.value) == pytest.approx(0.9 if lifted else 0.8)
    else:
        assert float(reward.value) < 0.6


def test_pictures_have_to_show_it_too(world_model):
    reward = Lift(CUBE, seems_to_lie)(led(world_model, *GRASP, (UP, 1.0)))
    assert not reward.done and not reward.success and reward.value == pytest.approx(0.3)
    assert {"task_reward", "target_distance", "held"} == reward.terms.keys()


def test_an_episode_may_begin_with_a_grasp(world_model):
    """What is between closed fingers then, and stays there, can be lifted; what is beside them cannot."""
    state = led(world_model, (UP, 1.0))
    near, far = (torch.tensor([0.0, share * AROUND, 0.0], dtype=torch.float64) for share in (0.9, 1.1))
    assert Lift(near, seems_lifted)(state).success and not Lift(far, seems_lifted)(state).success
    assert not Lift(near, seems_lifted)(led(world_model, (UP, 0.0))).success


def test_the_way_leads_from_above_with_an_open_gripper(world_model):
    def value(metres, gripper):
        return float(Lift(CUBE, seems_lifted)(led(world_model, (STAY, gripper), (metres, gripper))).value)

    over, beside = (0.02, 0.05, ABOVE - 0.08), (0.02, 0.05, -0.08)
    assert value(over, 0.0) > value(beside, 0.0) > value(beside, 2 * OPEN)
    nearer = [value((0.02, 0.0, height - 0.08), 0.0) for height in (ABOVE, ABOVE / 2, 0.0)]
    assert nearer == sorted(nearer) and nearer[-1] == pytest.approx(0.6, abs=1e-4)


def test_rows_are_joined(world_model):
    state = led(world_model, *GRASP, worlds=3)
    rows = [Lift(CUBE + torch.tensor([x, 0.0, 0.0]), seems_to_lie) for x in (0.0, 0.02, 0.1)]
    together = joined(rows)
    assert isinstance(together, Lift)
    expected = torch.cat([row(state[index]).value for index, row in enumerate(rows)])
    torch.testing.assert_close(together(state).value, expected)
    assert not isinstance(joined([rows[0], Lift(CUBE, seems_lifted)]), Lift)


def test_a_target_beside_heads_is_to_be_lifted(tmp_path):
    folder = save_checkpoint(tmp_path, domains=["robot"]) / "domains" / "robot"
    TargetModel(dim=8, latent_size=4, num_outputs=6).save(folder)
    reward = load_reward(folder)
    assert isinstance(reward, RememberedLift) and isinstance(reward, RememberedPlace)
    env = gymnasium.make("Astra-RT1-v0", world_model=str(tmp_path), device="cpu", observation="latent")
    env.reset(seed=0)
    told = env.step(env.action_space.sample())[4]["reward_terms"]
    assert {"task_reward", "success_probability", "target_distance", "held"} <= told.keys()
