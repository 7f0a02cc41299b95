from __future__ import annotations

import pytest
import torch
from tiny import LAYOUT, seeded

from astra_env.models.history import HistoryEmbedder, HistoryLayout, PatchEmbed, grid_positions

LAYOUTS = [HistoryLayout(), LAYOUT, HistoryLayout(num_4x=0, num_2x=2, num_1x=3), HistoryLayout(0, 0, 1)]
GROUPS = ([0], [1, 2, 3, 4], [5, 6], [7])  # slots that the tokens of LAYOUT cover


def embedder(patch_size=(1, 2, 2), layout=LAYOUT) -> HistoryEmbedder:
    torch.manual_seed(0)
    return HistoryEmbedder(4, 8, patch_size, layout).requires_grad_(False)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("num_new", [1, 2, 5])
def test_pushing_equals_the_window_of_the_whole_history(layout, num_new):
    latents = torch.randn(2, 3, 41, 2, 2, generator=seeded())
    slots = layout.windowed(latents[:, :, :1], dim=2)
    assert slots.shape == (2, 3, layout.size, 2, 2)
    for end in range(1 + num_new, 42, num_new):
        slots = layout.push(slots, latents[:, :, end - num_new : end], dim=2)
        assert torch.equal(slots, layout.windowed(latents[:, :, :end], dim=2)), f"after {end} latents"


def test_the_first_latent_is_kept_for_ever():
    latents = torch.randn(1, 3, 1, 2, 2, generator=seeded())
    slots = LAYOUT.windowed(latents, dim=2)
    for step in range(40):
        slots = LAYOUT.push(slots, torch.full_like(latents, step), dim=2)
    assert torch.equal(slots[:, :, :1], latents)
    assert slots[0, 0, 1:, 0, 0].tolist() == list(range(33, 40))


def test_actions_push_along_their_own_dimension():
    actions = torch.randn(2, LAYOUT.size, 7, generator=seeded())
    pushed = LAYOUT.push(actions, torch.ones(2, 1, 7), dim=1)
    assert torch.equal(pushed[:, 0], actions[:, 0]) and torch.equal(pushed[:, 1:-1], actions[:, 2:])
    assert torch.equal(pushed[:, -1], torch.ones(2, 7))


def test_short_histories_are_valid_from_their_start():
    lengths = torch.tensor([1, 3, 7, 8, 40])
    expected = [[1, 0, 0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 1, 1, 1], *[[1] * 8] * 3]
    assert LAYOUT.valid_slots(lengths).int().tolist() == expected


def test_slot_times_count_back_from_the_target():
    times = LAYOUT.slot_times(torch.tensor([1, 5, 8, 40]))
    assert times[:, 1:].tolist() == [[-7, -6, -5, -4, -3, -2, -1]] * 4
    assert times[:, 0].tolist() == [-1, -5, -8, -8]


@pytest.mark.parametrize("wrong", [{"num_4x": 3}, {"num_2x": 1}, {"num_1x": 0}])
def test_a_layout_that_cannot_be_packed_is_an_error(wrong):
    with pytest.raises(ValueError, match="divisible"):
        HistoryLayout(**wrong)


def test_tokens_take_the_mean_time_and_place_of_what_they_cover():
    packed = embedder()(torch.randn(1, 4, LAYOUT.size, 8, 8, generator=seeded()), torch.tensor([40]))
    times = LAYOUT.slot_times(torch.tensor([40]))[0]
    for group, slots in enumerate(GROUPS):
        positions = packed.positions[0, packed.groups == group]
        torch.testing.assert_close(positions[:, 0], times[slots].mean().expand(len(positions)))
        torch.testing.assert_close(positions[:, 1:].mean(0), torch.tensor([1.5, 1.5]))  # centre of 4x4 patches
    assert [int((packed.groups == group).sum()) for group in range(4)] == [16, 1, 4, 16]


def test_grid_positions_are_centres_in_patches():
    assert grid_positions(2, 2, 1, torch.device("cpu")).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert grid_positions(1, 2, 4, torch.device("cpu")).tolist() == [[1.5, 1.5], [1.5, 5.5]]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 40])
def test_a_token_averages_the_actions_of_its_real_slots(length):
    lengths = torch.tensor([length])
    packed = embedder()(torch.randn(1, 4, LAYOUT.size, 8, 8, generator=seeded()), lengths)
    valid = LAYOUT.valid_slots(lengths)[0]
    values = torch.randn(LAYOUT.size, 3, generator=seeded(1))
    for group, slots in enumerate(GROUPS):
        real = [slot for slot in slots if valid[slot]]
        expected = values[real].mean(0) if real else torch.zeros(3)
        torch.testing.assert_close(packed.group_weights[0, group] @ values, expected)
        assert (packed.mask[0, packed.groups == group] == bool(real)).all()


def test_rows_of_different_lengths_pack_as_they_do_alone():
    slots, lengths = torch.randn(3, 4, LAYOUT.size, 8, 8, generator=seeded()), torch.tensor([1, 4, 30])
    together = embedder()(slots, lengths)
    for row in range(3):
        alone = embedder()(slots[row : row + 1], lengths[row : row + 1])
        for name in ("tokens", "positions", "mask", "group_weights"):
            torch.testing.assert_close(getattr(together, name)[row], getattr(alone, name)[0])


def test_pictures_that_coarse_patches_do_not_divide_are_padded():
    packed = embedder()(torch.randn(1, 4, LAYOUT.size, 6, 10, generator=seeded()), torch.tensor([40]))
    assert [int((packed.groups == group).sum()) for group in range(4)] == [15, 1 * 2, 2 * 3, 15]


def test_patch_embedding_is_a_strided_convolution():
    torch.manual_seed(0)
    patch = PatchEmbed(4, 8, (2, 2, 4)).requires_grad_(False)
    patch.bias.normal_()
    latents = torch.randn(2, 4, 4, 6, 8, generator=seeded())
    convolved = torch.nn.functional.conv3d(latents, patch.weight, patch.bias, stride=patch.kernel)
    torch.testing.assert_close(patch(latents), convolved.flatten(3).permute(0, 2, 3, 1))


def test_grown_scales_see_the_average_of_the_fine_embedding():
    fine = PatchEmbed(4, 8, (1, 2, 2)).requires_grad_(False)
    fine.bias.normal_(generator=seeded())
    grown = embedder()
    grown.grow_from(fine)
    latents = torch.randn(1, 4, 4, 8, 8, generator=seeded(1))
    constant = latents[:, :, :1, :1, :1].expand_as(latents)
    for scale, patch in grown.embed.items():
        expected = fine(constant)[:, 0, 0]
        torch.testing.assert_close(patch(constant), expected.expand_as(patch(constant)), msg=scale)
        torch.testing.assert_close(patch(latents).mean((1, 2)), fine(latents).mean((1, 2)), msg=scale)
