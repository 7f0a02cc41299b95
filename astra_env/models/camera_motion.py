"""How a camera moved between two pictures: what their cells match, how far off that is, and least squares over both.

A network that regresses motions has to find out what geometry says: that turns shift all things alike, and ways shift
near things more. Here a network tells how far away the cells of a picture are and which cells of the other picture show
the same, and Gauss-Newton steps find the motion that brings them together (BA-Net, Tang and Tan 2019; DROID-SLAM, Teed
and Deng 2021). All of it is learned from pictures and poses: no depth is recorded, and no focal length.

Cameras look along z, x is to the right and y down. Lengths in pictures are in halves of their width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PATCH = 4
"""Pixels along the edge of a cell."""
NUM_ROUNDS = 4
"""Gauss-Newton steps."""
NEAREST = 0.2
"""Metres before the camera from where on things are seen."""
GUESS_WEIGHT = 0.1
"""What the guess counts beside matches once the network has learned. In learning it counts fully, which makes errors
small on the average by telling ways too short where they are hard to tell. Who goes some way and looks again gets
further with ways that are as often too long."""


@dataclass(frozen=True)
class Match:
    """What two pictures of N cells each tell of one another, [:, 0] of the first in the second, [:, 1] the other way.

    ``guess`` is a motion (B, 6); ``doubts`` (B, 2) are logarithms of how far off its way and turn may be, in multiples
    of the usual way and turn.
    """

    points: Tensor  # (B, 2, N, 3): where what the cells show is, in metres, as seen from their camera
    similarity: Tensor  # (B, N, N): how similar cells of the first and of the second picture are
    total: Tensor  # (B, 2, N): the similarities of a cell, and that to nothing that the other shows
    places: Tensor  # (B, 2, N, 2): where in the other picture the same is
    weights: Tensor  # (B, 2, N): how much a cell is to count
    guess: Tensor
    doubts: Tensor


class CameraMotion(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] -> the motion (B, 6) from where the first were taken to where the second were.

    It is three metres and a turn as axis times angle in radians, as seen from the first.
    """

    scale: Tensor
    reads_pictures = True
    """As a goal model: whether it is shown pictures instead of latents."""

    def __init__(self, dim: int = 48) -> None:
        super().__init__()
        self.cells = _Cells(dim)
        self.features = nn.Sequential(
            nn.Conv2d(2 * (dim + NUM_TOLD), 2 * dim, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * dim, 2 * dim, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * dim, dim, 3, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(8),
            nn.Flatten(),
            nn.Linear(64 * dim, 256),
            nn.SiLU(),
            nn.Linear(256, 8),
        )
        self.log_focal = nn.Parameter(torch.zeros(()))
        self.sharpness = nn.Parameter(torch.tensor(10.0))  # of matches
        self.nowhere = nn.Parameter(torch.zeros(()))  # cosine that cells need to match at all
        self.log_blur = nn.Parameter(torch.tensor(-4.0))  # of the variance that the best of matches has
        self.log_outlier = nn.Parameter(torch.tensor(-2.0))  # of how far off the matches are that count half
        self.register_buffer("scale", torch.ones(6))  # the usual motion, metres and radians

    def forward(self, shown: Tensor, goals: Tensor) -> Tensor:
        """Differentiable, for planners that follow gradients."""
        return self.refine(self.match(shown, goals), GUESS_WEIGHT)

    def match(self, shown: Tensor, goals: Tensor) -> Match:
        """What the pictures show, how far away that is, and a guess at the motion."""
        maps, depths, certainty = self.cells(torch.cat([shown, goals]).float())
        size, focal = maps.shape[-2:], self.log_focal.exp()
        grid = _grid(*size).to(maps)
        points = _paired(depths)[..., None] * torch.cat([grid / focal, torch.ones_like(grid[:, :1])], dim=1)
        first, second = F.normalize(maps, dim=1).flatten(2).chunk(2)
        similarity = (self.sharpness * (first.mT @ second - 1)).exp()
        moments = torch.cat([torch.ones_like(grid[:, :1]), grid, grid.square().sum(-1, keepdim=True)], dim=1)
        sums = torch.stack([similarity @ moments, similarity.mT @ moments], dim=1)
        found = sums[..., 0]
        places, squares = (sums[..., 1:] / sums[..., :1]).split((2, 1), dim=-1)
        spread = (squares[..., 0] - places.square().sum(-1)).clamp(min=0)
        total = found + (self.sharpness * (self.nowhere - 1)).exp()
        share = found / total
        weights = _paired(certainty) * share / (spread / focal**2 + self.log_blur.exp())

        told = torch.stack([*(places - grid).unbind(-1), spread, share, points[..., 2].log()], dim=2)
        seen = torch.cat([_paired(maps.flatten(2)), told], dim=2).flatten(1, 2).unflatten(-1, size)
        guess, doubts = self.features(seen).split((6, 2), dim=1)
        return Match(points, similarity, total, places, weights, self.scale * guess, doubts.clamp(-6, 4))

    def refine(self, match: Match, guess_weight: float = 1.0) -> Tensor:
        """The motion (B, 6) that brings points and matches together, as far from the guess as they are worth it."""
        targets, outlier = match.places / self.log_focal.exp(), self.log_outlier.exp()
        trust = guess_weight * (-2 * match.doubts).exp().repeat_interleave(3, dim=1) / self.scale.square()
        guess, guessed_turn = match.guess[:, :3], rotation(match.guess[:, 3:])
        way, turn = guess, guessed_turn
        for _ in range(NUM_ROUNDS):
            points = _moved(match.points, way, turn)
            depth = points[..., 2:].clamp(min=NEAREST)
            seen, slopes = points[..., :2] / depth, _slopes(match.points, points, turn)
            slopes = (slopes[..., :2, :] - seen[..., None] * slopes[..., 2:, :]) / depth[..., None]
            misses = seen - targets
            weights = match.weights * (points[..., 2] > NEAREST) / (1 + misses.square().sum(-1) / outlier**2)
            pulls = (weights[..., None, None] * slopes).flatten(1, 3).mT
            strayed = torch.cat([way - guess, axis_angle(guessed_turn.mT @ turn)], dim=1)
            curvature = pulls @ slopes.flatten(1, 3) + torch.diag_embed(trust)
            gradient = (pulls @ misses.flatten(1)[..., None])[..., 0] + trust * strayed
            step = -torch.linalg.solve(curvature, gradient)
            step = step / step.norm(dim=1, keepdim=True).clamp(min=1)
            way, turn = way + step[:, :3], turn @ rotation(step[:, 3:])
        return torch.cat([way, axis_angle(turn)], dim=1)

    def loss(self, shown: Tensor, goals: Tensor, motions: Tensor) -> Tensor:
        """Of the guess, of the refined motion and of the matches, where motions (B, 6) are known.

        The guess learns how far off it may be (Laplace's likelihood; Kendall and Gal 2017), so that pairs of which
        nobody could tell more do not count for more, afterwards either.
        """
        match = self.match(shown, goals)

        def errors(told: Tensor) -> Tensor:
            return ((told - motions) / self.scale).unflatten(1, (2, 3)).square().sum(-1).add(1e-4).sqrt()

        sure = (-match.doubts).exp()
        guessed = (errors(match.guess) * sure + match.doubts).mean()
        refined = (errors(self.refine(match)) * sure.detach()).clamp(max=20).mean()
        return guessed + refined + self.match_loss(match, motions, shown.shape[-1] // PATCH)

    def match_loss(self, match: Match, motions: Tensor, width: int) -> Tensor:
        """Minus the logarithm of the odds of the cells where points are seen after a motion: what teaches depths."""
        points = _moved(match.points, motions[:, :3], rotation(motions[:, 3:]))
        places = self.log_focal.exp() * points[..., :2] / points[..., 2:].clamp(min=NEAREST)
        axes = _axes(match.points.shape[2] // width, width)
        near, within = [], points[..., 2] > NEAREST
        for place, axis in zip(places.unbind(-1), axes, strict=True):
            near.append((-((place[..., None] - axis.to(place)) * width / 1.7).square()).exp())  # of about a cell
            within = within & (place.abs() < axis.max() + 0.5 / width)
        both = torch.stack([match.similarity, match.similarity.mT], dim=1).unflatten(-1, (-1, width))
        across, down = (part / (part.sum(-1, keepdim=True) + 1e-3) for part in near)
        found = (down[..., None, :] @ both @ across[..., None])[..., 0, 0] / match.total
        return -((found + 1e-3).log() * within).sum() / within.sum().clamp(min=1)


NUM_TOLD = 5
"""Numbers that matches tell of a cell: where it went, how surely, how much of it, and its depth."""


class _Cells(nn.Module):
    """Pictures (B, 3, H, W) -> what cells show (B, D, h, w), their depth in metres and how sure that is, (B, h w)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        cells = nn.Conv2d(3 * PATCH**2, dim, 3, padding=1)
        self.fine = nn.Sequential(nn.PixelUnshuffle(PATCH), cells, nn.SiLU(), _Block(dim))
        self.middle = _Block(dim, stride=2)
        self.coarse = nn.Sequential(_Block(dim, stride=2), _Block(dim))
        self.to_middle, self.to_fine = _Block(dim), _Block(dim)
        self.features, self.depth = nn.Conv2d(dim, dim, 3, padding=1), nn.Conv2d(dim, 2, 3, padding=1)
        nn.init.zeros_(self.depth.weight)
        nn.init.zeros_(self.depth.bias)  # type: ignore[arg-type]

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine = self.fine(pictures)
        middle = self.middle(fine)
        middle = self.to_middle(middle + F.interpolate(self.coarse(middle), middle.shape[-2:]))
        fine = self.to_fine(fine + F.interpolate(middle, fine.shape[-2:]))
        depth, certainty = self.depth(fine).flatten(2).unbind(1)
        return self.features(fine), 2 * depth.clamp(-4, 2).exp(), certainty.sigmoid()


class _Block(nn.Module):
    """Two convolutions beside a short cut."""

    def __init__(self, dim: int, stride: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(dim, dim, 3, stride, padding=1),
            nn.GroupNorm(8, dim),
            nn.SiLU(),
            nn.Conv2d(dim, dim, 3, padding=1),
        )
        self.short = nn.Conv2d(dim, dim, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        return F.silu(self.short(maps) + self.layers(maps))


# Geometry


def _moved(points: Tensor, way: Tensor, turn: Tensor) -> Tensor:
    """Points (B, 2, N, 3) as the other camera sees them after a motion: a way (B, 3) and a turn (B, 3, 3)."""
    first, second = points.unbind(1)
    return torch.stack([(first - way[:, None]) @ turn, second @ turn.mT + way[:, None]], dim=1)


def _slopes(points: Tensor, moved: Tensor, turn: Tensor) -> Tensor:
    """By how much more points are `_moved` (B, 2, N, 3, 6) with the way, and with turns to the right of the turn."""
    by_way = torch.stack([-turn.mT, torch.eye(3).to(turn).expand_as(turn)], dim=1)[:, :, None]
    by_turn = torch.stack([skew(moved[:, 0]), -turn[:, None] @ skew(points[:, 1])], dim=1)
    return torch.cat([by_way.expand_as(by_turn), by_turn], dim=-1)


def skew(vectors: Tensor) -> Tensor:
    """Matrices (..., 3, 3) that take the cross product of vectors (..., 3) with others."""
    x, y, z = vectors.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], dim=-1).unflatten(-1, (3, 3))


def rotation(vectors: Tensor) -> Tensor:
    """Turns (..., 3, 3) of axes times angles (..., 3)."""
    return torch.linalg.matrix_exp(skew(vectors))


def axis_angle(turns: Tensor) -> Tensor:
    """Axes times angles (..., 3) of turns (..., 3, 3) of less than half a turn; with gradients, even at none."""
    lean = (turns - turns.mT) / 2
    vectors = torch.stack([lean[..., 2, 1], lean[..., 0, 2], lean[..., 1, 0]], dim=-1)
    sine = (vectors.square().sum(-1, keepdim=True) + 1e-12).sqrt()
    cosine = (turns.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True) - 1) / 2
    return vectors * torch.atan2(sine, cosine) / sine


def _axes(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where the centres of columns (w,) and rows (h,) of cells are, from the middle."""
    columns, rows = ((torch.arange(count) + 0.5 - count / 2) * 2 / width for count in (width, height))
    return columns, rows


def _grid(height: int, width: int) -> Tensor:
    """Where the centres of cells are (h w, 2), row by row."""
    columns, rows = _axes(height, width)
    return torch.cartesian_prod(rows, columns).flip(-1)


def _paired(parts: Tensor) -> Tensor:
    """First and second pictures, one after the other in a batch (2 B, ...), side by side (B, 2, ...)."""
    return parts.unflatten(0, (2, -1)).transpose(0, 1)
