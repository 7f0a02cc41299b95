"""The README's code runs as it stands, block after block, as a reader would type it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny_release import load_release, write_release

from astra_env.models import WorldModel

README = Path(__file__).parent.parent / "README.md"
EXAMPLES = sorted((README.parent / "examples").glob("*.py"))


@pytest.fixture
def small_release(tmp_path, monkeypatch):
    """A tiny release stands for "astra-1.3b", whose files are on the hub."""
    load = WorldModel.from_pretrained

    def from_pretrained(name: str, **options) -> WorldModel:
        if name != "astra-1.3b":
            return load(name, **options)
        monkeypatch.setattr(WorldModel, "from_pretrained", load)
        world_model = load_release(write_release(tmp_path))
        world_model.text_encoder.encode = lambda prompts: torch.zeros(len(prompts), 3, 8)
        return world_model

    monkeypatch.setattr(WorldModel, "from_pretrained", from_pretrained)


def test_python_blocks_run(tmp_path, monkeypatch, small_release):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert blocks
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
    assert (tmp_path / "worlds.safetensors").is_file()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(path.read_text(), str(path), "exec"), {"__name__": "__main__"})
