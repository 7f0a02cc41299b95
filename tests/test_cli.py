from __future__ import annotations

import subprocess
import sys

import pytest

from astra_env.cli import COMMANDS, main
from astra_env.envs import ENVIRONMENTS


def test_list_names_every_environment_with_fields_and_units(capsys):
    main(["list"])
    printed = capsys.readouterr().out
    for name in ENVIRONMENTS:
        assert name in printed
    assert all(word in printed for word in ("dx", "-0.05 to 0.05", "gripper", "rad", "robot base", "5 Hz"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys, command):
    with pytest.raises(SystemExit) as exit_info:
        main([command, "--help"])
    assert exit_info.value.code == 0
    assert COMMANDS[command].help.split(";")[0][:40] in capsys.readouterr().out


def test_help_loads_no_heavy_library():
    script = """
import sys
from astra_env.cli import main
try:
    main(["--help"])
except SystemExit:
    assert "torch" not in sys.modules
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
