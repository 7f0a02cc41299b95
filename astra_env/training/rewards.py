"""Fit the reward head on the latents and recorded rewards of a task, and state how good it is on held-out episodes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from astra_env.models.reward_model import RewardModel
from astra_env.training.episodes import Episodes


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
    """Write the head and rewards.json (held-out error, precision, recall); latents are (E, N + 1, C, h, w)."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = RewardModel(latents.shape[2], latent_size=latents.shape[-1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    flat, rewards, success = latents.flatten(0, 1), train.rewards.flatten(), train.success.flatten().float()
    positive = torch.nonzero(success)[:, 0]
    for _ in tqdm(range(num_steps), desc="rewards", unit="step", mininterval=5):
        index = torch.randint(len(flat), (batch_size,), generator=generator)
        if len(positive):  # success is rare: a quarter of each batch shows it
            index[: batch_size // 4] = positive[torch.randint(len(positive), (batch_size // 4,), generator=generator)]
        noise = 0.2 * torch.rand(batch_size, 1, 1, 1, generator=generator)  # imagined latents are a little off
        inputs = flat[index] + noise * torch.randn(index.shape + flat.shape[1:], generator=generator)
        reward, probability = model(inputs)
        loss = F.mse_loss(reward, rewards[index]) + 0.2 * F.binary_cross_entropy(probability, success[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval().save(folder)
    report = reward_report(model, heldout_latents, heldout)
    (folder / "rewards.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


@torch.no_grad()
def reward_report(model: RewardModel, latents: Tensor, episodes: Episodes) -> dict[str, float]:
    """Mean absolute error of the reward, precision and recall of success at probability 0.5, and the base rate."""
    outputs = [model(part) for part in latents.flatten(0, 1).split(512)]
    reward, probability = (torch.cat(part) for part in zip(*outputs, strict=True))
    success, predicted = episodes.success.flatten(), probability > 0.5
    hits = (predicted & success).sum().item()
    return {
        "reward_mean_absolute_error": (reward - episodes.rewards.flatten()).abs().mean().item(),
        "success_precision": hits / max(predicted.sum().item(), 1),
        "success_recall": hits / max(success.sum().item(), 1),
        "success_rate": success.float().mean().item(),
        "num_latents": len(success),
    }
