"""The real classes at tiny size, for tests: 32x32 frames, width 32, two blocks, two heads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from astra_env.actions import ACTION_MODALITIES
from astra_env.envs.start_states import StartStates
from astra_env.models import WorldModel
from astra_env.models.action_encoding import encoded_width, usual_encoding
from astra_env.models.autoencoder import TinyAutoencoder
from astra_env.models.history import HistoryLayout
from astra_env.models.reward_model import RewardModel
from astra_env.models.transformer import AstraTransformer, TransformerConfig
from astra_env.training.episodes import Episodes

LAYOUT = HistoryLayout(num_4x=4, num_2x=2, num_1x=1)  # slots: first | 1 2 3 4 | 5 6 | 7
MODALITY = "end_effector"
DOMAINS = {"robot": MODALITY, "driving": "vehicle", "camera": "camera", "multicam": "camera"}
ACTION_DIMS = {name: ACTION_MODALITIES[name].action_dim for name in DOMAINS.values()}
SIZE = 32


def seeded(seed: int = 0) -> torch.Generator:
    """A fresh generator."""
    return torch.Generator().manual_seed(seed)


def perturb(module: nn.Module, seed: int = 0, scale: float = 0.1) -> None:
    """Move every weight a little, so that what starts at zero (gates, experts, head) takes part."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def tiny_transformer(*, perturbed: bool = True, **changes: Any) -> AstraTransformer:
    """Fresh weights from seed 0; changes are fields of TransformerConfig."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "action_dims": {MODALITY: 7},
        "dim": 32,
        "num_layers": 2,
        "num_heads": 2,
        "ffn_dim": 64,
        "history": LAYOUT,
    }
    transformer = AstraTransformer(TransformerConfig(**sizes | changes)).requires_grad_(False)
    if perturbed:
        perturb(transformer)
    return transformer


def tiny_world_model(
    *, perturbed: bool = True, size: int = SIZE, action_encodings: dict[str, str] | None = None, **changes: Any
) -> WorldModel:
    """A whole world model on the CPU in float32, frozen."""
    transformer = tiny_transformer(perturbed=perturbed, **changes)
    autoencoder = {"dim": 16, "coarse_dim": 16}
    world_model = WorldModel(
        TinyAutoencoder(**autoencoder),
        transformer,
        frame_size=(size, size),
        autoencoder_config={"type": "tiny", **autoencoder},
        action_encodings=action_encodings,
    )
    return world_model.eval().requires_grad_(False)


def random_frames(batch: int, num: int, size: int = SIZE, seed: int = 0) -> Tensor:
    """Random frames uint8 (B, T, H, W, 3)."""
    return torch.randint(256, (batch, num, size, size, 3), generator=seeded(seed), dtype=torch.uint8)


def random_actions(*shape: int, seed: int = 0, modality: str = MODALITY) -> Tensor:
    """Random actions float32 (*shape, A) inside the bounds."""
    entry = ACTION_MODALITIES[modality]
    low, high = torch.tensor(entry.low), torch.tensor(entry.high)
    return low + (high - low) * torch.rand(*shape, entry.action_dim, generator=seeded(seed))


def save_checkpoint(folder: Path, *, domains: Iterable[str] = DOMAINS, num_starts: int = 3) -> Path:
    """A whole tiny checkpoint for all modalities, with what it holds of some domains."""
    encodings = {name: usual_encoding(ACTION_MODALITIES[name]) for name in ACTION_DIMS}
    widths = {name: encoded_width(encoding, ACTION_MODALITIES[name]) for name, encoding in encodings.items()}
    tiny_world_model(action_dims=widths, action_encodings=encodings).save_pretrained(folder)
    for domain in domains:
        write_domain(folder / "domains" / domain, DOMAINS[domain], num_starts=num_starts)
    return folder


def write_domain(folder: Path, modality: str, *, num_starts: int = 3) -> None:
    """Start states of nine frames, the manifest's modality, and a reward head, which knows of failure for cars."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    flags = 2 if modality == "vehicle" else 1
    RewardModel(dim=8, latent_size=SIZE // 8, num_flags=flags).save(folder)
    frames, actions = random_frames(num_starts, 9), random_actions(num_starts, 2, modality=modality)
    speeds = np.arange(num_starts, dtype=np.float32) + 1 if modality == "vehicle" else None
    StartStates(frames.numpy(), actions.numpy(), speeds).save(folder)
    (folder / "dataset.json").write_text(json.dumps({"modality": {"name": modality}}))


def episode(
    env: gym.Env, *, seed: int | None = None, options: dict[str, Any] | None = None, num: int = 3
) -> list[np.ndarray]:
    """Observations of an episode under fixed actions."""
    observations = [env.reset(seed=seed, options=options)[0]]
    return observations + [env.step(action)[0] for action in random_actions(num).numpy()]


def synthetic_episodes(num: int, num_chunks: int = 6) -> Episodes:
    """Recorded episodes of random pictures, in memory."""
    frames, actions = random_frames(num, 4 * num_chunks + 1), random_actions(num, num_chunks)
    rewards = torch.rand(num, num_chunks + 1, generator=seeded())
    return Episodes("robot", MODALITY, frames, actions, rewards, rewards > 0.7)


def write_episode(
    path: Path, split: str, *, num_chunks: int = 6, size: int = 64, seed: int = 0, kind: str = MODALITY
) -> None:
    """One recorded episode: a square whose place in the picture sums up the actions' dx and dy."""
    rng = np.random.default_rng(seed)
    modality = ACTION_MODALITIES[kind]
    actions = rng.uniform(modality.low, modality.high, (num_chunks, len(modality.low))).astype(np.float32)
    num_frames = 4 * num_chunks + 1
    shifts = np.concatenate([np.zeros((1, 2)), np.repeat(actions[:, :2] / 4, 4, axis=0).cumsum(0)])
    poses = np.tile(np.eye(4, dtype=np.float32), (num_frames, 1, 1))
    poses[:, :2, 3] = shifts
    frames = np.full((num_frames, size, size, 3), 40, np.uint8)
    for frame, (x, y) in zip(frames, np.clip(size / 2 - 4 + 100 * shifts, 0, size - 8).astype(int), strict=True):
        frame[x : x + 8, y : y + 8] = (220, 60, 60)
    reward = rng.random(num_chunks + 1).astype(np.float32)
    meta = {
        "task": "lift",
        "text": "lift the red cube",
        "behaviour": "random",
        "seed": seed,
        "split": split,
        "fps": 20,
        "chunk_frames": 4,
        "modality": kind,
        **modality.to_json(),
        "simulator": {"name": "synthetic"},
    }
    np.savez_compressed(
        path,
        frames=frames,
        actions=actions,
        measured_poses=poses,
        commanded_poses=poses,
        gripper=np.zeros(num_frames, np.float32),
        reward=reward,
        success=reward > 0.7,
        objects=np.zeros((num_frames, 1, 3), np.float32),
        meta=np.array(json.dumps(meta)),
    )


def write_dataset(root: Path, *, num_train: int = 3, num_heldout: int = 2, **changes: Any) -> Path:
    """A recorded dataset of synthetic episodes."""
    splits = ["train"] * num_train + ["heldout"] * num_heldout
    for index, split in enumerate(splits):
        (root / split).mkdir(parents=True, exist_ok=True)
        write_episode(root / split / f"episode_{index:05d}.npz", split, seed=index, **changes)
    return root


def actions_of(num: int, seed: int = 0) -> np.ndarray:
    """`random_actions` as an array."""
    return random_actions(num, seed=seed).numpy()


def assert_same(episodes, *, equal: bool = True) -> None:
    """Whether two episodes are the same, entry by entry."""
    first, second = episodes
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True)) == equal
