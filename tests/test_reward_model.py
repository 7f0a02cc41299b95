from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from tiny import seeded

from astra_env.models.reward_model import FILE_NAME, RewardModel
from astra_env.training.rewards import train_head

CPU = torch.device("cpu")


def model(size: int = 8, num_flags: int = 1) -> RewardModel:
    torch.manual_seed(0)
    return RewardModel(latent_channels=4, dim=8, latent_size=size, num_flags=num_flags)


@pytest.mark.parametrize(("size", "num_flags"), [(4, 1), (5, 2), (8, 2)])
def test_a_saved_head_gives_the_same_rewards(tmp_path, size, num_flags):
    head, latents = model(size, num_flags), 2 * torch.randn(6, 4, size, size, generator=seeded())
    head.save(tmp_path)
    loaded = RewardModel.load(tmp_path, CPU)
    assert len(loaded(latents)) == 1 + num_flags
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    for ours, theirs in zip(loaded(latents), head(latents), strict=True):
        assert ours.shape == (6,) and (ours > 0).all() and (ours < 1).all() and ours.std() > 0
        assert torch.equal(ours, theirs)
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]


def test_all_outputs_are_differentiable_and_different():
    latents = torch.randn(2, 4, 8, 8, generator=seeded(), requires_grad=True)
    outputs = model(num_flags=2)(latents)
    assert torch.stack(outputs).std(0).min() > 1e-3
    for output in outputs:
        (gradient,) = torch.autograd.grad(output.sum(), latents, retain_graph=True)
        assert (gradient.flatten(1).abs().sum(1) > 0).all()


def test_latents_of_half_precision_are_read():
    latents = torch.randn(2, 4, 8, 8, generator=seeded()).bfloat16()
    assert torch.equal(model()(latents)[0], model()(latents.float())[0])


def test_a_missing_or_truncated_head_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no reward_model.safetensors; this world cannot give"):
        RewardModel.load(tmp_path, CPU)
    model().save(tmp_path)
    file = tmp_path / FILE_NAME
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"reward_model.safetensors cannot be read"):
        RewardModel.load(tmp_path, CPU)


def test_a_head_that_reads_speeds_is_read_as_one(tmp_path):
    torch.manual_seed(0)
    head = RewardModel(latent_channels=4, dim=8, latent_size=4, num_flags=2, reads_speed=True)
    latents, speeds = torch.randn(3, 4, 4, 4, generator=seeded()), torch.tensor([0.0, 5.0, 20.0], dtype=torch.float64)
    head.save(tmp_path)
    loaded = RewardModel.load(tmp_path, CPU)
    assert loaded.reads_speed and len(loaded(latents, speeds)) == 3
    for ours, theirs in zip(loaded(latents, speeds), head(latents, speeds), strict=True):
        assert torch.equal(ours, theirs)
    same = latents[:1].expand(3, -1, -1, -1)
    assert loaded(same, speeds)[0].unique().numel() == 3
    with pytest.raises(ValueError, match="give it the speeds"):
        loaded(latents)


def test_speeds_are_nothing_to_other_heads(tmp_path):
    """Nor to heads of files that do not say whether they read them."""
    latents = torch.randn(2, 4, 8, 8, generator=seeded())
    save_file(model().state_dict(), tmp_path / FILE_NAME)
    loaded = RewardModel.load(tmp_path, CPU)
    assert torch.equal(loaded(latents, torch.ones(2))[0], model()(latents)[0])


def test_a_reward_of_speed_is_learned_where_speeds_are_told():
    """Latents of noise show nothing of it."""
    latents, speeds = torch.randn(64, 4, 4, 4, generator=seeded()), 12 * torch.rand(64, generator=seeded(1))
    rewards = speeds / 12
    sizes = {"name": "speed", "num_steps": 150, "batch_size": 32}
    head = train_head(latents, rewards, (rewards > 0.7).float()[None], speeds, **sizes)
    with torch.no_grad():
        found = head(torch.randn(64, 4, 4, 4, generator=seeded(2)), speeds)[0]
    assert torch.corrcoef(torch.stack([found, rewards]))[0, 1] > 0.8
