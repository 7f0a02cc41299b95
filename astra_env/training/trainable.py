"""Which weights of a transformer learn, by name; and blocks that are computed twice to take less memory."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from torch.utils.checkpoint import checkpoint

from astra_env.models.transformer import AstraTransformer

TRAINABLE: Mapping[str, str] = {
    "all": r".",
    # adapters, self-attention, action experts and history embedders (arXiv 2512.08931)
    "paper": r"action_experts\.|history_embedder\.|blocks\.\d+\.(adapter|qkv|out|norm_q|norm_k)\b",
    "lora": r".*\.lora_[AB]\.",  # once `add_lora` has put them there
}
"""Name of a set -> pattern that the names of its weights begin with."""


def train_only(transformer: AstraTransformer, which: str) -> None:
    """Let the weights of a set learn, all others stay as they are.

    Raises:
        ValueError: an unknown set.
    """
    if which not in TRAINABLE:
        raise ValueError(f"trainable is {which!r}, expected one of {sorted(TRAINABLE)}.")
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_(re.match(TRAINABLE[which], name) is not None)


def checkpoint_blocks(transformer: AstraTransformer) -> None:
    """Keep the inputs of blocks alone for the backward pass, which computes the rest anew: less memory, more time."""
    for block in transformer.blocks:
        forward: Any = functools.partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        block.forward = forward
