"""`astra-policy clone DATA`: fit a small network to what was done in recorded episodes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from astra_env.actions import ACTION_MODALITIES, ActionModality
from astra_env.datasets.recorded import RecordedDataset
from astra_env.envs import ENVIRONMENTS
from astra_env.flags import flag
from astra_env.writing import write_json
from policies.agents import EXPERTS, nearest_keys

WEIGHTS, CONFIG = "policy.safetensors", "clone.json"
_TOLD = {"pose": "measured_poses", "gripper": "gripper", "objects": "objects"}
"""What a simulator tells -> the recorded array of it."""


@dataclass(frozen=True)
class CloneConfig:
    """One run; each field is a flag of `astra-policy clone` and says in its metadata what it means."""

    data: str  # folder of recorded episodes
    out: str = flag(dataclasses.MISSING, "folder of the policy")
    behaviours: tuple[str, ...] | None = flag(None, "which of the recorded behaviours to learn from; all of them")
    expert: str | None = flag(None, "id whose expert says what to do in the recorded states; what was done in them")
    episodes: int | None = flag(None, "most episodes to learn from; all of them")
    steps: int = flag(3000, "of the optimiser")
    batch_size: int = flag(128, "frames in a step")
    learning_rate: float = flag(1e-3, "at its highest")
    dim: int = flag(32, "width of the network")
    seed: int = flag(0, "of the weights and the batches")
    device: str = flag("cpu", "'cpu', 'cuda', …")


class PolicyNetwork(nn.Module):
    """Frames uint8 (B, H, W, 3) -> actions (B, A) in [-1, 1], as shares of their range."""

    def __init__(self, action_dim: int, frame_size: Sequence[int] = (64, 64), dim: int = 32) -> None:
        super().__init__()
        height, width = (-(-size // 16) for size in frame_size)
        widths = (3, dim, 2 * dim, 2 * dim, 2 * dim)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.SiLU()]
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(2 * dim * height * width, 256), nn.SiLU(), nn.Linear(256, action_dim)
        )

    def forward(self, frames: Tensor) -> Tensor:
        """See the class."""
        return self.layers(frames.movedim(-1, 1).float() / 127.5 - 1).tanh()


class ClonedPolicy:
    """A cloned network as a policy: frames uint8 (H, W, 3) or (N, H, W, 3) -> actions in physical units.

    Args:
        network: the network.
        modality: whose actions it gives.
        keys: whether it acts with the nearest set of keys instead, as numbers.
    """

    def __init__(self, network: PolicyNetwork, modality: ActionModality, *, keys: bool = False) -> None:
        self.network, self.modality, self.keys = network.eval().requires_grad_(False), modality, keys
        self._low, self._high = np.array(modality.low, np.float32), np.array(modality.high, np.float32)

    def reset(self, seed: int | None = None) -> ClonedPolicy:
        """It remembers and draws nothing."""
        return self

    def act(self, observation: np.ndarray) -> Any:
        """Actions (A,) or (N, A), or the numbers of keys."""
        frames = torch.from_numpy(np.ascontiguousarray(observation))
        if frames.dtype != torch.uint8 or frames.ndim not in (3, 4):
            given = f"{observation.dtype} {observation.shape}"
            raise ValueError(f"A cloned policy sees frames uint8 (H, W, 3) or (N, H, W, 3), got {given}.")
        device = next(self.network.parameters()).device
        shares = self.network((frames if frames.ndim == 4 else frames[None]).to(device)).cpu().numpy()
        actions = np.clip(self._low + (shares + 1) / 2 * (self._high - self._low), self._low, self._high)
        actions = actions if frames.ndim == 4 else actions[0]
        return nearest_keys(actions, self.modality) if self.keys else actions

    def save(self, folder: str | os.PathLike[str], **told: Any) -> None:
        """Write the weights, and what they are, as JSON."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
        save_file(tensors, folder / f"{WEIGHTS}.partial")
        os.replace(folder / f"{WEIGHTS}.partial", folder / WEIGHTS)
        described = {"modality": self.modality.name, **self.modality.to_json(), **told}
        write_json(folder / CONFIG, described)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, keys: bool = False, device: str = "cpu") -> ClonedPolicy:
        """Read what `save` wrote; ValueError where the actions are in another convention than this version's."""
        folder = Path(folder)
        try:
            described = json.loads((folder / CONFIG).read_text())
            weights = load_file(folder / WEIGHTS)
        except (FileNotFoundError, SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(f"{folder} is not a cloned policy ({error}); clone it with astra-policy clone.") from error
        modality = ACTION_MODALITIES[described["modality"]]
        changed = [name for name, value in modality.to_json().items() if described[name] != value]
        if changed:
            raise ValueError(f"{folder} has actions of other {', '.join(changed)} than here; clone it again.")
        network = PolicyNetwork(modality.action_dim, described["frame_size"], described["dim"])
        network.load_state_dict(weights)
        return cls(network.to(device), modality, keys=keys)


def clone(config: CloneConfig) -> Path:
    """Fit a network to recorded episodes and write it as a policy; returns its folder.

    Its clone.json tells the error on held-out episodes, in shares of the actions' range, and that of always doing the
    mean. Raises ValueError where no episode has one of the behaviours.
    """
    torch.manual_seed(config.seed)
    train, heldout = (_load(config, split) for split in ("train", "heldout"))
    modality = ACTION_MODALITIES[RecordedDataset(config.data).modality]
    network = PolicyNetwork(modality.action_dim, train[0].shape[1:3], config.dim).to(config.device)
    _fit(network, train[0], _shares(train[1], modality), config)
    wanted, known = _shares(heldout[1], modality), _shares(train[1], modality)
    with torch.no_grad():
        told = torch.cat([network(part.to(config.device)).cpu() for part in heldout[0].split(256)])
    errors = {
        "heldout_error": float((told - wanted).square().mean().sqrt()),
        "mean_action_error": float((known.mean(0) - wanted).square().mean().sqrt()),
    }
    size = {"frame_size": list(train[0].shape[1:3]), "dim": config.dim}
    ClonedPolicy(network, modality).save(config.out, **size, **errors, config=dataclasses.asdict(config))
    return Path(config.out)


def _load(config: CloneConfig, split: str) -> tuple[Tensor, Tensor]:
    """Frames uint8 (N, H, W, 3) that were seen, and the actions (N, A) that were taken then."""
    dataset = RecordedDataset(config.data, split)
    frames, actions, known = [], [], set()
    for index in range(len(dataset)):
        arrays = dataset.arrays(index, "meta", "frames", "actions")
        meta = json.loads(str(arrays["meta"]))
        known.add(meta["behaviour"])
        if config.behaviours is None or meta["behaviour"] in config.behaviours:
            frames.append(arrays["frames"][: -meta["chunk_frames"] : meta["chunk_frames"]])
            actions.append(arrays["actions"] if config.expert is None else advised(dataset, index, config.expert))
        if len(frames) == config.episodes:
            break
    if not frames:
        wanted = list(config.behaviours or ())
        raise ValueError(f"{config.data} has the behaviours {sorted(known)} in {split}, expected one of {wanted}.")
    return torch.from_numpy(np.concatenate(frames)), torch.from_numpy(np.concatenate(actions))


def advised(dataset: RecordedDataset, index: int, environment: str) -> np.ndarray:
    """What the expert of an id would do (N, A) in the states of a recorded episode, whatever was done there.

    ValueError where it draws, or needs to know more than poses, gripper and objects.
    """
    expert, modality = EXPERTS[environment], ACTION_MODALITIES[ENVIRONMENTS[environment].modality]
    arrays = dataset.arrays(index)
    if dataset.modality != modality.name or expert.drawn:
        raise ValueError(f"The expert of {environment} cannot say what to do in {dataset.modality} recordings alone.")
    chunk, behaviour = json.loads(str(arrays["meta"]))["chunk_frames"], resolve_name(expert.make)
    tracks = {name: arrays[key] for name, key in _TOLD.items() if key in arrays}
    try:
        actions = [
            modality.validate(behaviour({name: track[chunk * step] for name, track in tracks.items()}), clip=True)
            for step in range(len(arrays["actions"]))
        ]
    except KeyError as error:
        raise ValueError(f"The expert of {environment} needs {error}, which no recording tells.") from None
    return np.stack(actions)


def _shares(actions: Tensor, modality: ActionModality) -> Tensor:
    """Actions (N, A) in [-1, 1]."""
    low, high = torch.tensor(modality.low), torch.tensor(modality.high)
    return (actions - low) / (high - low) * 2 - 1


def _fit(network: PolicyNetwork, frames: Tensor, shares: Tensor, config: CloneConfig) -> None:
    """Least absolute deviations that turn square near zero, under a learning rate that falls to nothing."""
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, max(config.steps, 2))
    for _ in tqdm(range(config.steps), unit="step", mininterval=5):
        rows = torch.randint(len(frames), (config.batch_size,), generator=generator)
        loss = F.smooth_l1_loss(network(frames[rows].to(config.device)), shares[rows].to(config.device), beta=0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
