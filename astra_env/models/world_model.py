"""WorldModel: autoencoder and transformer behind verbs; worlds are WorldState values that go in and come out."""

from __future__ import annotations

import dataclasses
import json
import os
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from astra_env.actions import ACTION_MODALITIES
from astra_env.models.action_encoding import ACTION_ENCODINGS
from astra_env.models.autoencoder import AUTOENCODERS, TEMPORAL_COMPRESSION, VideoAutoencoder, WanAutoencoder
from astra_env.models.checkpoint import (
    PRESETS,
    check_modalities,
    checkpoint_folder,
    fastest_dtype,
    load_weights,
    push_checkpoint,
    save_checkpoint,
)
from astra_env.models.flow_matching import Sampling, denoise, shifted_sigmas
from astra_env.models.guidance import velocity_of
from astra_env.models.history import HistoryLayout
from astra_env.models.motion import move, start_motion
from astra_env.models.state import WorldState
from astra_env.models.text_encoder import TextEncoder, embed_prompts
from astra_env.models.transformer import AstraTransformer, TransformerConfig


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
        action_encodings: Mapping[str, str] | None = None,
        text_encoder: TextEncoder | None = None,
    ) -> None:
        super().__init__()
        self.autoencoder, self.transformer, self.text_encoder = autoencoder, transformer, text_encoder
        self.frame_size, self.sampling = frame_size, sampling or Sampling()
        self.autoencoder_config = dict(autoencoder_config or {"type": "tiny"})
        self.action_encodings = dict(action_encodings or dict.fromkeys(transformer.config.action_dims, "bounds"))
        self.modalities = {name: ACTION_MODALITIES[name] for name in self.action_encodings}
        self.folder: Path | None = None  # where it was loaded from; reward head and start states lie beside it
        self.action_dim = max(transformer.config.action_dims.values())

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> WorldModel:
        """Build with fresh weights from what config.json holds."""
        transformer = dict(config["transformer"])
        transformer["history"] = HistoryLayout(**transformer["history"])
        transformer["patch_size"] = tuple(transformer["patch_size"])
        transformer["added_modalities"] = tuple(transformer.get("added_modalities", ()))
        autoencoder = dict(config["autoencoder"])
        return cls(
            AUTOENCODERS[autoencoder.pop("type")](**autoencoder),
            AstraTransformer(TransformerConfig(**transformer)),
            frame_size=tuple(config["frame_size"]),
            sampling=Sampling().replaced(**config["sampling"]),
            autoencoder_config=config["autoencoder"],
            action_encodings=config.get("action_encodings"),
            text_encoder=TextEncoder.from_config(config["text_encoder"]) if config.get("text_encoder") else None,
        )

    @property
    def config(self) -> dict[str, Any]:
        """JSON-ready description: sizes, sampling defaults, and each modality's units, bounds, rate and frame."""
        return {
            "frame_size": list(self.frame_size),
            "autoencoder": self.autoencoder_config,
            "transformer": dataclasses.asdict(self.transformer.config),
            "sampling": dataclasses.asdict(self.sampling),
            "action_encodings": self.action_encodings,
            "text_encoder": None if self.text_encoder is None else self.text_encoder.config,
            "modalities": {name: modality.to_json() for name, modality in self.modalities.items()},
        }

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transformer.head.weight.device

    @property
    def chunk_frames(self) -> int:
        """Video frames of one step."""
        return TEMPORAL_COMPRESSION * self.sampling.chunk_size

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
        **options: Any,
    ) -> WorldModel:
        """Load a bundled name ("astra-tiny"), a preset ("astra-1.3b"), a local folder or a repository on the hub.

        device None chooses CUDA where there is one. dtype None chooses bfloat16 where the processor computes in it,
        else float32; the autoencoder's weights stay in float32, but Wan's on CUDA. Further options are the preset's.
        """
        if str(name_or_path) in PRESETS:
            world_model = pkgutil.resolve_name(PRESETS[str(name_or_path)])(**options)
        elif options:
            raise TypeError(f"{name_or_path!r} takes no options, but got {sorted(options)}.")
        else:
            folder = checkpoint_folder(name_or_path)
            config = json.loads((folder / "config.json").read_text())
            check_modalities(config, folder)
            world_model = cls.from_config(config)
            load_weights(world_model.transformer, folder, "transformer")
            load_weights(world_model.autoencoder, folder, "autoencoder")
            world_model.folder = folder
        return world_model.placed(device, dtype)

    def placed(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> WorldModel:
        """This world model, frozen, on a device and in a dtype as `from_pretrained` chooses them."""
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.autoencoder.float().to(chosen)
        if isinstance(self.autoencoder, WanAutoencoder) and chosen.type == "cuda":
            self.autoencoder.vae.to(fastest_dtype(chosen))
        self.autoencoder.decoding_dtype = dtype or fastest_dtype(chosen)
        self.transformer.to(chosen, dtype or fastest_dtype(chosen)).leave_out_identities()
        return self.eval().requires_grad_(False)

    def compile(self, *args: Any, **options: Any) -> None:
        """Let `torch.compile` fuse the blocks, with its options.

        Each new batch size is compiled when it first comes, for up to a minute, with a C++ compiler on a CPU.
        """
        torch._dynamo.config.recompile_limit = 64  # beyond so many shapes blocks run as they are, silently
        for block in self.transformer.blocks:
            block.compile(*args, **{"dynamic": False} | options)

    def save_pretrained(
        self, path: str | os.PathLike[str], dtype: torch.dtype = torch.bfloat16, max_shard_size: str = "5GB"
    ) -> None:
        """Write config.json, a model card and safetensors shards, the transformer in dtype."""
        save_checkpoint(self, Path(path), dtype, max_shard_size)

    def push_to_hub(self, repo_id: str, dtype: torch.dtype = torch.bfloat16, *, private: bool = False) -> str:
        """Upload what `save_pretrained` writes to OWNER/NAME on the hub; returns the repository's URL."""
        return push_checkpoint(self, repo_id, dtype, private=private)

    # 2. Worlds

    def init_state(
        self,
        frames: Tensor,
        modality: str | Sequence[str],
        prompts: Sequence[str] | Tensor | None = None,
        actions: Tensor | None = None,
        seeds: Sequence[int] | None = None,
        speeds: Sequence[float] | Tensor | None = None,
    ) -> WorldState:
        """Start B worlds from frames uint8 (B, T, H, W, 3), T >= 1.

        actions float32 (B, ceil(T / 4) - 1, A) in physical units, where known, led to the latents after the first.
        speeds (B,) in m/s are those of vehicles at the last frame; 0 where they are not known.
        prompts are B sentences or their embeddings (B, L, D), for world models that read text.
        """
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
        past, present = latents.new_zeros(B, T, self.action_dim), latents.new_zeros(B, T)
        if self.transformer.config.routing == "fixed":  # the released weights are told of rest where nothing is known
            width = max(self.modalities[name].action_dim for name in names)
            past, present = self.normalise(latents.new_zeros(B, T, width), names), torch.ones_like(present)
        poses, start_speeds = start_motion(B, speeds, self.device)
        if actions is not None:
            if actions.shape[1] != T - 1:
                raise ValueError(f"{actions.shape[1]} actions came with {T} latents, expected {T - 1}.")
            led = actions.to(self.device)
            gained = move(poses, torch.zeros_like(start_speeds), led, names, self.modalities)[1]
            past[:, 1:], present[:, 1:] = self.normalise(led, names, start_speeds - gained), 1
        return WorldState(
            latents=self.layout.windowed(latents, dim=2),
            actions=self.layout.windowed(past, dim=1),
            action_present=self.layout.windowed(present, dim=1),
            lengths=torch.full((B,), T, device=self.device),
            undecoded=torch.full((B,), min(T, self.layout.size - 1), device=self.device),
            seeds=torch.as_tensor(list(seeds or range(B)), device=self.device),
            num_steps=torch.zeros(B, dtype=torch.long, device=self.device),
            poses=poses,
            speeds=start_speeds,
            prompt_embeds=self.embed_prompts(prompts, B),
            decoder_cache=self.autoencoder.init_cache(B, h, w),
            modality=names,
        )

    def embed_prompts(self, prompts: Sequence[str] | Tensor | None, batch_size: int) -> Tensor:
        """Embeddings (B, L, D) of prompts; None is the empty prompt. (B, 0, 0) in a world model that takes no text."""
        text_dim = self.transformer.config.text_dim
        return embed_prompts(prompts, batch_size, text_dim, self.text_encoder).to(self.device)

    def with_prompts(self, state: WorldState, prompts: Sequence[str] | Tensor | None) -> WorldState:
        """The same worlds under other prompts, which hold from the next step on."""
        return dataclasses.replace(state, prompt_embeds=self.embed_prompts(prompts, len(state)))

    def normalise(self, actions: Tensor, modality: Sequence[str], speeds: Tensor | None = None) -> Tensor:
        """Physical actions (B, n, A) -> what the network reads of them (B, n, action_dim), zero beyond a row's own.

        speeds (B,) in m/s are those of vehicles before the first action; None is standstill.
        """
        B, width = len(modality), max(self.modalities[name].action_dim for name in modality)
        if actions.ndim != 3 or len(actions) != B or actions.shape[-1] != width:
            raise ValueError(f"Actions are {tuple(actions.shape)}, expected ({B}, n, {width}) for {B} worlds.")
        encoded = actions.new_zeros(*actions.shape[:2], self.action_dim)
        before = actions.new_zeros(B) if speeds is None else speeds.to(actions)
        for name in dict.fromkeys(modality):
            rows = [row for row, entry in enumerate(modality) if entry == name]
            entry, encode = self.modalities[name], ACTION_ENCODINGS[self.action_encodings[name]]
            part = encode(actions[rows, :, : entry.action_dim], entry, before[rows])
            encoded[rows, :, : part.shape[-1]] = part
        return encoded

    def step(
        self,
        state: WorldState,
        actions: Tensor,
        generators: Sequence[torch.Generator] | None = None,
        watch: Callable[[Tensor], None] | None = None,
        **sampling: Any,
    ) -> WorldState:
        """Imagine the next chunk under actions float32 (B, A), held for the chunk, or (B, n, A), in physical units.

        One generator a row draws the noise; without them it follows from each row's seed and step count. watch is shown
        the latents (B, C, n, h, w) that each denoising step expects in the end. sampling are fields of `Sampling` that
        differ in this step: num_inference_steps, guidance_scale, ...
        """
        chosen = self.sampling.replaced(**sampling)
        held = actions.to(self.device)
        held = held[:, None].expand(-1, chosen.chunk_size, -1) if held.ndim == 2 else held
        normalised = self.normalise(held, state.modality, state.speeds)
        empty = None if chosen.text_guidance_scale == 1 else self.embed_prompts(None, len(state))
        velocity = velocity_of(self.transformer, state, normalised, chosen, empty)
        noise = state.noise(normalised.shape[1], generators)
        sigmas = shifted_sigmas(chosen.num_inference_steps, chosen.shift).to(self.device)
        state = state.advance(denoise(velocity, noise, sigmas, watch), normalised, self.layout)
        poses, speeds = move(state.poses, state.speeds, held, state.modality, self.modalities)
        return dataclasses.replace(state, poses=poses, speeds=speeds)

    def imagine(
        self, state: WorldState, actions: Tensor, generators: Sequence[torch.Generator] | None = None, **sampling: Any
    ) -> WorldState:
        """Imagine several steps under actions (B, horizon, A) without decoding."""
        for held in actions.unbind(1):
            state = self.step(state, held, generators, **sampling)
        return state

    def decode(self, state: WorldState) -> tuple[WorldState, Tensor]:
        """The newest chunk, uint8 (B, chunk_frames, H, W, 3); equals decoding the whole video at once.

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
        cache = self.autoencoder.init_cache(len(state), *state.latents.shape[-2:]) if replay[0] else state.decoder_cache
        frames, cache = self.autoencoder.decode(state.latents[:, :, -int(waiting[0]) :].float(), cache)
        decoded = dataclasses.replace(state, decoder_cache=cache, undecoded=torch.zeros_like(state.undecoded))
        frames = frames[:, -self.chunk_frames :]  # a world younger than a chunk shows its first frame for longer
        before = frames[:, :1].expand(-1, self.chunk_frames - frames.shape[1], -1, -1, -1)
        return decoded, torch.cat([before, frames], dim=1)
