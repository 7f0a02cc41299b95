from __future__ import annotations

from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import RescaleAction, TimeLimit

from astra_env.envs.futures import average, worst_case
from astra_env.models import WorldModel
from policies.mpc import MPCPolicy
from policies.objectives import best_reward, last_reward, mean_reward, with_action_cost
from policies.optimizers import OPTIMIZERS

BUDGET = {"horizon": 2, "num_samples": 12, "num_iterations": 2}


@pytest.fixture(scope="module")
def env(checkpoint):
    return gymnasium.make("Astra-RT1-v0", world_model=checkpoint, device="cpu")


@pytest.fixture
def directed(env, monkeypatch):
    """The environment with an objective that grows along one direction of the latents, and its first observation."""
    observation, _ = env.reset(seed=0)
    direction = torch.randn(env.unwrapped.save_state().newest.shape[1:], generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(env.unwrapped, "objective", lambda state: (state.newest * direction).mean((1, 2, 3)))
    return env, observation


class Clock:
    """Each look at it is so many seconds later than the last."""

    def __init__(self, tick):
        self.now, self.tick = 0.0, tick

    def __call__(self):
        self.now += self.tick
        return self.now


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_action_is_legal_and_planning_leaves_the_world_as_it_is(env, optimizer):
    observation, _ = env.reset(seed=0)
    before = env.unwrapped.save_state()
    policy = MPCPolicy(env, optimizer=optimizer, **BUDGET).reset(seed=0)
    action = policy.act(observation)
    assert action.dtype == np.float32
    assert env.action_space.contains(action)
    assert env.unwrapped.save_state() is before
    assert policy.plan.num_iterations == 2
    env.step(action)
    assert env.action_space.contains(policy.act(observation))


def test_the_seed_decides_the_action(env):
    observation, _ = env.reset(seed=0)
    policy = MPCPolicy(env, **BUDGET)
    first, again, other = (policy.reset(seed=seed).act(observation) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("optimizer", ["cem", "icem", "mppi", "gradient_ascent"])
def test_a_plan_improves_on_its_first_guesses_in_latent_space(directed, optimizer):
    env, observation = directed
    size = {"horizon": 2, "num_samples": 32, "num_iterations": 5}
    policy = MPCPolicy(env, optimizer=optimizer, **size).reset(seed=0)
    policy.act(observation)
    best, mean = policy.plan.history.unbind(1)
    assert mean[-1] > mean[0]
    assert policy.plan.value == best.max() > mean[0]


@pytest.mark.parametrize("optimizer", ["cem", "icem", "mppi", "gradient_ascent"])
def test_a_plan_leads_nearer_to_a_place_than_the_best_of_random_ones(env, monkeypatch, optimizer):
    observation, _ = env.reset(seed=0)
    place = torch.tensor([0.06, -0.02, 0.04], dtype=torch.float64)
    monkeypatch.setattr(env.unwrapped, "objective", lambda state: -(state.poses[:, :3, 3] - place).square().sum(1))
    size = {"horizon": 2, "num_samples": 32, "num_iterations": 5, "score": last_reward}
    plans = []
    for name in (optimizer, "random_shooting"):
        policy = MPCPolicy(env, optimizer=name, **size).reset(seed=0)
        policy.act(observation)
        plans.append(policy.plan)
    assert plans[0].value > plans[1].value
    reached = plans[0].actions[:, :3].sum(0).double()
    assert (reached - place).norm() < 0.02


def test_the_candidates_of_a_round_are_one_batch_of_forks(env, monkeypatch):
    observation, _ = env.reset(seed=0)
    seen, step = [], WorldModel.step

    def watched(self, state, *args, **kwargs):
        seen.append((len(state), state.forked))
        return step(self, state, *args, **kwargs)

    monkeypatch.setattr(WorldModel, "step", watched)
    monkeypatch.setattr(WorldModel, "decode", lambda *args: pytest.fail("planning decodes pictures"))
    MPCPolicy(env, **BUDGET).act(observation)
    assert seen == [(12, True), (12, False)] * 2


def test_the_next_search_starts_from_the_rest_of_the_plan(directed):
    env, observation = directed
    policy = MPCPolicy(env, horizon=3, num_samples=12, num_iterations=3).reset(seed=0)
    policy.act(observation)
    plan, asked, evaluate = policy.plan, [], policy._evaluate
    policy._evaluate = lambda actions, *args: asked.append(actions) or evaluate(actions, *args)
    policy.act(observation)
    rest = torch.cat([plan.actions[1:], plan.actions[-1:]])
    assert (asked[0] == rest).all((1, 2)).any()
    torch.testing.assert_close(asked[0][0], torch.cat([plan.mean[1:], plan.mean[-1:]]))
    policy.reset(seed=0).act(observation)
    torch.testing.assert_close(policy.plan.actions, plan.actions)


def test_gradients_reach_all_steps(directed):
    env, _ = directed
    policy = MPCPolicy(env, horizon=3)
    actions = policy._mean[None].clone().requires_grad_()
    policy.score = last_reward
    policy._evaluate(actions, torch.zeros(1, dtype=torch.long), env.unwrapped.sampling).sum().backward()
    assert (actions.grad.abs().sum(2) > 0).all()


@pytest.mark.parametrize(("budget_ms", "rounds"), [(1, 1), (250, 2), (450, 4), (None, 6)])
def test_the_time_for_an_action_is_kept(env, budget_ms, rounds):
    """A look at the clock is 0.1 s later than the last: rounds take 100 ms each, and only whole ones begin."""
    observation, _ = env.reset(seed=0)
    size = {"horizon": 1, "num_samples": 8, "num_iterations": 6}
    policy = MPCPolicy(env, budget_ms=budget_ms, clock=Clock(0.1), **size)
    policy.act(observation)
    assert policy.plan.num_iterations == rounds


def test_the_time_for_the_verification_is_kept_free(env):
    observation, _ = env.reset(seed=0)
    size = {"horizon": 1, "num_samples": 8, "num_iterations": 6}
    policy = MPCPolicy(env, budget_ms=450, clock=Clock(0.1), verify=2, **size)
    counts = []
    for _ in range(2):  # how long it takes is known from the second action on
        policy.act(observation)
        counts.append(policy.plan.num_iterations)
    assert counts == [4, 3]


def test_verification_picks_another_plan_where_the_best_of_the_draft_is_wrong(env, monkeypatch):
    """The draft likes a large first field, more denoising steps know better."""
    observation, _ = env.reset(seed=0)
    step = WorldModel.step
    asked = []

    def watched(self, state, actions, generators=None, **sampling):
        asked.append((sampling["num_inference_steps"], len(state), len(state.seeds.unique())))
        return step(self, state, actions, generators, **sampling)

    def likes(env, states, actions):
        return actions[:, 0, 0] if asked[-1][0] == 1 else -actions[:, 0, 0]

    monkeypatch.setattr(WorldModel, "step", watched)
    size = {"horizon": 1, "num_samples": 12, "num_iterations": 1, "score": likes, "num_inference_steps": 1}
    draft = MPCPolicy(env, **size).reset(seed=0)
    careful = MPCPolicy(env, verify=4, verify_noises=3, verify_steps=5, **size).reset(seed=0)
    taken, better = draft.act(observation), careful.act(observation)
    assert asked == [(1, 12, 1), (1, 12, 1), (5, 12, 3)]
    assert better[0] < taken[0] and len(careful.plan.candidates) == 4
    assert careful.plan.value == -better[0]


def test_verification_averages_over_noise_it_has_not_seen(directed):
    env, observation = directed
    policy = MPCPolicy(env, verify=3, verify_noises=2, **BUDGET).reset(seed=0)
    seeds, evaluate = [], policy._evaluate
    policy._evaluate = lambda actions, noise, sampling: seeds.append(noise) or evaluate(actions, noise, sampling)
    policy.act(observation)
    assert len(torch.cat([seeds[0], seeds[-1]]).unique()) == 3
    alone = torch.stack([evaluate(policy.plan.candidates, seed[None], policy._final) for seed in seeds[-1]])
    torch.testing.assert_close(policy.plan.values, alone.mean(0), atol=1e-4, rtol=0)


def bold_or_safe(env, states, actions):
    """To go ahead pays in most worlds, and costs twice as much in the darkest quarter of them; to stay is safe."""
    shades = states[-1].newest.mean((1, 2, 3))
    return actions[:, 0, 0] * torch.where(shades <= shades.quantile(0.25), -2.0, 1.0)


@pytest.mark.parametrize("optimizer", ["cem", "gradient_ascent"])
def test_what_is_bold_on_average_is_safe_in_the_worst_of_several_futures(env, monkeypatch, optimizer):
    """Noise alone tells which futures are dark: all plans go through the same ones."""
    observation, _ = env.reset(seed=0)
    size = {"horizon": 1, "num_samples": 16, "num_iterations": 8, "score": bold_or_safe, "optimizer": optimizer}
    imagined, step = [], WorldModel.step

    def watched(self, state, *args, **kwargs):
        imagined.append((len(state), len(state.seeds.unique())))
        return step(self, state, *args, **kwargs)

    monkeypatch.setattr(WorldModel, "step", watched)
    bold, safe, middle = (
        MPCPolicy(env, futures=4, risk=risk, **size).reset(seed=0).act(observation)[0]
        for risk in (average, worst_case, partial(worst_case, quantile=0.5))
    )
    assert bold > 0.04 and middle > 0.04 and abs(safe) < 0.005
    assert imagined == [(64, 4)] * 24


def test_verification_too_looks_at_the_worst_of_several_futures(env):
    """Of the same candidates the boldest is best on average, and the one that hardly moves in the worst case."""
    observation, _ = env.reset(seed=0)
    size = {"horizon": 1, "num_samples": 12, "num_iterations": 1, "score": bold_or_safe, "verify": 12}
    safe = MPCPolicy(env, futures=4, verify_noises=4, **size).reset(seed=0)
    bold = MPCPolicy(env, futures=1, verify_noises=4, **size).reset(seed=0)
    assert bold.act(observation)[0] == bold.plan.candidates[:, 0, 0].max()
    assert abs(safe.act(observation)[0]) == safe.plan.candidates[:, 0, 0].abs().min()


def test_scores_of_steps(directed):
    env, _ = directed
    world = env.unwrapped
    states, values = [world.save_state().repeat(2)], []
    for _ in range(3):
        states.append(world.world_model.step(states[-1], torch.rand(2, 7) * 0.05))
        values.append(world.objective(states[-1]))
    values, actions = torch.stack(values), torch.zeros(2, 3, 7)
    torch.testing.assert_close(mean_reward(world, states[1:], actions), values.mean(0))
    torch.testing.assert_close(last_reward(world, states[1:], actions), values[-1])
    torch.testing.assert_close(best_reward(world, states[1:], actions), values.max(0).values)
    costly = with_action_cost(last_reward, 2.0)
    rest = torch.tensor([0.0] * 6 + [0.5]).expand(2, 3, 7)
    torch.testing.assert_close(costly(world, states[1:], rest), values[-1])
    torch.testing.assert_close(
        costly(world, states[1:], torch.tensor(world.action_modality.high).expand(2, 3, 7)), values[-1] - 2
    )


def test_sets_of_keys_are_planned(make):
    env = make(id="Astra-SpatialVID-v0")
    observation, _ = env.reset(seed=0)
    forward = 1  # the key w, which moves along z

    def ahead(env, states, actions):
        return actions[:, :, 2].sum(1)

    policy = MPCPolicy(env, horizon=3, num_samples=32, num_iterations=4, score=ahead).reset(seed=0)
    keys = [policy.act(observation) for _ in range(2)]
    forwards = {index for index, action in enumerate(env.unwrapped._choices) if action[2] > 0}
    assert forward in forwards and set(keys) <= forwards
    env.step(keys[0])


def test_an_environment_without_a_world_is_refused():
    with pytest.raises(ValueError, match="MPCPolicy plans in one imagined world, expected an environment of astra-env"):
        MPCPolicy(gymnasium.make("CartPole-v1"))


def test_wrappers_may_not_change_the_actions(env):
    MPCPolicy(TimeLimit(env, 3))
    with pytest.raises(ValueError, match="A wrapper has made the actions"):
        MPCPolicy(RescaleAction(env, np.float32(-1), np.float32(1)))


def test_wrong_optimisers_and_options_are_told_at_once(env, make):
    with pytest.raises(ValueError, match="optimizer is 'adam', expected one of"):
        MPCPolicy(env, optimizer="adam")
    with pytest.raises(ValueError, match=r"optimizer is 'mppi', expected one of \['cem'\] for the actions Discrete"):
        MPCPolicy(make(id="Astra-SpatialVID-v0"), optimizer="mppi")
    with pytest.raises(TypeError, match="temperature"):
        MPCPolicy(env, optimizer="cem", temperature=1.0)
