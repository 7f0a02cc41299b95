"""Rerun's shapes for what a recording shows: lines and keys over pictures, and in space who moves, ways and plans."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from astra_env.actions import ActionModality
from astra_env.kinematics import BicycleMotion, RigidMotion
from astra_env.pictures import encode_image
from astra_env.visualization.overlay import FRAME_COLOUR, OTHER_COLOUR, Key, Mark
from astra_env.visualization.sdk import rr

WAY_COLOUR, TARGET_COLOUR, CHOSEN_COLOUR = (96, 178, 255), (150, 154, 164), (255, 255, 255)
SCORE_COLOURS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)])
"""From the lowest score to the highest."""
FIELD_OF_VIEW = np.deg2rad(70.0)
"""Vertical, of the frustum that stands for a camera."""


def image(picture: np.ndarray, jpeg_quality: int | None) -> rr.AsComponents:
    """A picture uint8 (H, W, 3), compressed or as it is."""
    if jpeg_quality is None:
        return rr.Image(picture)
    encoded = encode_image(picture, ".jpg", quality=jpeg_quality)
    return rr.EncodedImage(contents=encoded, media_type="image/jpeg")


def nothing() -> rr.AsComponents:
    """What takes away an entity and all below it."""
    return rr.Clear(recursive=True)


def held_curve(name: str) -> rr.AsComponents:
    """How a curve is drawn whose values hold until the next."""
    return rr.SeriesLines(names=name, widths=1.5, interpolation_mode="StepAfter")


def looks_out(modality: ActionModality) -> bool:
    """Whether the pose is that of the camera that takes the pictures."""
    return isinstance(modality.kinematics, RigidMotion) and modality.kinematics.moving


def axes(modality: ActionModality) -> rr.AsComponents:
    """Which way is up."""
    return rr.ViewCoordinates.RDF if looks_out(modality) else rr.ViewCoordinates.FLU


def frustum(size: tuple[int, int]) -> rr.AsComponents:
    """A camera that takes pictures of size (H, W)."""
    height, width = size
    focal = height / 2 / np.tan(FIELD_OF_VIEW / 2)
    return rr.Pinhole(
        focal_length=float(focal),
        width=width,
        height=height,
        image_plane_distance=0.12,
        line_width=rr.Radius.ui_points(1.5),
    )


def body(modality: ActionModality) -> rr.AsComponents:
    """A car's box around its pose at the rear axle, or a gripper's three axes."""
    if isinstance(modality.kinematics, BicycleMotion):
        return rr.Boxes3D(centers=[(1.35, 0.0, 0.75)], half_sizes=[(2.2, 0.9, 0.75)], colors=[WAY_COLOUR])
    colours = [(230, 80, 80), (80, 200, 100), (80, 130, 240)]
    return rr.Arrows3D(vectors=0.05 * np.eye(3), colors=colours, radii=rr.Radius.ui_points(3.0))


def pose(matrix: np.ndarray) -> rr.AsComponents:
    """A pose (4, 4) as a transform."""
    return rr.Transform3D(translation=matrix[:3, 3], mat3x3=matrix[:3, :3])


def way(places: np.ndarray) -> rr.AsComponents:
    """The line through places (n, 3)."""
    return rr.LineStrips3D([places], colors=[WAY_COLOUR], radii=rr.Radius.ui_points(2.0))


def target(path: np.ndarray) -> rr.AsComponents:
    """The path (T + 1, 4, 4) to follow."""
    return rr.LineStrips3D([path[:, :3, 3]], colors=[TARGET_COLOUR], radii=rr.Radius.ui_points(1.0))


def fan(poses: np.ndarray, scores: np.ndarray) -> rr.AsComponents:
    """Plans (N, horizon + 1, 4, 4) as lines, coloured from the lowest to the highest of their scores (N,)."""
    low, high = float(scores.min()), float(scores.max())
    shares = (scores - low) / (high - low) if high > low else np.ones(len(scores))
    stops = np.linspace(0.0, 1.0, len(SCORE_COLOURS))
    colours = np.stack([np.interp(shares, stops, channel) for channel in SCORE_COLOURS.T], axis=-1)
    return rr.LineStrips3D(poses[..., :3, 3], colors=colours.astype(np.uint8), radii=rr.Radius.ui_points(1.5))


def chosen(poses: np.ndarray, score: float) -> rr.AsComponents:
    """The plan (horizon + 1, 4, 4) that is carried out, thicker than the others."""
    label = f"{score:.3g}"
    return rr.LineStrips3D(
        [poses[:, :3, 3]], colors=[CHOSEN_COLOUR], radii=rr.Radius.ui_points(4.0), labels=[label], show_labels=True
    )


def lines(marks: Sequence[Mark]) -> rr.AsComponents:
    """All marks as lines, but for the last pieces of arrows."""
    strips = [(mark, mark.points[:-1] if mark.arrow else mark.points) for mark in marks]
    strips = [(mark, points) for mark, points in strips if len(points) > 1]
    return rr.LineStrips2D(
        [points for _, points in strips],
        colors=[mark.colour for mark, _ in strips],
        radii=rr.Radius.ui_points([mark.width for mark, _ in strips]),
        draw_order=20.0,
    )


def tips(marks: Sequence[Mark]) -> rr.AsComponents:
    """The last pieces of the marks that are arrows."""
    arrows = [mark for mark in marks if mark.arrow]
    return rr.Arrows2D(
        origins=[mark.points[-2] for mark in arrows],
        vectors=[mark.points[-1] - mark.points[-2] for mark in arrows],
        colors=[mark.colour for mark in arrows],
        radii=rr.Radius.ui_points([mark.width for mark in arrows]),
        draw_order=21.0,
    )


def captions(marks: Sequence[Mark], size: tuple[int, int]) -> rr.AsComponents:
    """What the marks say, in lines of their colours below a picture of size (H, W)."""
    (height, width), said = size, [mark for mark in marks if mark.label]
    return rr.Points2D(
        [(width / 2, height * (1.04 + 0.09 * row)) for row in range(len(said))],
        radii=0.0,
        colors=[mark.colour for mark in said],
        labels=[mark.label for mark in said],
        show_labels=True,
        draw_order=23.0,
    )


def caps(keys: Sequence[Key]) -> rr.AsComponents:
    """Key caps; those that are held have a thick bright frame."""
    return rr.Boxes2D(
        centers=[key.centre for key in keys],
        half_sizes=[(key.half, key.half) for key in keys],
        colors=[OTHER_COLOUR if key.held else FRAME_COLOUR for key in keys],
        radii=[key.half * (0.2 if key.held else 0.05) for key in keys],
        draw_order=22.0,
    )


def signs(keys: Sequence[Key]) -> rr.AsComponents:
    """What stands on the key caps; labels hang below their points."""
    return rr.Points2D(
        [(key.centre[0], key.centre[1] - 0.8 * key.half) for key in keys],
        radii=0.0,
        colors=[OTHER_COLOUR if key.held else FRAME_COLOUR for key in keys],
        labels=[key.sign for key in keys],
        show_labels=True,
        draw_order=23.0,
    )
