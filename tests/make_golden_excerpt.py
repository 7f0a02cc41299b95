"""Cuts tests/data/golden from a folder with all recorded numbers: python tests/make_golden_excerpt.py FOLDER."""

from __future__ import annotations

import json
import lzma
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

TARGET = Path(__file__).resolve().parent / "data" / "golden"
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 2, "pb": 2}]  # for numbers of four bytes
# the empty name begins every name: the whole file
PARTS: Mapping[str, tuple[str, ...]] = {
    "case_a_partial_history": ("n3/",),
    "case_a_trace": ("time.", "text.", "action.", "tokens.action", "tokens.rope", "block0.action_added"),
    "case_b_1x_only": ("n5_1x_only/",),
    "case_g_scheduler": ("",),
    "case_h_noise": ("",),
    "case_i_actions": ("",),
    "case_k_segments": ("",),
    "case_k_window": ("",),
    "case_m_vae_tiling": ("",),
}
TRACED = "sekai/in."  # the inputs of case_a_trace, without latents
DROPPED_WEIGHTS = ("proj_4x.weight", "global_router", "cam_encoder")  # nothing that is kept depends on them
DESCRIPTION = ("schema", "reference", "torch", "dtype", "model_config", "moe_config", "key_overlay")


def excerpt(source: Path) -> dict[str, dict[str, Tensor]]:
    """Tensors of each file."""
    weights = load_file(source / "model_state.safetensors")
    files = {"model_state": {k: v for k, v in weights.items() if not any(part in k for part in DROPPED_WEIGHTS)}}
    for name, beginnings in PARTS.items():
        tensors = load_file(source / f"{name}.safetensors")
        files[name] = {key: value for key, value in tensors.items() if key.startswith(beginnings)}
    for key, value in load_file(source / "case_a_modalities.safetensors").items():
        if key.startswith(TRACED) and value.ndim < 5:
            files["case_a_trace"][key.removeprefix("sekai/")] = value
    return files


def describe(index: Mapping[str, Any], files: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """The part of index.json that tests read: configuration, kept variants, shapes of all weights."""
    shapes = {
        name: {"shape": entry["shape"]} for name, entry in index["files"]["model_state.safetensors"]["tensors"].items()
    }
    described: dict[str, Any] = {"model_state.safetensors": {"tensors": shapes}}
    for name, tensors in files.items():
        if name != "model_state":
            kept = {key.split("/")[0] for key in tensors}
            variants = index["files"][f"{name}.safetensors"]["variants"]
            described[f"{name}.safetensors"] = {"variants": {k: v for k, v in variants.items() if k in kept}}
    return {name: index[name] for name in DESCRIPTION} | {"files": described}


def main() -> None:
    source = Path(sys.argv[1])
    files = excerpt(source)
    TARGET.mkdir(parents=True, exist_ok=True)
    index = describe(json.loads((source / "index.json").read_text()), files)
    (TARGET / "index.json").write_text(json.dumps(index, separators=(",", ":")) + "\n")
    for name, tensors in files.items():
        data = save({key: value.contiguous() for key, value in tensors.items()})
        (TARGET / f"{name}.safetensors.xz").write_bytes(lzma.compress(data, filters=FILTERS))


if __name__ == "__main__":
    main()
