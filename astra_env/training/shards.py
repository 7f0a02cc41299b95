"""Encoded recordings on the disk: a manifest, shards of latents with their actions, shards of prompt embeddings.

A clip's latents are read through a map of the file, and only those that are asked for, so a data set may be larger than
the memory. FOLDER/manifest.json appears when all shards are whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

MANIFEST, PLAN = "manifest.json", "plan.json"
LATENT_DTYPE = torch.float16  # of latents of unit variance: eight times finer than bfloat16
PROMPT_DTYPE = torch.bfloat16  # what the text encoder computes in


@dataclass(frozen=True)
class ClipEntry:
    """One clip, a stream of its own: its first latent shows one still picture."""

    name: str
    """Its tensors are NAME.latents, NAME.actions and, of vehicles, NAME.speeds."""
    split: str
    domain: str
    modality: str
    episode: str
    """The recording's file."""
    num_bytes: int
    """Its size, by which another recording of that name is told from it."""
    start: int
    """Its first latent among those of the recording."""
    num_latents: int
    text: str
    shard: str
    """File name in the folder."""


def weights_digest(module: nn.Module) -> str:
    """The first 16 digits of SHA-256 of a module's weights in float16, as checkpoints hold an autoencoder."""
    content = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        content.update(name.encode() + b"\0")
        content.update(value.detach().to("cpu", torch.float16).contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()[:16]


def write_shard(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """One safetensors file, there whole or not at all; one process writes it."""
    partial = path.with_name(f"{path.name}.partial")
    save_file({name: value.contiguous() for name, value in tensors.items()}, partial, metadata=dict(metadata or {}))
    os.replace(partial, path)


class Shards:
    """What `astra-env encode` wrote to a folder.

    Raises:
        ValueError: the folder has no manifest, or lacks a shard that it names.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not (self.folder / MANIFEST).is_file():
            raise ValueError(f"{self.folder} holds no {MANIFEST}; let astra-env encode come to its end.")
        self.manifest: dict[str, Any] = json.loads((self.folder / MANIFEST).read_text())
        self.clips = [ClipEntry(**entry) for entry in self.manifest["clips"]]
        self._files: dict[str, Any] = {}
        self.prompt_shards: dict[str, str] = self.manifest["prompts"]
        for shard in sorted({clip.shard for clip in self.clips} | set(self.prompt_shards.values())):
            if not (self.folder / shard).is_file():
                raise ValueError(f"{self.folder} lacks {shard}, which its {MANIFEST} names; encode again.")

    def split(self, name: str) -> list[ClipEntry]:
        """Clips of "train" or "heldout"."""
        return [clip for clip in self.clips if clip.split == name]

    def latents(self, clip: ClipEntry, start: int, stop: int) -> Tensor:
        """Latents float32 (stop - start, C, h, w) of a clip; only they are read."""
        return self._open(clip.shard).get_slice(f"{clip.name}.latents")[start:stop].float()

    def actions(self, clip: ClipEntry) -> Tensor:
        """Actions float32 (num_latents - 1, A) in physical units, each leading from a latent to the next."""
        return self._open(clip.shard).get_tensor(f"{clip.name}.actions").clone()

    def speeds(self, clip: ClipEntry) -> Tensor | None:
        """A vehicle's speed at each latent, float32 (num_latents,) in m/s, where it was recorded."""
        file, name = self._open(clip.shard), f"{clip.name}.speeds"
        return file.get_tensor(name).clone() if name in file.keys() else None  # noqa: SIM118

    def prompt(self, clip: ClipEntry) -> Tensor | None:
        """Embeddings float32 (L, D) of the clip's text, zero past its end; None where no text was encoded."""
        if clip.text not in self.prompt_shards:
            return None
        file = self._open(self.prompt_shards[clip.text])
        tokens = file.get_tensor(prompt_name(clip.text)).float()
        return F.pad(tokens, (0, 0, 0, int(file.metadata()["length"]) - len(tokens)))

    def _open(self, shard: str) -> Any:
        """A mapped file; it takes address space, no memory."""
        if shard not in self._files:
            try:
                self._files[shard] = safe_open(self.folder / shard, "pt").__enter__()
            except SafetensorError as error:
                path = self.folder / shard
                raise ValueError(f"{path} cannot be read ({error}); delete it and encode again.") from error
        return self._files[shard]


def prompt_name(text: str) -> str:
    """What the embeddings of a text are called in their shard."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
