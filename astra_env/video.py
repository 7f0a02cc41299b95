"""Reading, writing, resizing and labelling uint8 frames.

Frames are RGB arrays of shape (T, H, W, 3) and one picture is (H, W, 3), both uint8.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from astra_env.actions import ActionModality

_INK = (255, 255, 255)
_SHADE = (18, 20, 26)
# Bars are coloured by what they measure: metres, radians, and anything else.
_BAR_COLOURS = {"m": (96, 178, 255), "rad": (255, 176, 84)}
_OTHER_COLOUR = (122, 226, 140)
# Filters that turn frames into 256 colours; differences between frames count most, and dots do not crawl.
_PALETTE = (
    ("split", ""),
    ("palettegen", "stats_mode=diff"),
    ("paletteuse", "dither=bayer:bayer_scale=4:diff_mode=rectangle"),
)


def read_video(
    path: str | Path, *, start: int = 0, stop: int | None = None, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Decodes a video file, or frames `start` to `stop` of it, to uint8 frames (T, H, W, 3).

    Frames are counted, not timed. A late start is found through the file's index, and `size` (height, width) crops and
    resizes each frame as it comes, so that neither a long nor a large video has to fit into memory.

    Raises:
        ValueError: when the file is missing, holds no video that can be decoded, or ends before `stop`.
    """
    frames = []
    try:
        with av.open(str(path)) as container:
            for index, frame in _decoded(container, start):
                if stop is not None and index >= stop:
                    break
                picture = frame.to_ndarray(format="rgb24")
                frames.append(picture if size is None else resize_frames(picture, size))
    except (OSError, av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} cannot be read as a video ({error}); MP4, WebM, MKV and GIF work") from error
    if not frames or (stop is not None and len(frames) < stop - start):
        wanted = "" if stop is None else f" where frames {start} to {stop} were expected"
        raise ValueError(
            f"{path} holds {start + len(frames) or 'no'} video frames{wanted}; MP4, WebM, MKV and GIF work"
        )
    return np.stack(frames)


def _decoded(container: av.container.InputContainer, start: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """Numbered frames from `start` on: sought by their time where all frames last equally long, else counted."""
    stream = container.streams.video[0]
    # Threads over frames dead-lock with PyAV's log, which torchvision turns on, where a video is left before its end.
    stream.thread_type = "SLICE"
    step = 1 / (stream.average_rate * stream.time_base) if stream.average_rate and stream.time_base else None
    first = stream.start_time or 0
    if start and step is not None and stream.average_rate == stream.base_rate:
        container.seek(int(first + start * step), stream=stream)
        for frame in container.decode(stream):
            index = round((frame.pts - first) / step) if frame.pts is not None else 0
            if index >= start:
                yield index, frame
        return
    for index, frame in enumerate(container.decode(stream)):
        if index >= start:
            yield index, frame


def video_info(path: str | Path) -> tuple[int, float]:
    """Number of frames and frames a second of a video file; counts packets where the file does not tell.

    Raises:
        ValueError: when the file is missing or holds no video.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            count = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
            return count, float(stream.average_rate or 0)
    except (OSError, av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} cannot be read as a video ({error}); MP4, WebM, MKV and GIF work") from error


def write_video(
    path: str | Path, frames: np.ndarray | Sequence[np.ndarray], fps: float, *, key_every: int | None = None
) -> None:
    """Writes uint8 frames (T, H, W, 3) as an H.264 MP4, or where the name ends in .gif as a GIF that repeats for ever.

    The file appears under its name only when complete. H.264 stores colour at half resolution, so an odd
    height or width is padded by one pixel that repeats the edge. One frame in `key_every` is stored whole: few make a
    small file, many are quick to read from anywhere; by the encoder's own rule if None. A GIF has 256 colours, chosen
    for the whole video, and shows frames for whole hundredths of a second.
    """
    frames = _checked(np.asarray(frames), ndim=4)
    if len(frames) == 0 or fps <= 0:
        raise ValueError(f"a video needs at least one frame and fps > 0, got {len(frames)} frames at {fps} fps")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished, rate = path.with_name(path.name + ".tmp"), Fraction(fps).limit_denominator(1001)
    if path.suffix.lower() == ".gif":
        _write_gif(unfinished, frames, rate)
    else:
        _write_mp4(unfinished, frames, rate, key_every)
    unfinished.replace(path)


def _write_mp4(path: Path, frames: np.ndarray, rate: Fraction, key_every: int | None) -> None:
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "16", "preset": "medium"}
        if key_every is not None:
            stream.options = {**stream.options, "g": str(key_every)}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _write_gif(path: Path, frames: np.ndarray, rate: Fraction) -> None:
    """Colours are chosen from all frames, then every frame is painted with them."""
    height, width = frames.shape[1:3]
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=width, height=height, format=av.VideoFormat("rgb24", width, height), time_base=1 / rate
    )
    split, choose, paint = (graph.add(name, options) for name, options in _PALETTE)
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(paint, 0, 0)
    split.link_to(choose, 1, 0)
    choose.link_to(paint, 0, 1)
    paint.link_to(sink)
    graph.configure()
    for index, frame in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        picture.pts, picture.time_base = index, 1 / rate
        source.push(picture)
    source.push(None)
    with av.open(str(path), "w", format="gif", options={"loop": "0"}) as container:
        stream = container.add_stream("gif", rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "pal8"
        for _ in range(len(frames)):
            container.mux(stream.encode(graph.vpull()))
        container.mux(stream.encode())


def read_image(path: str | Path) -> np.ndarray:
    """Reads a picture file to uint8 (H, W, 3); grey pictures gain colour channels and alpha is dropped.

    Raises:
        ValueError: when the file is missing or is no picture that can be decoded.
    """
    try:
        encoded = np.frombuffer(Path(path).read_bytes(), dtype=np.uint8)
    except OSError as error:
        raise ValueError(
            f"image {path} cannot be opened ({error.strerror}); give a PNG, JPEG, WebP or BMP file"
        ) from error
    image = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None
    if image is None:
        raise ValueError(f"{path} is not a readable image; give a PNG, JPEG, WebP or BMP file")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def resize_frames(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Crops frames about their centre to the aspect of `size` and resizes them.

    Args:
        frames: uint8 (H, W, 3) or (T, H, W, 3).
        size: height and width of the result, in pixels.

    Returns:
        uint8 frames of the same rank; a fresh array unless the size is already right.
    """
    frames = _checked(frames, ndim=frames.ndim if frames.ndim in (3, 4) else 4)
    height, width = size
    if frames.shape[-3:-1] == (height, width):
        return frames
    old_height, old_width = frames.shape[-3:-1]
    scale = min(old_height / height, old_width / width)
    crop_height, crop_width = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (old_height - crop_height) // 2, (old_width - crop_width) // 2
    cropped = frames[..., top : top + crop_height, left : left + crop_width, :]
    # Area averaging keeps shrunken pictures free of aliasing; it has nothing to average when enlarging.
    method = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    pictures = cropped.reshape(-1, crop_height, crop_width, 3)
    resized = np.stack([cv2.resize(picture, (width, height), interpolation=method) for picture in pictures])
    return resized.reshape(*frames.shape[:-3], height, width, 3)


def draw_action(frame: np.ndarray, modality: ActionModality, action: np.ndarray) -> np.ndarray:
    """Draws an action as labelled bars over the lower edge of a picture.

    Every field of the modality is one bar between its bounds: upward from the zero line for positive values,
    downward for negative ones, with the value in the field's unit below it.

    Args:
        frame: uint8 (H, W, 3), at least about 250 pixels wide for the labels to be legible.
        modality: names, units and bounds of the action.
        action: float (A,) in the modality's units.

    Returns:
        A new uint8 picture of the same shape.
    """
    frame = _checked(frame, ndim=3).copy()
    height, width = frame.shape[:2]
    band = max(48, height // 5)
    top = height - band
    frame[top:] = (0.35 * frame[top:] + 0.65 * np.array(_SHADE)).astype(np.uint8)
    column = width / len(modality.fields)
    text_scale = min(0.42, column / 130)
    for index, (field, unit, value) in enumerate(zip(modality.fields, modality.units, action, strict=True)):
        left = round(index * column)
        low, high = min(float(modality.low[index]), 0.0), max(float(modality.high[index]), 0.0)
        _draw_bar(frame, (left, top + 18, round(column), band - 39), (float(value), low, high), unit)
        _draw_text(frame, field, (left + round(column / 2), top + 13), text_scale)
        _draw_text(
            frame,
            f"{value:+.2f}" if low < 0 else f"{value:.2f}",
            (left + round(column / 2), height - 5),
            text_scale,
        )
    return frame


def side_by_side(left: np.ndarray, right: np.ndarray, labels: tuple[str, str]) -> np.ndarray:
    """Joins two videos, or two pictures, of equal height along their widths and labels each in its corner.

    Args:
        left: uint8 (T, H, W, 3) or (H, W, 3).
        right: the same rank, length and height.
        labels: text for the upper left corner of each.

    Returns:
        uint8 frames with a thin dark line between the two.
    """
    if left.ndim != right.ndim or left.shape[:-2] != right.shape[:-2]:
        raise ValueError(f"frames to join need equal lengths and heights, got {left.shape} and {right.shape}")
    line = np.full((*left.shape[:-2], 4, 3), _SHADE, dtype=np.uint8)
    joined = np.concatenate([left, line, right], axis=-2)
    for picture in joined.reshape(-1, *joined.shape[-3:]):
        for text, start in zip(labels, (0, left.shape[-2] + 4), strict=True):
            _draw_label(picture, text, start)
    return joined


def _checked(frames: np.ndarray, ndim: int) -> np.ndarray:
    """Returns the frames when they are uint8 RGB of the given rank."""
    if frames.dtype != np.uint8 or frames.ndim != ndim or frames.shape[-1] != 3:
        expected = "(T, H, W, 3)" if ndim == 4 else "(H, W, 3)"
        raise ValueError(f"expected uint8 RGB frames of shape {expected}, got {frames.dtype} {frames.shape}")
    return frames


def _draw_bar(frame: np.ndarray, box: tuple[int, int, int, int], value: tuple[float, float, float], unit: str) -> None:
    """Fills a bar from zero to a value inside a box (left, top, width, height), in place.

    `value` is (value, low, high) with low <= 0 <= high, drawn to scale over the height of the box.
    """
    left, top, width, height = box
    amount, low, high = value
    per_unit = height / max(high - low, 1e-9)
    zero = top + round(high * per_unit)
    tip = top + round((high - float(np.clip(amount, low, high))) * per_unit)
    half = max(3, width // 7)
    centre = left + width // 2
    colour = _BAR_COLOURS.get(unit, _OTHER_COLOUR)
    cv2.rectangle(frame, (centre - half, top), (centre + half, top + height), (70, 74, 84), 1)
    if tip != zero:
        cv2.rectangle(frame, (centre - half, min(zero, tip)), (centre + half, max(zero, tip)), colour, -1)
    cv2.line(frame, (centre - half - 3, zero), (centre + half + 3, zero), _INK, 1)


def _draw_text(frame: np.ndarray, text: str, centre: tuple[int, int], scale: float) -> None:
    """Writes text centred over a point of its baseline, in place."""
    (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    position = (centre[0] - width // 2, centre[1])
    cv2.putText(frame, text, position, cv2.FONT_HERSHEY_SIMPLEX, scale, _INK, 1, cv2.LINE_AA)


def _draw_label(frame: np.ndarray, text: str, left: int) -> None:
    """Writes text on a dark plate in the upper corner that starts at column `left`, in place."""
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)
    cv2.rectangle(frame, (left, 0), (left + width + 12, height + 12), _SHADE, -1)
    cv2.putText(frame, text, (left + 6, height + 5), cv2.FONT_HERSHEY_SIMPLEX, 0.45, _INK, 1, cv2.LINE_AA)
