from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import children
import numpy as np
import pytest
import torch
from tiny import random_actions, tiny_world_model

from astra_env.actions import ACTION_MODALITIES
from astra_env.models import WorldModel
from astra_env.training.encode import EncodeConfig, encode
from astra_env.training.shards import Shards
from astra_env.video import resize_frames

ARM, CAR = "end_effector", "vehicle"


def record(path: Path, num_chunks: int, *, modality: str = ARM, seed: int = 0, **changes) -> None:
    """A recording of random pictures of 24 x 40, four frames an action."""
    meta = {"modality": modality, "domain": modality, "fps": 20, "chunk_frames": 4, "text": f"do {seed % 2}"} | changes
    num_frames = num_chunks * meta["chunk_frames"] + 1
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, 24, 40, 3), dtype=np.uint8)
    arrays = {"frames": frames, "actions": random_actions(num_chunks, seed=seed, modality=modality).numpy()}
    if modality == CAR:
        gained = np.repeat(arrays["actions"][:, 1], meta["chunk_frames"]).cumsum() / meta["fps"]
        arrays["speed"] = np.concatenate([[5.0], 5 + gained]).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, meta=np.array(json.dumps(meta)), **arrays)


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    """A world whose frames are wider than high."""
    world_model = tiny_world_model()
    world_model.frame_size = (16, 32)
    folder = tmp_path_factory.mktemp("start")
    world_model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def config(tmp_path, start) -> EncodeConfig:
    """Three recordings of different lengths, in clips of at most four chunks, a few clips a shard."""
    for index, num_chunks in enumerate((6, 3, 9)):
        record(tmp_path / "data" / "train" / f"episode_{index:05d}.npz", num_chunks, seed=index)
    record(tmp_path / "data" / "heldout" / "episode_00000.npz", 2, seed=7)
    megabytes = 8 * 16 * 2 * 4 * 2 / 1e6  # of eight latents
    return EncodeConfig((str(tmp_path / "data"),), str(tmp_path / "out"), start, clip_frames=17, shard_mb=megabytes)


def content(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def test_every_clip_is_a_stream_of_its_own(config):
    shards, world_model = Shards(encode(config)), WorldModel.from_pretrained(config.world_model, "cpu", torch.float32)
    train = shards.split("train")
    assert [(clip.episode[-7:-4], clip.start, clip.num_latents) for clip in train] == [
        *(("000", 0, 5), ("000", 4, 3), ("001", 0, 4)),
        *(("002", 0, 5), ("002", 4, 5), ("002", 8, 2)),
    ]
    assert [clip.num_latents for clip in shards.split("heldout")] == [3]
    for clip in train:
        with np.load(Path(config.data[0]) / clip.episode) as file:
            frames = file["frames"][4 * clip.start : 4 * (clip.start + clip.num_latents) - 3]
            actions = file["actions"][clip.start : clip.start + clip.num_latents - 1]
        pictures = torch.from_numpy(resize_frames(frames, (16, 32)))
        expected = world_model.autoencoder.encode(pictures[None])[0].transpose(0, 1)
        torch.testing.assert_close(shards.latents(clip, 0, clip.num_latents), expected, atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(shards.latents(clip, 1, 2), expected[1:2], atol=2e-3, rtol=1e-3)
        assert np.array_equal(shards.actions(clip), actions) and shards.speeds(clip) is None
        assert clip.text == f"do {int(clip.episode[-5]) % 2}" and shards.prompt(clip) is None


def test_shards_are_as_large_as_was_told(config):
    shards = Shards(encode(config))
    for name in {clip.shard for clip in shards.clips}:
        assert sum(clip.num_latents for clip in shards.clips if clip.shard == name) <= 8
    assert len({clip.shard for clip in shards.split("train")}) == 4


def test_a_car_keeps_its_speed_and_other_rates_become_ours(config, start, tmp_path):
    record(tmp_path / "cars" / "train" / "episode_00000.npz", 3, modality=CAR, chunk_frames=8)
    shards = Shards(encode(replace(config, data=(str(tmp_path / "cars"),), clip_frames=161)))
    (clip,) = shards.clips
    assert clip.num_latents == 7, "three actions of 0.4 s are six of 0.2 s"
    long = random_actions(3, modality=CAR).numpy()
    assert np.allclose(shards.speeds(clip)[::2], 5 + 0.4 * np.cumsum([0, *long[:, 1]]), atol=1e-4)
    assert np.allclose(shards.actions(clip), ACTION_MODALITIES[CAR].split(long, 2).reshape(6, 2))


def test_several_processes_end_in_the_same_bytes(config, monkeypatch, tmp_path):
    alone = content(encode(config))
    shared = replace(config, out=str(tmp_path / "shared"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        with pytest.raises(ValueError, match=r"holds no manifest\.json"):
            Shards(shared.out)
        monkeypatch.setenv("RANK", rank)
        encode(shared)
    assert content(shared.out) == alone


def die_in_the_third_shard(config: EncodeConfig) -> None:
    write, written = encode.__globals__["write_shard"], []

    def dying(path, tensors, metadata=None):
        written.append(path)
        if len(written) == 3:
            path.with_name(f"{path.name}.partial").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, tensors, metadata)

    encode.__globals__["write_shard"] = dying
    encode(config)


def test_a_killed_process_loses_nothing(config, tmp_path):
    parts = replace(config, out=str(tmp_path / "parts"))
    assert children.run(die_in_the_third_shard, parts) == [-signal.SIGKILL]
    left = {name: Path(parts.out, name).stat().st_mtime_ns for name in content(parts.out) if name[-3:] != "ial"}
    assert len([name for name in left if name.endswith(".safetensors")]) == 2
    encode(parts)
    assert content(parts.out) == content(encode(config))
    assert all(Path(parts.out, name).stat().st_mtime_ns == time for name, time in left.items()), "written once"


class Words:
    """Stands for the text encoder: embeddings that end before their padding, and what was asked for."""

    heard: list[str]

    def encode(self, prompts: list[str]) -> torch.Tensor:
        self.heard = [*getattr(self, "heard", []), *prompts]
        rows = [torch.full((1, 5, 8), float(len(prompt))) for prompt in prompts]
        return torch.cat(rows) * (torch.arange(5) < 3)[:, None]


def test_each_text_is_embedded_once(config, monkeypatch, start):
    world_model = tiny_world_model(text_dim=8)
    world_model.frame_size, world_model.text_encoder = (16, 32), Words()
    monkeypatch.setattr(WorldModel, "from_pretrained", lambda *_: world_model)
    shards = Shards(encode(config))
    assert sorted(world_model.text_encoder.heard) == ["do 0", "do 1"]
    for clip in shards.clips:
        assert torch.equal(shards.prompt(clip), Words().encode([clip.text])[0])


def test_other_recordings_do_not_go_on_in_a_folder(config):
    encode(config)
    record(Path(config.data[0]) / "train" / "episode_00001.npz", 4)
    with pytest.raises(ValueError, match="was begun with other recordings"):
        encode(config)


def test_what_cannot_be_read_is_named(config):
    path = Path(config.data[0]) / "train" / "episode_00001.npz"
    path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(ValueError, match=r"episode_00001\.npz is not a whole episode"):
        encode(config)
    record(path, 2, modality="camera")
    with pytest.raises(ValueError, match=r"episode_00001\.npz holds camera actions, expected end_effector"):
        encode(config)
    assert not list(Path(config.out).glob("*.safetensors"))


def test_a_missing_shard_is_named(config):
    out = encode(config)
    (out / "train-00001.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks train-00001\.safetensors"):
        Shards(out)
    encode(config)
    Shards(out)


def test_recordings_of_one_kind_come_from_one_folder(config):
    with pytest.raises(ValueError, match="expected each once"):
        encode(replace(config, data=config.data * 2))
