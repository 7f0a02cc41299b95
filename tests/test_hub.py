"""Files from the hub: what is announced, what a cache is good for, what is said when the hub is out of reach."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from tiny import MODALITY, random_actions, random_frames, tiny_world_model

from astra_env.models import WorldModel
from astra_env.models.checkpoint import checkpoint_folder
from astra_env.models.hub import WAN_REPO, download, fetch

SHARD = "diffusion_pytorch_model.safetensors"
WORLD = "someone/a-world"


class Hub:
    """Stands for `snapshot_download`: what is in the cache, and what a download adds."""

    def __init__(self, folder=None, cached=None):
        self.folder, self.cached, self.patterns, self.log = folder, cached, None, []

    def __call__(self, repo, *, allow_patterns, local_files_only=False, dry_run=False):
        self.patterns = allow_patterns
        if local_files_only:
            if self.cached is None:
                raise LocalEntryNotFoundError("nothing there")
            return str(self.cached)
        if dry_run:
            sizes = {f"transformer/{SHARD}": 5_676_000_000, "transformer/config.json": 400, "vae/x.safetensors": 10**9}
            return [SimpleNamespace(filename=n, file_size=s, will_download=n[0] != "v") for n, s in sizes.items()]
        self.log.append(f"downloaded {repo}")
        return str(self.folder)


@pytest.fixture
def stand_in(monkeypatch):
    """Puts a `Hub` in the place of the real one."""

    def put(**options) -> Hub:
        hub = Hub(**options)
        monkeypatch.setattr("astra_env.models.hub.snapshot_download", hub)
        return hub

    return put


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No hub, and nothing in its cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """Two parts in diffusers form; what is in the files is not looked at here."""
    for part in ("transformer", "vae"):
        (tmp_path / "wan" / part).mkdir(parents=True)
        for name in ("config.json", SHARD):
            (tmp_path / "wan" / part / name).write_text("{}")
    return tmp_path / "wan"


# Parts in diffusers form


def test_a_local_folder_is_taken_as_it_is(stand_in, folder):
    hub = stand_in()
    assert fetch(str(folder), ["transformer", "vae"]) == folder and hub.patterns is None
    (folder / "vae" / SHARD).unlink()
    with pytest.raises(ValueError, match=f"vae lacks {SHARD}; expected the vae of a checkpoint in diffusers form"):
        fetch(folder, ["transformer", "vae"])


def test_shards_are_those_of_the_index(folder):
    part = folder / "transformer"
    (part / SHARD).rename(part / "a.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (part / f"{SHARD}.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"transformer lacks b.safetensors"):
        fetch(folder, ["transformer"])
    (part / "b.safetensors").write_text("{}")
    assert fetch(folder, ["transformer"]) == folder


def test_the_download_is_announced_before_it_begins(stand_in, folder):
    hub = stand_in(folder=folder)
    assert fetch(WAN_REPO, ["transformer"], hub.log.append) == folder
    assert hub.log == [
        f"Downloading 5.7 GB of {WAN_REPO} to the hub's cache: transformer 5.7 GB.",
        f"downloaded {WAN_REPO}",
    ]
    assert "transformer/*.safetensors" in hub.patterns and not any("vae" in pattern for pattern in hub.patterns)


def test_the_announcement_is_visible_without_set_up(stand_in, folder, caplog):
    stand_in(folder=folder)
    fetch(WAN_REPO, ["transformer"])
    assert [(record.levelname, record.message[:18]) for record in caplog.records] == [("WARNING", "Downloading 5.7 GB")]


def test_a_whole_cache_is_used_without_a_word(stand_in, folder):
    hub = stand_in(cached=folder)
    assert fetch(WAN_REPO, ["transformer", "vae"], hub.log.append) == folder
    assert hub.log == []


def test_half_a_cache_is_completed(stand_in, folder, tmp_path):
    (tmp_path / "half" / "vae").mkdir(parents=True)
    (tmp_path / "half" / "vae" / "config.json").write_text("{}")
    hub = stand_in(folder=folder, cached=tmp_path / "half")
    assert fetch(WAN_REPO, ["vae"], hub.log.append) == folder
    assert f"downloaded {WAN_REPO}" in hub.log


def test_a_repository_that_lacks_the_files_says_so(stand_in, tmp_path):
    stand_in(folder=tmp_path)
    with pytest.raises(ConnectionError, match=r"'someone/else' .* cannot be downloaded \(.*vae lacks config.json"):
        fetch("someone/else", ["vae"])


def test_a_hub_out_of_reach_says_what_to_run(offline):
    patterns = " ".join(f"--include 'vae/\\*{end}'" for end in (".json", ".safetensors", ".model"))
    command = f"hf download {WAN_REPO} {patterns} --local-dir FOLDER"
    with pytest.raises(ConnectionError, match=f"'{WAN_REPO}' is no local folder.* cannot be downloaded .*`{command}`"):
        fetch(WAN_REPO, ["vae"])


def test_a_path_that_is_no_folder_says_so(offline, tmp_path):
    with pytest.raises(ConnectionError, match="nowhere' is no local folder"):
        fetch(tmp_path / "nowhere", ["vae"])


def test_a_hub_that_breaks_off_says_why(monkeypatch):
    def broken(repo, *, local_files_only=False, **options):
        raise LocalEntryNotFoundError("not here") if local_files_only else OSError("the line is dead\nand more")

    monkeypatch.setattr("astra_env.models.hub.snapshot_download", broken)
    with pytest.raises(ConnectionError, match=r"cannot be downloaded \(the line is dead\)"):
        download("someone/else", ["*.json"], lambda folder: None)


# Whole world models


def test_a_repository_holds_a_world_model(stand_in, tmp_path):
    world_model = tiny_world_model()
    world_model.save_pretrained(tmp_path, dtype=torch.float32)
    hub = stand_in(cached=tmp_path)
    loaded = WorldModel.from_pretrained(WORLD, device="cpu", dtype=torch.float32)
    assert hub.patterns == ["*.json", "*.safetensors", "*.npz"] and loaded.folder == tmp_path
    state = world_model.init_state(random_frames(1, 5), MODALITY)
    ends = [model.step(state, random_actions(1)).newest for model in (world_model, loaded)]
    assert torch.equal(*ends)


def test_a_repository_without_a_world_model_says_what_is_expected(stand_in, tmp_path):
    stand_in(folder=tmp_path)
    with pytest.raises(ConnectionError, match=rf"'{WORLD}'.*lacks config.json or transformer.*save_pretrained"):
        WorldModel.from_pretrained(WORLD)


def test_a_world_model_out_of_reach_says_what_to_run(offline):
    with pytest.raises(ConnectionError, match=rf"`hf download {WORLD} --include '\*.json' .*--local-dir FOLDER`"):
        WorldModel.from_pretrained(WORLD)


@pytest.mark.parametrize("name", ["no-such-world", "a/b/c", "../world", "owner/", "/owner/name", "owner/na me"])
def test_what_is_no_repository_is_not_looked_for(stand_in, name):
    hub = stand_in()
    with pytest.raises(ValueError, match=r"no world model '.*'; expected one of \['astra-1.3b', .* or the owner/name"):
        checkpoint_folder(name)
    assert hub.patterns is None


def test_a_folder_comes_before_a_repository_of_its_name(stand_in, tmp_path, monkeypatch):
    hub = stand_in()
    monkeypatch.chdir(tmp_path)
    (tmp_path / WORLD).mkdir(parents=True)
    with pytest.raises(ValueError, match="no world model"):
        checkpoint_folder(WORLD)
    (tmp_path / WORLD / "config.json").write_text("{}")
    assert checkpoint_folder(WORLD).resolve() == tmp_path / WORLD and hub.patterns is None
