"""Fit the transformer on latents: flow matching along the model's own rollouts.

Every row of a batch walks along one episode. At each step it is trained twice from the same history, once from pure
noise and once at a random noise level, always towards the recorded latent; the first prediction, without its
gradient, becomes history. So the model learns to continue, and to correct, what it imagined itself, at no extra cost.
Rows of one batch come from data sets of different modalities, in one forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astra_env.models import WorldModel
from astra_env.models.flow_matching import Sampling, add_noise, sample_training_sigmas
from astra_env.training.episodes import Episodes
from astra_env.training.loop import Trainer
from astra_env.training.walkers import Recipe, Track, Walkers


def sampling_after_training(sampling: Sampling) -> Sampling:
    """With at least two denoising steps: one paints the mean of what may come, in which what moves dissolves, and a
    second one decides. A student of one step does not stay one when it goes on learning from recordings.
    """
    return sampling.replaced(num_inference_steps=max(2, sampling.num_inference_steps))


def make_tracks(
    world_model: WorldModel, datasets: Sequence[Episodes], latents: Sequence[Tensor], weights: Tensor
) -> list[Track]:
    """Data sets with their latents (E, N + 1, C, h, w) and shares, their actions as the network reads them."""
    return [
        Track(part.name, part.modality, encoded, _normalised(world_model, part), share)
        for part, encoded, share in zip(datasets, latents, weights.tolist(), strict=True)
    ]


def _normalised(world_model: WorldModel, part: Episodes) -> Tensor:
    """Actions (E, N, action_dim) as the network reads them, each at the speed that was recorded before it."""
    if part.speeds is None and world_model.action_encodings[part.modality] == "arc":
        raise ValueError(
            f"{part.name} has no speed, expected a vehicle's in m/s at every frame; record it beside the poses."
        )
    actions = part.actions.to(world_model.device).flatten(0, 1)[:, None]
    speeds = None if part.speeds is None else part.speeds[:, :-1].flatten()
    encoded = world_model.normalise(actions, (part.modality,) * len(actions), speeds)
    return encoded.cpu().unflatten(0, part.actions.shape[:2])[:, :, 0]


def training_loss(
    world_model: WorldModel, walkers: Walkers, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one batch; the rows walk one step. Returns the loss, and each modality's routing weights (B, G, K)."""
    recipe, state, device, modality = walkers.recipe, walkers.state, world_model.device, walkers.modality
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
        cache, past = transformer.encode_history(slots.to(device), lengths, actions_before, known, modality)
        given = present.expand(-1, walkers.chunk_size).to(device)
        features = transformer.action_features(actions.to(device), given, modality)
        features = type(features)(features.values.repeat(1, 2, 1, 1), features.routing)
        cache = cache.select(torch.arange(B).repeat(2))
        velocity = transformer(noisy.to(device), sigma.to(device), features, cache)
    truth = (noise - target.repeat(2, 1, 1, 1, 1)).to(device)
    loss = (velocity - truth).square().mean()
    if recipe.load_balancing:
        loss = loss + recipe.load_balancing * (past.load_balancing_loss() + features.load_balancing_loss())
    predicted = noise[:B] - velocity[:B].detach().cpu()
    routing = features.routing.detach()
    rows = {name: [row for row, entry in enumerate(modality) if entry == name] for name in dict.fromkeys(modality)}
    walkers.advance(predicted, actions, present)
    return loss, {name: routing[chosen] for name, chosen in rows.items()}


def fit_world_model(
    world_model: WorldModel,
    tracks: Sequence[Track],
    folder: Path,
    *,
    num_steps: int,
    recipe: Recipe | None = None,
    learning_rate: float = 8e-4,
    weight_decay: float = 0.02,
    compile_blocks: bool = False,
    validation: Sequence[Episodes] = (),
) -> None:
    """Train the transformer in place on the tracks; leave the averaged weights in it.

    Parameters without `requires_grad` stay as they are.
    """
    trainer = Trainer(
        world_model.transformer,
        folder,
        "transformer",
        num_steps=num_steps,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
    )
    walkers = Walkers(world_model, tracks, recipe or Recipe())
    walkers.state |= {key: value.cpu() for key, value in trainer.resume().items()}
    every = max(1, min(500, num_steps // 4))
    if compile_blocks:
        world_model.compile()
    while not trainer.done:
        walkers.restart(trainer.generator, trainer.step_index / num_steps)
        loss, routing = training_loss(world_model, walkers, trainer.generator)
        trainer.step(loss)
        if trainer.step_index % every == 0 or trainer.done:
            report: dict[str, Any] = {
                "expert_use": {
                    name: [round(v, 3) for v in weights.mean((0, 1)).tolist()] for name, weights in routing.items()
                }
            }
            if validation:
                report["psnr"] = _validate_average(world_model, trainer, validation)
            trainer.log(**report)
            trainer.save(**walkers.state)
    trainer.use_average()


def _validate_average(world_model: WorldModel, trainer: Trainer, validation: Sequence[Episodes]) -> dict[str, Any]:
    current = {key: value.clone() for key, value in trainer.module.state_dict().items()}
    trainer.use_average()
    with torch.compiler.set_stance("force_eager"):  # other batch sizes than training's are not worth compiling
        report = {part.name: open_loop_psnr(world_model, part, num_episodes=16) for part in validation}
    trainer.module.load_state_dict(current)
    return report


@torch.no_grad()
def open_loop_psnr(
    world_model: WorldModel,
    heldout: Episodes,
    *,
    num_episodes: int = 32,
    horizon: int = 10,
    num_inference_steps: int = 1,
    guidance_scale: float = 1.0,
) -> dict[str, Any]:
    """PSNR in dB after 1, 2, 5, 10 latents under the true actions, under another episode's, and of a still picture;
    in worlds of longer chunks at the ends of chunks.
    """
    num, n = min(num_episodes, len(heldout)), world_model.sampling.chunk_size
    start = max(0, min(4, heldout.actions.shape[1] - n))
    horizon = min(horizon, heldout.actions.shape[1] - start)
    chosen = sorted({max(n, k // n * n) for k in (1, 2, 5, 10) if k <= horizon and n <= horizon})  # ends of chunks
    frames = heldout.frames[:num, : 4 * start + 1]
    truth = heldout.frames[:num, [4 * (start + k) for k in chosen]].float()
    report: dict[str, Any] = {}
    for name, order in (("true", torch.arange(num)), ("shuffled", torch.arange(num).roll(1))):
        speeds = None if heldout.speeds is None else heldout.speeds[:num, start]
        past = heldout.actions[:num, :start]
        state = world_model.init_state(frames, heldout.modality, actions=past, speeds=speeds)
        shown = []
        for k in range(n, max(chosen, default=0) + 1, n):
            actions = heldout.actions[order, start + k - n : start + k]
            with torch.autocast(world_model.device.type, torch.bfloat16):
                state = world_model.step(
                    state, actions, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale
                )
            if k in chosen:
                state, chunk = world_model.decode(state)
                shown.append(chunk[:, -1].cpu().float())
        report[name] = _psnr(torch.stack(shown, 1), truth)
    report["still"] = _psnr(frames[:, -1:].float().expand_as(truth), truth)
    return report


def _psnr(shown: Tensor, truth: Tensor) -> list[float]:
    errors = (shown - truth).square().mean((0, 2, 3, 4))
    return [round(10 * math.log10(255**2 / max(error, 1e-9)), 2) for error in errors.tolist()]
