from __future__ import annotations

import pytest
import torch
from tiny import seeded

from astra_env.models.flow_matching import add_noise, denoise, sample_training_sigmas, shifted_sigmas


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 50])
def test_sigmas_fall_from_one_to_zero(num_steps, shift):
    sigmas = shifted_sigmas(num_steps, shift)
    assert sigmas.shape == (num_steps + 1,) and sigmas.dtype == torch.float32
    assert sigmas[0] == 1 and sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_shift_of_five_in_four_steps():
    expected = torch.tensor([1.0, 15 / 16, 5 / 6, 5 / 8, 0.0])
    torch.testing.assert_close(shifted_sigmas(4, 5.0), expected)


def test_a_shift_of_one_is_even():
    torch.testing.assert_close(shifted_sigmas(4, 1.0), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))


def test_no_steps_is_an_error():
    with pytest.raises(ValueError, match="num_inference_steps is 0"):
        shifted_sigmas(0)


@pytest.mark.parametrize("num_steps", [1, 4, 25])
def test_the_exact_velocity_recovers_the_latents(num_steps):
    latents, noise = (torch.randn(2, 3, 1, 4, 4, generator=seeded(k)) for k in (1, 2))
    recovered = denoise(lambda x, sigma: noise - latents, noise, shifted_sigmas(num_steps, 5.0))
    torch.testing.assert_close(recovered, latents, atol=1e-5, rtol=0)


def test_the_solver_follows_a_velocity_that_depends_on_where_it_is():
    # v = x / sigma leads every point straight to zero, at any number of steps
    noise = torch.randn(2, 5, generator=seeded())
    reached = denoise(lambda x, sigma: x / sigma, noise, shifted_sigmas(6, 3.0))
    torch.testing.assert_close(reached, torch.zeros_like(noise), atol=1e-6, rtol=0)


def test_noise_is_added_per_row_between_its_ends():
    latents, noise = (torch.randn(3, 2, 1, 4, 4, generator=seeded(k)) for k in (1, 2))
    noisy = add_noise(latents, noise, torch.tensor([0.0, 1.0, 0.25]))
    torch.testing.assert_close(noisy[0], latents[0], atol=0, rtol=0)
    torch.testing.assert_close(noisy[1], noise[1], atol=0, rtol=0)
    torch.testing.assert_close(noisy[2], 0.75 * latents[2] + 0.25 * noise[2])


def test_training_sigmas_lie_inside_and_favour_noise():
    sigmas = sample_training_sigmas(4000, seeded())
    assert sigmas.min() > 0 and sigmas.max() < 1
    assert 0.6 < sigmas.median() < 0.72
    torch.testing.assert_close(sigmas, sample_training_sigmas(4000, seeded()), atol=0, rtol=0)
