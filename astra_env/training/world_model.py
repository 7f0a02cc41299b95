"""Fit the transformer on latents: flow matching along the model's own rollouts.

Every row of a batch walks along one episode. At each step it is trained twice from the same history, once from pure
noise and once at a random noise level, always towards the recorded latent; the first prediction, without its
gradient, becomes history. So the model learns to continue, and to correct, what it imagined itself, at no extra cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astra_env.models import WorldModel
from astra_env.models.flow_matching import add_noise, sample_training_sigmas
from astra_env.training.episodes import Episodes
from astra_env.training.loop import Trainer


@dataclass(frozen=True)
class Recipe:
    """What the batches look like. Probabilities are per row."""

    batch_size: int = 64
    max_rollout: int = 8  # longest walk on the model's own predictions, in latents, at the end of training
    action_dropout: float = 0.1  # of the chunk's action, for guidance
    history_action_dropout: float = 0.1
    single_latent: float = 0.15  # histories of one latent: worlds that start from a picture
    noisy_memory: float = 0.8  # noise-as-mask: probability, and the largest noise level
    noisy_memory_sigma: float = 0.1
    load_balancing: float = 0.01


class Walkers:
    """Rows that walk along episodes; the batch's memory between steps."""

    def __init__(self, world_model: WorldModel, latents: Tensor, actions: Tensor, recipe: Recipe) -> None:
        self.layout, self.latents, self.actions, self.recipe = world_model.layout, latents, actions, recipe
        B, (C, h, w), S = recipe.batch_size, latents.shape[2:], world_model.layout.size
        self.state: dict[str, Tensor] = {
            "slots": torch.zeros(B, C, S, h, w),
            "past": torch.zeros(B, S, actions.shape[-1]),
            "present": torch.zeros(B, S),
            "lengths": torch.ones(B, dtype=torch.long),
            "episode": torch.zeros(B, dtype=torch.long),
            "time": torch.zeros(B, dtype=torch.long),
            "remaining": torch.zeros(B, dtype=torch.long),
        }

    def restart(self, generator: torch.Generator, progress: float = 1.0) -> None:
        """Give each row that has walked its way a new episode, time and true history.

        The longest walk grows with progress (0 at the start of training, 1 at its end): long walks on the predictions
        of a model that cannot yet predict teach nothing.
        """
        state, recipe = self.state, self.recipe
        longest = 1 + progress * (recipe.max_rollout - 1)
        last = self.actions.shape[1] - 1
        for row in torch.nonzero(state["remaining"] == 0)[:, 0].tolist():
            draw = torch.rand(5, generator=generator).tolist()
            # a first latent shows one still picture, so worlds that start from a picture start at time 0
            episode, time = int(draw[0] * len(self.latents)), int(draw[1] * (last + 1))
            time = 0 if draw[2] < recipe.single_latent else time
            history = self.latents[episode, : time + 1].transpose(0, 1)[None]
            past = torch.zeros(1, time + 1, self.actions.shape[-1])
            present = torch.zeros(1, time + 1)
            if draw[3] >= recipe.history_action_dropout:
                past[0, 1:], present[0, 1:] = self.actions[episode, :time], 1
            state["slots"][row] = self.layout.windowed(history, dim=2)[0]
            state["past"][row] = self.layout.windowed(past, dim=1)[0]
            state["present"][row] = self.layout.windowed(present, dim=1)[0]
            state["lengths"][row], state["episode"][row], state["time"][row] = time + 1, episode, time
            state["remaining"][row] = min(1 + int(draw[4] * longest), last + 1 - time)

    def targets(self) -> tuple[Tensor, Tensor]:
        """The recorded next latent (B, C, 1, h, w) and the action (B, 1, A) that leads to it."""
        episode, time = self.state["episode"], self.state["time"]
        return self.latents[episode, time + 1][:, :, None], self.actions[episode, time][:, None]

    def advance(self, predicted: Tensor, actions: Tensor, present: Tensor) -> None:
        """Append the model's own latents (B, C, 1, h, w) to the histories."""
        state = self.state
        state["slots"] = self.layout.push(state["slots"], predicted, dim=2)
        state["past"] = self.layout.push(state["past"], actions, dim=1)
        state["present"] = self.layout.push(state["present"], present, dim=1)
        state["lengths"] = state["lengths"] + 1
        state["time"] = state["time"] + 1
        # without its action a row does not know where to go: its walk ends
        state["remaining"] = (state["remaining"] - 1) * (present[:, 0] > 0)


def training_loss(
    world_model: WorldModel, walkers: Walkers, generator: torch.Generator, modality: str
) -> tuple[Tensor, Tensor]:
    """Loss of one batch; the rows walk one step. Returns the loss and the routing weights (B, G, K)."""
    recipe, state, device = walkers.recipe, walkers.state, world_model.device
    B = recipe.batch_size
    target, actions = walkers.targets()
    level = recipe.noisy_memory_sigma * torch.rand(B, generator=generator)
    level = level * (torch.rand(B, generator=generator) < recipe.noisy_memory)
    slots = add_noise(state["slots"], torch.randn(state["slots"].shape, generator=generator), level)
    present = (torch.rand(B, 1, generator=generator) >= recipe.action_dropout).float()
    noise = torch.randn(2 * B, *target.shape[1:], generator=generator)
    sigma = torch.cat([torch.ones(B), sample_training_sigmas(B, generator)])
    noisy = add_noise(target.repeat(2, 1, 1, 1, 1), noise, sigma)
    transformer = world_model.transformer
    with torch.autocast(device.type, torch.bfloat16):
        lengths, actions_before, known = (state[key].to(device) for key in ("lengths", "past", "present"))
        cache, past = transformer.encode_history(slots.to(device), lengths, actions_before, known, (modality,) * B)
        features = transformer.action_features(actions.to(device), present.to(device), (modality,) * B)
        features = type(features)(features.values.repeat(1, 2, 1, 1), features.routing)
        cache = cache.select(torch.arange(B).repeat(2))
        velocity = transformer(noisy.to(device), sigma.to(device), features, cache)
    truth = (noise - target.repeat(2, 1, 1, 1, 1)).to(device)
    balancing = past.load_balancing_loss() + features.load_balancing_loss()
    loss = (velocity - truth).square().mean() + recipe.load_balancing * balancing
    predicted = noise[:B] - velocity[:B].detach().cpu()
    walkers.advance(predicted, actions, present)
    return loss, features.routing.detach()


def fit_world_model(
    world_model: WorldModel,
    latents: Tensor,
    train: Episodes,
    folder: Path,
    *,
    num_steps: int,
    recipe: Recipe | None = None,
    compile_blocks: bool = False,
    validation: Episodes | None = None,
) -> None:
    """Train the transformer in place on latents (E, N + 1, C, h, w); leave the averaged weights in it."""
    recipe = recipe or Recipe()
    trainer = Trainer(world_model.transformer, folder, "transformer", num_steps=num_steps, learning_rate=8e-4)
    walkers = Walkers(
        world_model, latents, world_model.normalise(train.actions, (train.modality,) * len(train)), recipe
    )
    walkers.state |= {key: value.cpu() for key, value in trainer.resume().items()}
    every = max(1, min(500, num_steps // 4))
    if compile_blocks:
        for block in world_model.transformer.blocks:
            block.compile(dynamic=False)
    while not trainer.done:
        walkers.restart(trainer.generator, trainer.step_index / num_steps)
        loss, routing = training_loss(world_model, walkers, trainer.generator, train.modality)
        trainer.step(loss)
        if trainer.step_index % every == 0 or trainer.done:
            report: dict[str, Any] = {"expert_share": [round(v, 3) for v in routing.mean((0, 1)).tolist()]}
            if validation is not None:
                report |= _validate_average(world_model, trainer, validation)
            trainer.log(**report)
            trainer.save(**walkers.state)
    trainer.use_average()


def _validate_average(world_model: WorldModel, trainer: Trainer, heldout: Episodes) -> dict[str, Any]:
    current = {key: value.clone() for key, value in trainer.module.state_dict().items()}
    trainer.use_average()
    with torch.compiler.set_stance("force_eager"):  # other batch sizes than training's are not worth compiling
        report = open_loop_psnr(world_model, heldout)
    trainer.module.load_state_dict(current)
    return report


@torch.no_grad()
def open_loop_psnr(
    world_model: WorldModel, heldout: Episodes, *, num_episodes: int = 32, horizon: int = 10
) -> dict[str, Any]:
    """PSNR in dB at horizons 1, 2, 5, 10 under the true actions, under another episode's, and of a still picture."""
    num, start = min(num_episodes, len(heldout)), 4
    horizon = min(horizon, heldout.actions.shape[1] - start)
    chosen = [k for k in (1, 2, 5, 10) if k <= horizon]
    frames = heldout.frames[:num, : 4 * start + 1]
    truth = heldout.frames[:num, [4 * (start + k) for k in chosen]].float()
    report: dict[str, Any] = {}
    for name, order in (("true", torch.arange(num)), ("shuffled", torch.arange(num).roll(1))):
        state = world_model.init_state(frames, heldout.modality, actions=heldout.actions[:num, :start])
        shown = []
        for k in range(1, horizon + 1):
            with torch.autocast(world_model.device.type, torch.bfloat16):
                state = world_model.step(state, heldout.actions[order, start + k - 1], num_inference_steps=1)
            if k in chosen:
                state, chunk = world_model.decode(state)
                shown.append(chunk[:, -1].cpu().float())
        report[f"psnr_{name}"] = _psnr(torch.stack(shown, 1), truth)
    report["psnr_still"] = _psnr(frames[:, -1:].float().expand_as(truth), truth)
    return report


def _psnr(shown: Tensor, truth: Tensor) -> list[float]:
    errors = (shown - truth).square().mean((0, 2, 3, 4))
    return [round(10 * math.log10(255**2 / max(error, 1e-9)), 2) for error in errors.tolist()]
