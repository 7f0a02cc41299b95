"""Policies of LeRobot: what they are shown and told and what becomes of their actions; with lerobot, if it is there."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from astra_env.actions import ACTION_MODALITIES
from astra_env.envs.export import clip_of, export, imagine_clips
from astra_env.geometry import pose_to_vector7
from policies.agents import load_policy
from policies.cli import main
from policies.evaluate import evaluate
from policies.lerobot import STATE, LeRobotPolicy, load_lerobot
from policies.worlds import LastInfo

IMAGE = "observation.images.main"
MODALITY = ACTION_MODALITIES["end_effector"]


class Stub:
    """Acts by the brightness of the picture, as LeRobot's policies do: batched tensors by name."""

    def __init__(self, *, size: int = 32, state: int = 7, action_dim: int = 7, share: float = 1.0) -> None:
        image, wanted = SimpleNamespace(shape=(3, size, size)), SimpleNamespace(shape=(state,))
        self.config = SimpleNamespace(image_features={IMAGE: image}, input_features={IMAGE: image, STATE: wanted})
        self.action_dim, self.share, self.told, self.resets = action_dim, share, [], 0

    def reset(self) -> None:
        self.resets += 1

    def select_action(self, batch: dict) -> Tensor:
        self.told.append(batch)
        return self.share * batch[IMAGE].mean((1, 2, 3))[:, None].expand(-1, self.action_dim)


def grey(shade: int, size: int = 32) -> np.ndarray:
    return np.full((size, size, 3), shade, np.uint8)


def test_it_sees_the_picture_and_is_kept_in_bounds(make):
    stub = Stub()
    policy = LeRobotPolicy(stub, "Astra-RT1-v0", LastInfo(make()), task="lift", num_actions=1)
    resets = stub.resets
    assert policy.reset(0) is policy and stub.resets == resets + 1
    np.testing.assert_allclose(policy.act(grey(51)), [0.05] * 3 + [0.2] * 3 + [0.2], atol=1e-6)
    np.testing.assert_allclose(policy.act(grey(255)), MODALITY.high)
    assert stub.told[0]["task"] == ["lift"] and stub.told[0][IMAGE].shape == (1, 3, 32, 32)


def test_what_it_does_in_the_frames_of_a_step_is_one_action(make):
    """A data set holds an action for every frame: motions add up, the gripper is where it is last."""
    whole = np.array([0.04, -0.02, 0.01, 0.1, -0.05, 0.2, 1.0], np.float32)
    shares = iter(torch.from_numpy(MODALITY.split(whole, 4)))
    stub = Stub()
    stub.select_action = lambda batch: next(shares)[None]
    policy = LeRobotPolicy(stub, "Astra-RT1-v0", LastInfo(make()))
    np.testing.assert_allclose(policy.act(grey(0)), whole, atol=1e-6)


@pytest.mark.parametrize(("environment", "state"), [("Astra-RT1-v0", 7), ("Astra-NuScenes-v0", 8)])
def test_it_is_told_the_state_that_exported_episodes_hold(make, environment, state):
    world = LastInfo(make(id=environment))
    stub = Stub(state=state, action_dim=world.action_space.shape[0], share=0.05)
    policy, told, done = LeRobotPolicy(stub, environment, world), [], []
    observation, info = world.reset(seed=0)
    policy.reset(0)
    for _ in range(3):
        told.append(info)
        done.append(policy.act(observation))
        observation, *_, info = world.step(done[-1])
    clip = clip_of(world.unwrapped, [*told, info], np.stack(done), "here")
    for begun, row in zip(range(0, 12, 4), (0, 4, 8), strict=True):
        speed = [] if clip.speeds is None else [clip.speeds[row]]
        expected = np.concatenate([pose_to_vector7(clip.poses[row]), speed])
        np.testing.assert_allclose(stub.told[begun][STATE][0], expected, atol=1e-5)
    assert stub.told[0]["task"] == [clip.text]
    policy.reset(1)
    policy.act(observation)
    np.testing.assert_allclose(stub.told[-1][STATE][0, :7], [0, 0, 0, 0, 0, 0, 1], atol=1e-6)


def test_pictures_come_at_the_size_that_it_has_learned_from(make):
    stub = Stub(size=48)
    LeRobotPolicy(stub, "Astra-RT1-v0", LastInfo(make())).act(grey(100))
    assert stub.told[0][IMAGE].shape == (1, 3, 48, 48)
    torch.testing.assert_close(stub.told[0][IMAGE], torch.full((1, 3, 48, 48), 100 / 255))


def test_where_actions_are_keys_the_nearest_are_pressed(make):
    world = LastInfo(make(id="Astra-SpatialVID-v0"))
    policy = LeRobotPolicy(Stub(action_dim=6), "Astra-SpatialVID-v0", world)
    assert evaluate(world, policy, episodes=1).lengths.min() > 0
    assert policy.act(grey(0)) == 0


def test_what_does_not_fit_is_told(make):
    world = LastInfo(make())
    blind = Stub()
    blind.config.image_features = {}
    with pytest.raises(ValueError, match=r"looks at no picture, only at \['observation.images.main', 'observation"):
        LeRobotPolicy(blind, "Astra-RT1-v0", world)
    with pytest.raises(ValueError, match=r"wants observation.state of shape \(14,\), but the world tells \(7,\)"):
        LeRobotPolicy(Stub(state=14), "Astra-RT1-v0", world).act(grey(0))
    with pytest.raises(ValueError, match=r"end_effector action has shape \(14,\)"):
        LeRobotPolicy(Stub(action_dim=14), "Astra-RT1-v0", world).act(grey(0))
    greedy = Stub()
    greedy.select_action = lambda batch: batch["observation.images.wrist"]
    with pytest.raises(ValueError, match=r"also wants .observation\.images\.wrist.; a world shows"):
        LeRobotPolicy(greedy, "Astra-RT1-v0", world).act(grey(0))


SIZES = {
    "chunk_size": 8,
    "n_action_steps": 8,
    "dim_model": 16,
    "n_heads": 2,
    "dim_feedforward": 32,
    "n_encoder_layers": 1,
    "n_vae_encoder_layers": 1,
    "latent_dim": 4,
}
"""Of a tiny ACT."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of a tiny untrained ACT of lerobot, with the processors that it was saved with."""
    pytest.importorskip("lerobot.policies.factory")
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors

    torch.manual_seed(0)
    seen = {IMAGE: PolicyFeature(FeatureType.VISUAL, (3, 32, 32)), STATE: PolicyFeature(FeatureType.STATE, (7,))}
    acts = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
    config = ACTConfig(
        input_features=seen, output_features=acts, device="cpu", pretrained_backbone_weights=None, **SIZES
    )
    statistics = {name: {"mean": torch.full((7,), 0.01), "std": torch.full((7,), 0.02)} for name in ("action", STATE)}
    statistics[IMAGE] = {"mean": torch.full((3, 1, 1), 0.4), "std": torch.full((3, 1, 1), 0.2)}
    folder = tmp_path_factory.mktemp("act")
    for part in (ACTPolicy(config), *make_pre_post_processors(config, dataset_stats=statistics)):
        part.save_pretrained(folder)
    return folder


def test_a_saved_policy_acts_by_its_own_statistics(make, saved):
    world = LastInfo(make())
    policy = load_policy(f"lerobot:{saved}", "Astra-RT1-v0", world)
    observation, _ = world.reset(seed=0)
    policy.reset(0)
    action = policy.act(observation)
    pixels = (torch.tensor(observation).movedim(-1, 0)[None] / 255 - 0.4) / 0.2
    state = (torch.tensor([[0.0, 0, 0, 0, 0, 0, 1]]) - 0.01) / 0.02
    with torch.no_grad():
        chunk = policy.policy.predict_action_chunk({IMAGE: pixels, STATE: state})[0]
    expected = MODALITY.validate(MODALITY.combine(0.02 * chunk[:4] + 0.01), clip=True)
    np.testing.assert_allclose(action, expected, atol=1e-5)
    assert (np.abs(action) > 1e-4).all()


def test_a_policy_from_another_device_acts_here(make, saved, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("There is nothing to fall back from.")
    for path in saved.iterdir():
        told = path.read_bytes()
        if path.name in ("config.json", "policy_preprocessor.json"):
            assert b'"device": "cpu"' in told
            told = told.replace(b'"device": "cpu"', b'"device": "cuda"')
        (tmp_path / path.name).write_bytes(told)
    world = LastInfo(make())
    here, there = (load_lerobot(str(folder), "Astra-RT1-v0", world).act(grey(90)) for folder in (saved, tmp_path))
    np.testing.assert_array_equal(here, there)


def test_it_is_evaluated_by_name_and_its_output_is_json(capsys, checkpoint, saved, monkeypatch):
    spec = gym.spec("Astra-RT1-v0")
    monkeypatch.setattr(spec, "max_episode_steps", 3)
    main(f"evaluate Astra-RT1-v0 lerobot:{saved} --episodes 1 --world-model {checkpoint}".split())
    assert json.loads(capsys.readouterr().out)["imagination"]["lengths"] == [3]


@pytest.mark.slow
def test_what_lerobot_learns_from_exported_episodes_acts_in_the_world(make, checkpoint, tmp_path):
    pytest.importorskip("lerobot.scripts.lerobot_train")
    pytest.importorskip("datasets")
    clips = imagine_clips("Astra-RT1-v0", episodes=2, steps=4, world_model=checkpoint, device="cpu")
    export(clips, tmp_path / "set", "lerobot")
    flags = {"type": "act", "device": "cpu", "push_to_hub": "false", "pretrained_backbone_weights": "null", **SIZES}
    command = [sys.executable, "-m", "lerobot.scripts.lerobot_train", f"--dataset.root={tmp_path / 'set'}"]
    command += ["--dataset.repo_id=me/imagined", f"--output_dir={tmp_path / 'run'}", "--batch_size=2", "--steps=2"]
    command += ["--num_workers=0", "--save_freq=2", *(f"--policy.{name}={value}" for name, value in flags.items())]
    subprocess.run(command, check=True, capture_output=True)
    world = LastInfo(make())
    policy = load_policy(f"lerobot:{tmp_path}/run/checkpoints/last/pretrained_model", "Astra-RT1-v0", world)
    assert policy.image == IMAGE and set(policy.policy.config.input_features) == {IMAGE, STATE}
    assert evaluate(world, policy, episodes=1).lengths.min() > 0
