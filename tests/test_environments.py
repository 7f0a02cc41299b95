"""What holds for every id of the table, at tiny size; simulators are compared where they are installed."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from tiny import ACTION_DIMS, assert_same, save_checkpoint, tiny_world_model, write_domain

import astra_env  # noqa: F401  registers the ids
from astra_env.actions import ACTION_MODALITIES, DISCRETE_ACTIONS
from astra_env.envs import ENVIRONMENTS
from astra_env.envs.describe import describe
from astra_env.simulators import SIMULATORS, KeyActions, make_simulator

IDS = list(ENVIRONMENTS)
PACKAGES = {"robot": "robosuite", "driving": "metadrive", "exploration": "mujoco", "multicam": "robosuite"}


def taken(env: gym.Env, num: int = 3) -> list:
    """The same few actions for every environment of an id."""
    env.action_space.seed(0)
    return [env.action_space.sample() for _ in range(num)]


def walk(env: gym.Env, seed: int = 3) -> list[np.ndarray]:
    """All that an episode shows and tells."""
    observation, info = env.reset(seed=seed)
    seen = [observation, info["pose"]]
    for action in taken(env):
        observation, reward, terminated, _, info = env.step(action)
        seen += [
            observation,
            np.array([reward, terminated]),
            info["pose"],
            np.array(list(info["reward_terms"].values())),
        ]
    return [*seen, info.get("path", np.zeros(0))]


@pytest.mark.parametrize("environment", IDS)
# physical units brake harder than they accelerate; gymnasium.wrappers.RescaleAction is there for who wants [-1, 1]
@pytest.mark.filterwarnings("ignore:.*symmetric and normalized:UserWarning")
@pytest.mark.filterwarnings("error:.*:UserWarning:gymnasium")
def test_gymnasiums_checker_passes(make, environment):
    check_env(make(id=environment, render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize("environment", IDS)
def test_a_seed_and_actions_decide_every_byte(make, environment):
    env = make(id=environment)
    assert_same([walk(env), walk(env)])
    assert_same([walk(env), walk(make(id=environment), seed=4)], equal=False)


@pytest.mark.parametrize("environment", IDS)
def test_what_is_told_of_motion_is_where_the_actions_lead(make, environment):
    env, spec = make(id=environment), ENVIRONMENTS[environment]
    modality = ACTION_MODALITIES[spec.modality]
    _, info = env.reset(seed=1)
    assert np.array_equal(info["pose"], np.eye(4)) and ("speed" in info) == (spec.modality == "vehicle")
    speed, actions = info.get("speed", 0.0), taken(env)
    for action in actions:
        _, reward, _, _, info = env.step(action)
        assert 0 <= reward <= 1
    if spec.discrete:
        actions = modality.discrete(DISCRETE_ACTIONS[spec.modality])[actions]
    expected = modality.integrate(np.eye(4), np.stack(actions), speed=speed)[-1]
    np.testing.assert_allclose(info["pose"], expected, atol=1e-9)
    assert ("path" in info) == spec.follows_path
    if spec.follows_path:
        assert len(info["path"]) == spec.max_episode_steps + 1
        assert np.array_equal(info["path_pose"], info["path"][3]) and np.array_equal(info["next_pose"], info["path"][4])
        assert set(info["reward_terms"]) == {"path_distance", "path_angle"}


@pytest.mark.parametrize("environment", IDS)
def test_every_id_says_what_it_is(make, environment):
    text, modality = describe(environment), ACTION_MODALITIES[ENVIRONMENTS[environment].modality]
    assert make(id=environment).unwrapped.__doc__ == text
    for part in ("Description", "Action Space", "Observation Space", "Rewards", "Starting State", "Episode End"):
        assert f"## {part}\n" in text
    assert modality.frame in text and all(f"| {unit} |" in text or f" {unit}" in text for unit in modality.units)
    assert ("options={" in text) == ENVIRONMENTS[environment].follows_path


def test_keys_are_listed_with_what_they_do():
    text = describe("Astra-SpatialVID-v0")
    assert "`Discrete(13)`" in text and "| 0 | none | nothing |" in text
    assert "| 6 | w d | dx 0.2 m, dz 0.2 m |" in text and "| 7 | left | dyaw -0.2 rad |" in text


# Actions


def test_a_number_is_the_action_of_its_keys(make):
    keys, free = make(id="Astra-SpatialVID-v0"), make(id="Astra-Sekai-v0")
    table = ACTION_MODALITIES["camera"].discrete(DISCRETE_ACTIONS["camera"])
    for index in (0, 6, np.int64(12)):
        for env in (keys, free):
            env.reset(seed=1)
        first, other = keys.step(index), free.step(table[index])
        assert np.array_equal(first[0], other[0]) and np.array_equal(first[4]["pose"], other[4]["pose"])


@pytest.mark.parametrize("action", [-1, 13, 2.0, np.array([1]), np.zeros(6, np.float32), "w"], ids=repr)
def test_a_number_of_no_keys_is_refused_and_changes_nothing(make, action):
    env = make(id="Astra-SpatialVID-v0").unwrapped
    env.reset(seed=1)
    before = env.save_state()
    with pytest.raises(ValueError, match="expected a whole number from 0 to 12"):
        env.step(action)
    assert env.save_state() is before


@pytest.mark.parametrize("environment", [name for name in IDS if not ENVIRONMENTS[name].discrete])
def test_wrong_actions_are_refused(make, environment):
    env = make(id=environment).unwrapped
    env.reset(seed=1)
    low, high = env.action_space.low, env.action_space.high
    for action, message in ((high[:-1], "shape"), (high * np.nan, "finite"), (low - 0.01, "bounds")):
        with pytest.raises(ValueError, match=message):
            env.step(action)


# Outcomes


@pytest.mark.parametrize(("outcome", "index"), [("success", 1), ("failure", 2)])
def test_a_car_that_fails_has_not_succeeded(checkpoint, outcome, index):
    env = gym.make("Astra-NuScenes-v0", world_model=checkpoint, device="cpu")
    env.unwrapped.reward_function.heads[0].features[-1].bias.data[1:] = -50
    env.unwrapped.reward_function.heads[0].features[-1].bias.data[index] = 50
    env.reset(seed=1)
    _, reward, terminated, _, info = env.step(np.zeros(2, np.float32))
    assert terminated and info["success"] == info["is_success"] == (outcome == "success")
    assert (reward == 0) == (outcome == "failure")
    assert info["reward_terms"][f"{outcome}_probability"] == pytest.approx(1)


def test_the_objective_follows_the_path_at_any_step(make):
    env = make(id="Astra-MultiCam-v0").unwrapped
    _, info = env.reset(seed=1)
    start = env.save_state().repeat(2)
    actions = env.action_modality.from_poses(info["path"][:4])
    with torch.no_grad():
        later = env.world_model.imagine(start, torch.from_numpy(actions).expand(2, -1, -1))
    both = type(start).cat([start[0], later[1]])
    assert both.num_steps.tolist() == [0, 3]
    np.testing.assert_allclose(env.objective(both), [1.0, 1.0], atol=1e-4)
    assert env.objective(start.cat([start[0], later[0]])).shape == (2,)


# What a checkpoint holds


def test_a_domain_can_be_chosen_by_its_name(tmp_path):
    save_checkpoint(tmp_path, domains=[])
    for name, count in (("camera", 3), ("garden", 5)):
        write_domain(tmp_path / "domains" / name, "camera", num_starts=count)
    for options, count in (({}, 3), ({"domain": "garden"}, 5)):
        env = gym.make("Astra-Sekai-v0", world_model=str(tmp_path), **options)
        assert len(env.unwrapped.start_states) == count
    with pytest.raises(ValueError, match="expected a domain 'forest'"):
        gym.make("Astra-Sekai-v0", world_model=str(tmp_path), domain="forest")


def test_start_states_and_head_are_those_of_the_domain(make, checkpoint):
    for environment, spec in ENVIRONMENTS.items():
        env = make(id=environment).unwrapped
        assert env.start_states.actions.shape[-1] == ACTION_DIMS[spec.modality]
        terms = env.reset(seed=0)[1]["reward_terms"]
        assert ("failure_probability" in terms) == (spec.domain == "driving")


def test_a_checkpoint_of_ones_own_serves_with_what_fits(tmp_path):
    save_checkpoint(tmp_path, domains=[])
    env = gym.make("Astra-Sekai-v0", world_model=str(tmp_path), device="cpu")
    with pytest.raises(ValueError, match="no recorded start states; reset with options="):
        env.reset()
    write_domain(tmp_path / "domains" / "garden", "camera", num_starts=5)
    write_domain(tmp_path / "domains" / "hand", "end_effector")
    for environment in ("Astra-Sekai-v0", "Astra-MultiCam-v0"):
        assert len(gym.make(environment, world_model=str(tmp_path), device="cpu").unwrapped.start_states) == 5
    message = r"has recordings of {'garden': 'camera', 'hand': 'end_effector'}, expected a domain 'driving' or"
    with pytest.raises(ValueError, match=message):
        gym.make("Astra-NuScenes-v0", world_model=str(tmp_path), device="cpu")
    write_domain(tmp_path / "domains" / "street", "camera")
    with pytest.raises(ValueError, match="expected a domain 'camera' or one of 'camera' actions"):
        gym.make("Astra-Sekai-v0", world_model=str(tmp_path), device="cpu")
    (tmp_path / "domains" / "street" / "dataset.json").write_text("{}")
    with pytest.raises(ValueError, match=r"dataset.json does not tell its modality's name"):
        gym.make("Astra-Sekai-v0", world_model=str(tmp_path), device="cpu")


def test_a_world_of_other_actions_says_which_it_knows(tmp_path):
    tiny_world_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"Astra-NuScenes-v0 needs 'vehicle' actions, but .* knows \['end_effector'\]"):
        gym.make("Astra-NuScenes-v0", world_model=str(tmp_path), device="cpu")


# Simulators


def test_every_id_has_a_simulator():
    assert set(SIMULATORS) == set(ENVIRONMENTS)


@pytest.mark.simulator
@pytest.mark.parametrize("environment", IDS)
def test_a_simulator_has_the_same_actions(make, environment):
    pytest.importorskip(PACKAGES[SIMULATORS[environment].split(":")[0].rsplit(".", 1)[1]])
    simulator, env = make_simulator(environment), make(id=environment)
    assert simulator.action_space == env.action_space
    simulator.reset(seed=0)
    _, _, _, _, info = simulator.step(taken(env)[0])
    assert info["frames"].shape[0] == env.unwrapped.world_model.chunk_frames and info["pose"].shape == (4, 4)
    simulator.close()


class Told(gym.Env):
    """Remembers what it was told to do."""

    def step(self, action):
        self.action = action
        return None, 0.0, False, False, {}


def test_a_simulator_can_be_told_keys():
    told = Told()
    simulator = KeyActions(told, "camera")
    simulator.step(6)
    np.testing.assert_array_equal(told.action, ACTION_MODALITIES["camera"].from_keys(["w", "d"]))
    with pytest.raises(ValueError, match="The action is 13, expected a whole number from 0 to 12"):
        simulator.step(13)
