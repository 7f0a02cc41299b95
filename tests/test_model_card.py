from __future__ import annotations

import json

import pytest
from huggingface_hub import ModelCard
from tiny import tiny_transformer, tiny_world_model

from astra_env.actions import ACTION_MODALITIES
from astra_env.models import WorldModel
from astra_env.models.autoencoder import TinyAutoencoder
from astra_env.models.flow_matching import Sampling
from astra_env.models.model_card import model_card

NAME = "someone/a-world"


def card(world_model: WorldModel) -> str:
    return model_card(json.loads(json.dumps(world_model.config)), NAME, 1_234_000)


def rows(text: str, modality: str) -> list[list[str]]:
    """Cells of a modality's table, the head left out."""
    table = text[text.index(f"`{modality}`, ") :].split("\n\n")[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def several() -> WorldModel:
    """A world that knows all modalities, reads text and imagines three latents a step."""
    dims = {name: modality.action_dim for name, modality in ACTION_MODALITIES.items()}
    transformer = tiny_transformer(action_dims=dims, text_dim=8)
    return WorldModel(TinyAutoencoder(), transformer, frame_size=(32, 48), sampling=Sampling(4, 2.0, chunk_size=3))


@pytest.mark.parametrize("make", [tiny_world_model, several])
def test_the_metadata_are_the_hubs(make):
    world_model = make()
    data = ModelCard(card(world_model)).data
    assert data.library_name == "astra-env" and data.pipeline_tag == "image-to-video"
    assert {"world-model", "gymnasium", *world_model.modalities} == set(data.tags)


@pytest.mark.parametrize("make", [tiny_world_model, several])
def test_every_action_field_has_a_row(make):
    world_model = make()
    text = card(world_model)
    assert text.count("\n| field | unit | min | max |\n") == len(world_model.modalities)
    for name, modality in world_model.modalities.items():
        table = rows(text, name)
        assert [(row[0], row[1]) for row in table] == list(zip(modality.fields, modality.units, strict=True))
        assert [(float(row[2]), float(row[3])) for row in table] == list(zip(modality.low, modality.high, strict=True))
        assert f"`{name}`, {modality.rate_hz:g} Hz, {modality.frame}:" in text


def test_sizes_and_defaults_are_told():
    text = " ".join(card(several()).split())
    for told in (
        f'WorldModel.from_pretrained("{NAME}")',
        f"# {NAME} ",
        "Frames: 32 x 48, 12 a step.",
        "1.2M parameters, 2 layers of width 32, causal history attention, learned routing.",
        "Autoencoder: tiny. Text: prompts.",
        "4 denoising steps, guidance 2.0.",
    ):
        assert told in text
    assert "Text: none." in card(tiny_world_model())
