"""The network that reads motions off two latents or pictures: its shapes, gradients and file."""

from __future__ import annotations

import pytest
import torch
from tiny import seeded

from astra_env.models.goal_model import FILE_NAME, RADIUS, GoalModel, likeness


def model(**options) -> GoalModel:
    torch.manual_seed(0)
    made = GoalModel(latent_channels=4, dim=8, **options)
    made.scale.copy_(torch.tensor([2.0, 2.0, 2.0, 0.5, 0.5, 0.5]))
    return made.eval()


def shown(reads_pictures, size=8, count=3):
    """What two of a batch of worlds show: pictures eight times the size of their latents."""
    shape = (3, 8 * size, 8 * size) if reads_pictures else (4, size, size)
    return torch.randn(2, count, *shape, generator=seeded())


@pytest.mark.parametrize("reads_pictures", [False, True])
@pytest.mark.parametrize("size", [4, 8, 9])
def test_worlds_of_any_size_tell_motions(size, reads_pictures):
    here, goals = shown(reads_pictures, size)
    made = model(reads_pictures=reads_pictures)
    motions = made(here, goals)
    assert motions.shape == (3, 6) and made.reads_pictures == reads_pictures
    torch.testing.assert_close(motions[1:2], made(here[1:2], goals[1:2]))
    assert not torch.allclose(motions, made(goals, here))


def test_likeness_tells_how_far_a_thing_has_moved():
    thing = torch.zeros(1, 1, 6, 6)  # smaller than the radius
    thing[0, 0, 3, 2] = 1
    moved = thing.roll((1, -2), dims=(2, 3))
    found = likeness(thing, moved)
    assert found.shape == (1, (2 * RADIUS + 1) ** 2, 6, 6) and found.sum() == 1
    assert found[0, :, 3, 2].argmax() == (RADIUS + 1) * (2 * RADIUS + 1) + RADIUS - 2
    assert likeness(thing, moved.roll(3, dims=2))[0, :, :3].sum() == 0  # nothing comes in from the other side


def test_gradients_reach_the_latents():
    latents, goals = torch.randn(2, 1, 4, 8, 8, generator=seeded())
    latents.requires_grad_()
    model()(latents, goals).square().sum().backward()
    assert latents.grad.isfinite().all() and latents.grad.abs().sum() > 0


@pytest.mark.parametrize("reads_pictures", [False, True])
def test_a_file_gives_the_same_network(tmp_path, reads_pictures):
    latents, goals = shown(reads_pictures)
    made = model(reads_pictures=reads_pictures)
    made.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    torch.testing.assert_close(GoalModel.load(tmp_path)(latents, goals), made(latents, goals), rtol=0, atol=0)


def test_missing_and_damaged_files_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="learn one from recorded episodes with astra-env fit-goal"):
        GoalModel.load(tmp_path)
    model().save(tmp_path)
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="truncated or damaged"):
        GoalModel.load(tmp_path)
