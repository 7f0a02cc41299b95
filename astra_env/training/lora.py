"""Low-rank adapters through peft: few weights learn, and are added to the plain ones for the checkpoint."""

from __future__ import annotations

from typing import Any

from astra_env.models.transformer import AstraTransformer

TARGETS = r"blocks\.\d+\.(qkv|out|ffn\.(0|2)|text_attention\.(q|kv|out))"
"""The linear layers of attention and feed-forward."""


def add_lora(transformer: AstraTransformer, rank: int) -> Any:
    """Put adapters of this rank into the transformer, in place; what `merge_lora` takes out again.

    Raises:
        ImportError: peft is not installed.
    """
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ImportError as error:
        raise ImportError("LoRA needs peft; run: pip install 'astra-env[training]'") from error
    return LoraModel(transformer, LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS), "default")


def merge_lora(lora: Any) -> None:
    """Add what the adapters learned to the plain weights, and leave the transformer as it was built."""
    lora.merge_and_unload()
