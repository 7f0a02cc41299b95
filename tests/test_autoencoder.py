from __future__ import annotations

import pytest
import torch
from tiny import perturb, random_frames, seeded

from astra_env.models.autoencoder import (
    AUTOENCODERS,
    TinyAutoencoder,
    VideoAutoencoder,
    WanAutoencoder,
    frames_to_pixels,
    pad_to_latents,
    pixels_to_frames,
)

WAN = {
    "base_dim": 3,
    "z_dim": 16,
    "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
}
CONFIGS = {"tiny": {"dim": 16, "coarse_dim": 16}, "wan": WAN}
LONG = [1, 5, 13]


def build(name: str) -> VideoAutoencoder:
    torch.manual_seed(0)
    module = AUTOENCODERS[name](**CONFIGS[name]).eval().requires_grad_(False)
    perturb(module, scale=0.03)
    return module


@pytest.fixture(params=AUTOENCODERS, scope="module")
def autoencoder(request) -> VideoAutoencoder:
    return build(request.param)


@pytest.fixture(scope="module")
def wan() -> WanAutoencoder:
    return build("wan")


def latents_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def stream(autoencoder, latents, sizes):
    cache = autoencoder.init_cache(len(latents), *latents.shape[-2:])
    parts = []
    for part in latents.split(sizes, dim=2):
        pixels, cache = autoencoder.decode_pixels(part, cache)
        parts.append(pixels)
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("num_frames", LONG)
def test_shapes(autoencoder, num_frames):
    frames = random_frames(2, num_frames)
    latents = autoencoder.encode(frames)
    assert latents.shape == (2, autoencoder.latent_channels, (num_frames + 3) // 4, 4, 4)
    decoded = autoencoder.decode_video(latents)
    assert decoded.shape == frames.shape and decoded.dtype == torch.uint8


@pytest.mark.parametrize("num_frames", [2, 3, 4, 7])
def test_clips_of_any_length_are_encoded(autoencoder, num_frames):
    assert autoencoder.encode(random_frames(1, num_frames)).shape[2] == -(-num_frames // 4)


def test_rectangular_frames(autoencoder):
    frames = random_frames(1, 5, size=48)[:, :, :32]
    latents = autoencoder.encode(frames)
    assert latents.shape[-2:] == (4, 6) and autoencoder.decode_video(latents).shape == frames.shape


@pytest.mark.parametrize("num_latents", [1, 2, 3])
def test_later_frames_do_not_change_earlier_latents(autoencoder, num_latents):
    frames = random_frames(1, 13)
    changed = frames.clone()
    changed[:, 4 * num_latents - 3 :] = 255 - changed[:, 4 * num_latents - 3 :]
    before, after = autoencoder.encode(frames), autoencoder.encode(changed)
    torch.testing.assert_close(after[:, :, :num_latents], before[:, :, :num_latents], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(after[:, :, num_latents], before[:, :, num_latents], atol=1e-4)
    alone = autoencoder.encode(frames[:, : 4 * num_latents - 3])
    torch.testing.assert_close(alone, before[:, :, :num_latents], atol=1e-5, rtol=1e-5)


def test_later_latents_do_not_change_earlier_frames(autoencoder):
    latents = latents_of(1, 16, 4, 4, 4)
    changed = latents.clone()
    changed[:, :, 2:] += 1
    before, after = stream(autoencoder, latents, [4]), stream(autoencoder, changed, [4])
    torch.testing.assert_close(after[:, :8], before[:, :8], atol=1e-5, rtol=0)
    assert (after[:, 8:12] - before[:, 8:12]).abs().max() > 1e-3


@pytest.mark.parametrize("sizes", [[1] * 5, [2, 1, 2], [1, 4]], ids=str)
def test_a_streamed_video_equals_the_whole(autoencoder, sizes):
    latents = latents_of(2, 16, 5, 4, 4)
    whole = stream(autoencoder, latents, [5])
    assert whole.shape == (2, 20, 3, 32, 32) and whole.std() > 0.01
    torch.testing.assert_close(stream(autoencoder, latents, sizes), whole, atol=1e-5, rtol=0)


def test_decoding_leaves_the_cache_that_it_was_given(autoencoder):
    latents = latents_of(1, 16, 3, 4, 4)
    _, cache = autoencoder.decode_pixels(latents[:, :, :2], autoencoder.init_cache(1, 4, 4))
    kept = [entry.clone() for entry in cache]
    first, _ = autoencoder.decode_pixels(latents[:, :, 2:], cache)
    again, _ = autoencoder.decode_pixels(latents[:, :, 2:], cache)
    assert torch.equal(first, again)
    assert all(torch.equal(a, b) for a, b in zip(cache, kept, strict=True))


def test_every_entry_of_the_cache_has_a_row_for_each_video(autoencoder):
    cache = autoencoder.init_cache(3, 4, 4)
    latents = latents_of(3, 16, 4, 4, 4)
    for part in latents.split([1, 1, 2], dim=2):
        assert all(len(entry) == 3 for entry in cache)
        _, cache = autoencoder.decode_pixels(part, cache)
    alone = stream(autoencoder, latents[[1]], [4])
    torch.testing.assert_close(alone, stream(autoencoder, latents, [4])[[1]], atol=1e-5, rtol=0)


def test_videos_that_begin_and_videos_that_go_on_share_a_batch(autoencoder):
    latents = latents_of(4, 16, 3, 4, 4)
    cache = autoencoder.init_cache(4, 4, 4)
    going = [0, 3]
    pixels, ahead = autoencoder.decode_pixels(latents[going, :, :1], tuple(entry[going] for entry in cache))
    mixed = tuple(torch.cat([a[:1], b[1:3], a[1:]]) for a, b in zip(ahead, cache, strict=True))
    rest = torch.stack([latents[0, :, 1:], latents[1, :, :2], latents[2, :, :2], latents[3, :, 1:]])
    both, cache = autoencoder.decode_pixels(rest, mixed)
    whole = stream(autoencoder, latents, [3])
    torch.testing.assert_close(torch.cat([pixels, both[going]], dim=1), whole[going], atol=1e-5, rtol=0)
    torch.testing.assert_close(both[1:3], whole[1:3, :8], atol=1e-5, rtol=0)
    last, _ = autoencoder.decode_pixels(latents[1:3, :, 2:], tuple(entry[1:3] for entry in cache))
    torch.testing.assert_close(last, whole[1:3, 8:], atol=1e-5, rtol=0)


def test_wans_memory_keeps_its_shape_and_is_free_before_the_first_latent(wan):
    cache = wan.init_cache(2, 60, 104)
    assert sum(entry.untyped_storage().nbytes() for entry in cache) < 1000
    cache = wan.init_cache(2, 4, 4)
    for part in latents_of(2, 16, 3, 4, 4).split(1, dim=2):
        shapes = [(entry.shape, entry.dtype) for entry in cache]
        _, cache = wan.decode_pixels(part, cache)
        assert [(entry.shape, entry.dtype) for entry in cache] == shapes


def test_wans_memory_stays_on_its_device(wan):
    away = WanAutoencoder(memory_device="meta", **WAN)
    assert all(entry.device.type == "meta" for entry in away.init_cache(1, 4, 4))
    assert all(entry.device.type == "cpu" for entry in wan.init_cache(1, 4, 4))


def test_wan_runs_in_bfloat16(wan):
    half = build("wan").to(torch.bfloat16)
    frames, latents = random_frames(1, 9), latents_of(1, 16, 2, 4, 4)
    assert half.encode(frames).dtype == torch.float32
    torch.testing.assert_close(half.encode(frames), wan.encode(frames), atol=0.1, rtol=0.1)
    torch.testing.assert_close(stream(half, latents, [1, 1]), stream(wan, latents, [2]), atol=0.1, rtol=0.1)


def test_wans_first_latent_gives_its_frame_four_times(wan):
    pixels = stream(wan, latents_of(1, 16, 2, 4, 4), [2])
    assert torch.equal(pixels[:, :3], pixels[:, 1:4]) and not torch.equal(pixels[:, 4], pixels[:, 3])


def test_wan_equals_diffusers(wan):
    frames = random_frames(1, 13)
    mean, std = (t[:, None, None, None] for t in (wan.latent_mean, wan.latent_std))
    raw = wan.vae.encode(frames_to_pixels(frames).transpose(1, 2)).latent_dist.mean
    torch.testing.assert_close(wan.encode(frames), (raw - mean) / std)
    theirs = wan.vae.decode(raw).sample.transpose(1, 2)
    ours = stream(wan, (raw - mean) / std, [1, 2, 1])[:, 3:]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_statistics_normalise_the_latents():
    torch.manual_seed(0)
    module = TinyAutoencoder(**CONFIGS["tiny"]).requires_grad_(False)
    frames = random_frames(1, 9)
    raw, shown = module.encode(frames), module.decode_video(module.encode(frames))
    module.latent_mean.fill_(0.5)
    module.latent_std.fill_(2.0)
    torch.testing.assert_close(module.encode(frames), (raw - 0.5) / 2)
    assert (module.decode_video(module.encode(frames)).int() - shown.int()).abs().max() <= 1


def test_sizes_that_eight_does_not_divide_are_an_error(autoencoder):
    with pytest.raises(ValueError, match=r"Frames are 32x30, expected multiples of 8"):
        autoencoder.encode(random_frames(1, 5)[:, :, :, :30])


def test_frames_and_pixels_are_inverse():
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16, 1).repeat(1, 1, 1, 1, 3)
    pixels = frames_to_pixels(frames)
    assert pixels.shape == (1, 1, 3, 16, 16) and pixels.min() == -1 and pixels.max() == 1
    assert torch.equal(pixels_to_frames(pixels), frames)
    assert pixels_to_frames(2 * torch.ones(1, 1, 3, 2, 2)).unique().tolist() == [255]


def test_padding_repeats_the_first_frame():
    frames = random_frames(1, 5, size=8)
    padded = pad_to_latents(frames)
    assert padded.shape[1] == 8 and torch.equal(padded[:, 3:], frames)
    assert all(torch.equal(padded[:, k], frames[:, 0]) for k in range(3))


@torch.no_grad()
def test_a_decoder_in_bfloat16_shows_the_same_pictures():
    torch.manual_seed(0)
    tiny = TinyAutoencoder(dim=16, coarse_dim=16).eval()
    latents, cache = torch.randn(2, 16, 2, 4, 4, generator=torch.Generator().manual_seed(1)), tiny.init_cache(2, 4, 4)
    expected, memory = tiny.decode(latents, cache)
    tiny.decoding_dtype = torch.bfloat16
    found, rounded = tiny.decode(latents, cache)
    assert 0 < (found.int() - expected.int()).abs().max() <= 3
    for entry, exact in zip(rounded, memory, strict=True):
        assert entry.dtype == torch.float32
        torch.testing.assert_close(entry, exact, atol=0.02, rtol=0.05)
