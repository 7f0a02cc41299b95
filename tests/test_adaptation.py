"""A fourth modality is one row of the table and its data: here a drone."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from tiny import random_actions, random_frames, save_checkpoint, seeded, tiny_world_model

from astra_env.actions import ACTION_MODALITIES, ActionModality
from astra_env.kinematics import RigidMotion
from astra_env.models import WorldModel
from astra_env.models.adaptation import freeze_but, with_modality
from astra_env.training import TrainConfig, train
from astra_env.training.episodes import Episodes
from astra_env.training.walkers import Recipe
from astra_env.training.world_model import fit_world_model, make_tracks

DRONE = ActionModality(
    name="drone",
    fields=("dx", "dy", "dz", "droll", "dpitch", "dyaw"),
    units=("m", "m", "m", "rad", "rad", "rad"),
    low=(-1.0, -1.0, -0.5, -0.1, -0.1, -0.3),
    high=(1.0, 1.0, 0.5, 0.1, 0.1, 0.3),
    rate_hz=5.0,
    frame="body: x forward, y left, z up",
    kinematics=RigidMotion(moving=True),
)


@pytest.fixture
def drone(monkeypatch):
    """The row that adds the modality."""
    monkeypatch.setitem(ACTION_MODALITIES, "drone", DRONE)
    return DRONE


def drone_episodes(num: int = 3, num_chunks: int = 6) -> Episodes:
    frames = random_frames(num, 4 * num_chunks + 1)
    actions = torch.rand(num, num_chunks, 6, generator=seeded(1)) * torch.tensor(DRONE.high)
    return Episodes("drone", "drone", frames, actions, torch.zeros(num, num_chunks + 1), torch.zeros(num, 7).bool())


def imagined(world_model: WorldModel, modality: str, actions: torch.Tensor) -> torch.Tensor:
    state = world_model.init_state(random_frames(2, 5), modality, actions=actions[:, :1])
    return world_model.imagine(state, actions[:, 1:]).latents


@torch.no_grad()
def test_what_the_world_knew_stays_as_it_was(drone):
    world_model = tiny_world_model()
    extended = with_modality(world_model, "drone")
    old = random_actions(2, 4)
    torch.testing.assert_close(imagined(extended, "end_effector", old), imagined(world_model, "end_effector", old))
    assert extended.modalities["drone"] is DRONE
    rows = torch.rand(2, 4, 6, generator=seeded()) * torch.tensor(DRONE.high)
    assert imagined(extended, "drone", rows).isfinite().all()
    mixed = extended.transformer.action_features(torch.zeros(2, 3, 7), torch.ones(2, 3), ("end_effector", "drone"))
    assert (mixed.routing[0, :, -1] == 0).all(), "the new expert is closed to old modalities"
    assert (mixed.routing[1, :, -1] > 0).all(), "and open to its own"


def test_only_its_projector_and_expert_learn(drone, tmp_path):
    world_model = tiny_world_model()
    extended = with_modality(world_model, "drone").requires_grad_(True)
    freeze_but(extended.transformer, ["drone"])
    before = copy.deepcopy(extended.transformer.state_dict())
    episodes = drone_episodes()
    with torch.no_grad():
        latents = extended.autoencoder.encode(episodes.frames).transpose(1, 2).contiguous()
    tracks = make_tracks(extended, [episodes], [latents], torch.ones(1))
    recipe = Recipe(batch_size=4, load_balancing=0.0, action_dropout=0.0)
    losses = fit(extended, tracks, tmp_path, recipe)
    after = extended.transformer.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        "action_experts.projectors.drone.weight",
        "action_experts.projectors.drone.bias",
        "action_experts.router.weight",
        "action_experts.router.bias",
        "action_experts.expert_in.weight",
        "action_experts.expert_in.bias",
        "action_experts.expert_out",
    }
    assert losses[-1] < losses[0]
    old = random_actions(2, 4)
    with torch.no_grad():
        torch.testing.assert_close(imagined(extended, "end_effector", old), imagined(world_model, "end_effector", old))


def fit(world_model: WorldModel, tracks, folder, recipe) -> list[float]:
    fit_world_model(world_model, tracks, folder, num_steps=60, recipe=recipe, learning_rate=1e-2, weight_decay=0.0)
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").open()]


def write_drone_data(root) -> None:
    for split, count in (("train", 3), ("heldout", 2)):
        (root / split).mkdir(parents=True)
        for index in range(count):
            rng = np.random.default_rng(index)
            poses = np.tile(np.eye(4, dtype=np.float32), (25, 1, 1))
            meta = {"domain": "drone", "modality": "drone", "fps": 20, "chunk_frames": 4, "text": "fly", "split": split}
            np.savez_compressed(
                root / split / f"episode_{index:05d}.npz",
                frames=rng.integers(0, 255, (25, 32, 32, 3), dtype=np.uint8),
                actions=(rng.uniform(-1, 1, (6, 6)) * DRONE.high).astype(np.float32),
                measured_poses=poses,
                reward=np.zeros(7, np.float32),
                success=np.zeros(7, bool),
                meta=np.array(json.dumps(meta)),
            )


def test_a_user_adds_it_with_data_and_two_options(drone, tmp_path):
    save_checkpoint(tmp_path / "old")
    write_drone_data(tmp_path / "data")
    config = TrainConfig(
        data=(str(tmp_path / "data"),),
        out=str(tmp_path / "run"),
        start_from=str(tmp_path / "old"),
        trainable="new",
        transformer_steps=4,
        batch_size=2,
        frame_size=32,
        compile=False,
    )
    checkpoint = train(config)
    world_model = WorldModel.from_pretrained(checkpoint, dtype=torch.float32)
    domains = {folder.parent.name for folder in checkpoint.glob("domains/*/start_states.npz")}
    assert domains == {"robot", "driving", "camera", "multicam", "drone"}
    assert set(world_model.modalities) >= {"end_effector", "drone"}
    old = random_actions(2, 4)
    with torch.no_grad():
        expected = imagined(WorldModel.from_pretrained(tmp_path / "old", dtype=torch.float32), "end_effector", old)
        torch.testing.assert_close(imagined(world_model, "end_effector", old), expected)
    again = dataclasses.replace(config, out=str(tmp_path / "again"), start_from=None)
    with pytest.raises(ValueError, match="trainable is 'new' without start_from"):
        train(again)


def test_only_a_new_modality_can_be_added(drone):
    world_model = tiny_world_model()
    with pytest.raises(ValueError, match="'end_effector' is no new modality"):
        with_modality(world_model, "end_effector")
    with pytest.raises(ValueError, match="'submarine' is no new modality"):
        with_modality(world_model, "submarine")
    with pytest.raises(ValueError, match="expected modalities that were added"):
        freeze_but(world_model.transformer, ["end_effector"])
