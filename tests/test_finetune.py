from __future__ import annotations

import copy
import dataclasses
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import children
import pytest
import torch
from encoded import a_release, encoded_world
from rrd import read
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_shards import ARM, CAR
from tiny import DOMAINS

import astra_env  # noqa: F401  registers the ids
from astra_env.models import WorldModel
from astra_env.models.reference import RELEASED_1_3B, reference_config
from astra_env.models.released import MODALITIES
from astra_env.models.transformer import AstraTransformer
from astra_env.training.finetune import finetune
from astra_env.training.parallel import Denoiser, Run
from astra_env.training.recipes import PRESETS, FinetuneConfig
from astra_env.training.shards import Shards
from astra_env.training.trainable import checkpoint_blocks, train_only
from astra_env.training.windows import WindowRecipe, Windows

CLEAN = WindowRecipe(noisy_memory=0.0, action_dropout=0.0, single_latent=0.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> SimpleNamespace:
    return encoded_world(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(data, tmp_path) -> FinetuneConfig:
    """A short run on rows of both modalities, with few things to wait for."""
    return FinetuneConfig(
        (getattr(data, ARM), getattr(data, CAR)),
        out=str(tmp_path / "run"),
        start_from=data.start,
        num_steps=4,
        batch_size=4,
        learning_rate=1e-3,
        precision="no",
        log_every=1,
        save_every=2,
        rollouts=0,
    )


def state_of(config: FinetuneConfig) -> dict:
    return torch.load(Path(config.out) / "state.pt", weights_only=True)


def log_of(config: FinetuneConfig) -> list[dict]:
    lines = [json.loads(line) for line in (Path(config.out) / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "rows_per_second"} for line in lines]


def assert_close_runs(config: FinetuneConfig, other: FinetuneConfig, tolerance: float = 1e-4) -> None:
    for part in ("weights", "average"):
        first, second = state_of(config)[part], state_of(other)[part]
        assert first.keys() == second.keys()
        for name, value in first.items():
            torch.testing.assert_close(value, second[name], atol=tolerance, rtol=0, msg=name)


def assert_same_runs(config: FinetuneConfig, other: FinetuneConfig) -> None:
    assert_close_runs(config, other, tolerance=0)
    assert log_of(config) == log_of(other)
    written = [sorted(Path(run.out, "checkpoint").glob("*.safetensors")) for run in (config, other)]
    assert written[0]
    for first, second in zip(*written, strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_shards_of_another_world_are_refused(data, config, tmp_path):
    other = WorldModel.from_pretrained(data.start, "cpu", torch.float32)
    with torch.no_grad():
        other.autoencoder.latent_mean += 1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="was encoded with another autoencoder"):
        finetune(replace(config, start_from=str(tmp_path / "other")))
    assert not Path(config.out).exists()


# Weights


def test_the_papers_set_has_as_many_weights_as_the_authors_train():
    with torch.device("meta"):
        transformer = AstraTransformer(reference_config(RELEASED_1_3B, MODALITIES))
    train_only(transformer, "paper")
    trained = [name for name, parameter in transformer.named_parameters() if parameter.requires_grad]
    dead = 645_120  # of the authors' camera encoder, which nothing reads
    assert sum(transformer.get_parameter(name).numel() for name in trained) == 365_638_045 - dead
    assert not any("text" in name or "ffn" in name or name.endswith("modulation") for name in trained)


def test_blocks_that_are_computed_twice_have_the_same_gradients(data):
    world_model = WorldModel.from_pretrained(data.start, "cpu", torch.float32)
    batch = Windows(world_model, [Shards(getattr(data, ARM))], None, WindowRecipe(), seed=0).batch(range(3))
    gradients = []
    for twice in (False, True):
        transformer = copy.deepcopy(world_model.transformer).requires_grad_(True)
        if twice:
            checkpoint_blocks(transformer)
        Denoiser(transformer)(batch).backward()
        gradients.append({name: value.grad for name, value in transformer.named_parameters()})
    compared = 0
    for name, gradient in gradients[0].items():
        assert (gradient is None) == (gradients[1][name] is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, gradients[1][name])
            compared += bool(gradient.any())
    assert compared > 20


def test_low_rank_adapters_alone_learn_and_are_merged(data, config):
    checkpoint = finetune(replace(config, preset="lora", learning_rate=0.05, warmup=0, lora_rank=2))
    assert all(".lora_" in name for name in state_of(config)["weights"])
    before, after = (load_file(Path(folder) / "transformer.safetensors") for folder in (data.start, checkpoint))
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    layers = ("qkv", "out", "ffn.0", "ffn.2")
    assert changed == {f"blocks.{block}.{layer}.weight" for block in (0, 1) for layer in layers}
    WorldModel.from_pretrained(checkpoint, "cpu")


# Runs


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_makes_a_world_that_can_be_entered(preset, config):
    shown = []
    checkpoint = finetune(
        replace(config, preset=preset, num_steps=2, rollouts=3, data=config.data[:1]),
        watch=lambda step, rollout: shown.append((step, rollout)),
    )
    world_model = WorldModel.from_pretrained(checkpoint, "cpu", torch.float32)
    assert (checkpoint / "domains" / next(iter(DOMAINS)) / "dataset.json").is_file()
    ((step, rollout),) = shown
    assert step == 2 and rollout.modality == ARM
    assert rollout.imagined.shape == rollout.recorded.shape == (32, 32, 32, 3) and rollout.actions.shape == (8, 7)
    told = json.loads((checkpoint / "finetune_config.json").read_text())
    assert told["trainable"] == PRESETS[preset].trainable and told["learning_rate"] == 1e-3
    assert [line["step"] for line in log_of(config)] == [1, 2, 2]
    assert log_of(config)[-1]["validation"]["psnr"] == pytest.approx(rollout.psnr, abs=0.01)
    assert list(Path(config.out, "tensorboard").iterdir())
    frames = torch.from_numpy(rollout.recorded)[None, :5]
    assert world_model.init_state(frames, ARM).latents.shape[0] == 1


def test_the_released_form_goes_on_learning(config, tmp_path):
    _, shards = a_release(tmp_path)
    shown = []
    told = {"data": (str(shards.folder),), "start_from": str(tmp_path / "saved"), "preset": "paper", "rollouts": 1}
    checkpoint = finetune(replace(config, num_steps=2, batch_size=2, **told), watch=lambda *given: shown.append(given))
    assert len(shown) == 1 and shown[0][1].imagined.shape == (32, 32, 32, 3)
    before, after = (load_file(Path(folder) / "transformer.safetensors") for folder in (told["start_from"], checkpoint))
    still = {name for name, value in after.items() if torch.equal(value.float(), before[name].bfloat16().float())}
    assert {"blocks.0.ffn.0.weight", "blocks.1.text_attention.kv.weight", "head.weight"} < still
    assert not still & {"blocks.0.qkv.weight", "action_experts.expert_weight", "history_embedder.embed.4x.weight"}


def test_it_learns(config, data):
    world_model = WorldModel.from_pretrained(data.start, "cpu", torch.float32)
    transformer = world_model.transformer.requires_grad_(True)
    batch = Windows(world_model, [Shards(config.data[0])], None, CLEAN, seed=0).batch(range(4))
    optimizer = torch.optim.Adam(transformer.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = Denoiser(transformer)(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_passes_share_a_batch(config):
    other = replace(config, out=config.out + "2", accumulation=2)
    finetune(config)
    finetune(other)
    assert_close_runs(config, other)


def test_two_processes_end_where_one_does(config):
    finetune(config)
    both = replace(config, out=config.out + "2")
    assert children.run(finetune, both, count=2) == [0, 0]
    assert_close_runs(config, both)
    assert [line["step"] for line in log_of(both)] == [1, 2, 3, 4]


def test_products_in_bfloat16_move_weights_in_float32(config):
    finetune(config)
    coarse = replace(config, out=config.out + "2", precision="bf16")
    assert children.run(finetune, coarse) == [0]
    assert {value.dtype for value in state_of(coarse)["weights"].values()} == {torch.float32}
    losses = [log_of(run)[-1]["loss"] for run in (config, coarse)]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.02)


def test_weights_that_are_shared_out_end_the_same_and_go_on_alone(config):
    longer = replace(config, num_steps=6)
    finetune(longer)
    shared = replace(config, out=config.out + "2")
    assert children.run(children.finetune_shared_out, shared, count=2) == [0, 0]
    finetune(replace(shared, num_steps=6))
    assert_close_runs(longer, replace(shared, num_steps=6))


def die_while_saving(config: FinetuneConfig) -> None:
    """SIGKILL with half of the second state on the disk."""
    save = torch.save

    def dying(state, path):
        if state["step_index"] == 4:
            Path(path).write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        save(state, path)

    torch.save = dying
    finetune(config)


def test_a_killed_run_ends_as_an_uninterrupted_one(config):
    whole = replace(config, num_steps=5, rollouts=1, validate_every=2)
    parts = replace(whole, out=config.out + "2")
    finetune(whole)
    assert children.run(die_while_saving, parts) == [-signal.SIGKILL]
    assert state_of(parts)["step_index"] == 2 and max(line["step"] for line in log_of(parts)) == 4
    finetune(parts)
    assert_same_runs(whole, parts)
    finetune(parts)  # nothing is left to do
    assert_same_runs(whole, parts)


def test_a_loss_that_is_not_finite_saves_its_batch(config, data, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    good = Path(getattr(data, ARM))
    for path in good.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (shard,) = folder.glob("train-*.safetensors")
    save_file({name: value / 0 if "latents" in name else value for name, value in load_file(shard).items()}, shard)
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 1; .*batch_000001_0\.safetensors"):
        finetune(replace(config, data=(str(folder),)))
    with safe_open(Path(config.out) / "batch_000001_0.safetensors", "pt") as file:
        assert not file.get_tensor("target").isfinite().all() and file.get_tensor("target").shape[0] == 4
        assert file.metadata()["clips"].startswith(f"{ARM}/train/")
    assert not (Path(config.out) / "state.pt").exists()


def test_rows_that_cannot_be_shared_equally_are_refused(config):
    with pytest.raises(ValueError, match="expected a multiple of 3"):
        finetune(replace(config, accumulation=3))


def test_a_state_of_other_weights_is_refused(config):
    finetune(config)
    with pytest.raises(ValueError, match="trains other weights"):
        finetune(replace(config, preset="lora"))


@pytest.mark.parametrize("wrong", [{"preset": "best"}, {"trainable": "some"}, {"num_steps": 0}, {"precision": "int"}])
def test_what_no_run_can_be_made_of_is_refused(config, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*expected"):
        finetune(replace(config, **wrong))


def test_the_average_is_what_is_validated_and_kept_apart(data):
    world_model = WorldModel.from_pretrained(data.start, "cpu", torch.float32)
    transformer = world_model.transformer
    train_only(transformer, "all")
    plain = SimpleNamespace(prepare=lambda *parts: parts)
    run = Run(Denoiser(transformer), plain, weight_decay=0.0, betas=(0.9, 0.99), average_decay=0.999)
    for parameter in run.trained.values():
        parameter.grad = torch.ones_like(parameter)
    run.step(0.1, loss=1.0)
    current = transformer.head.weight.detach().clone()
    with run.averaged():
        assert torch.equal(transformer.head.weight, run.average["head.weight"])
        assert not torch.equal(transformer.head.weight, current)
    assert torch.equal(transformer.head.weight, current)


LAUNCH = "--multi_gpu --num_machines 2 --num_processes 2 --main_process_ip 127.0.0.1 --main_process_port"


@pytest.mark.slow
def test_two_machines_end_where_one_does(config, tmp_path):
    both = replace(config, out=config.out + "2")
    script = tmp_path / "run.py"
    told = f"FinetuneConfig(**{dataclasses.asdict(both)!r})"
    imports = (
        "from astra_env.training.finetune import finetune\nfrom astra_env.training.recipes import FinetuneConfig\n"
    )
    script.write_text(f"{imports}finetune({told})\n")
    command = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH.split(), str(children.free_port())]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    machines = [
        subprocess.Popen([*command, "--machine_rank", str(rank), str(script)], env=environment) for rank in range(2)
    ]
    assert [machine.wait(120) for machine in machines] == [0, 0]
    finetune(config)
    assert_close_runs(config, both)


def test_the_commands_go_from_recordings_to_a_world_and_its_rollouts(data, tmp_path, capsys):
    from astra_env.cli import main

    recorded = Path(data.start).parent / "recorded" / ARM
    main(["encode", str(recorded), "--out", str(tmp_path / "shards"), "--world-model", data.start])
    command = ["finetune", str(tmp_path / "shards"), "--start-from", data.start, "--out", str(tmp_path / "run")]
    command += ["--num-steps", "2", "--batch-size", "2", "--precision", "no", "--preset", "lora", "--rollouts", "1"]
    main(command)
    assert WorldModel.from_pretrained(tmp_path / "run" / "checkpoint").modalities
    (rollout,) = (tmp_path / "run" / "rollouts").glob("step_000002/*.rrd")
    shown = read(rollout)
    assert len(shown["frames/imagined"]) == len(shown["frames/recorded"]) == 33
    assert len(shown["action/dx"]) == len(shown["frames/imagined/action/arrows"]) == 8
    assert "is the trained world" in capsys.readouterr().out
