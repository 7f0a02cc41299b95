"""Numbers recorded from the reference implementation, found in the first of three places that is there:
the folder that ASTRA_GOLDEN names, shared/golden beside the repository, the excerpt in tests/data/golden.
"""

from __future__ import annotations

import json
import lzma
import os
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file
from torch import Tensor

ATOL = 2e-5  # what float32 arithmetic in another order may move a recorded number by
TESTS = Path(__file__).resolve().parent


def golden_folder() -> Path:
    """Where recorded numbers are looked for; it need not exist."""
    if folder := os.environ.get("ASTRA_GOLDEN"):
        return Path(folder)
    shared = TESTS.parents[1] / "shared" / "golden"
    return shared if shared.is_dir() else TESTS / "data" / "golden"


def golden_file(name: str) -> Path:
    """Path of a recorded file; skips the test where the file is not part of what is there."""
    path = golden_folder() / name
    if not path.is_file():
        pytest.skip(
            f"{path} is absent: set ASTRA_GOLDEN to a folder with all recorded numbers", allow_module_level=True
        )
    return path


@cache
def golden_index() -> dict[str, Any]:
    """The description of all recorded tensors: configuration, variants, notes."""
    return json.loads(golden_file("index.json").read_text())


def load_tensors(name: str) -> dict[str, Tensor]:
    """All tensors of one file, which the excerpt holds compressed."""
    packed = golden_folder() / f"{name}.safetensors.xz"
    return (
        load(lzma.decompress(packed.read_bytes()))
        if packed.is_file()
        else load_file(golden_file(f"{name}.safetensors"))
    )


def recorded(name: str, variant: str) -> dict[str, Tensor]:
    """One variant of a case; skips the test where it is not part of what is there."""
    case = load_case(name)
    if variant not in case:
        pytest.skip(f"{variant} of {name} is absent: set ASTRA_GOLDEN to a folder with all recorded numbers")
    return case[variant]


@cache
def load_case(name: str) -> dict[str, dict[str, Tensor]]:
    """Tensors of "case_a_modalities" and so on: variant -> {"in.latents": ..., "out.velocity": ...}.

    What is recorded outside a variant stands under "".
    """
    case: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in load_tensors(name).items():
        variant, _, tensor_name = key.rpartition("/")
        case[variant][tensor_name] = tensor
    return dict(case)


@cache
def model_state() -> dict[str, Tensor]:
    """All weights of the recorded model under the reference's names; zeros for those that the excerpt leaves out."""
    shapes = {
        name: entry["shape"] for name, entry in golden_index()["files"]["model_state.safetensors"]["tensors"].items()
    }
    return {name: torch.zeros(shape) for name, shape in shapes.items()} | load_tensors("model_state")
