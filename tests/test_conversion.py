"""The same weights in the released form and in our own: equal where they should be, better where the reference errs."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from golden import golden_index, model_state, recorded
from tiny import seeded, tiny_transformer
from torch import Tensor

from astra_env.models.conversion import convert_released
from astra_env.models.history import HistoryLayout, PackedHistory
from astra_env.models.reference import MODALITIES, from_reference, reference_forward
from astra_env.models.reference_sampling import INDICES, inference_window
from astra_env.models.transformer import AstraTransformer

NUM_TARGET = 4


def tiny_released(**changes: int) -> AstraTransformer:
    """A small model in the released form."""
    form = {"routing": "fixed", "history_attention": "full", "history_packing": "released", "precondition": False}
    sizes = {"action_dims": dict(MODALITIES), "shared_dim": 25, "num_experts": 3, "top_k": 1, "text_dim": 8}
    return tiny_transformer(**form | sizes | {"history": HistoryLayout()} | changes)


@cache
def pair() -> tuple[AstraTransformer, AstraTransformer]:
    released = tiny_released()
    return released, convert_released(released).requires_grad_(False)


# The action path


@pytest.mark.parametrize("current", [True, False])
@pytest.mark.parametrize("changes", [{}, {"num_experts": 4, "top_k": 2}, {"shared_dim": 31}])
def test_action_features_are_the_same(changes, current):
    released = tiny_released(**changes).action_experts
    converted = convert_released(tiny_released(**changes)).action_experts
    actions = 2 * torch.randn(3, 5, 12, generator=seeded())
    present = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0]).expand(3, -1)  # the null action among them
    names = ("openx", "sekai", "nuscenes")
    theirs = released(released.project(actions, present, names, current=current), names)
    ours = converted(converted.project(actions, present, names, current=current), names)
    torch.testing.assert_close(ours.values, theirs.values, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.routing, theirs.routing)


def test_means_of_actions_are_the_same():
    released, converted = (model.action_experts for model in pair())
    actions, ones = torch.randn(1, 4, 12, generator=seeded()), torch.ones(1, 4)
    flags = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    values = [
        experts(experts.project(actions, ones, ("sekai",), current=flags).mean(1, keepdim=True), ("sekai",)).values
        for experts in (released, converted)
    ]
    torch.testing.assert_close(*values, rtol=0, atol=1e-5)


def test_spare_units_can_be_trained():
    experts = convert_released(tiny_released()).action_experts
    features = experts.project(torch.randn(1, 2, 12, generator=seeded()), torch.ones(1, 2), ("sekai",), current=True)
    experts(features, ("sekai",)).values.square().sum().backward()
    first_expert = experts.expert_out.grad.view(2, 3, 64, 32)[:, 0]
    assert (first_expert.abs().sum(-1) > 0).all()


def test_other_forms_are_refused():
    with pytest.raises(ValueError, match="routing 'learned', expected 'fixed'"):
        convert_released(pair()[1])
    with pytest.raises(ValueError, match="width 32 need 65 hidden units, there are 64"):
        convert_released(tiny_released(shared_dim=32))


# Whole passes


def own_velocity(model: AstraTransformer, inputs: dict[str, Tensor]) -> Tensor:
    """As `reference_forward` for camera actions, along the way of our own classes."""
    history, table = inputs["history"], inputs["action"]
    B, _, T = history.shape[:3]
    layout, names = model.config.history, ("sekai",) * B
    cache, _ = model.encode_history(
        inputs.get("slots", layout.windowed(history, dim=2)),
        torch.full((B,), T),
        layout.windowed(table[:, :T], dim=1),
        torch.ones(B, layout.size),
        names,
        inputs["context"],
    )
    n = inputs["latents"].shape[2]
    chunk = model.action_features(table[:, T : T + n], torch.ones(B, n), names)
    return model(inputs["latents"], inputs["timestep"] / 1000, chunk, cache)


def reference_velocity(model: AstraTransformer, inputs: dict[str, Tensor]) -> Tensor:
    """What the reference's inference computes: its window, its action rows, its forward pass."""
    flags = torch.zeros_like(inputs["action"][..., :1])
    window = inference_window(inputs["history"], torch.cat([inputs["action"], flags], dim=-1), NUM_TARGET)
    return reference_forward(model, "sekai", {**inputs, **window})


def random_inputs(num_history: int, batch: int = 1) -> dict[str, Tensor]:
    generator = seeded()

    def draw(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    return {
        "history": draw(16, num_history, 4, 4),
        "latents": draw(16, NUM_TARGET, 4, 4),
        "action": draw(num_history + NUM_TARGET, 12),
        "context": draw(3, 8),
        "timestep": 1000 * torch.rand(batch, generator=generator),
    }


def test_a_chunk_without_history_is_the_same():
    released, converted = pair()
    inputs = random_inputs(0, batch=2)
    nothing = PackedHistory.empty(2, 32, 1, torch.device("cpu"))
    chunk = converted.action_features(inputs["action"], torch.ones(2, NUM_TARGET), ("sekai",) * 2)
    text = converted.encode_text(inputs["context"])
    cache = converted.cache_history(nothing, replace(chunk, values=chunk.values[:, :, :0]), text)
    ours = converted(inputs["latents"], inputs["timestep"] / 1000, chunk, cache)
    given = inputs | {"action": torch.cat([inputs["action"], torch.zeros(2, NUM_TARGET, 1)], dim=-1)}
    del given["history"]
    torch.testing.assert_close(ours, reference_forward(released, "sekai", given), rtol=0, atol=1e-5)


def history_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A recorded case as whole history and action rows; latents that no slot holds are left out."""
    given = {name.removeprefix("in."): value for name, value in tensors.items()}
    first_target = int(given["latent_indices"].min())
    frames = {
        int(index): given[name][:, :, slot]
        for name, indices in INDICES.items()
        for slot, index in enumerate(given[indices][0])
        if 0 <= index < first_target
    }
    order = [*sorted(frames), *range(first_target, first_target + given["latents"].shape[2])]
    rows = [index - order[0] for index in order]
    history = torch.stack([frames[index] for index in sorted(frames)], dim=2)
    return given | {"history": history, "action": given["action"][:, rows, :-1]}


@pytest.mark.parametrize(
    ("case", "variant"),
    [("case_a_modalities", "sekai"), *(("case_a_partial_history", f"n{n}") for n in (2, 3, 4, 7, 12, 19, 20))],
)
def test_converted_velocities_differ_as_much_as_stated(case, variant):
    tensors, index = recorded(case, variant), golden_index()
    model = convert_released(from_reference(model_state(), index["model_config"] | index["moe_config"]))
    velocity = own_velocity(model.requires_grad_(False), history_of(tensors))
    difference = (velocity - tensors["out.velocity"]).square().mean() / tensors["out.velocity"].square().mean()
    assert 0.09 < difference.sqrt() < 0.27


# What the reference gets wrong


def moved(inputs: dict[str, Tensor], name: str, index: int | slice) -> dict[str, Tensor]:
    """Inputs with one latent of the history or some action rows moved."""
    values = inputs[name].clone()
    values[:, :, index] += name == "history"
    values[:, index] += name == "action"
    return inputs | {name: values}


@pytest.mark.parametrize(
    ("num_history", "name", "index"),
    [
        pytest.param(30, "action", slice(30, None), id="actions after 20 latents"),
        pytest.param(30, "history", 0, id="first latent after 20"),
        pytest.param(12, "action", 11, id="action of the newest latent"),
        pytest.param(20, "action", 10, id="actions in the middle of the history"),
    ],
)
def test_what_the_reference_does_not_see(num_history, name, index):
    released, converted = pair()
    inputs = random_inputs(num_history)
    changed = moved(inputs, name, index)
    assert torch.equal(reference_velocity(released, inputs), reference_velocity(released, changed))
    assert (own_velocity(converted, inputs) - own_velocity(converted, changed)).abs().max() > 1e-5


def test_tokens_of_empty_slots_take_no_part():
    released, converted = pair()
    layout, inputs = converted.config.history, random_inputs(5)
    slots = layout.windowed(inputs["history"], dim=2)
    lengths = torch.tensor([5])  # of the 4x tokens only the fourth covers latents
    filled = slots.clone()
    filled[:, :, 1:13] = torch.randn(16, 12, 4, 4, generator=seeded())
    assert torch.equal(own_velocity(converted, inputs), own_velocity(converted, inputs | {"slots": filled}))
    assert released.history_embedder(slots, lengths).mask.all()
    assert (~converted.history_embedder(slots, lengths).mask).sum() == 3


def test_rows_of_a_batch_do_not_mix():
    released, converted = pair()
    inputs = random_inputs(5, batch=2)
    for velocity, model in ((reference_velocity, released), (own_velocity, converted)):
        alone = [velocity(model, {name: value[row : row + 1] for name, value in inputs.items()}) for row in range(2)]
        torch.testing.assert_close(velocity(model, inputs), torch.cat(alone), rtol=0, atol=1e-5)
