"""Lifting counts where a gripper can have grasped something, whatever pictures look like."""

from __future__ import annotations

import dataclasses

import gymnasium
import pytest
import torch
from tiny import random_frames, save_checkpoint, tiny_world_model

from astra_env.envs.lifting import ABOVE, AROUND, OPEN, PUSHED, RISEN, Lift
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


def as_it_lay(state):
    """Pictures that show the gripper where it was led, and the cube where it lay."""
    gripper = state.poses[:, :3, 3]
    return torch.stack([CUBE - gripper, gripper], dim=1)


def lift(task, cube=CUBE, points=as_it_lay, **options):
    return Lift(cube, points, task, **options)


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
        ([(DOWN, 0.4), (DOWN, 0.4), (STAY, 0.6), (UP, 0.6)], True, True),  # a thing fits between half-open fingers
        ([(DOWN, 1.0), (DOWN, 1.0), (STAY, 1.0), (UP, 1.0)], False, False),  # never open
        ([*GRASP, (UP, 1.0), (STAY, 0.0), (STAY, 1.0)], False, False),  # dropped
        ([(STAY, 0.0), (STAY, 1.0), (UP, 1.0)], False, False),  # of air
        ([(DOWN, 0.0), ((0.05, 0.0, -0.04), 0.0), (STAY, 1.0), (UP, 1.0)], False, False),  # beside it
    ],
)
def test_what_was_grasped_can_be_lifted_and_nothing_else(world_model, steps, held, lifted):
    state = led(world_model, *steps)
    reward = lift(seems_lifted)(state)
    assert bool(reward.terms["held"]) == held
    assert bool(reward.done) == bool(reward.success) == lifted
    if held:
        assert float(reward.value) == pytest.approx(0.9 if lifted else 0.8)
    else:
        assert float(reward.value) < 0.6


def test_pictures_have_to_show_it_too(world_model):
    reward = lift(seems_to_lie)(led(world_model, *GRASP, (UP, 1.0)))
    assert not reward.done and not reward.success and reward.value == pytest.approx(0.3)
    assert {"task_reward", "target_distance", "held"} == reward.terms.keys()


def test_an_episode_may_begin_with_a_grasp(world_model):
    """What is between closed fingers then, and stays there, can be lifted; what is beside them cannot."""
    begun = led(world_model, (UP, 1.0))
    for share in (0.9, 1.1):
        cube = torch.tensor([0.0, share * AROUND, 0.0], dtype=torch.float64)

        def between(state, cube=cube):
            return torch.stack([cube.expand(len(state), 3), state.poses[:, :3, 3]], dim=1)

        assert bool(lift(seems_lifted, cube, between)(begun).success) == (share < 1)
        assert not lift(seems_lifted, cube, between)(led(world_model, (UP, 0.0))).success


def test_a_cube_that_was_pushed_is_grasped_where_pictures_show_it(world_model):
    """Before and after the gripper closed; later fingers may hide it, and what is dreamt goes along."""

    def drawn(state):
        """Pictures whose brightness is how far aside the cube lies."""
        aside = state.newest.flatten(1).mean(1).to(state.poses)
        offset = torch.stack([aside, 0 * aside, 0 * aside], dim=1)
        return torch.stack([offset, state.poses[:, :3, 3]], dim=1)

    lay, far = (CUBE + torch.tensor([share * PUSHED, 0.0, 0.0]) for share in (1.5, 3.0))
    state = led(world_model, *GRASP, (UP, 1.0), (STAY, 1.0))
    before, after, *later = range(state.latents.shape[2] - 4, state.latents.shape[2])
    for slots, grasped in (((before, after), True), ((before,), False), ((after,), False), (later, False)):
        latents = torch.full_like(state.latents, 2 * AROUND)
        latents[:, :, list(slots)] = 0.5 * AROUND
        seen = dataclasses.replace(state, latents=latents)
        told = lift(seems_lifted, lay, drawn)(seen)
        assert bool(told.terms["held"]) == bool(told.success) == grasped
        assert not lift(seems_lifted, far, drawn)(seen).success  # a dream carried it along


def test_a_cube_is_grasped_at_the_height_where_it_lay(world_model):
    """However high pictures show it, which show it lifted once it is hidden."""

    def at_hand(state):
        gripper = state.poses[:, :3, 3]
        return torch.stack([torch.zeros_like(gripper), gripper], dim=1)

    steps = [*GRASP, (UP, 1.0)]
    assert lift(seems_lifted, points=at_hand)(led(world_model, *steps)).success
    over = lift(seems_lifted, CUBE - torch.tensor([0.0, 0.0, 1.1 * AROUND]), at_hand)
    assert not over(led(world_model, *steps)).success


def test_the_way_leads_from_above_with_an_open_gripper(world_model):
    def value(metres, gripper):
        return float(lift(seems_lifted)(led(world_model, (STAY, gripper), (metres, gripper))).value)

    over, beside = (0.02, 0.05, ABOVE - 0.08), (0.02, 0.05, -0.08)
    assert value(over, 0.0) > value(beside, 0.0) > value(beside, 2 * OPEN)
    nearer = [value((0.02, 0.0, height - 0.08), 0.0) for height in (ABOVE, ABOVE / 2, 0.0)]
    assert nearer == sorted(nearer) and nearer[-1] == pytest.approx(0.6, abs=1e-4)


def test_unshaped_it_is_the_simulators_reward_wherever_the_gripper_comes_from(world_model):
    for metres in ((0.02, 0.05, ABOVE - 0.08), (0.02, 0.05, -0.08), (0.02, 0.0, -0.08)):
        for gripper in (0.0, 2 * OPEN):
            value = lift(seems_lifted, shaped=False)(led(world_model, (STAY, gripper), (metres, gripper))).value
            distance = (CUBE - torch.tensor(metres, dtype=torch.float64)).norm()
            assert float(value) == pytest.approx(0.6 * (1 - (8 * distance).tanh().item()), abs=1e-3)


def test_rows_are_joined(world_model):
    state = led(world_model, *GRASP, worlds=3)
    rows = [lift(seems_to_lie, CUBE + torch.tensor([x, 0.0, 0.0])) for x in (0.0, 0.02, 0.1)]
    together = joined(rows)
    assert isinstance(together, Lift)
    expected = torch.cat([row(state[index]).value for index, row in enumerate(rows)])
    torch.testing.assert_close(together(state).value, expected)
    others = ({"task": seems_lifted}, {"points": lambda state: as_it_lay(state)}, {"shaped": False}, {"slack": 0.5})
    for other in (lift(**{"task": seems_to_lie, **options}) for options in others):
        assert not isinstance(joined([rows[0], other]), Lift)


def test_a_target_beside_heads_is_to_be_lifted(tmp_path):
    folder = save_checkpoint(tmp_path, domains=["robot"]) / "domains" / "robot"
    TargetModel(dim=8, latent_size=4, num_outputs=6).save(folder)
    reward = load_reward(folder)
    assert isinstance(reward, RememberedLift) and isinstance(reward, RememberedPlace) and reward.shaped
    env = gymnasium.make("Astra-RT1-v0", world_model=str(tmp_path), device="cpu", observation="latent")
    env.reset(seed=0)
    told = env.step(env.action_space.sample())[4]["reward_terms"]
    assert {"task_reward", "success_probability", "target_distance", "held"} <= told.keys()
