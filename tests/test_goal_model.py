"""The networks that read motions off two latents or pictures: their shapes, gradients and file."""

from __future__ import annotations

import pytest
import torch
from tiny import seeded

from astra_env.models.camera_motion import CameraMotion
from astra_env.models.goal_model import FILE_NAME, GoalModel, load_goal_model, save_goal_model


def model(reads_pictures=False):
    torch.manual_seed(0)
    made = CameraMotion(dim=8) if reads_pictures else GoalModel(latent_channels=4, dim=8)
    made.scale.copy_(torch.tensor([2.0, 2.0, 2.0, 0.5, 0.5, 0.5]))
    return made.eval()


def shown(reads_pictures=False, height=8, width=8):
    """What two of a batch of worlds show: pictures eight times the size of their latents."""
    shape = (3, 8 * height, 8 * width) if reads_pictures else (4, height, width)
    return torch.randn(2, 3, *shape, generator=seeded())


@pytest.mark.parametrize("reads_pictures", [False, True])
@pytest.mark.parametrize("size", [(4, 4), (8, 8), (9, 9), (4, 6)])
def test_worlds_of_any_size_tell_motions(size, reads_pictures):
    here, goals = shown(reads_pictures, *size)
    made = model(reads_pictures)
    motions = made(here, goals)
    assert motions.shape == (3, 6) and made.reads_pictures == reads_pictures
    torch.testing.assert_close(motions[1:2], made(here[1:2], goals[1:2]), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(motions, made(goals, here))


@pytest.mark.parametrize("reads_pictures", [False, True])
def test_gradients_reach_what_is_shown(reads_pictures):
    here, goals = shown(reads_pictures)
    here.requires_grad_()
    model(reads_pictures)(here, goals).square().sum().backward()
    assert here.grad.isfinite().all() and here.grad.abs().sum() > 0


@pytest.mark.parametrize("reads_pictures", [False, True])
def test_the_loss_is_least_where_the_motion_is_told(reads_pictures):
    here, goals = shown(reads_pictures)
    made = model(reads_pictures)
    with torch.no_grad():
        told = made(here, goals)
        assert made.loss(here, goals, told) < made.loss(here, goals, told + 1)


@pytest.mark.parametrize("reads_pictures", [False, True])
def test_a_file_gives_the_same_network(tmp_path, reads_pictures):
    here, goals = shown(reads_pictures)
    made = model(reads_pictures)
    save_goal_model(made, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    loaded = load_goal_model(tmp_path)
    assert type(loaded) is type(made)
    torch.testing.assert_close(loaded(here, goals), made(here, goals), rtol=0, atol=0)


def test_missing_and_damaged_files_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="learn one from recorded episodes with astra-env fit-goal"):
        load_goal_model(tmp_path)
    save_goal_model(model(), tmp_path)
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="truncated or damaged"):
        load_goal_model(tmp_path)
