"""Uncertainty by futures: what is told, who pays for it, where it ends an episode; for one world and for many."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from tiny import actions_of

from astra_env.envs.futures import Calibration
from astra_env.envs.rewards import Reward
from astra_env.envs.uncertainty import (
    Pessimistic,
    TruncateWhenUncertain,
    Uncertainty,
    VectorPessimistic,
    VectorTruncateWhenUncertain,
    VectorUncertainty,
)

N = 3


def endless(state):
    """A reward under which no episode ends."""
    value = state.newest.mean((1, 2, 3))
    return Reward(value, value > 1e6, {})


def ends_after_two(state):
    """A reward under which every episode ends with its second step."""
    return Reward(state.newest.mean((1, 2, 3)), state.num_steps >= 2, {})


@pytest.fixture
def make_vec(checkpoint):
    def make_vector_env(**options):
        options = {"reward": endless, "observation": "latent", "num_envs": N} | options
        return gym.make_vec(
            "Astra-RT1-v0",
            vectorization_mode="vector_entry_point",
            world_model=checkpoint,
            device="cpu",
            **options,
        )

    return make_vector_env


def single(make, **options):
    return Uncertainty(make(observation="latent", reward=endless), num_samples=3, **options)


def told(env, num=3, seed=0):
    infos = [env.reset(seed=seed)[1]] + [env.step(action)[4] for action in actions_of(num)]
    return np.array([[info["uncertainty"], info["reward_uncertainty"]] for info in infos])


def test_the_futures_part_from_the_world_and_tell_by_how_much(make):
    env = single(make)
    measured = told(env)
    assert (measured[0] == 0).all() and (measured[1:] > 0).all()
    state, futures = env.unwrapped.save_state(), env.futures.states
    away = (futures.newest - state.newest).square().mean().sqrt().item()
    assert measured[-1, 0] == pytest.approx(away, rel=1e-5)
    rewards = (endless(futures).value - endless(state).value).square().mean().sqrt().item()
    assert measured[-1, 1] == pytest.approx(rewards, rel=1e-5)
    torch.testing.assert_close(futures.poses, state.poses.expand(3, 4, 4))


def test_heads_that_differ_add_to_the_doubt(make):
    def torn(state):
        reward = endless(state)
        return Reward(reward.value, reward.done, {"reward_spread": torch.full_like(reward.value, 0.3)})

    sure = told(single(make))[1:, 1]
    unsure = told(Uncertainty(make(observation="latent", reward=torn), num_samples=3))[1:, 1]
    np.testing.assert_allclose(unsure, np.hypot(sure, 0.3), rtol=1e-5)


def test_the_seed_decides_and_the_world_is_left_as_it_is(make):
    env, bare = single(make), make(observation="latent", reward=endless)
    np.testing.assert_array_equal(told(env), told(env))
    assert (told(env, seed=1) != told(env)).any()
    told(env)
    bare.reset(seed=0)
    for action in actions_of(3):
        bare.step(action)
    assert bare.unwrapped.save_state().digest() == env.unwrapped.save_state().digest()


def test_a_restored_world_has_new_futures(make):
    env = single(make)
    env.reset(seed=0)
    saved = env.unwrapped.save_state()
    first = env.step(actions_of(1)[0])[4]["uncertainty"]
    for action in actions_of(2, seed=1):
        env.step(action)
    env.unwrapped.restore_state(saved)
    assert env.step(actions_of(1)[0])[4]["uncertainty"] == first


def test_a_calibration_turns_distances_into_errors(make):
    raw = told(single(make))[1:, 0]
    calibration = Calibration((0.0, 2 * raw.max()), (1.0, 3.0))
    np.testing.assert_allclose(told(single(make, calibration=calibration))[1:, 0], 1 + raw / raw.max(), rtol=1e-6)


def test_the_domain_of_a_checkpoint_has_its_calibration(make):
    env = make(observation="latent", reward=endless)
    Calibration((0.0, 1.0), (5.0, 5.0)).save(env.unwrapped.folder)
    try:
        assert told(Uncertainty(env))[1:, 0].tolist() == [5.0] * 3
    finally:
        (env.unwrapped.folder / "uncertainty.json").unlink()


def test_pessimism_costs_the_penalty_times_the_doubt(make):
    bare, env = make(observation="latent", reward=endless), Pessimistic(single(make), penalty=2.0)
    bare.reset(seed=0)
    env.reset(seed=0)
    for action in actions_of(2):
        reward, (_, paid, _, _, info) = bare.step(action)[1], env.step(action)
        assert info["reward_uncertainty"] > 0
        assert paid == pytest.approx(reward - 2 * info["reward_uncertainty"], rel=1e-6)


def test_an_episode_is_truncated_where_the_dream_breaks(make):
    measured = told(single(make))[1:, 0]
    env = TruncateWhenUncertain(single(make), limit=np.sort(measured)[1])
    env.reset(seed=0)
    for value, action in zip(measured, actions_of(3), strict=True):
        _, _, terminated, truncated, info = env.step(action)
        assert truncated == (value > env.limit) and not terminated
        assert info.get("truncated_reason") == ("uncertain" if truncated else None)


def test_time_is_another_reason(make):
    env = TruncateWhenUncertain(gym.wrappers.TimeLimit(single(make), 1), limit=1e9)
    env.reset(seed=0)
    _, _, _, truncated, info = env.step(actions_of(1)[0])
    assert truncated and info["truncated_reason"] == "time"


def test_rows_of_many_are_as_uncertain_as_one_alone(make, make_vec):
    worlds = VectorPessimistic(VectorUncertainty(make_vec(), num_samples=3))
    _, info = worlds.reset(seed=5)
    assert info["uncertainty"].tolist() == [0.0] * N and info["_uncertainty"].all()
    alone = [Pessimistic(single(make)) for _ in range(N)]
    for row, env in enumerate(alone):
        env.reset(seed=5 + row)
    for seed in range(3):
        actions = actions_of(N, seed=seed)
        _, rewards, _, _, info = worlds.step(actions)
        for row, env in enumerate(alone):
            _, reward, _, _, one = env.step(actions[row])
            assert rewards[row] == pytest.approx(reward, abs=2e-3)
            for term in ("uncertainty", "reward_uncertainty"):
                assert info[term][row] == pytest.approx(one[term], abs=2e-3)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_rows_that_begin_anew_have_new_futures_and_their_last_step_is_told(make_vec, mode):
    """In both modes a row's second step is told of, wherever it stands, and its first one after the new beginning."""
    worlds = VectorUncertainty(make_vec(reward=ends_after_two, autoreset_mode=mode), num_samples=2)
    worlds.reset(seed=0)
    actions = actions_of(N)
    first = worlds.step(actions)[4]["uncertainty"]
    _, _, ended, _, info = worlds.step(actions)
    assert ended.all()
    last = (info["final_info"] if mode is AutoresetMode.SAME_STEP else info)["uncertainty"]
    reference = VectorUncertainty(make_vec(), num_samples=2)
    reference.reset(seed=0)
    np.testing.assert_allclose(reference.step(actions)[4]["uncertainty"], first, atol=1e-5)
    np.testing.assert_allclose(reference.step(actions)[4]["uncertainty"], last, atol=1e-4)
    if mode is AutoresetMode.NEXT_STEP:
        info = worlds.step(np.full_like(actions, np.nan))[4]  # ignored by rows that begin
    assert (info["uncertainty"] == 0).all()
    assert (worlds.futures.states.num_steps == 0).all()
    assert (worlds.step(actions)[4]["uncertainty"] > 0).all()


def test_rows_reset_by_a_mask_leave_the_futures_of_others(make_vec):
    worlds = VectorUncertainty(make_vec(autoreset_mode="Disabled"), num_samples=2)
    worlds.reset(seed=0)
    worlds.step(actions_of(N))
    before = worlds.futures.states
    _, info = worlds.reset(seed=7, options={"reset_mask": np.array([False, True, False])})
    assert worlds.futures.states.num_steps.tolist() == [1, 1, 0, 0, 1, 1]
    assert info["_uncertainty"].tolist() == [False, True, False]
    torch.testing.assert_close(worlds.futures.states[[0, 1, 4, 5]].newest, before[[0, 1, 4, 5]].newest)


def test_rows_whose_dream_breaks_begin_anew(make_vec):
    measured = VectorUncertainty(make_vec(), num_samples=2)
    measured.reset(seed=0)
    values = measured.step(actions_of(N))[4]["uncertainty"]
    limit = np.sort(values)[-2]
    worlds = VectorTruncateWhenUncertain(VectorUncertainty(make_vec(), num_samples=2), limit=limit)
    worlds.reset(seed=0)
    _, _, terminations, truncations, info = worlds.step(actions_of(N))
    broken = values.argmax()
    assert truncations.tolist() == [row == broken for row in range(N)] and not terminations.any()
    assert (
        info["truncated_reason"][broken] == "uncertain" and info["_truncated_reason"].tolist() == truncations.tolist()
    )
    _, rewards, _, _, _ = worlds.step(actions_of(N, seed=1))
    assert worlds.unwrapped.save_state().num_steps.tolist() == [0 if row == broken else 2 for row in range(N)]
    assert rewards[broken] == 0


def test_wrong_order_and_wrong_environments_are_told(make, make_vec):
    bare = make(observation="latent", reward=endless)
    with pytest.raises(ValueError, match="astra-env"):
        Uncertainty(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="put Uncertainty below it"):
        Uncertainty(gym.wrappers.RescaleAction(bare, -1.0, 1.0))
    with pytest.raises(ValueError, match="num_samples is 0"):
        Uncertainty(bare, num_samples=0)
    with pytest.raises(ValueError, match="term is 'doubt'"):
        Pessimistic(bare, term="doubt")
    blind = Pessimistic(bare)
    blind.reset(seed=0)
    with pytest.raises(ValueError, match="put the wrapper Uncertainty"):
        blind.step(actions_of(1)[0])
    with pytest.raises(ValueError, match="'NextStep' or 'Disabled'"):
        VectorTruncateWhenUncertain(make_vec(autoreset_mode="SameStep"), limit=1.0)
