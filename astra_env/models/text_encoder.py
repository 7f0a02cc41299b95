"""Prompts as Wan-2.1 reads them: UMT5 through transformers, loaded when a new prompt comes, and freed again."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from astra_env.models.hub import (
    WAN_REPO,
    Say,
    Source,
    check_config,
    fetch,
    part_files,
    read_json,
    read_weights,
    tell,
)

MAX_KEPT = 512  # prompts whose embeddings stay in memory, a megabyte or less each
MAX_LENGTH = 512  # tokens that the backbone attends to, whatever the prompt's length
QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}
"""How bitsandbytes is asked to store the weights of linear layers, by option."""


def clean_prompt(prompt: str) -> str:
    """Mend encoding faults and typographic quotes, undo HTML escapes, and join the words by single spaces.

    Raises:
        ImportError: ftfy is not installed.
    """
    try:
        from ftfy import fix_text
    except ImportError as error:
        raise ImportError(_needed("ftfy")) from error
    return " ".join(html.unescape(html.unescape(fix_text(prompt))).split())


def embed_prompts(
    prompts: Sequence[str] | Tensor | None, batch_size: int, text_dim: int | None, encoder: TextEncoder | None
) -> Tensor:
    """Embeddings (B, L, text_dim) of sentences, or given ones, checked; None is the empty prompt.

    (B, 0, 0) for a world model that takes no text, whose text_dim is None.
    """
    if text_dim is None:
        if prompts is not None:
            raise ValueError("This world model takes no text; leave the prompt out.")
        return torch.zeros(batch_size, 0, 0)
    if isinstance(prompts, Tensor):
        if prompts.ndim != 3 or len(prompts) != batch_size or prompts.shape[-1] != text_dim:
            raise ValueError(f"Prompt embeddings are {tuple(prompts.shape)}, expected ({batch_size}, L, {text_dim}).")
        return prompts
    sentences = [""] * batch_size if prompts is None else list(prompts)
    if len(sentences) != batch_size or not all(isinstance(sentence, str) for sentence in sentences):
        raise ValueError(f"prompts are {prompts!r}, expected a sentence for each of {batch_size} worlds.")
    if encoder is None:
        raise ValueError("This world model reads text but has no text encoder; give prompts as embeddings.")
    return encoder.encode(sentences)


class TextEncoder:
    """Prompt embeddings, remembered by prompt; no module, so that a world model's weights do not hold it.

    Args:
        source: a local folder in diffusers form with text_encoder/ and tokenizer/, or a repository on the hub.
        device: where it computes; None chooses CUDA where there is one.
        dtype: of the weights: UMT5-XXL takes 11.4 GB in bfloat16.
        quantization: None, or "int8" or "nf4" through bitsandbytes.
        keep: whether the weights stay loaded after a call; otherwise each call with a new prompt loads them.
        say: told what is about to be downloaded.

    Raises:
        ValueError: an unknown quantization.
    """

    def __init__(
        self,
        source: Source = WAN_REPO,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.bfloat16,
        quantization: str | None = None,
        keep: bool = False,
        say: Say = tell,
    ) -> None:
        if quantization is not None and quantization not in QUANTIZATIONS:
            raise ValueError(f"quantization is {quantization!r}, expected None or one of {sorted(QUANTIZATIONS)}.")
        self.source, self.dtype, self.quantization, self.keep, self.say = source, dtype, quantization, keep, say
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._embeds: dict[str, Tensor] = {}  # (tokens, text_dim) on the CPU, by cleaned prompt
        self._loaded: tuple[Any, Any] | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], device: str | torch.device | None = None) -> TextEncoder:
        """From what `config` describes."""
        options = dict(config) | {"dtype": getattr(torch, config["dtype"])}
        return cls(options.pop("source"), device=device, **options)

    @property
    def config(self) -> dict[str, Any]:
        """JSON-ready description: where the weights come from and how they are held."""
        return {
            "source": str(self.source),
            "dtype": str(self.dtype).removeprefix("torch."),
            "quantization": self.quantization,
            "keep": self.keep,
        }

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings float32 (B, 512, text_dim), zero past each prompt's end; longer prompts are cut.

        A prompt is embedded by itself and once, so its embedding does not depend on its company; the null prompt ""
        is embedded with the first ones.

        Raises:
            ValueError: no prompts, or files that are missing, damaged or of another model.
            ImportError: the packages are not installed.
            ConnectionError: the files are neither here nor to be had.
        """
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"prompts is {prompts!r}, expected a list of at least one string.")
        cleaned = [clean_prompt(prompt) for prompt in prompts]
        new = [prompt for prompt in dict.fromkeys([*cleaned, ""]) if prompt not in self._embeds]
        if new:
            try:
                self._loaded = self._loaded or self._load()
                for prompt in new:
                    self._embeds[prompt] = self._embed(prompt, *self._loaded)
            finally:
                if not self.keep:
                    self.free()
        rows = [self._embeds[prompt] for prompt in cleaned]
        for prompt in [known for known in self._embeds if known][:-MAX_KEPT]:
            del self._embeds[prompt]  # those asked for first; the null prompt stays
        return torch.stack([F.pad(row, (0, 0, 0, MAX_LENGTH - len(row))) for row in rows]).to(self.device).float()

    def free(self) -> None:
        """Drop the weights; embeddings of known prompts stay."""
        self._loaded = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def _embed(self, prompt: str, tokenizer: Any, model: Any) -> Tensor:
        tokens = tokenizer([prompt], max_length=MAX_LENGTH, truncation=True, return_tensors="pt").input_ids
        return model(tokens.to(self.device)).last_hidden_state[0].cpu()

    def _load(self) -> tuple[Any, Any]:
        """Tokenizer and encoder."""
        try:
            from transformers import AutoTokenizer, BitsAndBytesConfig, UMT5EncoderModel
        except ImportError as error:
            raise ImportError(_needed("transformers")) from error
        folder = fetch(self.source, ["text_encoder", "tokenizer"], self.say)
        part = folder / "text_encoder"
        config = part / "config.json"
        check_config(read_json(config), {"model_type": "umt5"}, ["d_model"], file=config)
        read_weights(part_files(part))  # maps the files, so that a truncated one is found and named
        options: dict[str, Any] = {"dtype": self.dtype, "use_safetensors": True, "local_files_only": True}
        try:
            if self.quantization is not None:
                import accelerate  # noqa: F401  transformers says less clearly that it is absent
                import bitsandbytes  # noqa: F401

                options["quantization_config"] = BitsAndBytesConfig(
                    **QUANTIZATIONS[self.quantization], bnb_4bit_compute_dtype=self.dtype
                )
                options["device_map"] = {"": self.device}
            loaded: Any = UMT5EncoderModel.from_pretrained(part, output_loading_info=True, **options)
        except ImportError as error:
            raise ImportError(
                f"A text encoder in {self.quantization} needs bitsandbytes and accelerate: run "
                "`pip install 'astra-env[wan,quantization]'`, or leave quantization out."
            ) from error
        model, report = loaded
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])
            raise ValueError(f"{part} lacks {missing[0]!r} and {len(missing) - 1} other weights; copy it again.")
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        return tokenizer, model.eval() if self.quantization is not None else model.eval().to(self.device)


def _needed(package: str) -> str:
    return f"Prompts for Wan-2.1 need {package}, which is not installed; run `pip install 'astra-env[wan]'`."
