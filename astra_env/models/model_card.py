"""The README.md of a saved world model: what it imagines, under which actions, and how to run it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_FRONT = """---
library_name: astra-env
pipeline_tag: image-to-video
tags:
- world-model
- gymnasium
- {modalities}
---
"""
_BODY = """
# {name}

An action-conditioned video world model for astra-env: Gymnasium environments inside a learned simulator.

```python
from astra_env.models import WorldModel

world_model = WorldModel.from_pretrained("{name}")
```

Frames: {height} x {width}, {chunk_frames} a step. Transformer: {parameters:.1f}M parameters, {layers} layers of width
{width_dim}, {attention} history attention, {routing} routing. Autoencoder: {autoencoder}. Text: {text}.
Sampling defaults: {steps} denoising steps, guidance {guidance}.

## Actions

{tables}
"""


def model_card(config: Mapping[str, Any], name: str, num_parameters: int) -> str:
    """Markdown with the metadata of the hub, from what config.json holds."""
    transformer, sampling = config["transformer"], config["sampling"]
    height, width = config["frame_size"]
    body = _BODY.format(
        name=name,
        height=height,
        width=width,
        chunk_frames=4 * sampling["chunk_size"],
        parameters=num_parameters / 1e6,
        layers=transformer["num_layers"],
        width_dim=transformer["dim"],
        attention=transformer["history_attention"],
        routing=transformer["routing"],
        autoencoder=config["autoencoder"]["type"],
        text="prompts" if transformer["text_dim"] else "none",
        steps=sampling["num_inference_steps"],
        guidance=sampling["guidance_scale"],
        tables="\n\n".join(_action_table(entry, values) for entry, values in config["modalities"].items()),
    )
    return _FRONT.format(modalities="\n- ".join(config["modalities"])) + body


def _action_table(name: str, modality: Mapping[str, Any]) -> str:
    rows = zip(modality["fields"], modality["units"], modality["low"], modality["high"], strict=True)
    lines = [f"| {field} | {unit} | {low:g} | {high:g} |" for field, unit, low, high in rows]
    head = f"`{name}`, {modality['rate_hz']:g} Hz, {modality['frame']}:"
    return "\n".join([head, "", "| field | unit | min | max |", "| --- | --- | --: | --: |", *lines])
