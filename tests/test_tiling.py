from __future__ import annotations

import json

import pytest
import torch
from golden import ATOL, load_case
from test_autoencoder import WAN, build, latents_of, stream
from tiny import perturb, random_frames

from astra_env.models.autoencoder import AUTOENCODERS, VideoAutoencoder, WanAutoencoder
from astra_env.models.tiling import Tiling

REFERENCE = Tiling(size=(34, 34))
SMALL = Tiling(size=(6, 6), stride=(4, 3))
HEIGHT, WIDTH = 9, 13  # latents; the last row and column of small tiles run over the border


class Tiled(VideoAutoencoder):
    """Any autoencoder behind a tiling, as `WanAutoencoder` has it inside."""

    def __init__(self, whole: VideoAutoencoder, tiling: Tiling) -> None:
        super().__init__()
        self.whole, self.tiling, self.latent_channels = whole, tiling, whole.latent_channels

    def encode(self, frames):
        return self.tiling.encode(self.whole.encode, frames)

    def init_cache(self, batch_size, height, width):
        return self.tiling.init_cache(self.whole.init_cache, batch_size, height, width)

    def decode_pixels(self, latents, cache):
        return self.tiling.decode(self.whole.decode_pixels, latents, cache)


@pytest.fixture(params=AUTOENCODERS, scope="module")
def whole(request) -> VideoAutoencoder:
    return build(request.param)


@pytest.fixture(scope="module")
def tiled(whole) -> VideoAutoencoder:
    return Tiled(whole, SMALL)


def tiled_wan(**options) -> WanAutoencoder:
    torch.manual_seed(0)
    module = WanAutoencoder(**options, **WAN).eval().requires_grad_(False)
    perturb(module, scale=0.03)
    return module


def test_the_plan_at_480x832_is_the_references():
    tiles = REFERENCE.tiles(60, 104)
    assert [tile[::2] for tile in tiles] == [(top, left) for top in (0, 18, 36) for left in range(0, 96, 16)]
    assert all(bottom - top == right - left == 34 for top, bottom, left, right in tiles)


def test_the_ramps_at_480x832_are_the_references():
    weights = REFERENCE.weights((0, 34, 0, 34), 60, 104, scale=8)
    assert torch.equal(weights[:144, 0], torch.ones(144)) and torch.equal(weights[0, :128], torch.ones(128))
    torch.testing.assert_close(weights[144:, 0], torch.arange(128, 0, -1) / 128)
    torch.testing.assert_close(weights[0, 128:], torch.arange(144, 0, -1) / 144)
    assert torch.equal(weights, torch.minimum(weights[:, :1], weights[:1]))


def test_recorded_plan_ramps_and_statistics():
    case = load_case("case_m_vae_tiling")
    assert REFERENCE.tiles(60, 104) == [tuple(tile) for tile in case["decode"]["tiles_60x104"].tolist()]
    in_pixels = [tuple(8 * edge for edge in tile) for tile in REFERENCE.tiles(60, 104)]
    assert in_pixels == [tuple(tile) for tile in case["encode"]["tiles_480x832"].tolist()]
    weights = REFERENCE.weights((18, 52, 0, 34), 60, 104, scale=8)  # touches the left border only
    torch.testing.assert_close(weights[:, 0], case["decode"]["mask_rows"], atol=ATOL, rtol=0)
    torch.testing.assert_close(weights[136], case["decode"]["mask_cols"], atol=ATOL, rtol=0)
    wan = WanAutoencoder(**WAN)
    torch.testing.assert_close(wan.latent_mean, case[""]["mean"], atol=ATOL, rtol=0)
    torch.testing.assert_close(wan.latent_std, case[""]["std"], atol=ATOL, rtol=0)


@pytest.mark.parametrize("tiling", [SMALL, Tiling((5, 5), (5, 5)), Tiling((3, 20), (1, 7)), Tiling()], ids=str)
@pytest.mark.parametrize("scale", [1, 8])
def test_a_constant_stays_constant(tiling, scale):
    parts = [
        torch.full((2, scale * (min(b, HEIGHT) - t), scale * (min(r, WIDTH) - left)), 0.7)
        for t, b, left, r in tiling.tiles(HEIGHT, WIDTH)
    ]
    blended = tiling.blend(iter(parts), HEIGHT, WIDTH, scale)
    torch.testing.assert_close(blended, torch.full((2, scale * HEIGHT, scale * WIDTH), 0.7), atol=1e-6, rtol=0)
    assert all((tiling.weights(tile, HEIGHT, WIDTH, scale) > 0).all() for tile in tiling.tiles(HEIGHT, WIDTH))


@pytest.mark.parametrize("tiling", [Tiling(), Tiling((9, 13), (4, 4)), REFERENCE], ids=str)
def test_one_tile_over_everything_changes_nothing(whole, tiling):
    frames, latents = random_frames(1, 5, size=64)[:, :, :, :40], latents_of(1, 16, 2, 8, 5)
    assert len(tiling.tiles(8, 5)) == 1
    assert torch.equal(Tiled(whole, tiling).encode(frames), whole.encode(frames))
    assert torch.equal(stream(Tiled(whole, tiling), latents, [1, 1]), stream(whole, latents, [1, 1]))


@pytest.mark.parametrize("sizes", [[1] * 4, [1, 2, 1]], ids=str)
def test_streamed_tiles_equal_the_whole_video(tiled, sizes):
    latents = latents_of(2, 16, 4, HEIGHT, WIDTH)
    video = stream(tiled, latents, [4])
    assert video.shape == (2, 16, 3, 8 * HEIGHT, 8 * WIDTH) and video.std() > 0.01
    torch.testing.assert_close(stream(tiled, latents, sizes), video, atol=1e-5, rtol=0)


def test_tiles_differ_from_the_whole_only_where_they_end():
    """A convolution that looks one cell far, tiles from 0 to 6 and from 2 to 8: cells 5 and 2 see a border."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 3, 3, padding=1).requires_grad_(False)
    picture, tiling = torch.randn(1, 3, 8, 8), Tiling((6, 6), (2, 2), scale=1)
    parts = (conv(picture[..., t:b, left:r]) for t, b, left, r in tiling.tiles(8, 8))
    difference = (tiling.blend(parts, 8, 8, scale=1) - conv(picture)).abs().amax(dim=(0, 1))
    ends = torch.zeros(8, 8, dtype=torch.bool)
    ends[[2, 5]] = ends[:, [2, 5]] = True
    assert (difference[~ends] < 1e-6).all() and (difference[ends] > 1e-4).all()


def test_tiles_are_close_to_the_whole(whole):
    frames, latents = random_frames(1, 5, size=192), latents_of(1, 16, 2, 24, 24)
    generous = Tiled(whole, Tiling(size=(16, 16), stride=(8, 8)))
    pairs = (
        (generous.encode(frames), whole.encode(frames)),
        (stream(generous, latents, [2]), stream(whole, latents, [2])),
    )
    for ours, theirs in pairs:
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().mean() < 0.03 * theirs.std()


def test_every_entry_has_a_row_for_each_video(tiled):
    latents = latents_of(3, 16, 2, HEIGHT, WIDTH)
    cache = tiled.init_cache(3, HEIGHT, WIDTH)
    for part in latents.split(1, dim=2):
        assert all(len(entry) == 3 for entry in cache)
        shapes = [entry.shape for entry in cache]
        _, cache = tiled.decode_pixels(part, cache)
        assert [entry.shape for entry in cache] == shapes
    second = tuple(entry[[1]] for entry in cache)
    ours, _ = tiled.decode_pixels(latents[[1], :, :1], second)
    both, _ = tiled.decode_pixels(latents[:, :, :1], cache)
    torch.testing.assert_close(ours, both[[1]], atol=1e-5, rtol=0)


def test_wan_has_tiles_inside_with_the_same_weights():
    wan, plain = tiled_wan(tile_size=(6, 6), tile_stride=(4, 3)), tiled_wan()
    plain.load_state_dict(wan.state_dict())
    outside = Tiled(plain, SMALL)
    frames, latents = random_frames(1, 5, size=72), latents_of(1, 16, 2, 9, 9)
    torch.testing.assert_close(wan.encode(frames), outside.encode(frames), atol=1e-5, rtol=0)
    torch.testing.assert_close(stream(wan, latents, [1, 1]), stream(outside, latents, [2]), atol=1e-5, rtol=0)


def test_tiles_survive_json():
    config = json.loads(json.dumps({"type": "wan", "tile_size": (6, 6), "tile_stride": (4, 3), **WAN}))
    wan = AUTOENCODERS[config.pop("type")](**config)
    assert wan.tiling.tiles(HEIGHT, WIDTH) == SMALL.tiles(HEIGHT, WIDTH)


def test_gradients_pass_through_tiles(tiled):
    latents = latents_of(1, 16, 1, HEIGHT, WIDTH).requires_grad_()
    pixels, _ = tiled.decode_pixels(latents, tiled.init_cache(1, HEIGHT, WIDTH))
    pixels.square().mean().backward()
    assert latents.grad.abs().amin(dim=1).min() > 0


@pytest.mark.parametrize("tiling", [((34, 34), (35, 16)), ((34, 34), (18, 0)), ((34,), (18, 16))], ids=str)
def test_tiles_that_leave_gaps_are_an_error(tiling):
    with pytest.raises(ValueError, match="expected \\(height, width\\) for both, and distances from 1 to the size"):
        Tiling(*tiling)


def test_memory_of_another_size_is_an_error(tiled):
    cache = tiled.init_cache(1, HEIGHT, WIDTH)[:-1]
    with pytest.raises(ValueError, match="make it with init_cache for latents of 9x13 and the same tiles"):
        tiled.decode_pixels(latents_of(1, 16, 1, HEIGHT, WIDTH), cache)
