from __future__ import annotations

import dataclasses

import pytest
import torch

from policies.optimizers import DISCRETE_OPTIMIZERS, OPTIMIZERS, cem, coloured, gradient_ascent, icem, mppi
from policies.search import Search

HORIZON, ACTION_DIM = 4, 3
LOW, HIGH = torch.tensor([-1.0, -0.5, -2.0]), torch.tensor([1.0, 0.5, 3.0])
TARGET = torch.tensor([[0.5, -0.25, 2.0], [0.2, 0.1, 1.0], [-0.5, 0.3, -1.0], [0.9, 0.0, 0.0]])
HALF = (HIGH - LOW) / 2


def closeness(actions):
    """A quadratic with its maximum, 0, at the target; every field counts as a share of its range."""
    return -(((actions - TARGET) / HALF) ** 2).sum((1, 2))


def search(seed=0, **changes):
    mean, std = ((LOW + HIGH) / 2).repeat(HORIZON, 1), (0.5 * HALF).repeat(HORIZON, 1)
    generator = torch.Generator().manual_seed(seed)
    return Search(mean, std, LOW, HIGH, generator, **{"num_samples": 64, "num_iterations": 20} | changes)


class Watched:
    """An objective that remembers what it was asked."""

    def __init__(self, objective=closeness):
        self.objective, self.asked = objective, []

    def __call__(self, actions):
        self.asked.append(actions.detach().clone())
        return self.objective(actions)


every_optimizer = pytest.mark.parametrize("optimize", OPTIMIZERS.values(), ids=OPTIMIZERS)
informed = pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "random_shooting"])


@informed
def test_a_quadratic_is_solved_better_than_by_random_shooting_at_equal_cost(name):
    plan = OPTIMIZERS[name](closeness, search())
    shot = OPTIMIZERS["random_shooting"](closeness, search())
    assert ((plan.actions - TARGET) / HALF).abs().max() < 0.25
    assert plan.value > 0.1 * shot.value  # both are negative: ten times nearer
    assert plan.history[-1, 1] > plan.history[0, 1]


@every_optimizer
@pytest.mark.parametrize("direction", [1, -1])
def test_bounds_are_kept_where_the_objective_pulls_over_them(optimize, direction):
    watched = Watched(lambda actions: direction * (actions / HALF).sum((1, 2)))
    plan = optimize(watched, search())
    for actions in [*watched.asked, plan.actions, plan.candidates, plan.mean]:
        assert (actions >= LOW).all() and (actions <= HIGH).all()


@every_optimizer
def test_the_seed_decides_the_plan(optimize):
    first, again, other = (optimize(closeness, search(seed)).candidates for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@every_optimizer
def test_what_is_told_was_evaluated_and_comes_best_first(optimize):
    watched = Watched()
    plan = optimize(watched, search(num_kept=5))
    asked = torch.cat(watched.asked)
    torch.testing.assert_close(plan.values, closeness(asked).topk(5).values)
    torch.testing.assert_close(closeness(plan.candidates), plan.values)
    assert torch.equal(plan.actions, plan.candidates[0]) and plan.value == plan.values[0]
    assert plan.history.shape == (20, 2)


@every_optimizer
def test_known_sequences_are_tried_first_and_a_good_one_is_never_lost(optimize):
    watched = Watched()
    plan = optimize(watched, search(num_samples=8, num_iterations=1, known=TARGET[None]))
    torch.testing.assert_close(plan.actions, TARGET)
    assert all(len(asked) == 8 for asked in watched.asked)


@every_optimizer
def test_it_stops_when_told_but_not_before_the_first_round(optimize):
    asked = []

    def one_more(done):
        asked.append(done)
        return done < 3

    assert optimize(closeness, search(keep_going=one_more)).num_iterations == 3
    assert asked == [1, 2, 3]
    assert optimize(closeness, search(keep_going=lambda done: False)).num_iterations == 1


@every_optimizer
def test_nan_never_wins(optimize):
    def half_defined(actions):
        return closeness(actions).where(actions[:, 0, 0] > 0, torch.nan)

    plan = optimize(half_defined, search(num_iterations=5))
    assert plan.actions[0, 0] > 0 and plan.values.isfinite().all()


def test_the_mean_is_a_candidate():
    plan = cem(lambda actions: -(actions - search().mean).abs().sum((1, 2)), search(num_iterations=1))
    assert torch.equal(plan.actions, search().mean)


def test_cem_narrows_and_momentum_keeps_part_of_the_old_mean():
    assert (cem(closeness, search()).std / HALF).max() < 0.1
    moved = [(cem(closeness, search(num_iterations=1), momentum=m).mean - search().mean).norm() for m in (0.0, 0.9)]
    torch.testing.assert_close(moved[1], 0.1 * moved[0])


def test_coloured_noise_has_unit_variance_and_neighbours_alike():
    white = torch.randn(4000, 8, 2, generator=torch.Generator().manual_seed(0))
    noise = coloured(white, 2.0)
    torch.testing.assert_close(noise.std((0, 2)), torch.ones(8), atol=0.05, rtol=0)
    assert (noise[:, 1:] * noise[:, :-1]).mean() > 0.5
    torch.testing.assert_close(coloured(white, 0.0), white, atol=1e-5, rtol=0)


def test_icem_needs_fewer_samples_round_by_round():
    watched = Watched()
    icem(watched, search(num_iterations=10), num_elites=8, decay=1.5)
    counts = [len(asked) for asked in watched.asked]
    assert counts[:3] == [64, 42, 28] and counts[-1] == 16


def test_icem_keeps_its_elites():
    """An elite that is met by luck once pulls the next round's mean as well."""
    lucky = search().samples(search().mean, search().std, search().noise(64), 0)[5]

    def spike(actions):
        return 100.0 * ((actions - lucky).abs().amax((1, 2)) < 1e-4) + closeness(actions) * 1e-3

    kept, lost = (
        icem(spike, search(num_iterations=2), noise_exponent=0.0, num_elites=2, share_kept=share).mean
        for share in (0.5, 0.0)
    )
    assert (kept - lucky).norm() < (lost - lucky).norm()


def test_mppi_does_not_depend_on_the_units_of_the_objective():
    plan, scaled = (mppi(lambda actions, k=k: k * closeness(actions), search()) for k in (1.0, 1000.0))
    torch.testing.assert_close(plan.actions, scaled.actions, atol=1e-3, rtol=0)
    cold, hot = (mppi(closeness, search(num_iterations=1), temperature=t) for t in (1e-4, 1e4))
    torch.testing.assert_close(cold.mean, cold.actions)
    assert (hot.mean - search().mean).norm() < 0.5 * (cold.mean - search().mean).norm()


def test_gradient_ascent_climbs_where_gradients_are_off_and_needs_a_gradient():
    with torch.no_grad():
        plan = gradient_ascent(closeness, search(num_iterations=60))
    torch.testing.assert_close(plan.actions, TARGET, atol=0.05, rtol=0)
    with pytest.raises(ValueError, match="no gradient"):
        gradient_ascent(lambda actions: closeness(actions.detach()), search())


def test_gradient_ascent_leaves_a_bound_again():
    known = HIGH.repeat(1, HORIZON, 1)
    plan = gradient_ascent(closeness, search(num_samples=2, num_iterations=60, known=known))
    torch.testing.assert_close(plan.actions, TARGET, atol=0.05, rtol=0)


def test_choices_are_found():
    right = torch.tensor([2, 0, 4, 1])
    even = torch.full((HORIZON, 5), 0.2)
    start = dataclasses.replace(search(num_iterations=8), mean=even, low=torch.zeros(5), high=torch.ones(5))
    watched = Watched(lambda samples: samples[:, torch.arange(HORIZON), right].sum(1))
    plan = DISCRETE_OPTIMIZERS["cem"](watched, start)
    assert torch.equal(plan.actions.argmax(1), right) and plan.value == HORIZON
    for samples in watched.asked:
        assert torch.equal(samples.sum(2), torch.ones(64, HORIZON)) and set(samples.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(plan.mean.sum(1), torch.ones(HORIZON))


@pytest.mark.parametrize("optimize", [cem, icem, DISCRETE_OPTIMIZERS["cem"]])
@pytest.mark.parametrize("num_elites", [1, 65])
def test_num_elites_is_checked(optimize, num_elites):
    with pytest.raises(ValueError, match="num_elites must be between 2 and num_samples = 64"):
        optimize(closeness, search(), num_elites=num_elites)


@every_optimizer
def test_an_objective_of_wrong_shape_is_named(optimize):
    with pytest.raises(ValueError, match=r"returned \(64, 4\), expected \(64,\)"):
        optimize(lambda actions: actions.sum(2), search())


def test_a_search_without_rounds_is_refused():
    with pytest.raises(ValueError, match="num_iterations is 0, expected at least 1"):
        search(num_iterations=0)
