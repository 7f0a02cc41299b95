from __future__ import annotations

import json
import shutil

import gymnasium as gym
import numpy as np
import pytest
import torch
from tiny import actions_of, assert_same, episode, save_checkpoint

import astra_env  # noqa: F401  registers the ids
from astra_env.envs import ENVIRONMENTS
from astra_env.envs.rewards import Reward
from astra_env.models import WorldState

ID = "Astra-RT1-v0"
SHAPES = {"frame": ((32, 32, 3), np.uint8), "chunk": ((4, 32, 32, 3), np.uint8), "latent": ((16, 4, 4), np.float32)}


# Gymnasium's contract


@pytest.mark.parametrize("observation", SHAPES)
def test_observations(make, observation):
    env = make(observation=observation)
    shape, dtype = SHAPES[observation]
    assert env.observation_space.shape == shape and env.observation_space.dtype == dtype
    start, info = env.reset(seed=1)
    after, reward, terminated, truncated, step_info = env.step(actions_of(1)[0])
    for seen, told in ((start, info), (after, step_info)):
        assert seen in env.observation_space and seen.dtype == dtype
        assert told["frames"].shape == (4, 32, 32, 3) and told["frames"].dtype == np.uint8
        assert set(told["reward_terms"]) == {"task_reward", "success_probability", "reward_spread"}
        if observation != "latent":
            assert np.array_equal(seen, told["frames"][-1] if observation == "frame" else told["frames"])
    assert type(reward) is float and type(terminated) is bool and type(truncated) is bool
    assert 0 < reward < 1 and reward == step_info["reward_terms"]["task_reward"]
    assert terminated == (step_info["reward_terms"]["success_probability"] > 0.5)
    assert terminated == step_info["success"] == step_info["is_success"]


def test_an_unknown_observation_is_an_error(make):
    with pytest.raises(ValueError, match=r"observation is 'sound', expected one of \('frame'"):
        make(observation="sound")


def test_an_unknown_world_model_is_an_error():
    with pytest.raises(ValueError, match="no world model 'no-such-world'"):
        gym.make(ID, world_model="no-such-world")


def test_a_seed_and_actions_decide_every_byte(make):
    assert_same([episode(make(), seed=3) for _ in range(2)])
    one = make()
    assert_same([episode(one, seed=3) for _ in range(2)])


@pytest.mark.parametrize("start", [None, 0])
def test_seeds_differ(make, start):
    options = None if start is None else {"start": start}
    episodes = [episode(make(observation="latent"), seed=seed, options=options) for seed in (3, 4)]
    assert_same(episodes, equal=False)


def test_unseeded_episodes_differ_from_each_other(make):
    env = make(observation="latent")
    env.reset(seed=3)
    assert_same([episode(env, options={"start": 0}) for _ in range(2)], equal=False)


def test_arrays_are_the_callers_own(make):
    env = make(observation="chunk")
    env.reset(seed=1)
    kept = []
    for action in actions_of(3):
        observation, _, _, _, info = env.step(action)
        for array in (observation, info["frames"], info["pose"]):
            kept.append((array, array.copy()))
        assert not np.shares_memory(observation, info["frames"])
    assert all(np.array_equal(array, copy) for array, copy in kept)
    plain, spoiled = make(), make()
    for e in (plain, spoiled):
        e.reset(seed=1)
    for action in actions_of(3):
        seen, _, _, _, info = spoiled.step(action)
        expected = plain.step(action)[0]
        assert np.array_equal(seen, expected)
        seen[:], info["frames"][:], info["pose"][:] = 0, 0, 0
        assert np.array_equal(spoiled.unwrapped.save_state().poses[0, 3], [0, 0, 0, 1])


def test_long_episodes_are_truncated(make):
    env = make(max_episode_steps=3, reward=lambda state: Reward(state.seeds * 0.0, state.seeds < 0, {}))
    env.reset(seed=1)
    assert [env.step(action)[3] for action in actions_of(3)] == [False, False, True]
    assert make().spec.max_episode_steps == ENVIRONMENTS[ID].max_episode_steps


def test_render_shows_the_newest_frame(make):
    env = make(render_mode="rgb_array")
    observation, _ = env.reset(seed=1)
    assert np.array_equal(env.render(), observation)
    observation = env.step(actions_of(1)[0])[0]
    picture = env.render()
    assert np.array_equal(picture, observation) and picture.dtype == np.uint8
    picture[:] = 0
    assert np.array_equal(env.render(), observation)
    env.close()


def test_no_gradient_is_recorded(make):
    env = make()
    env.reset(seed=1)
    env.step(actions_of(1)[0])
    assert not env.unwrapped.state.latents.requires_grad


def test_a_function_of_the_callers_own_rewards(make):
    def brightness(state: WorldState) -> Reward:
        value = state.newest.mean((1, 2, 3))
        return Reward(value, value > 100, {"brightness": value})

    env = make(reward=brightness)
    _, info = env.reset(seed=1)
    assert set(info["reward_terms"]) == {"brightness"}
    _, reward, terminated, _, _ = env.step(actions_of(1)[0])
    assert reward == pytest.approx(env.unwrapped.state.newest.mean().item()) and not terminated


def test_a_world_that_has_learned_no_reward_gives_none(tmp_path):
    head = save_checkpoint(tmp_path, domains=["robot"]) / "domains" / "robot" / "reward_model.safetensors"
    whole = head.read_bytes()
    head.unlink()
    env = gym.make(ID, world_model=str(tmp_path), device="cpu")
    assert env.reset(seed=1)[1]["reward_terms"] == {}
    _, reward, terminated, _, info = env.step(actions_of(1)[0])
    assert (reward, terminated, info["reward_terms"]) == (0.0, False, {})
    head.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"reward_model.safetensors cannot be read"):
        gym.make(ID, world_model=str(tmp_path), device="cpu")


# Actions


def test_the_space_is_the_modalitys(make):
    env = make()
    modality = env.unwrapped.action_modality
    assert env.action_space == modality.space() and modality.name == "end_effector"
    assert modality.rate_hz == env.metadata["render_fps"] == 5


def test_actions_change_what_is_imagined(make):
    env = make(observation="latent")
    ends = []
    for action in actions_of(2):
        env.reset(seed=1)
        ends.append(env.step(action)[0])
    assert np.abs(ends[0] - ends[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(6, np.float32), "shape"),
        (np.zeros((1, 7), np.float32), "shape"),
        (np.zeros((2, 7), np.float32), "shape"),
        (np.full(7, np.nan, np.float32), "finite"),
        (np.full(7, np.inf, np.float32), "finite"),
        (np.full(7, 0.3, np.float32), "bounds"),
        (np.array(["up"] * 7), "dtype"),
    ],
    ids=["six", "batch of one", "batch of two", "nan", "infinity", "out of bounds", "text"],
)
def test_wrong_actions_are_refused_and_change_nothing(make, action, message):
    env = make(disable_env_checker=True)
    env.reset(seed=1)
    before = env.unwrapped.save_state()
    with pytest.raises(ValueError, match=message):
        env.step(action)
    assert env.unwrapped.save_state() is before


def test_actions_are_clipped_where_asked(make):
    env = make(clip_actions=True, observation="latent")
    ends = []
    for action in (np.full(7, 9, np.float32), env.action_space.high):
        env.reset(seed=1)
        ends.append(env.step(action)[0])
    assert np.array_equal(*ends)
    with pytest.raises(ValueError, match="finite"):
        env.step(np.full(7, np.nan, np.float32))


def test_stepping_before_reset_is_an_error(make):
    env = make().unwrapped
    with pytest.raises(RuntimeError, match="reset"):
        env.step(actions_of(1)[0])
    with pytest.raises(RuntimeError, match="reset"):
        env.save_state()


# States


def test_a_restored_world_continues_identically(make, tmp_path):
    env, other = make(), make()
    env.reset(seed=1)
    env.step(actions_of(1)[0])
    state = env.unwrapped.save_state()
    ahead = actions_of(4, seed=2)
    first = [env.step(action) for action in ahead]
    state.save(tmp_path / "world")
    other.reset(seed=99)
    for target, value in ((env, state), (other, WorldState.load(tmp_path / "world"))):
        target.unwrapped.restore_state(value)
        again = [target.step(action) for action in ahead]
        for before, after in zip(first, again, strict=True):
            assert np.array_equal(before[0], after[0]) and before[1:4] == after[1:4]
            assert np.array_equal(before[4]["frames"], after[4]["frames"])


def test_one_world_is_restored_at_a_time(make):
    env = make().unwrapped
    env.reset(seed=1)
    with pytest.raises(ValueError, match="holds 2 worlds, expected 1"):
        env.restore_state(env.save_state().repeat(2))


def test_a_restored_world_is_what_render_shows(make):
    env = make(render_mode="rgb_array").unwrapped
    env.reset(seed=1)
    state, picture = env.save_state(), env.render()
    env.step(actions_of(1)[0])
    assert not np.array_equal(env.render(), picture)
    env.restore_state(state)
    assert np.abs(env.render().astype(int) - picture.astype(int)).max() <= 1


def test_inference_options_reach_the_model(make):
    ends = [
        episode(make(observation="latent", **options), seed=1, num=1)[-1]
        for options in ({}, {"num_inference_steps": 3}, {"guidance_scale": 3.0})
    ]
    assert not np.allclose(ends[0], ends[1], atol=1e-3) and not np.allclose(ends[0], ends[2], atol=1e-3)


def test_environments_share_frozen_weights(make):
    one, other = make().unwrapped, make().unwrapped
    assert one.world_model is other.world_model
    assert not any(parameter.requires_grad for parameter in one.world_model.parameters())
    assert isinstance(one.world_model.device, torch.device)


def test_a_world_of_longer_chunks_steps_that_far(checkpoint, tmp_path):
    longer = shutil.copytree(checkpoint, tmp_path / "longer")
    config = json.loads((longer / "config.json").read_text())
    config["sampling"]["chunk_size"] = 3
    (longer / "config.json").write_text(json.dumps(config))
    env = gym.make(ID, world_model=longer, observation="chunk", device="cpu")
    observation, _ = env.reset(seed=0)
    assert observation.shape == env.observation_space.shape == (12, 32, 32, 3)
    action = np.array([0.02, 0, 0, 0, 0, 0, 0], np.float32)
    observation, _, _, _, info = env.step(action)
    assert observation in env.observation_space and env.unwrapped.state.num_steps.tolist() == [1]
    assert info["pose"][0, 3] == pytest.approx(0.06), "the action is held for each of the three latents"
