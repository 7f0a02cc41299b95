from __future__ import annotations

import subprocess
import sys

import pytest
from tiny import write_dataset

import astra_env.cli
import benchmarks.cli
import policies.cli
from astra_env.cli import main
from astra_env.envs import ENVIRONMENTS

PROGRAMS = {"astra-env": astra_env.cli, "astra-policy": policies.cli, "astra-bench": benchmarks.cli}


def test_list_names_every_environment_with_fields_and_units(capsys):
    main(["list"])
    printed = capsys.readouterr().out
    for name in ENVIRONMENTS:
        assert name in printed
    assert all(word in printed for word in ("dx", "-0.05 to 0.05", "gripper", "rad", "robot base", "5 Hz"))


@pytest.mark.parametrize(
    ("program", "command"), [(name, word) for name in PROGRAMS for word in PROGRAMS[name].COMMANDS]
)
def test_every_command_of_every_program_has_help(capsys, program, command):
    with pytest.raises(SystemExit) as exit_info:
        PROGRAMS[program].main([command, "--help"])
    assert exit_info.value.code == 0
    assert PROGRAMS[program].COMMANDS[command].help.split(";")[0][:40] in capsys.readouterr().out


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_loads_no_heavy_library(program):
    script = f"""
import sys
from {PROGRAMS[program].__name__} import main
try:
    main(["--help"])
except SystemExit:
    assert not {{"torch", "stable_baselines3"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def failing(capsys, *arguments: str) -> str:
    """What a command that fails prints on stderr, with exit code 2."""
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    return capsys.readouterr().err


def test_what_a_user_can_put_right_is_one_sentence(capsys, tmp_path):
    message = failing(capsys, "demo", "--world-model", str(tmp_path / "nowhere"), "--out", str(tmp_path))
    assert message.startswith("astra-env demo: There is no world model")
    assert message.count("\n") == 1
    message = failing(capsys, "train", str(tmp_path / "no-data"), "--out", str(tmp_path / "run"))
    assert message.startswith("astra-env train: ")
    assert "no-data" in message
    assert message.count("\n") == 1
    assert "invalid choice" in failing(capsys, "fly")


def test_train_has_a_flag_for_every_field(capsys, tmp_path, monkeypatch):
    from astra_env import training

    seen = []
    monkeypatch.setattr(training, "train", lambda config: seen.append(config) or tmp_path)
    main(["train", "data", "--out", "run", "--transformer-steps", "7", "--no-compile", "--budget", "gpu"])
    assert seen == [training.TrainConfig(("data",), "run", budget="gpu", transformer_steps=7, compile=False)]
    assert str(tmp_path) in capsys.readouterr().out


def test_starts_are_cut_from_recordings_for_worlds_to_begin_from(capsys, checkpoint, tmp_path):
    import gymnasium
    import numpy as np

    from astra_env.envs.start_states import StartStates

    data, out = write_dataset(tmp_path / "data", num_train=3, num_heldout=1), tmp_path / "new" / "starts.npz"
    main(["starts", str(data), "--out", str(out), "--count", "5", "--frame-size", "32"])
    assert f"{out} holds 5 clips" in capsys.readouterr().out
    env = gymnasium.make("Astra-RT1-v0", world_model=checkpoint, device="cpu", start_states=str(out))
    env.reset(seed=0, options={"start": 4})
    starts = env.unwrapped.start_states
    assert starts.frames.shape == (5, 17, 32, 32, 3) and starts.actions.shape == (5, 4, 7)
    recorded = [np.load(data / "train" / f"episode_{index:05d}.npz")["actions"] for index in range(3)]
    for actions in starts.actions:
        assert any((actions == known[t : t + 4]).all() for known in recorded for t in range(3))
    main(["starts", str(data), "--out", str(out), "--split", "heldout"])
    printed, num = capsys.readouterr().out, len(StartStates.load(out))
    assert 1 <= num <= 3 and f"{out} holds {num} clips" in printed  # there are no more of one episode of six actions
    assert [file.name for file in out.parent.iterdir()] == ["starts.npz"]


def test_starts_that_cannot_be_cut_are_one_sentence(capsys, tmp_path):
    data = write_dataset(tmp_path / "data", num_train=1, num_heldout=0, num_chunks=3)
    out = str(tmp_path / "starts.npz")
    for arguments, told in (
        ((str(tmp_path), "--out", out), "There are no episodes in"),
        ((str(data), "--out", out), "of episodes of 3 actions; expected"),
        ((str(data), "--out", out, "--count", "0"), "0 start states were asked for"),
    ):
        message = failing(capsys, "starts", *arguments).split("\r")[-1]
        assert told in message
    write_dataset(data, num_train=1, num_heldout=0)
    assert "expected an existing folder or FILE.npz" in failing(capsys, "starts", str(data), "--out", out + ".txt")
    assert not list(tmp_path.glob("*starts*"))
