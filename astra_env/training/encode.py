"""`astra-env encode DATA ...`: recordings encoded once, as shards that `astra-env finetune` reads.

What goes into which shard follows from the recordings alone. So each process of several encodes every n-th shard
without a word to the others, a call that was killed goes on with the next shard, and the bytes are always the same.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets.recorded import SPLITS, RecordedDataset
from astra_env.flags import flag
from astra_env.models import WorldModel
from astra_env.models.autoencoder import SPATIAL_COMPRESSION
from astra_env.models.text_encoder import MAX_LENGTH
from astra_env.training.episodes import FRAMES_PER_ACTION, at_rate
from astra_env.training.shards import (
    LATENT_DTYPE,
    MANIFEST,
    PLAN,
    PROMPT_DTYPE,
    ClipEntry,
    prompt_name,
    weights_digest,
    write_shard,
)
from astra_env.video import resize_frames
from astra_env.writing import write_json


@dataclass(frozen=True)
class EncodeConfig:
    """One run; each field is a flag of `astra-env encode` and says in its metadata what it means."""

    data: tuple[str, ...]  # folders of recorded episodes, of different lengths and picture sizes
    out: str = flag(dataclasses.MISSING, "folder of the shards; those it has are kept")
    world_model: str = flag(dataclasses.MISSING, "bundled name, 'astra-1.3b' or folder: whose encoders are taken")
    clip_frames: int = flag(161, "longest clip, others are cut; by default 128 frames of history and 33 of target")
    shard_mb: float = flag(512.0, "most megabytes of latents in a shard")
    device: str | None = flag(None, "'cpu', 'cuda', …; by default CUDA where there is one")


def encode(config: EncodeConfig) -> Path:
    """Encode what is not encoded yet, or this process's part of it (RANK of WORLD_SIZE); returns the folder.

    The manifest is written by the process that finds everything there.

    Raises:
        ValueError: the folder was begun with other recordings or another world model, or a recording is unfit.
    """
    if config.clip_frames < 1 + FRAMES_PER_ACTION or config.shard_mb <= 0:
        raise ValueError(
            f"clip_frames is {config.clip_frames} and shard_mb {config.shard_mb}, expected at least "
            f"{1 + FRAMES_PER_ACTION} and more than nothing."
        )
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))  # what "cuda" means in this process
    world_model = WorldModel.from_pretrained(config.world_model, "cpu", torch.float32)
    roots = _domains(config)
    plan = make_plan(world_model, config, roots)
    _begin(out, plan)
    world_model = world_model.placed(config.device)
    clips = [ClipEntry(**entry) for entry in plan["clips"]]
    work = {name: list(entries) for name, entries in groupby(clips, key=lambda clip: clip.shard)}
    progress = tqdm(list(work.items())[rank::count], desc="encoding", unit="shard", mininterval=5)
    for shard, entries in progress:
        if not (out / shard).is_file():
            write_shard(out / shard, _encoded(world_model, roots, entries))
    for shard in sorted(set(plan["prompts"].values()))[rank::count]:
        if not (out / shard).is_file():
            _write_prompts(world_model, out / shard, [text for text, name in plan["prompts"].items() if name == shard])
    if all((out / shard).is_file() for shard in [*work, *plan["prompts"].values()]):
        write_json(out / MANIFEST, plan)
    return out


def _begin(out: Path, plan: dict[str, Any]) -> None:
    """Keep the plan, or make sure that it is the one by which the folder was begun."""
    if not (out / PLAN).is_file():
        write_json(out / PLAN, plan)
    if json.loads((out / PLAN).read_text()) != json.loads(json.dumps(plan)):
        raise ValueError(
            f"{out} was begun with other recordings, another world model or other options; choose another folder, or "
            "delete it."
        )


# 1. The plan


def make_plan(world_model: WorldModel, config: EncodeConfig, roots: Mapping[str, Path]) -> dict[str, Any]:
    """The manifest to be: what the clips are, in which shard each lies, and what they were encoded with.

    roots are the folders by domain. The world model is on the CPU, where its weights are as they were stored.
    """
    height, width = world_model.frame_size
    h, w = height // SPATIAL_COMPRESSION, width // SPATIAL_COMPRESSION
    latent_shape = [world_model.autoencoder.latent_channels, h, w]
    num_bytes = int(np.prod(latent_shape)) * LATENT_DTYPE.itemsize
    longest = (config.clip_frames - 1) // FRAMES_PER_ACTION
    found = list(_clips(roots, longest, world_model.sampling.chunk_size))
    clips = _in_shards(found, int(config.shard_mb * 1e6 / num_bytes))
    return {
        "format": 1,
        "world_model": config.world_model,
        "autoencoder": weights_digest(world_model.autoencoder),
        "frame_size": [height, width],
        "latent_shape": latent_shape,
        "modalities": {name: ACTION_MODALITIES[name].to_json() for name in sorted({clip.modality for clip in clips})},
        "text_dim": world_model.transformer.config.text_dim,
        "prompts": _prompt_shards({clip.text for clip in clips}, world_model, config.shard_mb),
        "clips": [dataclasses.asdict(clip) for clip in clips],
    }


def _domains(config: EncodeConfig) -> dict[str, Path]:
    """Folder of each kind of world."""
    roots = {RecordedDataset(root).domain: Path(root) for root in config.data}
    if len(roots) != len(config.data):
        raise ValueError(f"{list(config.data)} hold the domains {list(roots)}, expected each once; join such folders.")
    return roots


def _clips(roots: Mapping[str, Path], longest: int, shortest: int) -> Iterator[ClipEntry]:
    """Recordings cut into clips of `longest` actions; a rest counts where it has `shortest`."""
    for split in SPLITS:
        for domain, root in roots.items():
            modality = None
            for path in sorted((root / split).glob("episode_*.npz")):
                meta, num_chunks = _header(path)
                modality = modality or meta["modality"]
                if meta["modality"] != modality:
                    raise ValueError(f"{path} holds {meta['modality']} actions, expected {modality} as beside it.")
                for start in range(0, num_chunks, longest):
                    length = min(longest, num_chunks - start)
                    if length >= shortest or start == 0:
                        yield ClipEntry(
                            name=f"{domain}/{split}/{path.stem}/{start}",
                            split=split,
                            domain=domain,
                            modality=modality,
                            episode=f"{split}/{path.name}",
                            num_bytes=path.stat().st_size,
                            start=start,
                            num_latents=length + 1,
                            text=meta.get("text", ""),
                            shard="",
                        )


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """What a recording says of itself and its number of chunks, without reading its pictures."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {"meta": file["meta"], "actions": file["actions"]}
    except (BadZipFile, ValueError, EOFError, KeyError) as error:
        raise ValueError(f"{path} is not a whole episode ({error}); delete it and record it again.") from error
    meta = json.loads(str(arrays["meta"]))
    arrays["frames"] = np.arange(len(arrays["actions"]) * meta["chunk_frames"] + 1)
    whole = len(arrays["actions"]) and len(at_rate(arrays, ACTION_MODALITIES[meta["modality"]], path)["actions"])
    if not whole:
        raise ValueError(f"{path} is shorter than one action of {FRAMES_PER_ACTION} frames; delete it.")
    return meta, whole


def _in_shards(clips: Sequence[ClipEntry], most_latents: int) -> list[ClipEntry]:
    """The clips with the shard of each: as many in a row as fit, those of training apart from those held out."""
    placed: list[ClipEntry] = []
    index, used = 0, 0
    for clip in clips:
        new = not placed or placed[-1].split != clip.split
        if new or used + clip.num_latents > most_latents:
            index, used = 0 if new else index + 1, 0
        used += clip.num_latents
        placed.append(dataclasses.replace(clip, shard=f"{clip.split}-{index:05d}.safetensors"))
    return placed


def _prompt_shards(texts: set[str], world_model: WorldModel, shard_mb: float) -> dict[str, str]:
    """The shard of each distinct text, for world models that read text."""
    text_dim = world_model.transformer.config.text_dim
    if text_dim is None:
        return {}
    each = max(1, int(shard_mb * 1e6 / (MAX_LENGTH * text_dim * PROMPT_DTYPE.itemsize)))
    return {text: f"prompts-{index // each:05d}.safetensors" for index, text in enumerate(sorted(texts))}


# 2. The work


def _encoded(world_model: WorldModel, roots: Mapping[str, Path], clips: Sequence[ClipEntry]) -> dict[str, Tensor]:
    """Tensors of a shard by name; each recording is read once."""
    tensors: dict[str, Tensor] = {}
    for (domain, episode), group in groupby(clips, key=lambda clip: (clip.domain, clip.episode)):
        path, entries = roots[domain] / episode, list(group)
        with np.load(path, allow_pickle=False) as file:
            arrays = at_rate({name: file[name] for name in file.files}, ACTION_MODALITIES[entries[0].modality], path)
        for clip in entries:
            parts = _encode_clip(world_model, clip, arrays)
            if not all(value.isfinite().all() for value in parts.values()):
                raise ValueError(f"{path} gives latents or actions that are not finite; delete it, or record it again.")
            tensors |= {f"{clip.name}.{part}": value for part, value in parts.items()}
    return tensors


@torch.no_grad()
def _encode_clip(world_model: WorldModel, clip: ClipEntry, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Latents (T, C, h, w), actions (T - 1, A), and of vehicles speeds (T,), of a part of a recording."""
    end = clip.start + clip.num_latents - 1
    frames = arrays["frames"][FRAMES_PER_ACTION * clip.start : FRAMES_PER_ACTION * end + 1]
    frames = resize_frames(np.ascontiguousarray(frames), world_model.frame_size)
    latents = world_model.autoencoder.encode(torch.from_numpy(frames)[None].to(world_model.device))
    parts = {
        "latents": latents[0].transpose(0, 1).to("cpu", LATENT_DTYPE),
        "actions": torch.from_numpy(arrays["actions"][clip.start : end]).float(),
    }
    if "speed" in arrays:
        parts["speeds"] = torch.from_numpy(arrays["speed"][clip.start : end + 1]).float()
    return parts


def _write_prompts(world_model: WorldModel, path: Path, texts: Sequence[str]) -> None:
    """Embeddings of texts, cut at their ends, where zeros begin."""
    embeds = world_model.embed_prompts(texts, len(texts)).cpu()
    ends = [int(tokens.any(-1).nonzero().max()) + 1 if tokens.any() else 0 for tokens in embeds]
    tensors = {
        prompt_name(text): tokens[:end].to(PROMPT_DTYPE) for text, tokens, end in zip(texts, embeds, ends, strict=True)
    }
    write_shard(path, tensors, {"length": str(embeds.shape[1])})
