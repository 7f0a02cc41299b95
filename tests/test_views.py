"""What policies see of latents, alike in training and afterwards."""

from __future__ import annotations

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode

from astra_env import geometry
from astra_env.envs import SURE
from astra_env.models.reward_model import RewardModel
from astra_env.models.target_model import TargetModel, read_all
from policies import train
from policies.agents import load_policy
from policies.evaluate import FunctionPolicy
from policies.sb3 import load
from policies.seeing import Seeing, Viewed
from policies.train import TrainPolicyConfig, completed, train_policy
from policies.views import AGEING, FAR, SPEED, WAY, Planes, Readings, Sightings, keep_models, speed_beside, view_of
from policies.worlds import make_imagined

ID, CAMERA = "Astra-RT1-v0", "Astra-Sekai-v0"
LATENT = Box(-np.inf, np.inf, (16, 4, 4), np.float32)


@pytest.fixture
def heads(tmp_path):
    """Two target models in a folder."""
    for index in range(2):
        folder = tmp_path / "heads" / (f"head_{index}" if index else "")
        folder.mkdir()
        torch.manual_seed(index)
        TargetModel(dim=8, latent_size=4).save(folder)
    return tmp_path / "heads"


def viewed(environment, checkpoint, view) -> Viewed:
    """Two worlds as a view shows them."""
    options = {"observation": "latent", "world_model": checkpoint, "autoreset_mode": AutoresetMode.DISABLED}
    return Viewed(gymnasium.make_vec(environment, num_envs=2, vectorization_mode="vector_entry_point", **options), view)


def test_the_speed_is_one_more_channel():
    latents = np.random.default_rng(0).normal(size=(2, *LATENT.shape)).astype(np.float32)
    shown = Planes(speed_beside)(latents, {"speed": np.array([0.0, 2 * SPEED])})
    np.testing.assert_array_equal(shown[:, :16], latents)
    assert (shown[0, 16] == 0).all() and (shown[1, 16] == 2).all()
    assert Planes(speed_beside).space(LATENT).shape == shown.shape[1:] and shown.dtype == np.float32


def test_readings_are_what_models_say_and_by_what(heads):
    view, latents = Readings.load(heads), torch.randn(3, *LATENT.shape)
    shown = view(latents.numpy(), {"speed": np.array([0.0, SPEED, 0.0])})
    assert shown.shape == (3, *view.space(LATENT).shape) == (3, 2 * (3 + 128) + 1)
    model = view.models[1]
    with torch.no_grad():
        said = (model(latents) - model.centre) / model.scale
    np.testing.assert_allclose(shown[:, 131:134], said, atol=1e-5)
    assert shown[:, -1].tolist() == [0, 1, 0]


def test_heads_that_read_the_speed_are_told_it(tmp_path):
    RewardModel(dim=8, latent_size=4, reads_speed=True).save(tmp_path)
    view, latents = Readings.load(tmp_path), np.zeros((2, *LATENT.shape), np.float32)
    slow, fast = view(latents, {"speed": np.array([0.0, 20.0])})
    assert not np.allclose(slow[:-1], fast[:-1])


def test_the_way_to_a_target_is_remembered(checkpoint, tmp_path):
    torch.manual_seed(0)
    TargetModel(latent_size=4, num_outputs=6).save(tmp_path)
    view = Readings.load(tmp_path)
    env = viewed(ID, checkpoint, view)
    shown, info = env.reset(seed=0)
    assert env.single_observation_space.shape == shown.shape[1:]
    with torch.no_grad():
        offsets = view.models[0](torch.from_numpy(env.unwrapped.save_state().newest.numpy()))[:, :3].numpy()
    np.testing.assert_allclose(shown[:, -3:] * WAY, offsets, atol=1e-5)
    actions = np.zeros((2, 7), np.float32)
    actions[:, :3] = [[0.05, 0, 0], [0, 0.03, 0]]
    further, *_, info = env.step(actions)
    moved = info["pose"][:, :3, 3]
    np.testing.assert_allclose(further[:, -3:] * WAY, offsets - moved, atol=1e-5)  # whatever the latent shows now
    again, _ = env.reset(options={"reset_mask": np.array([True, False])})
    np.testing.assert_array_equal(again[1], further[1])
    env.close()
    world, seen = make_imagined(ID, observation="latent", world_model=checkpoint), []
    policy = Seeing(FunctionPolicy(lambda told: seen.append(told) or actions[0]), view, world)
    for seed in (0, 0):
        observation, _ = world.reset(seed=seed)
        policy.reset(seed)
        for _ in range(2):
            observation, *_ = world.step(policy.act(observation))
    np.testing.assert_allclose(seen[:2], [shown[0], further[0]], atol=1e-5)
    np.testing.assert_array_equal(seen[2:], seen[:2])


@torch.no_grad()
def test_a_thing_is_remembered_where_it_was_seen_best(checkpoint, tmp_path):
    for index, folder in enumerate((tmp_path, tmp_path / "head_1")):
        folder.mkdir(exist_ok=True)
        torch.manual_seed(index)
        model = TargetModel(latent_size=4, doubts=True)
        model.features[-1].weight *= 20  # random pictures are told apart
        model.features[-1].bias[3] -= 3
        model.save(folder)
    view = view_of(CAMERA, "latent", tmp_path)
    assert isinstance(view, Sightings)
    env = viewed(CAMERA, checkpoint, view)
    shown, info = env.reset(seed=0)
    assert env.single_observation_space.shape == shown.shape[1:]
    best = np.full(2, np.inf)
    places, changes = np.zeros((2, 3)), 0
    rng = np.random.default_rng(0)
    for _ in range(12):
        offsets, doubts = (part.numpy() for part in read_all(view.models, env.unwrapped.save_state().newest))
        better = doubts < best
        changes += better.sum()
        here = info["pose"][:, :3, 3] + np.einsum("nij,nj->ni", info["pose"][:, :3, :3], offsets)
        best, places = np.where(better, doubts, best), np.where(better[:, None], here, places)
        way = np.einsum("nji,nj->ni", info["pose"][:, :3, :3], places - info["pose"][:, :3, 3])
        seen = best < SURE
        np.testing.assert_allclose(shown[:, :3] * FAR, way * seen[:, None], atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(shown[:, 3:6], axis=1), seen, atol=1e-5)
        np.testing.assert_array_equal(shown[:, 6], seen)
        shown, *_, info = env.step(rng.uniform(-0.2, 0.2, (2, 6)).astype(np.float32))
        best *= AGEING
    assert 2 < changes < 24
    again, _ = env.reset(seed=0)
    env.close()
    alone = viewed(CAMERA, checkpoint, view)
    np.testing.assert_array_equal(again, alone.reset(seed=0)[0])  # nothing is left of the last episode
    alone.close()


def test_what_was_not_seen_is_nothing(tmp_path):
    view, told = Sightings([TargetModel(latent_size=4, doubts=True)]), {"pose": np.eye(4)[None]}
    told |= {"target": np.ones((1, 3)), "doubt": np.array([SURE])}
    latents = np.zeros((1, *LATENT.shape), np.float32)
    assert not view(latents, told).any()
    assert view(latents, told | {"doubt": np.array([0.9 * SURE])}).all()


def test_cars_are_seen_with_their_speed_and_pictures_as_they_are():
    assert isinstance(view_of("Astra-NuScenes-v0", "latent", None), Planes)
    assert view_of("Astra-RT1-v0", "latent", None) is None and view_of("Astra-NuScenes-v0", "frame", None) is None


def test_a_path_is_seen_by_the_way_to_its_next_pose(checkpoint, tmp_path):
    view = view_of("Astra-MultiCam-v0", "latent", None)
    env = viewed("Astra-MultiCam-v0", checkpoint, view)
    shown, info = env.reset(seed=0)
    assert env.single_observation_space.shape == shown.shape[1:]
    alone = view_of("Astra-MultiCam-v0", "latent", tmp_path)
    numbers = alone(shown[:, :16], {name: info[name] for name in ("pose", "next_pose")})
    np.testing.assert_array_equal(numbers, shown[:, 16:, 0, 0])
    assert numbers.shape[1:] == alone.space(LATENT).shape and not alone.remember(shown[:, :16], info)
    for _ in range(3):
        motion = shown[:, 16:, 0, 0] * WAY
        np.testing.assert_allclose(
            motion[:, :3], geometry.relative(info["pose"], info["next_pose"])[:, :3, 3], atol=1e-6
        )
        roll, pitch, yaw = motion[:, 5], motion[:, 3], motion[:, 4]  # z ahead, x right, y down
        shown, rewards, *_, info = env.step(np.column_stack([motion[:, :3], roll, pitch, yaw]).astype(np.float32))
        assert (rewards > 0.9).all()  # who goes that way is on the path
    again, _ = env.reset(options={"reset_mask": np.array([True, False])})
    np.testing.assert_array_equal(again[1], shown[1])
    env.close()


def test_rows_that_go_on_keep_their_speed(checkpoint):
    env = viewed("Astra-NuScenes-v0", checkpoint, Planes(speed_beside))
    first, info = env.reset(seed=0)
    np.testing.assert_allclose(first[:, 16, 0, 0], info["speed"] / SPEED, rtol=1e-6)
    assert env.single_observation_space.contains(first[0]) and first[1, 16, 0, 0] > 0
    shown, *_, info = env.step(np.tile(np.float32([0, 2]), (2, 1)))
    np.testing.assert_allclose(shown[:, 16, 0, 0], info["speed"] / SPEED, rtol=1e-6)
    again, _ = env.reset(options={"reset_mask": np.array([True, False])})
    np.testing.assert_array_equal(again[1], shown[1])
    env.close()


def test_a_policy_is_shown_what_it_learned_from(checkpoint):
    world = make_imagined("Astra-NuScenes-v0", world_model=checkpoint, observation="latent")
    seen = []
    policy = Seeing(
        FunctionPolicy(lambda shown: seen.append(shown) or np.zeros(2, np.float32)), Planes(speed_beside), world
    )
    observation, info = world.reset(seed=0, options={"start": 2})
    policy.reset(0).act(observation)
    np.testing.assert_allclose(
        seen[0], Planes(speed_beside)(observation[None], {"speed": np.array([info["speed"]])})[0]
    )


@pytest.mark.parametrize("read", [False, True])
def test_a_run_takes_along_what_its_policy_sees_by(checkpoint, heads, tmp_path, monkeypatch, read):
    quick = {"learning_starts": 4, "buffer_size": 40, "batch_size": 4}
    monkeypatch.setattr(train, "HYPERPARAMETERS", {"sac": quick})
    environment = "Astra-RT1-v0" if read else "Astra-NuScenes-v0"
    config = TrainPolicyConfig(environment, str(tmp_path / "run"), world_model=checkpoint, num_worlds=2, steps=8)
    config = dataclasses.replace(config, read_by=str(heads) if read else None, eval_every=8, eval_episodes=1)
    train_policy(dataclasses.replace(config, episode_steps=2))
    assert load(tmp_path / "run" / "policy.zip", "sac").observation_space.shape == ((263,) if read else (17, 4, 4))
    for path in sorted(heads.rglob("*.safetensors")):
        path.unlink()  # the run has its own
    world = make_imagined(environment, world_model=checkpoint, observation="latent", device="cpu")
    for name in ("run", "run/checkpoints/8.zip"):
        policy = load_policy(str(tmp_path / name), environment, world)
        assert world.action_space.contains(policy.act(world.reset(seed=0)[0]))


def test_models_are_kept_without_what_lies_beside_them(heads, tmp_path):
    (heads / "notes.txt").write_text("not a model")
    RewardModel(dim=8, latent_size=4).save(heads)
    keep_models(heads, tmp_path / "kept")
    kept = sorted(path.relative_to(tmp_path / "kept").as_posix() for path in (tmp_path / "kept").rglob("*.*"))
    assert kept == ["head_1/target_model.safetensors", "reward_model.safetensors", "target_model.safetensors"]
    assert [type(model) for model in Readings.load(tmp_path / "kept").models] == [TargetModel, TargetModel, RewardModel]


def test_the_models_of_the_task_are_found(checkpoint, tmp_path):
    config = TrainPolicyConfig("Astra-Sekai-v0", str(tmp_path), world_model=checkpoint, read_by="task")
    assert (train._task_folder(completed(config)) / "reward_model.safetensors").is_file()
    with pytest.raises(ValueError, match="has learned no reward of Astra-RT1-Reach-v0"):
        train._task_folder(completed(dataclasses.replace(config, environment="Astra-RT1-Reach-v0")))
