"""Guidance: the forward passes of one denoising step, run in one batch and weighed.

Action-free guidance pushes the velocity away from the one without actions: v = v(free) + s (v(a) - v(free))
(arXiv 2512.08931, section 3); guidance by the prompt does the same against the empty prompt. Both add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from astra_env.models.action_experts import ActionFeatures
from astra_env.models.flow_matching import Sampling
from astra_env.models.state import WorldState
from astra_env.models.transformer import AstraTransformer, HistoryCache


@dataclass(frozen=True)
class Pass:
    """One conditioning of B worlds and its weight in the guided velocity."""

    weight: float
    features: ActionFeatures
    cache: HistoryCache


class GuidedVelocity:
    """Velocity of B worlds under several weighed conditionings that share one batch.

    At noise levels outside the interval (lowest, highest) the first of them, that under all conditions, counts alone.
    """

    def __init__(
        self, transformer: AstraTransformer, passes: Sequence[Pass], interval: tuple[float, float] = (0.0, 1.0)
    ) -> None:
        self.transformer, self.weights, self.interval = transformer, [entry.weight for entry in passes], interval
        self.first = passes[0]
        if len(passes) == 1:
            return
        values = torch.cat([entry.features.values for entry in passes], dim=1)
        self.features = ActionFeatures(values, torch.cat([entry.features.routing for entry in passes]))
        self.cache = HistoryCache.cat([entry.cache for entry in passes])

    def __call__(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """Velocity (B, C, n, h, w) of latents of that shape at one noise level."""
        count, (lowest, highest) = len(self.weights), self.interval
        everywhere = (lowest, highest) == (0.0, 1.0)  # then the level is not asked for, which a GPU would wait for
        if count == 1 or not (everywhere or lowest <= float(sigma) <= highest):
            return self.transformer(latents, sigma.reshape(1), self.first.features, self.first.cache)
        batch = latents.repeat(count, 1, 1, 1, 1)
        velocity = self.transformer(batch, sigma.reshape(1), self.features, self.cache)
        parts = velocity.chunk(count)
        return sum((weight * part for weight, part in zip(self.weights, parts, strict=True)), torch.zeros_like(latents))


class JointVelocity:
    """Velocity of B worlds under all conditions, for a single denoising step: history and chunk in one pass."""

    @staticmethod
    def serves(transformer: AstraTransformer, state: WorldState) -> bool:
        """Whether one pass does it: not for forks, whose history is better read once for all of them."""
        return transformer.config.history_attention == "causal" and not state.forked

    def __init__(self, transformer: AstraTransformer, state: WorldState, actions: Tensor) -> None:
        self.transformer, dtype = transformer, transformer.head.weight.dtype
        past, known = state.actions.to(dtype), state.action_present.to(dtype)
        self.packed, self.past = transformer.pack_history(state.latents, state.lengths, past, known, state.modality)
        given = torch.ones_like(actions[..., 0], dtype=dtype)
        self.features = transformer.action_features(actions.to(dtype), given, state.modality)
        self.text = transformer.encode_text(state.prompt_embeds)

    def __call__(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """Velocity (B, C, n, h, w) of latents of that shape at one noise level."""
        return self.transformer.joint(latents, sigma.reshape(1), self.features, self.packed, self.past, self.text)


def velocity_of(
    transformer: AstraTransformer,
    state: WorldState,
    actions: Tensor,
    sampling: Sampling,
    empty_prompt: Tensor | None,
) -> JointVelocity | GuidedVelocity:
    """The velocity of the next chunk of B worlds, by as few passes as its sampling needs; as `conditionings`."""
    if sampling.single_pass and JointVelocity.serves(transformer, state):
        return JointVelocity(transformer, state, actions)
    passes = conditionings(transformer, state, actions, sampling, empty_prompt)
    return GuidedVelocity(transformer, passes, sampling.guidance_interval)


def conditionings(
    transformer: AstraTransformer,
    state: WorldState,
    actions: Tensor,
    sampling: Sampling,
    empty_prompt: Tensor | None,
) -> list[Pass]:
    """What guidance weighs for the next chunk of B worlds: all conditions, without actions, without the prompt.

    Args:
        transformer: computes the histories and the features of the actions.
        state: B worlds.
        actions: encoded actions (B, n, A) of the chunk.
        sampling: scales of the actions' and the prompt's guidance; a scale of 1 needs no further pass.
        empty_prompt: embeddings (B, L, D) of the empty prompt, where text_guidance_scale is not 1.
    """
    guidance_scale, text_guidance_scale = sampling.guidance_scale, sampling.text_guidance_scale
    dtype = transformer.head.weight.dtype
    given = torch.ones_like(actions[..., 0])
    table = torch.cat([state.actions, actions], dim=1).to(dtype)
    known = torch.cat([state.action_present, given], dim=1).to(dtype)

    # forks of one world have one history, whose keys and values are computed once
    shared = state.forked and transformer.config.history_attention == "causal"
    one = slice(1 if shared else None)

    def history(known: Tensor, prompt_embeds: Tensor) -> HistoryCache:
        slots = state.latents[one], state.lengths[one]
        cache, _ = transformer.encode_history(*slots, table[one], known[one], state.modality[one], prompt_embeds[one])
        return cache.expand(len(state)) if shared else cache

    def chunk(present: Tensor) -> ActionFeatures:
        return transformer.action_features(actions.to(dtype), present.to(dtype), state.modality)

    cache, features = history(known, state.prompt_embeds), chunk(given)
    passes = [Pass(guidance_scale + text_guidance_scale - 1, features, cache)]
    if guidance_scale != 1:
        # the released weights drop the history's actions as well; ours keep one history for both passes
        full = transformer.config.history_attention == "full"
        free = history(torch.zeros_like(known), state.prompt_embeds) if full else cache
        passes.append(Pass(1 - guidance_scale, chunk(torch.zeros_like(given)), free))
    if empty_prompt is not None and text_guidance_scale != 1:
        passes.append(Pass(1 - text_guidance_scale, features, history(known, empty_prompt)))
    return passes
