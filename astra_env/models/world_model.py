"""WorldModel: autoencoder and transformer behind verbs; worlds are WorldState values that go in and come out."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from astra_env.actions import ACTION_MODALITIES
from astra_env.models.action_experts import ActionFeatures
from astra_env.models.autoencoder import AUTOENCODERS, TEMPORAL_COMPRESSION, VideoAutoencoder
from astra_env.models.checkpoint import (
    check_modalities,
    checkpoint_folder,
    fastest_dtype,
    load_weights,
    save_weights,
)
from astra_env.models.flow_matching import denoise, shifted_sigmas
from astra_env.models.history import HistoryLayout
from astra_env.models.state import WorldState
from astra_env.models.transformer import AstraTransformer, TransformerConfig


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Defaults of one step: how many Euler steps, how strongly actions are followed, how sigmas are spaced."""

    num_inference_steps: int = 1
    guidance_scale: float = 1.0
    shift: float = 3.0


class WorldModel(nn.Module):
    """A learned simulator. It has no state of its own and does not switch gradients off: callers decide."""

    def __init__(
        self,
        autoencoder: VideoAutoencoder,
        transformer: AstraTransformer,
        *,
        frame_size: tuple[int, int] = (64, 64),
        sampling: Sampling | None = None,
        autoencoder_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.autoencoder, self.transformer = autoencoder, transformer
        self.frame_size, self.sampling = frame_size, sampling or Sampling()
        self.autoencoder_config = dict(autoencoder_config or {"type": "tiny"})
        self.modalities = {name: ACTION_MODALITIES[name] for name in transformer.config.action_dims}
        self.action_dim = max(transformer.config.action_dims.values())

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> WorldModel:
        """Build with fresh weights from what config.json holds."""
        transformer = dict(config["transformer"])
        transformer["history"] = HistoryLayout(**transformer["history"])
        transformer["patch_size"] = tuple(transformer["patch_size"])
        autoencoder = dict(config["autoencoder"])
        return cls(
            AUTOENCODERS[autoencoder.pop("type")](**autoencoder),
            AstraTransformer(TransformerConfig(**transformer)),
            frame_size=tuple(config["frame_size"]),
            sampling=Sampling(**config["sampling"]),
            autoencoder_config=config["autoencoder"],
        )

    @property
    def config(self) -> dict[str, Any]:
        """JSON-ready description: sizes, sampling defaults, and each modality's units, bounds, rate and frame."""
        return {
            "frame_size": list(self.frame_size),
            "autoencoder": self.autoencoder_config,
            "transformer": dataclasses.asdict(self.transformer.config),
            "sampling": dataclasses.asdict(self.sampling),
            "modalities": {name: modality.to_json() for name, modality in self.modalities.items()},
        }

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transformer.head.weight.device

    @property
    def layout(self) -> HistoryLayout:
        """How the history window is divided."""
        return self.transformer.config.history

    # 1. Files

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> WorldModel:
        """Load a bundled name ("astra-tiny") or a local folder written by `save_pretrained`.

        device None chooses CUDA where there is one. dtype None chooses bfloat16 where the processor computes in it,
        else float32; the autoencoder stays in float32.
        """
        folder = checkpoint_folder(name_or_path)
        config = json.loads((folder / "config.json").read_text())
        check_modalities(config, folder)
        world_model = cls.from_config(config)
        load_weights(world_model.transformer, folder, "transformer")
        load_weights(world_model.autoencoder, folder, "autoencoder")
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        world_model.float().to(chosen)
        world_model.transformer.to(dtype or fastest_dtype(chosen))
        return world_model.eval().requires_grad_(False)

    def save_pretrained(self, path: str | os.PathLike[str], dtype: torch.dtype = torch.bfloat16) -> None:
        """Write config.json and safetensors shards, the transformer in dtype."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self.transformer, folder, "transformer", dtype)
        save_weights(self.autoencoder, folder, "autoencoder", torch.float16)
        partial = folder / "config.json.partial"
        partial.write_text(json.dumps(self.config, indent=2) + "\n")
        os.replace(partial, folder / "config.json")

    # 2. Worlds

    def init_state(
        self,
        frames: Tensor,
        modality: str | Sequence[str],
        prompts: Sequence[str] | None = None,
        actions: Tensor | None = None,
        seeds: Sequence[int] | None = None,
    ) -> WorldState:
        """Start B worlds from frames uint8 (B, T, H, W, 3), T >= 1.

        actions float32 (B, ceil(T / 4) - 1, A) in physical units, where known, led to the latents after the first.
        """
        if prompts is not None:
            raise ValueError("This world model takes no text; leave prompts out.")
        if frames.dtype != torch.uint8 or frames.ndim != 5 or tuple(frames.shape[2:]) != (*self.frame_size, 3):
            size = f"{self.frame_size[0]}, {self.frame_size[1]}, 3"
            raise ValueError(f"Frames are {frames.dtype} {tuple(frames.shape)}, expected uint8 (B, T, {size}).")
        B = len(frames)
        names = (modality,) * B if isinstance(modality, str) else tuple(modality)
        if len(names) != B or not self.modalities.keys() >= set(names):
            known = sorted(self.modalities)
            raise ValueError(f"modality is {modality!r}, expected one of {known} for each of {B} worlds.")
        latents = self.autoencoder.encode(frames.to(self.device))
        T, (h, w) = latents.shape[2], latents.shape[-2:]
        past = latents.new_zeros(B, T, self.action_dim)
        present = latents.new_zeros(B, T)
        if actions is not None:
            if actions.shape[1] != T - 1:
                raise ValueError(f"{actions.shape[1]} actions came with {T} latents, expected {T - 1}.")
            past[:, 1:], present[:, 1:] = self.normalise(actions.to(self.device), names), 1
        window = self.layout.size - 1
        return WorldState(
            latents=self.layout.windowed(latents, dim=2),
            actions=self.layout.windowed(past, dim=1),
            action_present=self.layout.windowed(present, dim=1),
            lengths=torch.full((B,), T, device=self.device),
            undecoded=torch.full((B,), min(T, window), device=self.device),
            seeds=torch.as_tensor(list(seeds or range(B)), device=self.device),
            num_steps=torch.zeros(B, dtype=torch.long, device=self.device),
            decoder_cache=self.autoencoder.init_cache(B, h, w),
            modality=names,
        )

    def normalise(self, actions: Tensor, modality: Sequence[str]) -> Tensor:
        """Physical actions (B, n, A) -> [-1, 1] between the bounds of each row's modality, in the model's width."""
        B, width = len(modality), max(self.modalities[name].action_dim for name in modality)
        if actions.ndim != 3 or len(actions) != B or actions.shape[-1] != width:
            raise ValueError(f"Actions are {tuple(actions.shape)}, expected ({B}, n, {width}) for {B} worlds.")
        low, high = (torch.zeros(B, 1, self.action_dim) for _ in range(2))
        for row, name in enumerate(modality):
            entry = self.modalities[name]
            low[row, 0, : entry.action_dim] = torch.as_tensor(entry.low)
            high[row, 0, : entry.action_dim] = torch.as_tensor(entry.high)
        low, high = low.to(actions), high.to(actions)
        padded = torch.nn.functional.pad(actions, (0, self.action_dim - actions.shape[-1]))
        return (2 * padded - low - high) / (high - low).clamp(min=1e-6)

    def step(
        self,
        state: WorldState,
        actions: Tensor,
        generators: Sequence[torch.Generator] | None = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> WorldState:
        """Imagine the next chunk under actions float32 (B, A) or (B, n, A) in physical units.

        One generator a row draws the noise; without them it follows from each row's seed and step count.
        """
        actions = actions.to(self.device)
        normalised = self.normalise(actions[:, None] if actions.ndim == 2 else actions, state.modality)
        past, known = self._cast(state.actions, state.action_present)
        cache, _ = self.transformer.encode_history(state.latents, state.lengths, past, known, state.modality)
        present = torch.ones_like(normalised[..., 0])
        scale = self.sampling.guidance_scale if guidance_scale is None else guidance_scale
        features = self._features(normalised, present, state.modality)
        if scale != 1:  # action-free guidance: both passes share one history and one batch
            free = self._features(normalised, torch.zeros_like(present), state.modality)
            features = ActionFeatures(torch.cat([features.values, free.values], 1), features.routing)
            cache = cache.select(torch.arange(len(state)).repeat(2))

        def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
            if scale == 1:
                return self.transformer(latents, sigma.expand(len(latents)), features, cache)
            both = self.transformer(latents.repeat(2, 1, 1, 1, 1), sigma.expand(2 * len(latents)), features, cache)
            following, free = both.chunk(2)
            return free + scale * (following - free)

        noise = self._noise(state, normalised.shape[1], generators)
        num = self.sampling.num_inference_steps if num_inference_steps is None else num_inference_steps
        sigmas = shifted_sigmas(num, self.sampling.shift)
        return state.advance(denoise(velocity, noise, sigmas.to(self.device)), normalised, self.layout)

    def _cast(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.to(self.transformer.head.weight.dtype) for tensor in tensors)

    def _features(self, actions: Tensor, present: Tensor, modality: Sequence[str]) -> ActionFeatures:
        actions, present = self._cast(actions, present)
        return self.transformer.action_features(actions, present, modality)

    def _noise(self, state: WorldState, n: int, generators: Sequence[torch.Generator] | None) -> Tensor:
        """Standard normal (B, C, n, h, w), drawn on the CPU row by row, so that it depends on nothing but the row."""
        C, _, h, w = state.latents.shape[1:]
        if generators is None:
            pairs = zip(state.seeds.tolist(), state.num_steps.tolist(), strict=True)
            generators = [torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63) for seed, step in pairs]
        if len(generators) != len(state):
            raise ValueError(f"There are {len(generators)} generators for {len(state)} worlds, expected one for each.")
        noise = [torch.randn(C, n, h, w, generator=generator) for generator in generators]
        return torch.stack(noise).to(self.device)

    def imagine(
        self,
        state: WorldState,
        actions: Tensor,
        generators: Sequence[torch.Generator] | None = None,
        **sampling: Any,
    ) -> WorldState:
        """Imagine several steps under actions (B, horizon, A), one after the other, without decoding."""
        for index in range(actions.shape[1]):
            state = self.step(state, actions[:, index], generators, **sampling)
        return state

    def decode(self, state: WorldState) -> tuple[WorldState, Tensor]:
        """The newest chunk, uint8 (B, 4, H, W, 3); equals decoding the whole video at once.

        Latents imagined since the last call pass through the decoder first; the returned state remembers them.
        """
        window = self.layout.size - 1
        # the tiny decoder looks back less far than the window reaches, so a replay from the window's start is exact
        replay = (state.undecoded == 0) | (state.undecoded > window)
        waiting = torch.where(replay, state.lengths.clamp(max=window), state.undecoded)
        keys = (waiting * 2 + replay).tolist()
        if len(set(keys)) > 1:  # rows that wait for different numbers of latents are decoded in turn
            order = [[row for row, key in enumerate(keys) if key == chosen] for chosen in sorted(set(keys))]
            parts = [self.decode(state[rows]) for rows in order]
            back = torch.tensor([row for rows in order for row in rows]).argsort()
            merged, frames = WorldState.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
            return merged[back], frames[back.to(frames.device)]
        cache = state.decoder_cache
        if replay[0]:
            cache = self.autoencoder.init_cache(len(state), *state.latents.shape[-2:])
        frames, cache = self.autoencoder.decode(state.latents[:, :, -int(waiting[0]) :].float(), cache)
        decoded = dataclasses.replace(state, decoder_cache=cache, undecoded=torch.zeros_like(state.undecoded))
        return decoded, frames[:, -TEMPORAL_COMPRESSION:]
