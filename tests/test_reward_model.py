from __future__ import annotations

import pytest
import torch
from tiny import seeded

from astra_env.models.reward_model import FILE_NAME, RewardModel

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
