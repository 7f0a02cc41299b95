from __future__ import annotations

import pytest
import torch
from tiny import LAYOUT, MODALITY, seeded, tiny_transformer
from torch.nn import functional as F

from astra_env.models.flow_matching import add_noise
from astra_env.models.history import HistoryLayout, grid_positions
from astra_env.models.transformer import AstraTransformer, precondition

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def inputs(batch=2, num=1, layout=LAYOUT, seed=0):
    """Slots, lengths and past actions of some histories; noisy latents, noise levels and actions of the target."""
    g = seeded(seed)
    history = {
        "slots": torch.randn(batch, 16, layout.size, 4, 4, generator=g),
        "lengths": torch.arange(batch) * 3 + 3,
        "past": torch.rand(batch, layout.size, 7, generator=g) * 2 - 1,
        "past_present": torch.ones(batch, layout.size),
    }
    target = {
        "latents": torch.randn(batch, 16, num, 4, 4, generator=g),
        "sigma": torch.linspace(1, 0.3, batch),
        "actions": torch.rand(batch, num, 7, generator=g) * 2 - 1,
        "present": torch.ones(batch, num),
    }
    return history | target


def encode(model: AstraTransformer, given, modality):
    arguments = given["slots"], given["lengths"], given["past"], given["past_present"]
    return model.encode_history(*arguments, modality)[0]


def velocity(model: AstraTransformer, given, modality=None):
    modality = modality or (MODALITY,) * len(given["latents"])
    features = model.action_features(given["actions"], given["present"], modality)
    return model(given["latents"], given["sigma"], features, encode(model, given, modality))


def rows(given, index):
    return {name: value[index] for name, value in given.items()}


def rotated(x, positions, head_dim):
    """Rotary embedding written with complex numbers; a third of the channels for rows, a third for columns."""
    spatial = 2 * (head_dim // 6)
    angles = []
    for axis, width in enumerate((head_dim - 2 * spatial, spatial, spatial)):
        frequency = torch.tensor([10000.0 ** (-2 * k / width) for k in range(width // 2)])
        angles.append(positions[..., axis, None] * frequency)
    angle = torch.cat(angles, -1)[:, None]
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(turned).flatten(-2)


def joint_velocity(model: AstraTransformer, given, modality):
    """The same function in one pass over history and target together, with a block mask and no cache."""
    B, _, n, h, w = given["latents"].shape
    packed = model.history_embedder(given["slots"], given["lengths"])
    experts = model.action_experts
    past = packed.group_weights @ experts.project(given["past"], given["past_present"], modality, current=False)
    now = model.action_features(given["actions"], given["present"], modality).values
    fresh = model.patch_embedding(given["latents"])
    per_latent, N = fresh.shape[2], packed.tokens.shape[1]
    x = torch.cat([packed.tokens, fresh.flatten(1, 2)], 1)
    action = torch.cat([experts(past, modality).values[:, :, packed.groups], now.repeat_interleave(per_latent, 2)], 2)
    grid = grid_positions(h // 2, w // 2, 1, x.device)
    places = [torch.cat([torch.full((len(grid), 1), float(t)), grid], -1) for t in range(n)]
    positions = torch.cat([packed.positions, torch.cat(places).expand(B, -1, -1)], 1)
    clean, (time, noisy) = model.modulations(torch.zeros(B))[1], model.modulations(given["sigma"])
    modulation = torch.cat([clean[:, None].expand(-1, N, -1, -1), noisy[:, None].expand(-1, n * per_latent, -1, -1)], 1)
    M = x.shape[1]
    allowed = torch.cat([packed.mask, torch.ones(B, M - N, dtype=torch.bool)], 1)[:, None].repeat(1, M, 1)
    allowed[:, :N, N:] = False
    for block, added in zip(model.blocks, action, strict=True):
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (block.modulation + modulation).unbind(2)
        q, k, v = block.qkv(F.layer_norm(x, x.shape[-1:]) * (1 + scale_a) + shift_a + added).chunk(3, -1)
        q = q * (q.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * block.norm_q
        k = k * (k.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * block.norm_k
        q, k, v = (t.unflatten(-1, (block.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        q, k = rotated(q, positions, model.head_dim), rotated(k, positions, model.head_dim)
        scores = q @ k.transpose(-1, -2) / model.head_dim**0.5
        weights = scores.masked_fill(~allowed[:, None], float("-inf")).softmax(-1)
        x = x + gate_a * block.adapter(block.out((weights @ v).transpose(1, 2).flatten(2)))
        x = x + gate_f * block.ffn(F.layer_norm(x, x.shape[-1:]) * (1 + scale_f) + shift_f)
    shift, scale = (model.head_modulation + time[:, None]).unbind(1)
    x = model.head(F.layer_norm(x[:, N:], x.shape[-1:]) * (1 + scale[:, None]) + shift[:, None])
    x = x.reshape(B, n, h // 2, w // 2, 2, 2, -1).permute(0, 6, 1, 2, 4, 3, 5)
    return x.reshape(given["latents"].shape)


@pytest.mark.parametrize("num", [1, 3])
def test_cached_history_equals_one_joint_pass(num):
    model, given = tiny_transformer(precondition=False), inputs(3, num)
    expected = joint_velocity(model, given, (MODALITY,) * 3)
    assert expected.std() > 0.1
    torch.testing.assert_close(velocity(model, given), expected, atol=1e-4, rtol=1e-4)


def test_one_cache_serves_every_noise_level():
    model, given = tiny_transformer(), inputs()
    modality = (MODALITY,) * 2
    cache = encode(model, given, modality)
    features = model.action_features(given["actions"], given["present"], modality)
    before = [entry.clone() for pair in cache.history for entry in pair]
    results = []
    for sigma in (torch.tensor([1.0, 1.0]), torch.tensor([0.2, 0.6])):
        results.append(model(given["latents"], sigma, features, cache))
        assert torch.equal(results[-1], velocity(model, given | {"sigma": sigma}))
    assert not torch.allclose(*results)
    after = [entry for pair in cache.history for entry in pair]
    assert len(after) == 2 * len(model.blocks) and all(map(torch.equal, before, after))


def test_a_cache_can_be_shared_by_rows():
    model, given = tiny_transformer(), inputs()
    cache = encode(model, given, (MODALITY,) * 2).select(torch.tensor([1, 1, 0]))
    again = rows(given, torch.tensor([1, 1, 0]))
    features = model.action_features(again["actions"], again["present"], (MODALITY,) * 3)
    shared = model(again["latents"], again["sigma"], features, cache)
    torch.testing.assert_close(shared, velocity(model, again), **TOLERANCE)


def test_the_start_is_neutral():
    model, given = tiny_transformer(perturbed=False, precondition=False), inputs()
    modality = (MODALITY,) * 2
    assert not velocity(model, given).any()
    assert not model.action_features(given["actions"], given["present"], modality).values.any()
    x = torch.randn(2, 5, 32, generator=seeded())
    for block in model.blocks:
        torch.testing.assert_close(block.adapter(x), x)
    # every scale of the history sees what the target's patches see
    flat = torch.ones(1, 16, LAYOUT.size, 8, 8)
    tokens = model.history_embedder(flat, torch.tensor([30])).tokens
    torch.testing.assert_close(tokens, model.patch_embedding(flat)[:, 0, :1].expand_as(tokens))


def test_preconditioning_leaves_the_network_a_target_of_unit_variance():
    latents, noise = (torch.randn(6, 16, 4, 16, 16, generator=seeded(k)) for k in (1, 2))
    sigma = torch.tensor([0.0, 0.1, 0.4, 0.5, 0.9, 1.0])
    noisy, truth = add_noise(latents, noise, sigma), noise - latents
    skip = precondition(torch.zeros_like(noisy), noisy, sigma)
    scale = precondition(torch.ones_like(noisy), noisy, sigma) - skip
    target = (truth - skip) / scale
    torch.testing.assert_close(target.flatten(1).std(1), torch.ones(6), atol=0.02, rtol=0)
    alike = (target * noisy).flatten(1).mean(1)  # nothing is left that the noisy latents tell linearly
    torch.testing.assert_close(alike, torch.zeros(6), atol=0.02, rtol=0)
    torch.testing.assert_close(skip[-1], noise[-1])  # all of the noise is known where there is nothing else


def test_preconditioning_is_applied_to_the_networks_output():
    given = inputs()
    plain = velocity(tiny_transformer(precondition=False), given)
    expected = precondition(plain, given["latents"], given["sigma"])
    torch.testing.assert_close(velocity(tiny_transformer(), given), expected)


def test_the_identity_start_can_be_left():
    model = tiny_transformer(perturbed=False).requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        (velocity(model, inputs()) - 1).square().mean().backward()
        optimizer.step()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still, f"no gradient reaches {still}"


def test_each_row_has_its_own_noise_level():
    model, given = tiny_transformer(), inputs(3)
    together = velocity(model, given)
    for row in range(3):
        alone = velocity(model, rows(given, [row]))
        torch.testing.assert_close(together[[row]], alone, **TOLERANCE)
    other = velocity(model, given | {"sigma": given["sigma"] * 0.5})
    assert (together - other).flatten(1).abs().amax(1).min() > 1e-3


def test_rows_do_not_see_their_neighbours():
    model, given, other = tiny_transformer(), inputs(3), inputs(3, seed=9)
    mixed = {name: torch.cat([value[:1], other[name][1:]]) for name, value in given.items()}
    torch.testing.assert_close(velocity(model, mixed)[0], velocity(model, given)[0], **TOLERANCE)


@pytest.mark.parametrize("name", ["actions", "present", "past", "past_present", "latents", "slots"])
def test_the_velocity_depends_on(name):
    model, given = tiny_transformer(), inputs()
    changed = given | {name: given[name] * 0 if "present" in name else given[name] + 0.3}
    difference = (velocity(model, changed) - velocity(model, given)).flatten(1).abs().amax(1)
    assert difference.min() > 1e-3


@pytest.mark.parametrize("length", [2, 19, 20, 30, 200])
def test_actions_act_however_long_the_history(length):
    layout = HistoryLayout()
    model, given = tiny_transformer(history=layout), inputs(1, layout=layout)
    given["lengths"] = torch.tensor([length])
    before = velocity(model, given)
    assert (velocity(model, given | {"actions": -given["actions"]}) - before).abs().max() > 1e-3
    past = given["past"].clone()
    past[:, -1] *= -1
    assert (velocity(model, given | {"past": past}) - before).abs().max() > 1e-4


@pytest.mark.parametrize("slot", range(1, LAYOUT.size))
def test_every_past_action_of_a_long_history_acts(slot):
    model, given = tiny_transformer(), inputs(1)
    given["lengths"] = torch.tensor([30])
    past = given["past"].clone()
    past[:, slot] *= -1
    assert (velocity(model, given | {"past": past}) - velocity(model, given)).abs().max() > 1e-5


def test_empty_slots_have_no_influence():
    model, given = tiny_transformer(), inputs(1)
    given["lengths"] = torch.tensor([2])  # slots 6 and 7, and the first; 1-4 are one token, and 5 shares one with 6
    slots, past = given["slots"].clone(), given["past"].clone()
    slots[:, :, 1:5] += 5
    past[:, 1:6] += 5
    assert torch.equal(velocity(model, given | {"slots": slots, "past": past}), velocity(model, given))
    slots[:, :, 6] += 5
    assert not torch.equal(velocity(model, given | {"slots": slots}), velocity(model, given))


def test_latents_of_one_chunk_have_their_own_times_and_actions():
    model, given = tiny_transformer(), inputs(1, num=2)
    swapped = given | {"actions": given["actions"].flip(1)}
    assert (velocity(model, swapped) - velocity(model, given)).abs().max() > 1e-3
    moved = velocity(model, given | {"latents": given["latents"].flip(2)}).flip(2)
    assert (moved - velocity(model, given)).abs().max() > 1e-3


def test_modalities_mix_in_one_batch():
    model, given = tiny_transformer(action_dims={MODALITY: 7, "camera": 6}), inputs(3)
    names = (MODALITY, "camera", MODALITY)
    together = velocity(model, given, names)
    for row, name in enumerate(names):
        alone = velocity(model, rows(given, [row]), (name,))
        torch.testing.assert_close(together[[row]], alone, **TOLERANCE)
    assert not torch.allclose(together[1], velocity(model, given, (MODALITY,) * 3)[1], atol=1e-3)


def test_an_unknown_modality_is_an_error():
    model, given = tiny_transformer(), inputs()
    with pytest.raises(ValueError, match=r"knows the modalities \['end_effector'\], not 'vehicle'"):
        velocity(model, given, ("vehicle",) * 2)


def test_routing_of_history_and_chunk_is_returned():
    model, given = tiny_transformer(), inputs()
    modality = (MODALITY,) * 2
    arguments = given["slots"], given["lengths"], given["past"], given["past_present"]
    for features, groups in (
        (model.encode_history(*arguments, modality)[1], 4),
        (model.action_features(given["actions"], given["present"], modality), 1),
    ):
        assert features.routing.shape == (2, groups, 4)
        torch.testing.assert_close(features.routing.sum(-1), torch.ones(2, groups))
        assert ((features.routing > 0).sum(-1) == 2).all()


def test_bfloat16_follows_float32():
    model, given = tiny_transformer(), inputs()
    exact = velocity(model, given)
    low = tiny_transformer().to(torch.bfloat16)
    cast = {name: given[name].bfloat16() for name in ("past", "past_present", "actions", "present")}
    rounded = velocity(low, given | cast)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().mean() < 0.03 * exact.abs().mean() + 0.02


def test_gradients_reach_the_action():
    model, given = tiny_transformer(), inputs()
    given["actions"].requires_grad_(True)
    velocity(model, given).square().sum().backward()
    assert (given["actions"].grad.abs().sum((1, 2)) > 0).all()


@torch.no_grad()
def test_a_folded_adapter_is_left_out_and_changes_nothing():
    model, given = tiny_transformer(), inputs()
    expected = velocity(model, given)
    called = []
    for block in model.blocks:
        block.leave_out_identity()
        assert not block.adapter_folded
        block.fold_adapter()
        block.leave_out_identity()
        block.adapter.register_forward_hook(lambda *_: called.append(True))
    torch.testing.assert_close(velocity(model, given), expected, atol=1e-5, rtol=1e-5)
    assert not called
    model.load_state_dict(tiny_transformer().state_dict())
    torch.testing.assert_close(velocity(model, given), expected)
    assert called, "weights that are loaded later bring an adapter of their own"
    called.clear()
    for block in model.blocks:
        block.fold_adapter()
        block.leave_out_identity()
    model.requires_grad_(True)
    velocity(model, given)
    assert called, "an adapter that is trained takes part"


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_bfloat16_is_float32_rounded(sigma):
    """The fused kernels that serve bfloat16 compute the same function."""
    model, given = tiny_transformer(), inputs(2, 2)
    expected = velocity(model, given | {"sigma": torch.full((2,), sigma)})
    coarse = model.bfloat16()
    for level in (torch.full((2,), sigma), torch.full((1,), sigma)):
        rough = {name: value.bfloat16() if value.is_floating_point() else value for name, value in given.items()}
        found = velocity(coarse, rough | {"sigma": level}).float()
        assert (found - expected).abs().mean() < 0.03 * expected.abs().mean()


@pytest.mark.parametrize("num", [1, 3])
def test_one_pass_over_history_and_chunk_is_the_cached_two(num):
    model, given = tiny_transformer(), inputs(3, num)
    modality, sigma = (MODALITY,) * 3, torch.tensor([0.7])
    past = given["past"], given["past_present"]
    packed, features = model.pack_history(given["slots"], given["lengths"], *past, modality)
    actions = model.action_features(given["actions"], given["present"], modality)
    expected = velocity(model, given | {"sigma": sigma})
    torch.testing.assert_close(model.joint(given["latents"], sigma, actions, packed, features), expected, **TOLERANCE)
