from __future__ import annotations

import pytest
import torch

from policies.optimizers import cem, random_shooting

HORIZON, ACTION_DIM = 4, 3
LOW, HIGH = -torch.ones(ACTION_DIM), torch.ones(ACTION_DIM)
TARGET = torch.tensor([[0.5, -0.25, 0.9]]).expand(HORIZON, ACTION_DIM)


def closeness(actions):
    return -((actions - TARGET) ** 2).sum((1, 2))


def run_cem(objective=closeness, seed=0, **options):
    options = {"num_samples": 64, "num_iterations": 12, "num_elites": 8} | options
    mean, std = torch.zeros(HORIZON, ACTION_DIM), torch.full((HORIZON, ACTION_DIM), 0.5)
    return cem(objective, mean, std, LOW, HIGH, generator=torch.Generator().manual_seed(seed), **options)


def test_cem_finds_the_maximum_and_narrows():
    plan = run_cem()
    torch.testing.assert_close(plan.actions, TARGET, atol=0.1, rtol=0)
    assert plan.std.max() < 0.1
    assert plan.history.shape == (12, 2)
    assert plan.history[-1, 1] > plan.history[0, 1]
    assert plan.value == closeness(plan.actions[None])[0]


def test_cem_beats_random_shooting_at_equal_cost():
    budget = {"num_samples": 64, "num_iterations": 12, "generator": torch.Generator().manual_seed(0)}
    shot = random_shooting(closeness, LOW, HIGH, horizon=HORIZON, **budget)
    assert shot.value == closeness(shot.actions[None])[0]
    assert run_cem().value > shot.value


def test_an_optimum_outside_the_bounds_is_approached_at_the_bound():
    plan = run_cem(lambda actions: actions.sum((1, 2)), num_samples=256, num_elites=32)
    assert (plan.actions <= HIGH).all()
    torch.testing.assert_close(plan.actions, HIGH.expand(HORIZON, -1), atol=0.05, rtol=0)


def test_the_seed_decides_the_plan():
    assert torch.equal(run_cem(seed=3).actions, run_cem(seed=3).actions)
    assert not torch.equal(run_cem(seed=3).actions, run_cem(seed=4).actions)


def test_the_initial_mean_is_a_candidate_and_nan_never_wins():
    def only_zero_is_defined(actions):
        values = torch.full((len(actions),), torch.nan)
        values[(actions == 0).all((1, 2))] = 1.0
        return values

    plan = run_cem(only_zero_is_defined, num_iterations=1)
    assert (plan.actions == 0).all() and plan.value == 1


def test_momentum_keeps_part_of_the_old_mean():
    assert run_cem(num_iterations=1, momentum=0.9).mean.norm() < run_cem(num_iterations=1).mean.norm()


@pytest.mark.parametrize("num_elites", [1, 65])
def test_num_elites_is_checked(num_elites):
    with pytest.raises(ValueError, match="num_elites must be between 2 and num_samples = 64"):
        run_cem(num_elites=num_elites)


def test_an_objective_of_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"returned \(64, 4\), expected \(64,\)"):
        run_cem(lambda actions: actions.sum(2))
