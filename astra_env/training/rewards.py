"""Fit the reward head on the latents and recorded rewards of a task, and state how good it is on held-out episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from astra_env.models.reward_model import RewardModel
from astra_env.training.episodes import Episodes
from astra_env.writing import write_json

EXPLAINED = 0.2
"""Share of the reward's variance from which on a head is worth keeping: some rewards cannot be seen in a picture."""


def fit_rewards(
    latents: Tensor,
    train: Episodes,
    heldout_latents: Tensor,
    heldout: Episodes,
    folder: Path,
    *,
    num_steps: int = 3000,
    batch_size: int = 256,
) -> dict[str, float]:
    """Write rewards.json (held-out error, precision, recall), and the head where it explains the reward.

    Latents are (E, N + 1, C, h, w).
    """
    flags = torch.stack([flag.flatten().float() for flag in _flags(train).values()])
    model = train_head(
        latents.flatten(0, 1),
        train.rewards.flatten(),
        flags,
        name=train.name,
        num_steps=num_steps,
        batch_size=batch_size,
    )
    report = reward_report(model, heldout_latents, heldout)
    write_json(folder / "rewards.json", report)
    if report["reward_variance_explained"] > EXPLAINED:
        model.save(folder)
    return report


def train_head(
    latents: Tensor,
    rewards: Tensor,
    flags: Tensor,
    speeds: Tensor | None = None,
    *,
    name: str,
    seed: int = 0,
    num_steps: int = 3000,
    batch_size: int = 256,
) -> RewardModel:
    """A head for latents (N, C, h, w), their rewards (N,) in [0, 1] and their flags (F, N), each 0 or 1.

    Where speeds (N,) in m/s are given, the head reads them too. The seed decides on its first weights and on what it is
    shown; heads of different seeds make an ensemble.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    size, reads_speed = latents.shape[-1], speeds is not None
    model = RewardModel(latents.shape[1], latent_size=size, num_flags=len(flags), reads_speed=reads_speed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in tqdm(range(num_steps), desc=f"rewards of {name}", unit="step", mininterval=5):
        index = torch.randint(len(latents), (batch_size,), generator=generator)
        for place, label in enumerate(flags):  # what is rare is shown in a quarter of each batch
            marked = torch.nonzero(label)[:, 0]
            if 0 < len(marked) < len(label) // 4:
                part = slice(place * batch_size // 4, (place + 1) * batch_size // 4)
                index[part] = marked[torch.randint(len(marked), (batch_size // 4,), generator=generator)]
        noise = 0.2 * torch.rand(batch_size, 1, 1, 1, generator=generator)  # imagined latents are a little off
        inputs = latents[index] + noise * torch.randn(index.shape + latents.shape[1:], generator=generator)
        reward, *probabilities = model(inputs, None if speeds is None else speeds[index])
        loss = F.mse_loss(reward, rewards[index])
        for probability, label in zip(probabilities, flags, strict=True):
            loss = loss + 0.2 * F.binary_cross_entropy(probability, label[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _flags(episodes: Episodes) -> dict[str, Tensor]:
    return {"success": episodes.success} | ({} if episodes.failure is None else {"failure": episodes.failure})


@torch.no_grad()
def reward_report(
    model: Callable[[Tensor, Tensor], Sequence[Tensor]], latents: Tensor, episodes: Episodes
) -> dict[str, float]:
    """Error of the reward, precision and recall of success and failure at probability 0.5, and their base rates.

    Latents are (E, T, C, h, w); the model takes some of them (N, C, h, w) and speeds (N,), 0 where nothing has one.
    """
    speeds = torch.zeros_like(episodes.rewards) if episodes.speeds is None else episodes.speeds
    parts = zip(latents.flatten(0, 1).split(512), speeds.flatten().split(512), strict=True)
    outputs = [model(*part) for part in parts]
    reward, *probabilities = (torch.cat(part) for part in zip(*outputs, strict=True))
    truth = episodes.rewards.flatten()
    report = {
        "reward_mean_absolute_error": (reward - truth).abs().mean().item(),
        "reward_variance_explained": 1 - ((reward - truth).square().mean() / truth.var().clamp(min=1e-9)).item(),
        "num_latents": len(truth),
    }
    for (name, flag), probability in zip(_flags(episodes).items(), probabilities, strict=True):
        label, predicted = flag.flatten(), probability > 0.5
        hits = (predicted & label).sum().item()
        report[f"{name}_precision"] = hits / max(predicted.sum().item(), 1)
        report[f"{name}_recall"] = hits / max(label.sum().item(), 1)
        report[f"{name}_rate"] = label.float().mean().item()
    return report
