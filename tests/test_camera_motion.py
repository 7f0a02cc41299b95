"""How cameras moved, from what two pictures show: geometry, least squares, and learning from poses alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import seeded

from astra_env import geometry
from astra_env.models.camera_motion import CameraMotion, Match, axis_angle, rotation

MOTION = torch.tensor([[0.3, -0.1, 0.2, 0.1, -0.2, 0.05], [-0.2, 0.0, 0.4, 0.0, 0.3, 0.0]])
SIZE = 8  # cells along an edge
NUM_CELLS = SIZE**2


def network(dim=8) -> CameraMotion:
    torch.manual_seed(0)
    return CameraMotion(dim).eval()


def moved(points, motion):
    """Points of the first camera (B, N, 3) as the second sees them."""
    return (points - motion[:, None, :3]) @ rotation(motion[:, 3:])


def seen(points):
    return points[..., :2] / points[..., 2:]


def matched(motion=MOTION, guess=None, weights=1e4) -> Match:
    """All things found where a motion has brought them, by a network whose focal length is 1."""
    generator = seeded()
    first = torch.rand(len(motion), NUM_CELLS, 3, generator=generator) * 2 + torch.tensor([-1.0, -1.0, 2.0])
    second = moved(torch.rand(first.shape, generator=generator) * 2 + torch.tensor([-1.0, -1.0, 2.0]), motion)
    back = second @ rotation(motion[:, 3:]).mT + motion[:, None, :3]
    return Match(
        points=torch.stack([first, second], dim=1),
        similarity=torch.ones(len(motion), NUM_CELLS, NUM_CELLS),
        total=torch.full((len(motion), 2, NUM_CELLS), float(NUM_CELLS)),
        places=torch.stack([seen(moved(first, motion)), seen(back)], dim=1),
        weights=torch.full((len(motion), 2, NUM_CELLS), weights),
        guess=torch.zeros_like(motion) if guess is None else guess,
        doubts=torch.zeros(len(motion), 2),
    )


def test_turns_are_those_of_numpy():
    vectors = torch.randn(20, 3, generator=seeded(), dtype=torch.float64)
    turns = rotation(vectors)
    torch.testing.assert_close(turns, torch.from_numpy(geometry.axis_angle_to_matrix(vectors.numpy())))
    torch.testing.assert_close(axis_angle(turns), torch.from_numpy(geometry.matrix_to_axis_angle(turns.numpy())))


def test_no_turn_has_gradients():
    vector = torch.zeros(1, 3, requires_grad=True)
    axis_angle(rotation(vector)).sum().backward()
    torch.testing.assert_close(vector.grad, torch.ones(1, 3))


def test_matches_tell_the_motion():
    torch.testing.assert_close(network().refine(matched()), MOTION, atol=2e-3, rtol=0)


def test_a_few_wrong_matches_do_no_harm():
    match = matched()
    match.places[:, :, ::8] += 1
    torch.testing.assert_close(network().refine(match), MOTION, atol=0.03, rtol=0)


def test_without_matches_the_guess_stays():
    guess = 0.5 * MOTION
    torch.testing.assert_close(network().refine(matched(guess=guess, weights=0.0)), guess)
    sure = dataclasses.replace(matched(guess=guess, weights=100.0), doubts=torch.full((2, 2), -6.0))
    apart = (network().refine(sure) - guess).norm(dim=1)
    assert (apart < 0.1 * (MOTION - guess).norm(dim=1)).all()


def test_the_less_a_guess_counts_the_more_do_matches():
    match = matched(weights=0.1)
    apart = [(network().refine(match, weight) - MOTION).norm().item() for weight in (1.0, 0.1, 0.01)]
    assert apart[0] > apart[1] > apart[2]


def test_matches_are_scored_by_where_the_motion_brings_their_points():
    """Everything is three metres away and found a cell further to the left, as if the camera had gone to the right."""
    made = network()
    cells = torch.arange(NUM_CELLS)
    similarity = torch.zeros(1, NUM_CELLS, NUM_CELLS)
    shifted = cells[cells % SIZE > 0]
    similarity[:, shifted, shifted - 1] = 1
    match = matched(motion=torch.zeros(1, 6))
    grid = (torch.cartesian_prod(torch.arange(SIZE), torch.arange(SIZE)).flip(-1) + 0.5) * 2 / SIZE - 1
    points = 3 * torch.cat([grid, torch.ones(NUM_CELLS, 1)], dim=1).expand(1, 2, -1, -1)
    match = dataclasses.replace(match, points=points, similarity=similarity, total=torch.ones(1, 2, NUM_CELLS))
    ways = torch.linspace(-2, 2, 17)
    losses = [made.match_loss(match, torch.tensor([[way.item(), 0, 0, 0, 0, 0]]), SIZE).item() for way in ways]
    assert ways[torch.tensor(losses).argmin()].item() == pytest.approx(3 * 2 / SIZE)


def test_ways_are_learned_from_poses_alone():
    """Before a wall at one distance, a camera moves to the right or to the left: so far, the network knows no way."""
    generator = seeded()
    walls = torch.nn.functional.interpolate(torch.rand(64, 3, 8, 14, generator=generator), scale_factor=4.0) * 2 - 1

    def pairs(count):
        wall, first, second = (torch.randint(n, (count,), generator=generator) for n in (len(walls), 4, 4))
        views = [
            torch.stack([walls[w, :, :, 8 * p : 8 * p + 32] for w, p in zip(wall, place, strict=True)])
            for place in (first, second)
        ]
        motions = torch.zeros(count, 6)
        motions[:, 0] = 0.25 * (second - first)
        return *views, motions

    made = network(16).train()
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        made.loss(*pairs(16)).backward()
        optimizer.step()
    shown, goals, motions = pairs(64)
    with torch.no_grad():
        errors = (made.eval()(shown, goals) - motions).norm(dim=1).mean()
    assert errors < 0.6 * motions.norm(dim=1).mean()
