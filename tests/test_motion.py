from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import ACTION_DIMS, random_actions, random_frames, seeded, tiny_world_model

from astra_env.actions import ACTION_MODALITIES
from astra_env.models.motion import move, start_motion

CPU = torch.device("cpu")
SPEEDS = [4.0, 0.0, -2.0]


@pytest.mark.parametrize("modality", ACTION_MODALITIES)
@pytest.mark.parametrize("n", [1, 3])
def test_poses_and_speeds_are_those_of_the_modality(modality, n):
    """Over several moves of n actions, from poses that are no longer the identity."""
    entry, actions = ACTION_MODALITIES[modality], random_actions(3, 4 * n, modality=modality)
    poses, speeds = start_motion(3, SPEEDS, CPU)
    for part in actions.split(n, dim=1):
        poses, speeds = move(poses, speeds, part, (modality,) * 3)
    for row, speed in enumerate(SPEEDS):
        expected = entry.integrate(np.eye(4), actions[row].numpy(), speed=speed)[-1]
        np.testing.assert_allclose(poses[row].numpy(), expected, atol=1e-12)
    change = actions[..., 1].double().sum(1) / entry.rate_hz if modality == "vehicle" else torch.zeros(3)
    torch.testing.assert_close(speeds, torch.tensor(SPEEDS, dtype=torch.float64) + change)


def test_a_car_that_stands_or_drives_straight_stays_on_its_line():
    poses, speeds = start_motion(2, [0.0, 5.0], CPU)
    poses, speeds = move(poses, speeds, torch.tensor([[[0.5, 0.0]], [[0.0, 0.0]]]), ("vehicle",) * 2)
    assert torch.equal(poses[0], torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(poses[1, :3, 3], torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    assert speeds.tolist() == [0.0, 5.0]


def test_rows_of_several_modalities_move_as_they_do_alone():
    names = ("camera", "vehicle", "end_effector", "vehicle")
    actions = torch.zeros(4, 2, 7)
    for row, name in enumerate(names):
        actions[row, :, : ACTION_DIMS[name]] = random_actions(2, seed=row, modality=name)
    poses, speeds = move(*start_motion(4, [0.0, 3.0, 0.0, 6.0], CPU), actions, names)
    for row, (name, speed) in enumerate(zip(names, [0.0, 3.0, 0.0, 6.0], strict=True)):
        alone = move(*start_motion(1, [speed], CPU), actions[row : row + 1, :, : ACTION_DIMS[name]], (name,))
        torch.testing.assert_close(poses[row], alone[0][0])
        torch.testing.assert_close(speeds[row], alone[1][0])


@pytest.mark.parametrize("modality", ACTION_MODALITIES)
def test_gradients_are_those_of_finite_differences(modality):
    moving = ACTION_MODALITIES[modality].kinematics.num_fields
    actions = random_actions(1, 2, modality=modality).double()[..., :moving].requires_grad_(True)
    start = start_motion(1, [3.0], CPU)
    assert torch.autograd.gradcheck(lambda a: move(*start, a, (modality,)), actions)


def test_no_gradient_is_lost_at_rest():
    actions = torch.zeros(1, 1, 2, requires_grad=True)
    poses, _ = move(*start_motion(1, [2.0], CPU), actions, ("vehicle",))
    (gradient,) = torch.autograd.grad(poses[0, 0, 3] + poses[0, 1, 3], actions)
    assert gradient.isfinite().all() and (gradient != 0).all()


@pytest.mark.parametrize("speeds", [[1.0], [1.0, float("nan")], [[1.0], [2.0]]])
def test_wrong_speeds_are_refused(speeds):
    with pytest.raises(ValueError, match=r"speeds are .*, expected a finite number in m/s for each of 2 worlds"):
        start_motion(2, speeds, CPU)


def test_a_world_keeps_where_its_actions_have_led():
    """Through the model: a mixed batch, an action held for a step, and one for each of a step's latents."""
    world_model, names = tiny_world_model(action_dims=ACTION_DIMS), ("vehicle", "camera")
    state = world_model.init_state(random_frames(2, 1), names, speeds=[5.0, 0.0])
    actions = torch.zeros(2, 3, 6)
    actions[0, :, :2], actions[1] = random_actions(3, modality="vehicle"), random_actions(3, modality="camera")
    with torch.no_grad():
        ends = [
            world_model.imagine(state, actions),
            world_model.step(state, actions),
            world_model.imagine(state, actions[:, :1].expand(-1, 3, -1)),
        ]
    for end, taken in zip(ends, (actions, actions, actions[:, :1].expand(-1, 3, -1)), strict=True):
        for row, (name, speed) in enumerate(zip(names, (5.0, 0.0), strict=True)):
            own = taken[row, :, : ACTION_DIMS[name]].numpy()
            expected = ACTION_MODALITIES[name].integrate(np.eye(4), own, speed=speed)[-1]
            np.testing.assert_allclose(end.poses[row].numpy(), expected, atol=1e-12)
        assert end.speeds[0].item() == pytest.approx(5 + taken[0, :, 1].sum().item() / 5) and end.speeds[1] == 0
    torch.testing.assert_close(ends[0].poses, ends[1].poses)


def test_planners_reach_every_action_through_the_pose():
    world_model = tiny_world_model(action_dims=ACTION_DIMS)
    state = world_model.init_state(random_frames(1, 1), "camera")
    actions = random_actions(1, 3, modality="camera").requires_grad_(True)
    weights = torch.randn(3, 4, dtype=torch.float64, generator=seeded())
    (world_model.imagine(state, actions).poses[0, :3] * weights).sum().backward()
    assert (actions.grad != 0).all()


@pytest.mark.parametrize("modality", ACTION_MODALITIES)
def test_no_action_moves_nothing(modality):
    poses, speeds = start_motion(2, [1.0, 2.0], torch.device("cpu"))
    width = ACTION_MODALITIES[modality].action_dim
    moved, after = move(poses, speeds, torch.zeros(2, 0, width), (modality,) * 2)
    assert torch.equal(moved, poses) and torch.equal(after, speeds)
