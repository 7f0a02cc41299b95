"""Schedules, windows, guidance, rollout and loss equal the recorded ones of the reference."""

from __future__ import annotations

from functools import cache, partial

import pytest
import torch
from golden import ATOL, golden_index, load_case, model_state
from tiny import seeded
from torch import Tensor

from astra_env.models import reference_sampling as sampling
from astra_env.models.flow_matching import shifted_sigmas

INDEX_NAMES = ("latent_indices", "clean_latent_indices", "clean_latent_2x_indices", "clean_latent_4x_indices")


def assert_equal(actual: Tensor, expected: Tensor, atol: float = ATOL) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def inputs_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Recorded inputs by their plain names."""
    return {name.removeprefix("in."): tensor for name, tensor in tensors.items() if name.startswith("in.")}


@cache
def velocity() -> sampling.Velocity:
    """The recorded model, for camera actions."""
    from astra_env.models.reference import from_reference, reference_forward

    index = golden_index()
    transformer = from_reference(model_state(), index["model_config"] | index["moe_config"])
    return partial(reference_forward, transformer.requires_grad_(False), "sekai")


def numbered(num_history: int, num_rows: int) -> tuple[Tensor, Tensor]:
    """History latents and action rows that say their own number: 1 + frame, and row in the first column."""
    history = torch.arange(1.0, num_history + 1).reshape(1, 1, -1, 1, 1)
    actions = torch.zeros(1, num_rows, 13)
    actions[0, :, 0] = torch.arange(num_rows)
    return history, actions


# Schedules


def test_sigma_tables():
    case = load_case("case_g_scheduler")
    for variant in [name for name in case if name.startswith("pipeline_")]:
        num_steps = int(variant.removeprefix("pipeline_"))
        sigmas = sampling.sigma_table(num_steps)
        assert_equal(sigmas, case[variant]["sigmas"], atol=1e-6)
        assert_equal(1000 * sigmas, case[variant]["timesteps"], atol=1e-3)
        # our own schedule is the same one with its end written out
        assert_equal(shifted_sigmas(num_steps, shift=5.0), torch.cat([sigmas, torch.zeros(1)]), atol=1e-6)
    defaults = sampling.sigma_table(100, shift=3.0, sigma_min=0.003 / 1.002, extra_step=False)
    assert_equal(defaults, case["class_default_100"]["sigmas"], atol=1e-6)


def test_training_table():
    case, table = load_case("case_g_scheduler"), sampling.TrainingTable.create()
    for name, tensor in case["train_1000"].items():
        assert_equal(vars(table)[name], tensor, atol=1e-3 if name == "timesteps" else ATOL)
    assert table.weights.mean() == pytest.approx(1.0)
    probe, rounded = case["train_probe"], case["train_bf16"]
    nearest = table.nearest(probe["timestep"])
    assert_equal(table.sigmas[nearest], probe["sigma"])
    assert_equal(table.weights[nearest], probe["weight"])
    assert_equal(table.timesteps[rounded["id"]].bfloat16().float(), rounded["timestep_bf16"], atol=0)
    assert torch.equal(table.nearest(rounded["timestep_bf16"]), rounded["nearest_id"])


def test_euler_steps():
    case, sigmas = load_case("case_g_scheduler")["step"], sampling.sigma_table(4)
    for step in range(4):
        moved = sampling.euler_step(case["in.sample"], case["in.model_output"], sigmas, step)
        assert_equal(moved, case[f"out.{step}"])


def test_noising_and_target():
    case, table = load_case("case_h_noise")[""], sampling.TrainingTable.create()
    clean, noise = case["in.clean"], case["in.noise"]
    names = [name for name in case if name.startswith("out.noisy_t")]
    timesteps = torch.tensor([float(name.removeprefix("out.noisy_t")) for name in names])
    for name, timestep in zip(names, timesteps, strict=True):
        assert_equal(table.add_noise(clean, noise, timestep[None]), case[name])
    # a row has its own noise level, which one look-up for the batch cannot give
    both = table.add_noise(clean, noise, timesteps[:2])
    for row, name in enumerate(names[:2]):
        assert_equal(both[row], case[name][row])
    assert_equal(noise - clean, case["out.training_target"])


# Which latents are read


def test_training_segments():
    for variant, expected in load_case("case_k_segments").items():
        num_history, start = (int(part[1:]) for part in variant.split("_"))
        indices = sampling.segment_indices(num_history, start)
        for name in INDEX_NAMES:
            assert torch.equal(indices[name], expected[f"out.{name}"]), (variant, name)


def test_nuscenes_segments_reach_before_their_start():
    case = load_case("case_i_actions")
    for num_history, start in ((6, 2), (3, 5)):
        indices = sampling.nuscenes_segment_indices(num_history, start, num_target=4)
        for name in INDEX_NAMES:
            assert torch.equal(indices[name], case[f"nuscenes/n{num_history}_start{start}"][f"out.{name}"])
        assert indices["clean_latent_4x_indices"].min() < start


def test_segment_of_a_clip_fills_the_slots():
    sekai = load_case("case_a_modalities")["sekai"]
    indices = sampling.segment_indices(num_history=24, start=3, num_target=4)
    inputs = sampling.segment_inputs(sekai["aux.full_latents"], indices)
    assert_equal(inputs.pop("latents"), sekai["aux.full_latents"][:, :, 27:31], atol=0)
    for name, tensor in inputs.items():
        assert torch.equal(tensor, sekai[f"in.{name}"]), name


def test_short_segments_are_padded_in_front():
    history, _ = numbered(num_history=12, num_rows=12)
    inputs = sampling.segment_inputs(history, sampling.segment_indices(num_history=5, start=2, num_target=3))
    assert inputs["clean_latents_4x"].flatten().tolist() == [0.0] * 14 + [3.0, 4.0]
    assert inputs["clean_latent_4x_indices"].tolist() == [[-1] * 14 + [2, 3]]
    assert inputs["clean_latents_2x"].flatten().tolist() == [5.0, 6.0]
    assert inputs["clean_latents"].flatten().tolist() == [3.0, 7.0]
    assert inputs["latents"].flatten().tolist() == [8.0, 9.0, 10.0]


def test_inference_window():
    case = load_case("case_k_window")
    for variant, expected in case.items():
        num_history = int(variant[1:])
        inputs = sampling.inference_window(*numbered(num_history, num_rows=60))
        action = inputs.pop("action")[0]
        assert_equal(action[:, 0], expected["out.camera_first_col"], atol=0)
        assert_equal(action[:, -1], expected["out.camera_mask"], atol=0)
        for name, tensor in inputs.items():
            assert torch.equal(tensor.flatten(), expected[f"out.{name}"]), (variant, name)


@pytest.mark.parametrize("num_history", [1, 4, 19, 20, 21, 40])
@pytest.mark.parametrize("fixes", [{"fix_action_offset": True}, {"keep_first": True}], ids=str)
def test_window_without_the_fault_gives_every_frame_its_own_row(num_history, fixes):
    """The network reads row (index - start index); of the frames to generate these are rows T .. T + 7."""
    inputs = sampling.inference_window(*numbered(num_history, num_rows=60), **fixes)
    start = inputs["clean_latent_indices"][0, 0]
    rows = inputs["action"][0, inputs["latent_indices"][0] - start]
    assert rows[:, 0].tolist() == list(range(num_history, num_history + 8))
    assert rows[:, -1].tolist() == [0.0] * 8
    assert inputs["action"][0, :-8, -1].eq(1).all()
    valid = inputs["clean_latent_4x_indices"][0] >= 0
    history_rows = inputs["action"][0, inputs["clean_latent_4x_indices"][0, valid] - start, 0]
    assert torch.equal(history_rows, inputs["clean_latents_4x"][0, 0, valid, 0, 0] - 1)
    if "keep_first" in fixes:
        assert inputs["clean_latents"][0, 0, 0, 0, 0] == 1, "the first latent stays the anchor"


def test_window_of_the_reference_ignores_new_actions_beyond_20_latents():
    rows = {}
    for num_history in (20, 21, 40):
        inputs = sampling.inference_window(*numbered(num_history, num_rows=60))
        start = inputs["clean_latent_indices"][0, 0]
        rows[num_history] = inputs["action"][0, inputs["latent_indices"][0] - start, 0].tolist()
    assert rows[20] == rows[21] == rows[40] == list(range(20, 28))


def test_window_refuses_a_short_action_table():
    with pytest.raises(ValueError, match="hold 12 rows, expected at least 13"):
        sampling.inference_window(*numbered(num_history=5, num_rows=12))


# Guidance, sampling, loss


def guidance_options(negative: Tensor) -> dict[str, dict]:
    """What each recorded guided velocity was made with."""
    text = {"text_scale": 5.0, "negative_context": negative}
    return {
        "v_cond": {},
        "guided_s2": {"action_scale": 2.0},
        "guided_s3": {"action_scale": 3.0},
        "text_only_5": text,
        "guided_s3_text5": {"action_scale": 3.0, **text},
    }


def test_guidance_combines_the_recorded_velocities():
    case = load_case("case_e_guidance")["afg"]
    names = {
        (True, True): "v_cond",
        (False, True): "v_no_action",
        (False, False): "v_no_action_negative_text",
        (True, False): "v_action_negative_text",
    }

    calls = []

    def recorded_velocity(inputs: sampling.Inputs) -> Tensor:
        calls.append(inputs)
        positive = torch.equal(inputs["context"], case["in.context"])
        return case[f"out.{names[bool(inputs['action'].any()), positive]}"]

    for name, options in guidance_options(case["in.context_negative"]).items():
        calls.clear()
        result = sampling.guided(recorded_velocity, **options)(inputs_of(case))
        assert len(calls) == 1 + ("action_scale" in options) + ("text_scale" in options)
        assert_equal(result, case[f"out.{name}"], atol=1e-6)


def test_guidance_of_the_network():
    case = load_case("case_e_guidance")["afg"]
    for name, options in guidance_options(case["in.context_negative"]).items():
        assert_equal(sampling.guided(velocity(), **options)(inputs_of(case)), case[f"out.{name}"])


def test_text_guidance_needs_a_negative_context():
    with pytest.raises(ValueError, match="negative_context"):
        sampling.guided(lambda inputs: inputs["latents"], text_scale=5.0)


@pytest.mark.parametrize(("variant", "action_scale"), [("plain", 1.0), ("afg3", 3.0)])
def test_sampling_of_one_chunk(variant, action_scale):
    case = load_case("case_f_sampling")
    shared = case[""]
    window = sampling.inference_window(shared["in.history_latents"][None], shared["in.camera_embedding_full"][None], 4)
    for name, tensor in window.items():
        assert torch.equal(tensor, shared[f"window.{name}"]), name
    inputs = window | {"context": shared["in.context"]}
    network = sampling.guided(velocity(), action_scale=action_scale)
    steps = sampling.sampling_steps(network, inputs, shared["in.noise"], sampling.sigma_table(4))
    for step, latents in enumerate(steps):
        assert_equal(latents, case[variant][f"out.latents_after_step{step}"])
    assert step == 3


def rolled_out(window=sampling.inference_window, change_action: float = 0.0) -> Tensor:
    """The recorded rollout, 9 + 4 x 4 latents; change_action is added to the rows of the fourth chunk."""
    case = load_case("case_f_sampling")
    shared, chunks = case[""], case["rollout"]
    actions = shared["in.camera_embedding_full"][None].clone()
    actions[:, 24:25, :12] += change_action
    noises = [shared["in.noise"], *(chunks[f"in.noise{number}"] for number in (2, 3, 4))]
    inputs = {"action": actions, "context": shared["in.context"]}
    history = shared["in.history_latents"][None]
    return sampling.rollout(velocity(), history, inputs, noises, sampling.sigma_table(4), window)


def test_rollout():
    case = load_case("case_f_sampling")["rollout"]
    video = rolled_out()
    assert_equal(video[:, :, :9], load_case("case_f_sampling")[""]["in.history_latents"][None], atol=0)
    for number, chunk in enumerate(video[:, :, 9:].split(4, dim=2), start=1):
        assert_equal(chunk, case[f"out.chunk{number}" + ("_reference_bug" if number == 4 else "")])


def test_rollout_beyond_20_latents_obeys_actions_only_without_the_fault():
    """Latent 24, in the fourth chunk, is moved by row 24, which the reference does not read for it."""
    assert torch.equal(rolled_out(), rolled_out(change_action=1.0))
    for fix in ("fix_action_offset", "keep_first"):
        window = partial(sampling.inference_window, **{fix: True})
        difference = (rolled_out(window) - rolled_out(window, change_action=1.0)).abs().amax(dim=(0, 1, 3, 4))
        assert difference[:21].max() == 0 and difference[21:].min() > 1e-3


@pytest.mark.parametrize("variant", ["noised_history", "clean_history", "dropped_action"])
def test_training_loss(variant):
    case = load_case("case_j_training_step")
    inputs = inputs_of(case[""])
    noise, history_noise = inputs.pop("noise"), inputs.pop("noise_cond")
    inputs["latents"] = inputs.pop("latents_clean")
    timestep_id, history_timestep_id = case[variant]["out.timestep_ids"].tolist()
    draw = sampling.TrainingDraw(
        noise,
        timestep_id,
        history_noise if history_timestep_id >= 0 else None,
        max(history_timestep_id, 0),
        drop_action=variant == "dropped_action",
    )
    loss = sampling.training_loss(velocity(), inputs, draw, sampling.TrainingTable.create())
    assert_equal(loss, case[variant]["out.loss"])


def test_training_draws_follow_the_stated_probabilities():
    inputs, generator = {"latents": torch.zeros(1, 1, 2, 1, 1), "clean_latents": torch.zeros(1, 1, 2, 1, 1)}, seeded()
    draws = [sampling.TrainingDraw.sample(inputs, generator) for _ in range(2000)]
    table = sampling.TrainingTable.create()
    assert 0.77 < sum(draw.history_noise is not None for draw in draws) / 2000 < 0.83
    assert 0.035 < sum(draw.drop_action for draw in draws) / 2000 < 0.065
    sigmas = table.sigmas[[draw.timestep_id for draw in draws]]
    history_sigmas = table.sigmas[[draw.history_timestep_id for draw in draws]]
    assert sigmas.mean() == pytest.approx(0.748, abs=0.02)
    assert history_sigmas.min() > 0.62 and history_sigmas.mean() == pytest.approx(0.868, abs=0.02)
