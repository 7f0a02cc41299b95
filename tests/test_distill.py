from __future__ import annotations

import copy
import json

import pytest
import torch
from tiny import MODALITY, random_actions, random_frames, save_checkpoint, seeded, tiny_world_model, write_dataset

from astra_env.cli import main
from astra_env.models import WorldModel
from astra_env.training import DistillConfig, distill
from astra_env.training.distill import distillation_loss
from astra_env.training.walkers import Recipe, Walkers
from astra_env.training.world_model import make_tracks


@pytest.fixture
def pair(world):
    """A teacher that does something, its untrained student, and walkers on the student's world."""
    _, episodes, latents, _ = world
    teacher = tiny_world_model()
    student = copy.deepcopy(teacher)
    tracks = make_tracks(student, [episodes], [latents], torch.ones(1))
    return student, teacher, Walkers(student, tracks, Recipe(batch_size=8, history_action_dropout=0.0))


def _config(tmp_path, **changes):
    return DistillConfig(("data",), str(tmp_path / "run"), **{"compile": False, "batch_size": 8} | changes)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_who_takes_the_teachers_steps_already_has_nothing_to_learn(pair, tmp_path, steps):
    student, teacher, walkers = pair
    walkers.restart(seeded())
    before = copy.deepcopy(walkers.state)
    losses = []
    for guidance in (1.0, 30.0):
        config = _config(tmp_path, teacher_steps=steps, student_steps=steps, guidance_scale=guidance)
        walkers.state = copy.deepcopy(before)
        losses.append(distillation_loss(student, teacher, walkers, config, seeded()).item())
    assert losses[0] < 1e-4 < losses[1], "guidance is there to be learned"
    assert torch.equal(walkers.state["time"], before["time"] + 1), "the rows have walked a step"


def test_a_student_lands_where_its_teacher_does(pair, tmp_path):
    student, teacher, walkers = pair
    config = _config(tmp_path, teacher_steps=4, guidance_scale=3.0)
    state = teacher.init_state(random_frames(2, 5), MODALITY, actions=random_actions(2, 1))
    actions = random_actions(2, seed=1)

    def distance() -> float:
        with torch.no_grad():
            aim = teacher.step(state, actions, num_inference_steps=4, guidance_scale=3.0).latents[:, :, -1]
            return (student.step(state, actions, num_inference_steps=1).latents[:, :, -1] - aim).square().mean().item()

    before = distance()
    student.transformer.requires_grad_(True)
    optimizer = torch.optim.Adam(student.transformer.parameters(), lr=2e-3)
    generator = seeded()
    for _ in range(80):
        walkers.restart(generator)
        optimizer.zero_grad()
        distillation_loss(student, teacher, walkers, config, generator).backward()
        optimizer.step()
    assert distance() < 0.7 * before
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_command_writes_a_world_that_takes_few_steps(tmp_path, capsys):
    teacher = save_checkpoint(tmp_path / "teacher", domains=["robot"])
    data = write_dataset(tmp_path / "data")
    command = ["distill", str(data), "--teacher", str(teacher), "--out", str(tmp_path / "run"), "--no-compile"]
    command += ["--teacher-steps", "4", "--student-steps", "2", "--guidance-scale", "2", "--batch-size", "4"]
    main([*command, "--num-steps", "3"])
    checkpoint = tmp_path / "run" / "checkpoint"
    assert str(checkpoint) in capsys.readouterr().out
    student = WorldModel.from_pretrained(checkpoint)
    assert student.sampling.num_inference_steps == 2 and student.sampling.guidance_scale == 1.0
    assert (checkpoint / "domains" / "robot" / "reward_model.safetensors").is_file()
    last = json.loads((checkpoint / "log.jsonl").read_text().splitlines()[-1])
    assert last["psnr"].keys() == {"student", "teacher"} and last["step"] == 3
    main([*command, "--num-steps", "5"])  # goes on where it stopped
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 5 and 1 in steps and steps.count(1) == 1


def test_what_cannot_be_distilled_is_said(tmp_path):
    with pytest.raises(ValueError, match="teacher_steps is 8 and student_steps 3"):
        _config(tmp_path, teacher_steps=8, student_steps=3)
    tiny_world_model(action_dims={"vehicle": 2}).save_pretrained(tmp_path / "driver")
    data = write_dataset(tmp_path / "robot")
    with pytest.raises(ValueError, match=rf"does not know the actions \['{MODALITY}'\]"):
        distill(DistillConfig((str(data),), str(tmp_path / "run"), teacher=str(tmp_path / "driver")))
