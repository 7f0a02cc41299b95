"""`astra-policy` from the outside: evaluation as JSON, cloning, and mistakes in one sentence."""

from __future__ import annotations

import dataclasses
import json

import pytest
from tiny import write_dataset

from policies import train
from policies.cli import main


@pytest.fixture
def short(monkeypatch):
    """Episodes of three steps."""
    import gymnasium

    import astra_env  # noqa: F401  registers the ids

    registered = gymnasium.spec("Astra-RT1-v0")
    monkeypatch.setitem(gymnasium.registry, "Astra-RT1-v0", dataclasses.replace(registered, max_episode_steps=3))


def test_evaluate_prints_and_writes_json(capsys, checkpoint, tmp_path, short):
    out = tmp_path / "results" / "random.json"
    main(f"evaluate Astra-RT1-v0 random --episodes 2 --seed 4 --world-model {checkpoint} --out {out}".split())
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(out.read_text())
    assert told["imagination"]["lengths"] == [3, 3] and told["imagination"]["first_seed"] == 4
    assert "simulator" not in told


def test_clone_and_evaluate_it(capsys, checkpoint, tmp_path, short):
    data = write_dataset(tmp_path / "data", num_train=1, num_heldout=1, num_chunks=3, size=32)
    main(["clone", str(data), "--out", str(tmp_path / "clone"), "--steps", "2", "--dim", "8"])
    assert "always doing the mean" in capsys.readouterr().out
    main(f"evaluate Astra-RT1-v0 {tmp_path / 'clone'} --episodes 1 --world-model {checkpoint}".split())
    assert json.loads(capsys.readouterr().out)["imagination"]["episodes"] == 1


def test_train_and_evaluate_it(capsys, checkpoint, tmp_path, short, monkeypatch):
    monkeypatch.setattr(train, "HYPERPARAMETERS", {"ppo": {"n_steps": 4, "batch_size": 8, "n_epochs": 1}})
    run = tmp_path / "run"
    main(
        f"train Astra-RT1-v0 --out {run} --algorithm ppo --steps 8 --num-worlds 2 --eval-episodes 1 "
        f"--world-model {checkpoint}".split()
    )
    assert "has learned" in capsys.readouterr().out
    for policy in (run, run / "policy.zip"):  # it knows its algorithm and that it sees latents
        main(f"evaluate Astra-RT1-v0 {policy} --episodes 1 --world-model {checkpoint}".split())
        told = json.loads(capsys.readouterr().out)
        assert told["observation"] == "latent" and told["imagination"]["lengths"] == [3]


def test_every_field_is_a_flag(capsys):
    for command, config in (("train", train.TrainPolicyConfig),):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        printed = capsys.readouterr().out
        names = [field.name for field in dataclasses.fields(config) if "help" in field.metadata]
        assert all("--" + name.replace("_", "-") in printed for name in names)


def failing(capsys, *arguments: str) -> str:
    """What a command that fails prints on stderr, with exit code 2."""
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    return capsys.readouterr().err


def test_mistakes_are_one_sentence(capsys, checkpoint, tmp_path):
    world = ("--world-model", checkpoint, "--episodes", "1")
    message = failing(capsys, "evaluate", "Astra-RT1-v0", "nobody", *world)
    assert message.startswith("astra-policy evaluate: policy is 'nobody', expected") and message.count("\n") == 1
    message = failing(capsys, "evaluate", "Astra-RT1-v0", "expert", *world)
    assert "evaluate it in the simulator" in message
    message = failing(capsys, "evaluate", "Astra-RT1-v0", "random", "--no-imagination")
    assert "There is nowhere to evaluate" in message
    message = failing(capsys, "clone", str(tmp_path), "--out", str(tmp_path / "clone"))
    assert "There are no episodes" in message
    message = failing(capsys, "train", "Astra-RT1-v0", "--out", str(tmp_path / "run"), "--algorithm", "dqn")
    assert "which act continuously" in message
