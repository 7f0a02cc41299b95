"""Schedules, history windows, guidance, rollout and loss as in the reference implementation (EternalEvan/Astra,
3fb82e19), its quirks included, around any network.

The network is a callable of named tensors, ``velocity(inputs) -> (B, C, F, h, w)``. The names: ``latents`` (B, C, F,
h, w), ``timestep`` (B,) in 0..1000, ``action`` (B, N, A) with the mask column, ``context`` (B, L, D), the history
``clean_latents`` (2 slots: start and last), ``clean_latents_2x`` (2 slots), ``clean_latents_4x`` (16 slots), and for
each its frame indices ``latent_indices``, ``clean_latent_indices``, ``clean_latent_2x_indices``,
``clean_latent_4x_indices`` (B, slots), where -1 marks an empty slot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from astra_env.models.flow_matching import add_noise

Inputs = Mapping[str, Tensor]
Velocity = Callable[[Inputs], Tensor]

WINDOW = 20  # history latents that inference reads: 1 start, 16 at 4x, 2 at 2x, 1 last
NUM_TRAIN_TIMESTEPS = 1000
NUM_HISTORY_TIMESTEPS = 750  # the noisiest ones: sigma 0.626 to 1
HISTORY_NOISE_PROBABILITY = 0.8
ACTION_DROPOUT = 0.05


# Schedules


def sigma_table(num_steps: int, *, shift: float = 5.0, sigma_min: float = 0.0, extra_step: bool = True) -> Tensor:
    """Noise levels (num_steps,) from 1 down; the timestep is 1000 sigma.

    With ``extra_step`` the grid has one more point, which is dropped: the last step goes to 0. The reference's class
    defaults, which its pipeline never uses, are shift 3, sigma_min 0.003 / 1.002 and no extra step.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}, expected 1 or more.")
    sigmas = torch.linspace(1.0, sigma_min, num_steps + extra_step)[:num_steps]
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def euler_step(latents: Tensor, velocity: Tensor, sigmas: Tensor, step: int) -> Tensor:
    """Latents at the next noise level of the table, 0 after the last."""
    next_sigma = sigmas[step + 1] if step + 1 < len(sigmas) else 0.0
    return latents + velocity * (next_sigma - sigmas[step])


@dataclass(frozen=True)
class TrainingTable:
    """Noise levels that training draws from, in falling order, and what the loss at each counts (mean 1)."""

    sigmas: Tensor
    timesteps: Tensor
    weights: Tensor

    @classmethod
    def create(cls, num_timesteps: int = NUM_TRAIN_TIMESTEPS, device: torch.device | str = "cpu") -> TrainingTable:
        """The reference's table; a bell around timestep 500 that is 0 at the noisiest level weighs the loss."""
        sigmas = sigma_table(num_timesteps).to(device)
        timesteps = 1000 * sigmas
        bell = torch.exp(-2 * ((timesteps - 500) / 1000) ** 2)
        weights = bell - bell.min()
        return cls(sigmas, timesteps, weights * (num_timesteps / weights.sum()))

    def nearest(self, timesteps: Tensor) -> Tensor:
        """Row of the table nearest to each timestep (B,)."""
        return (self.timesteps[:, None] - timesteps.float()).abs().argmin(dim=0)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """(1 - sigma) latents + sigma noise, with the sigma nearest to each timestep, (B,) or (1,) for all rows."""
        return add_noise(latents, noise, self.sigmas[self.nearest(timesteps)])


# Which latents a training sample and a generated chunk read

INDICES = {
    "latents": "latent_indices",
    "clean_latents": "clean_latent_indices",
    "clean_latents_2x": "clean_latent_2x_indices",
    "clean_latents_4x": "clean_latent_4x_indices",
}


def segment_indices(num_history: int, start: int, num_target: int = 8) -> dict[str, Tensor]:
    """Frames of a clip that a training sample reads, before padding; its history begins at frame ``start``.

    The four parts: the frames to generate, the first and last of the history, up to 2 before the last, up to 16
    before those.
    """
    end = start + num_history
    return {
        "latent_indices": torch.arange(end, end + num_target),
        "clean_latent_indices": torch.tensor([start, end - 1]),
        "clean_latent_2x_indices": torch.arange(max(start, end - 3), end - 1),
        "clean_latent_4x_indices": torch.arange(max(start, end - 19), max(start, end - 3)),
    }


def nuscenes_segment_indices(num_history: int, start: int, num_target: int = 8) -> dict[str, Tensor]:
    """The same with nuScenes' offsets, by which a short history reaches frames before its start, even negative ones.

    A negative frame reads the end of the clip, which is the future. The released training never gets here.
    """
    end = start + num_history
    first_2x = max(start, end - 2) - 1 if num_history >= 2 else end - 1
    return segment_indices(num_history, start, num_target) | {
        "clean_latent_2x_indices": torch.arange(first_2x, end - 1),
        "clean_latent_4x_indices": torch.arange(max(start, end - 16) - 3, end - 3),
    }


def right_aligned(indices: Tensor, num_slots: int) -> Tensor:
    """The last num_slots indices, with -1 in front where there are fewer."""
    return F.pad(indices[-num_slots:], (max(num_slots - len(indices), 0), 0), value=-1)


def segment_inputs(clip: Tensor, indices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Latents and padded indices of a training sample from a clip (B, C, T, h, w); empty slots hold zeros."""
    padded = dict(indices)
    for name, num_slots in (("clean_latent_2x_indices", 2), ("clean_latent_4x_indices", 16)):
        padded[name] = right_aligned(indices[name], num_slots)
    inputs = {name: index.expand(len(clip), -1) for name, index in padded.items()}
    for name, indices_name in INDICES.items():
        frames = padded[indices_name].to(clip.device)
        inputs[name] = clip[:, :, frames.clamp(min=0)] * (frames >= 0)[:, None, None]
    return inputs


def inference_window(
    history: Tensor, actions: Tensor, num_target: int = 8, *, fix_action_offset: bool = False, keep_first: bool = False
) -> dict[str, Tensor]:
    """History slots, indices and action rows for the next chunk after a history (B, C, T, h, w).

    The last 20 latents fill the slots from the right. The network takes the first of the rows ``action`` for that of
    the start frame, but the reference passes the rows of the whole rollout: beyond 20 latents the frames to generate
    always read rows 20 to 19 + num_target, whatever the actions are then.

    Args:
        history: What was generated so far, with the condition in front.
        actions: Rows (B, N, A) of the whole rollout, N >= T + num_target; the mask column is written anew.
        num_target: Latents to generate.
        fix_action_offset: Pass the rows from the start frame on.
        keep_first: Keep the first latent of all as the start frame, as training does, which also puts the rows right.
    """
    length = history.shape[2]
    if actions.shape[1] < length + num_target:
        raise ValueError(
            f"actions hold {actions.shape[1]} rows, expected at least {length + num_target}: "
            f"one for each of {length} history latents and {num_target} new ones."
        )
    oldest, filled = max(length - WINDOW, 0), min(length, WINDOW)
    start = 0 if keep_first else oldest
    slots = F.pad(history[:, :, oldest:], (0, 0, 0, 0, WINDOW - filled, 0))
    slots = torch.cat([history[:, :, start : start + 1], slots[:, :, 1:]], dim=2)
    frames = torch.arange(oldest, oldest + WINDOW + num_target, device=history.device)
    frames[: WINDOW - filled] = -1
    frames[0] = start if oldest else WINDOW - filled  # the frame number of the start latent

    positions = {
        "clean_latents": [0, WINDOW - 1],
        "clean_latents_4x": list(range(1, 17)),
        "clean_latents_2x": list(range(17, WINDOW - 1)),
    }
    inputs = {name: slots[:, :, index] for name, index in positions.items()}
    inputs |= {INDICES[name]: frames[index].expand(len(history), -1) for name, index in positions.items()}
    rows = actions[:, start if fix_action_offset else 0 : length + num_target]
    return inputs | {
        "latent_indices": frames[WINDOW:].expand(len(history), -1),
        "action": with_history_mask(rows, rows.shape[1] - num_target),
    }


def with_history_mask(rows: Tensor, num_history: int) -> Tensor:
    """Rows (B, N, A) with the mask column written anew: 1 for the first num_history, 0 for the others."""
    mask = (torch.arange(rows.shape[1], device=rows.device) < num_history).to(rows.dtype)
    return torch.cat([rows[..., :-1], mask[:, None].expand(len(rows), -1, 1)], dim=-1)


# Guidance, sampling, loss


def guided(
    velocity: Velocity, *, action_scale: float = 1.0, text_scale: float = 1.0, negative_context: Tensor | None = None
) -> Velocity:
    """A network under action-free and text guidance; a scale of at most 1 leaves its guidance out.

    Without actions means all rows zero, those of the history and the mask too. With both, the action is guided from
    the velocity without action and with the negative text, and the result from that with action and negative text:
    text guidance, away from negative_context (B, L, D), changes what the action is compared with.
    """
    if text_scale > 1 and negative_context is None:
        raise ValueError(f"text_scale is {text_scale:g}, expected a negative_context to guide away from.")

    def velocity_with_guidance(inputs: Inputs) -> Tensor:
        baseline = dict(inputs)
        if text_scale > 1 and negative_context is not None:
            baseline["context"] = negative_context
        result = velocity(inputs)
        if action_scale > 1:
            without = velocity(baseline | {"action": torch.zeros_like(baseline["action"])})
            result = without + action_scale * (result - without)
        if text_scale > 1:
            without = velocity(baseline)
            result = without + text_scale * (result - without)
        return result

    return velocity_with_guidance


def sampling_steps(velocity: Velocity, inputs: Inputs, noise: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """Latents of a chunk after each Euler step from noise (B, C, F, h, w); inputs are all but latents and timestep."""
    latents = noise
    for step, sigma in enumerate(sigmas):
        timestep = (1000 * sigma).to(latents.device).expand(len(latents))
        latents = euler_step(latents, velocity({**inputs, "latents": latents, "timestep": timestep}), sigmas, step)
        yield latents


def rollout(
    velocity: Velocity,
    history: Tensor,
    inputs: Inputs,
    noises: Sequence[Tensor],
    sigmas: Tensor,
    window: Callable[[Tensor, Tensor, int], dict[str, Tensor]] = inference_window,
) -> Tensor:
    """History (B, C, T, h, w) followed by one chunk for each noise, every chunk generated from those before it.

    Args:
        velocity: The network, or a guided one.
        history: Condition latents.
        inputs: ``action`` rows of the whole rollout (B, N, A) and ``context``.
        noises: Initial noise of each chunk (B, C, F, h, w).
        sigmas: Noise levels, from ``sigma_table``.
        window: What selects the history; ``functools.partial(inference_window, keep_first=True)`` is without the
            reference's fault beyond 20 latents.
    """
    for noise in noises:
        chunk_inputs = {**inputs, **window(history, inputs["action"], noise.shape[2])}
        for latents in sampling_steps(velocity, chunk_inputs, noise, sigmas):
            chunk = latents
        history = torch.cat([history, chunk], dim=2)
    return history


@dataclass(frozen=True)
class TrainingDraw:
    """What one training step draws."""

    noise: Tensor
    """For the latents (B, C, F, h, w)."""
    timestep_id: int
    """Row of the training table."""
    history_noise: Tensor | None = None
    """For the two 1x history latents (B, C, 2, h, w), both at one noise level; None leaves them clean."""
    history_timestep_id: int = 0
    drop_action: bool = False
    """Zero all action rows, the mask too."""

    @classmethod
    def sample(cls, inputs: Inputs, generator: torch.Generator) -> TrainingDraw:
        """Draw as the reference does: history noised in 80 % of the steps, actions dropped in 5 %."""

        def noise_like(latents: Tensor) -> Tensor:
            return torch.randn(latents.shape, generator=generator, device=generator.device)

        noised, dropped = torch.rand(2, generator=generator, device=generator.device).tolist()
        uniform_ids = torch.rand(2, generator=generator, device=generator.device).tolist()
        return cls(
            noise_like(inputs["latents"]),
            int(uniform_ids[0] * NUM_TRAIN_TIMESTEPS),
            noise_like(inputs["clean_latents"]) if noised < HISTORY_NOISE_PROBABILITY else None,
            int(uniform_ids[1] * NUM_HISTORY_TIMESTEPS),
            dropped < ACTION_DROPOUT,
        )


def training_loss(velocity: Velocity, inputs: Inputs, draw: TrainingDraw, table: TrainingTable) -> Tensor:
    """Weighted mean squared error of the velocity, in float32; inputs are clean and hold all but the timestep."""
    latents, timestep = inputs["latents"], table.timesteps[draw.timestep_id, None]
    noisy = {**inputs, "latents": table.add_noise(latents, draw.noise, timestep), "timestep": timestep}
    if draw.history_noise is not None:
        history_timestep = table.timesteps[draw.history_timestep_id, None]
        noisy["clean_latents"] = table.add_noise(inputs["clean_latents"], draw.history_noise, history_timestep)
    if draw.drop_action:
        noisy["action"] = torch.zeros_like(inputs["action"])
    error = F.mse_loss(velocity(noisy).float(), (draw.noise - latents).float())
    return error * table.weights[draw.timestep_id]
