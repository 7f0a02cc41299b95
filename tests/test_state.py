from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import MODALITY, random_actions, random_frames, tiny_world_model

from astra_env.models import WorldModel, WorldState


@pytest.fixture(scope="module")
def world_model() -> WorldModel:
    return tiny_world_model()


@pytest.fixture
def state(world_model) -> WorldState:
    start = world_model.init_state(random_frames(3, 9), MODALITY, actions=random_actions(3, 2), seeds=[5, 6, 7])
    return world_model.decode(world_model.imagine(start, random_actions(3, 2, seed=1)))[0]


def assert_same(state: WorldState, other: WorldState) -> None:
    assert state.modality == other.modality and len(state.decoder_cache) == len(other.decoder_cache)
    for field in dataclasses.fields(WorldState)[:-2]:
        value, expected = getattr(state, field.name), getattr(other, field.name)
        assert value.dtype == expected.dtype and torch.equal(value, expected), field.name
    for value, expected in zip(state.decoder_cache, other.decoder_cache, strict=True):
        assert value.dtype == expected.dtype and torch.equal(value, expected)


def test_a_file_holds_the_state_exactly(state, tmp_path):
    state.save(tmp_path / "world")
    assert_same(WorldState.load(tmp_path / "world"), state)
    assert [file.name for file in tmp_path.iterdir()] == ["world"]


def test_a_reloaded_world_continues_byte_for_byte(world_model, state, tmp_path):
    state.save(tmp_path / "world")
    actions = random_actions(3, 3, seed=2)
    ends = [world_model.decode(world_model.imagine(s, actions)) for s in (state, WorldState.load(tmp_path / "world"))]
    assert_same(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


def test_a_state_can_be_saved_with_its_gradients(world_model, state, tmp_path):
    actions = random_actions(3, 1).requires_grad_(True)
    ahead = world_model.imagine(state, actions)
    assert ahead.latents.requires_grad and not ahead.detach().latents.requires_grad
    ahead.save(tmp_path / "world")
    assert_same(WorldState.load(tmp_path / "world"), ahead.detach())


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (1, [1]),
        (-1, [2]),
        (slice(1, None), [1, 2]),
        ([2, 0], [2, 0]),
        (torch.tensor([0, 0, 1]), [0, 0, 1]),
        (torch.tensor([True, False, True]), [0, 2]),
    ],
    ids=str,
)
def test_rows_are_chosen_from_every_part(state, rows, expected):
    chosen = state[rows]
    assert len(chosen) == len(chosen.modality) == len(expected)
    assert chosen.seeds.tolist() == [5 + row for row in expected]
    for place, row in enumerate(expected):
        assert_same(chosen[place], state[row])


def test_a_row_that_is_not_there_is_an_error(state):
    with pytest.raises(IndexError):
        state[3]


def test_repeat_and_cat_agree_with_indexing(state):
    assert_same(state.repeat(2), state[[0, 0, 1, 1, 2, 2]])
    assert_same(WorldState.cat([state[2], state[:2]]), state[[2, 0, 1]])
    assert_same(WorldState.cat([state[row] for row in range(3)]), state)


def test_a_state_is_a_value(world_model, state):
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.latents = torch.zeros(1)
    kept = WorldState.cat([state])  # copies every tensor
    after = world_model.step(state, random_actions(3))
    world_model.decode(after)
    assert_same(state, kept)
    assert after.num_steps.tolist() == [3, 3, 3] and after.lengths.tolist() == [6, 6, 6]
    assert after.undecoded.tolist() == [1, 1, 1]


def test_newest_is_the_last_latent(world_model, state):
    assert torch.equal(state.newest, state.latents[:, :, -1])


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_file_is_named(state, tmp_path, kept):
    path = tmp_path / "world"
    state.save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"world is not a whole WorldState file"):
        WorldState.load(path)


@pytest.mark.parametrize("lacking", ["poses", "speeds"])
def test_a_file_without_motion_is_named(state, tmp_path, lacking):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    state.save(tmp_path / "world")
    with safe_open(tmp_path / "world", "pt") as file:
        header = file.metadata()
    tensors = load_file(tmp_path / "world")
    del tensors[lacking]
    save_file(tensors, tmp_path / "older", metadata=header)
    with pytest.raises(
        ValueError, match=rf"older is not a whole WorldState file \(.*{lacking}.*\); save the state again"
    ):
        WorldState.load(tmp_path / "older")


def test_another_kind_of_file_is_named(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "weights")
    with pytest.raises(ValueError, match=r"not a whole WorldState"):
        WorldState.load(tmp_path / "weights")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no world state at .*nothing"):
        WorldState.load(tmp_path / "nothing")
