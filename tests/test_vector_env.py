"""The native vector environment: its rows against single environments, autoreset, forks, shared memory."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tiny import random_frames

from astra_env.actions import ACTION_MODALITIES
from astra_env.envs import ENVIRONMENTS
from astra_env.envs.rewards import Reward
from astra_env.envs.worlds import load_world_model

IDS = list(ENVIRONMENTS)
N = 3


def endless(state):
    """A reward under which no episode ends."""
    value = state.newest.mean((1, 2, 3))
    return Reward(value, value > 1e6, {"brightness": value})


@pytest.fixture
def make_vec(checkpoint):
    def make_vector_env(environment="Astra-RT1-v0", num_envs=N, **options):
        return gym.make_vec(
            environment,
            num_envs=num_envs,
            vectorization_mode="vector_entry_point",
            world_model=checkpoint,
            device="cpu",
            **options,
        )

    return make_vector_env


def batches(env, num):
    env.action_space.seed(0)
    return [env.action_space.sample() for _ in range(num)]


@pytest.mark.parametrize("environment", IDS)
def test_a_row_imagines_what_the_single_environment_does(make, make_vec, environment):
    vector = make_vec(environment, observation="latent", reward=endless)
    singles = [make(id=environment, observation="latent", reward=endless) for _ in range(N)]
    seen, told = vector.reset(seed=7)
    assert seen in vector.observation_space
    for row, env in enumerate(singles):
        alone, info = env.reset(seed=7 + row)
        np.testing.assert_allclose(seen[row], alone, atol=1e-4)
        np.testing.assert_allclose(told["pose"][row], info["pose"], atol=1e-9)
    for actions in batches(vector, 3):
        seen, rewards, terminations, truncations, told = vector.step(actions)
        assert rewards.dtype == np.float64 and terminations.dtype == truncations.dtype == bool
        for row, env in enumerate(singles):
            alone, reward, _, _, info = env.step(actions[row])
            np.testing.assert_allclose(seen[row], alone, atol=1e-4)
            assert rewards[row] == pytest.approx(reward, abs=1e-4)
            assert np.abs(told["frames"][row].astype(int) - info["frames"]).max() <= 1
            np.testing.assert_allclose(told["pose"][row], info["pose"], atol=1e-9)


@pytest.mark.parametrize("environment", IDS)
def test_a_row_does_not_depend_on_its_neighbours(make_vec, environment):
    vector = make_vec(environment, observation="latent", reward=endless)
    first, second = batches(vector, 2)
    mixed = second.copy()
    mixed[0] = first[0]
    vector.reset(seed=[1, 2, 3])
    seen = vector.step(first)[0]
    vector.reset(seed=[1, 5, 6])
    np.testing.assert_allclose(vector.step(mixed)[0][0], seen[0], atol=1e-4)
    assert (vector.save_state().latents[0] - vector.save_state().latents[1]).abs().max() > 1e-2


def test_the_same_seeds_give_the_same_bytes(make_vec):
    walks = []
    for _ in range(2):
        vector = make_vec("Astra-MultiCam-v0", max_episode_steps=2)
        seen = [vector.reset(seed=4)[0]]
        for actions in batches(vector, 5):
            observation, rewards, _, _, info = vector.step(actions)
            seen += [observation, rewards, info["path_pose"]]
        walks.append(seen)
    assert all(np.array_equal(a, b) for a, b in zip(*walks, strict=True))


def same_told(ours, theirs, name="info"):
    """Whether two infos of vector environments hold the same, up to rounding."""
    assert ours.keys() == theirs.keys(), name
    for key, value in theirs.items():
        if isinstance(value, dict):
            same_told(ours[key], value, f"{name}.{key}")
        elif value.dtype == object:
            for a, b in zip(ours[key], value, strict=True):
                assert (a is None) == (b is None)
                assert a is None or np.abs(np.asarray(a, float) - np.asarray(b, float)).max() <= 1
        elif not key.startswith("_"):
            rows = theirs[f"_{key}"]
            tolerance = 1 if value.dtype == np.uint8 else 1e-3
            gap = np.abs(ours[key][rows].astype(float) - value[rows].astype(float))
            assert gap.size == 0 or gap.max() <= tolerance, f"{name}.{key}"
        else:
            np.testing.assert_array_equal(ours[key], value, err_msg=f"{name}.{key}")


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("environment", ["Astra-NuScenes-v0", "Astra-MultiCam-v0", "Astra-SpatialVID-v0"])
def test_autoreset_is_that_of_gymnasiums_vector_environment(make, make_vec, environment, mode):
    reward = None if environment == "Astra-MultiCam-v0" else endless
    vector = make_vec(environment, reward=reward, max_episode_steps=2, autoreset_mode=mode)
    makers = [lambda: make(id=environment, reward=reward, max_episode_steps=2) for _ in range(N)]
    theirs = SyncVectorEnv(makers, autoreset_mode=mode)
    seen, told = vector.reset(seed=3)
    expected, info = theirs.reset(seed=3)
    assert np.abs(seen.astype(int) - expected).max() <= 1
    same_told(told, info)
    for actions in batches(vector, 5):
        ours, their = vector.step(actions), theirs.step(actions)
        assert np.abs(ours[0].astype(int) - their[0]).max() <= 1
        np.testing.assert_allclose(ours[1], their[1], atol=1e-3)
        assert np.array_equal(ours[2], their[2]) and np.array_equal(ours[3], their[3])
        same_told(ours[4], their[4])


def test_without_autoreset_ended_rows_wait_for_a_reset(make_vec):
    vector = make_vec(reward=endless, max_episode_steps=2, autoreset_mode="Disabled")
    vector.reset(seed=1)
    one, two, three = batches(vector, 3)
    vector.step(one)
    first = np.array([True, False, False])
    _, told = vector.reset(seed=9, options={"reset_mask": first})
    assert np.array_equal(told["_frames"], first) and np.array_equal(told["_reward_terms"], first)
    truncations = vector.step(two)[3]
    assert truncations.tolist() == [False, True, True]
    with pytest.raises(ValueError, match=r"rows \[1, 2\] are over"):
        vector.step(three)
    before = vector.save_state()
    vector.reset(options={"reset_mask": truncations})
    after = vector.save_state()
    assert torch.equal(after[0].latents, before[0].latents), "the other row stays as it is"
    assert after.num_steps.tolist() == [1, 0, 0]
    assert vector.step(three)[3].tolist() == [True, False, False]


def test_rows_begin_from_starts_of_their_own(make, make_vec):
    pictures = random_frames(2, 1).numpy()
    rows = [{"image": pictures[0, 0]}, {"start": 1}, {"frames": random_frames(1, 5)[0].numpy()}]
    vector = make_vec(observation="latent")
    seen, _ = vector.reset(seed=2, options={"rows": rows, "goal": pictures[1, 0]})
    assert vector.save_state().lengths.tolist() == [1, 3, 2]
    actions = batches(vector, 1)[0]
    after, rewards, _, _, told = vector.step(actions)
    assert told["reward_terms"].keys() == {"goal_distance", "_goal_distance"}
    for row, options in enumerate(rows):
        env = make(observation="latent")
        np.testing.assert_allclose(
            seen[row], env.reset(seed=2 + row, options={**options, "goal": pictures[1, 0]})[0], atol=1e-4
        )
        observation, reward, _, _, _ = env.step(actions[row])
        np.testing.assert_allclose(after[row], observation, atol=1e-4)
        assert reward == pytest.approx(rewards[row], abs=1e-4) and reward < 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": [1, 2]}, "2 seeds, expected one for each of 3"),
        ({"options": {"rows": [{}]}}, "1 rows, expected one for each of 3"),
        ({"options": {"reset_mask": np.zeros(N, bool)}}, "at least one of them True"),
        ({"options": {"reset_mask": np.ones(N, int)}}, r"expected bool \(3,\)"),
        ({"options": {"reset_mask": np.array([True, False, False])}}, "never reset"),
        ({"options": {"colour": 1}}, r"options \['colour'\]"),
    ],
)
def test_wrong_resets_are_refused(make_vec, options, message):
    with pytest.raises(ValueError, match=message):
        make_vec().reset(**options)


@pytest.mark.parametrize("environment", ["Astra-RT1-v0", "Astra-SpatialVID-v0"])
def test_wrong_actions_are_refused(make_vec, environment):
    vector = make_vec(environment)
    with pytest.raises(RuntimeError, match="reset"):
        vector.step(vector.action_space.sample())
    vector.reset(seed=0)
    for wrong in (vector.single_action_space.sample(), vector.action_space.sample() + 100):
        with pytest.raises(ValueError, match=r"expected|bounds"):
            vector.step(wrong)
    with pytest.raises(ValueError, match="number of worlds is 0"):
        make_vec(environment, num_envs=0)


def test_latents_are_observed_without_decoding(make_vec, monkeypatch):
    vector = make_vec(observation="latent", reward=endless, max_episode_steps=2, autoreset_mode="SameStep")
    decoded = []
    decode = vector.world_model.decode
    monkeypatch.setattr(vector.world_model, "decode", lambda state: decoded.append(len(state)) or decode(state))
    vector.reset(seed=0)
    one, two = batches(vector, 2)
    vector.step(one)
    info = vector.step(two)[4]
    assert not decoded
    assert info["frames"].shape == info["final_info"]["frames"].shape == (N, 4, 32, 32, 3)
    assert decoded and (info["frames"] != info["final_info"]["frames"]).any()


# Forks


@pytest.fixture
def float32(monkeypatch):
    """Without the rounding of bfloat16, in which the shared history of forks rounds otherwise than a single world's."""
    load_world_model.cache_clear()
    monkeypatch.setattr("astra_env.models.world_model.fastest_dtype", lambda device: torch.float32)
    yield
    load_world_model.cache_clear()


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("environment", IDS)
def test_a_fork_goes_on_as_the_world_itself(make, environment):
    env = make(id=environment, observation="latent", reward=None if "Multi" in environment else endless)
    env.reset(seed=5)
    env.step(env.action_space.sample())
    forks = env.unwrapped.fork(4)
    assert forks.num_envs == 4 and forks.max_episode_steps == ENVIRONMENTS[environment].max_episode_steps
    forks.action_space.seed(0)
    actions = forks.action_space.sample()
    seen, rewards, _, _, told = forks.step(actions)
    for row in (0, 3):
        twin = make(id=environment, observation="latent", reward=None if "Multi" in environment else endless)
        twin.reset(seed=5)
        saved = env.unwrapped.save_state()
        twin.unwrapped.restore_state(saved)
        twin.unwrapped.reward_function = env.unwrapped.reward_function
        alone, reward, _, _, info = twin.step(actions[row])
        np.testing.assert_allclose(seen[row], alone, atol=1e-4)
        assert rewards[row] == pytest.approx(reward, abs=1e-4)
        np.testing.assert_allclose(told["pose"][row], info["pose"], atol=1e-9)
    assert len(env.unwrapped.save_state()) == 1 and forks.save_state().num_steps.tolist() == [2] * 4
    assert forks.np_random is not env.unwrapped.np_random
    again = env.unwrapped.fork(4)
    assert np.array_equal(again.step(actions)[0], seen)


def test_forks_share_memory_until_they_step(make):
    env = make(reward=endless).unwrapped
    env.reset(seed=1)
    state = env.save_state()
    forked = env.fork(64).save_state()
    assert forked.forked and not state.forked and not state.repeat(1).forked

    def storages(worlds):
        tensors = [t for t in vars(worlds).values() if isinstance(t, torch.Tensor)] + list(worlds.decoder_cache)
        return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}

    assert storages(forked) == storages(state), "64 worlds in the memory of one"
    assert sum(storages(state[[0] * 64]).values()) > 10 * sum(storages(forked).values())
    assert all(
        torch.equal(a, b)
        for a, b in zip(forked[5]._map(lambda t: t)["decoder_cache"], state.decoder_cache, strict=True)
    )


@torch.no_grad()
def test_the_history_of_forks_is_computed_once(make, monkeypatch):
    env = make(reward=endless).unwrapped
    env.reset(seed=1)
    model, rows = env.world_model, []
    encode = model.transformer.encode_history
    monkeypatch.setattr(model.transformer, "encode_history", lambda *a: rows.append(len(a[0])) or encode(*a))
    modality = ACTION_MODALITIES["end_effector"]
    actions = torch.linspace(-1, 1, 8)[:, None] * torch.tensor(modality.high).mul(0.9)
    actions[:, 6] = 0.5
    copies, forks = env.save_state()[[0] * 8], env.save_state().repeat(8)
    apart, together = (model.step(state, actions, guidance_scale=1.5) for state in (copies, forks))
    assert rows == [8, 1]
    torch.testing.assert_close(together.latents, apart.latents, atol=1e-4, rtol=0)
    assert not together.forked
