from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import MODALITY, random_actions, random_frames, tiny_world_model

from astra_env.models import WorldModel, WorldState
from astra_env.models.history import HistoryLayout


@pytest.fixture(scope="module")
def world_model() -> WorldModel:
    return tiny_world_model()


def start(world_model: WorldModel, batch: int) -> WorldState:
    return world_model.init_state(random_frames(batch, 9), MODALITY, actions=random_actions(batch, 2))


def test_a_saved_model_imagines_the_same(world_model, tmp_path):
    world_model.save_pretrained(tmp_path, dtype=torch.float32)
    loaded = WorldModel.from_pretrained(tmp_path, device="cpu", dtype=torch.float32)
    assert loaded.config == world_model.config and not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    for (name, weight), saved in zip(
        world_model.transformer.state_dict().items(), loaded.transformer.state_dict().values(), strict=True
    ):
        assert torch.equal(weight, saved), name
    # the autoencoder is kept in half precision
    state, other = (start(model, 1) for model in (world_model, loaded))
    torch.testing.assert_close(other.latents, state.latents, atol=5e-3, rtol=5e-3)
    ends = [model.imagine(state, random_actions(1, 2)).latents for model in (world_model, loaded)]
    torch.testing.assert_close(ends[1], ends[0], atol=1e-4, rtol=1e-4)


def test_weights_are_kept_in_bfloat16_unless_told_otherwise(world_model, tmp_path):
    world_model.save_pretrained(tmp_path)
    loaded = WorldModel.from_pretrained(tmp_path, device="cpu", dtype=torch.float32)
    for weight, saved in zip(world_model.transformer.parameters(), loaded.transformer.parameters(), strict=True):
        assert saved.dtype == torch.float32
        torch.testing.assert_close(saved, weight, atol=1e-6, rtol=2**-8)
    low = WorldModel.from_pretrained(tmp_path, device="cpu", dtype=torch.bfloat16)
    assert next(low.transformer.parameters()).dtype == torch.bfloat16
    assert next(low.autoencoder.parameters()).dtype == torch.float32
    state, actions = start(loaded, 2), random_actions(2, 2)
    exact, rounded = (model.imagine(state, actions).newest for model in (loaded, low))
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_saving_twice_leaves_one_checkpoint(world_model, tmp_path):
    world_model.save_pretrained(tmp_path)
    names = sorted(file.name for file in tmp_path.iterdir())
    world_model.save_pretrained(tmp_path)
    assert names == sorted(file.name for file in tmp_path.iterdir())
    assert names == ["README.md", "autoencoder.safetensors", "config.json", "transformer.safetensors"]


def test_a_model_card_that_was_written_by_hand_stays(world_model, tmp_path):
    (tmp_path / "README.md").write_text("by hand")
    world_model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "by hand"


class Hub:
    """Stands for `HfApi`: remembers repositories, and the files of the folder that is uploaded."""

    def __init__(self):
        self.made, self.files = [], {}

    def create_repo(self, repo_id, *, private, exist_ok):
        self.made.append((repo_id, private, exist_ok))
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        assert self.made and self.made[-1][0] == repo_id and commit_message
        self.files = {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}


@pytest.mark.parametrize("private", [False, True])
def test_what_is_saved_is_what_is_pushed(world_model, tmp_path, monkeypatch, private):
    hub = Hub()
    monkeypatch.setattr("astra_env.models.checkpoint.HfApi", lambda: hub)
    url = world_model.push_to_hub("someone/a-world", torch.float32, private=private)
    assert url == "https://hub/someone/a-world" and hub.made == [("someone/a-world", private, True)]
    world_model.save_pretrained(tmp_path, torch.float32)
    saved = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert hub.files.keys() == saved.keys()
    assert all(hub.files[name] == content for name, content in saved.items() if name != "README.md")
    assert 'from_pretrained("someone/a-world")' in hub.files["README.md"].decode()


def test_options_are_a_presets(world_model, tmp_path):
    world_model.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"takes no options, but got \['offload', 'wan'\]"):
        WorldModel.from_pretrained(tmp_path, wan="here", offload=True)


def test_the_config_states_each_modalitys_convention(world_model):
    config = json.loads(json.dumps(world_model.config))
    described = config["modalities"][MODALITY]
    assert described["units"][0] == "m" and described["rate_hz"] == 5.0 and len(described["low"]) == 7
    rebuilt = WorldModel.from_config(config)
    assert rebuilt.layout == world_model.layout and rebuilt.config == world_model.config
    assert isinstance(rebuilt.layout, HistoryLayout)


def test_a_name_that_does_not_exist_is_an_error(tmp_path):
    for name in ("no-such-world", tmp_path):
        with pytest.raises(ValueError, match=r"no world model '.*'; expected one of \["):
            WorldModel.from_pretrained(name)


@pytest.mark.parametrize("name", ["transformer", "autoencoder"])
def test_a_truncated_weights_file_is_named(world_model, tmp_path, name):
    world_model.save_pretrained(tmp_path)
    file = tmp_path / f"{name}.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{name}.safetensors cannot be read"):
        WorldModel.from_pretrained(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=f"lacks '.*{name}.*safetensors; the checkpoint is incomplete"):
        WorldModel.from_pretrained(tmp_path)


def test_a_missing_shard_is_an_error(world_model, tmp_path):
    world_model.save_pretrained(tmp_path, max_shard_size="50KB")
    shards = sorted(tmp_path.glob("transformer-*.safetensors"))
    assert len(shards) > 1
    WorldModel.from_pretrained(tmp_path)
    shards[0].unlink()
    with pytest.raises(ValueError, match=r"transformer.*incomplete"):
        WorldModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("change", [{"rate_hz": 3.0}, {"units": ["mm"] * 7}, {"low": [-1.0] * 7}, {"frame": "camera"}])
def test_a_checkpoint_of_another_convention_is_refused(world_model, tmp_path, change):
    world_model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["modalities"][MODALITY] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="'end_effector' actions of another convention"):
        WorldModel.from_pretrained(tmp_path)
