from __future__ import annotations

import subprocess
import sys

import av
import cv2
import numpy as np
import pytest

from astra_env.actions import ACTION_MODALITIES
from astra_env.video import (
    draw_action,
    read_image,
    read_video,
    resize_frames,
    side_by_side,
    video_info,
    write_video,
)


def moving_square(num_frames=12, height=64, width=64):
    frames = np.full((num_frames, height, width, 3), (200, 120, 40), dtype=np.uint8)
    for index in range(num_frames):
        frames[index, 20:30, 2 * index : 2 * index + 10] = (20, 60, 220)
    return frames


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 63)])
def test_a_video_survives_writing_and_reading(tmp_path, height, width):
    frames = moving_square(height=height, width=width)
    write_video(tmp_path / "new" / "clip.mp4", frames, fps=20)
    decoded = read_video(tmp_path / "new" / "clip.mp4")
    assert decoded.shape == (12, height + height % 2, width + width % 2, 3)
    assert np.abs(decoded[:, :height, :width].astype(int) - frames).mean() < 4
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["clip.mp4"]


def test_a_video_is_h264_at_its_rate(tmp_path):
    write_video(tmp_path / "clip.mp4", moving_square(), fps=12.5)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert float(stream.average_rate) == 12.5


def test_frames_of_a_wrong_kind_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"uint8 RGB frames of shape \(T, H, W, 3\), got float64 \(2, 8, 8, 3\)"):
        write_video(tmp_path / "clip.mp4", np.zeros((2, 8, 8, 3)), fps=20)
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(tmp_path / "clip.mp4", np.zeros((0, 8, 8, 3), dtype=np.uint8), fps=20)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("reader", [read_image, read_video])
def test_a_missing_or_foreign_file_is_named(tmp_path, reader):
    with pytest.raises(ValueError, match=r"missing\.file.*(PNG|MP4)"):
        reader(tmp_path / "missing.file")
    (tmp_path / "notes.txt").write_text("not a picture")
    with pytest.raises(ValueError, match=r"notes\.txt.*(PNG|MP4)"):
        reader(tmp_path / "notes.txt")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match=r"empty\.png"):
        reader(tmp_path / "empty.png")


def test_an_image_is_read_as_rgb(tmp_path):
    picture = moving_square()[3]
    cv2.imwrite(str(tmp_path / "picture.png"), picture[..., ::-1])
    np.testing.assert_array_equal(read_image(tmp_path / "picture.png"), picture)
    cv2.imwrite(str(tmp_path / "grey.png"), picture[..., 0])
    assert read_image(tmp_path / "grey.png").shape == (64, 64, 3)


def test_resizing_crops_about_the_centre_and_keeps_the_aspect():
    wide = np.zeros((2, 40, 120, 3), dtype=np.uint8)
    wide[:, :, 40:80] = 255
    resized = resize_frames(wide, (20, 20))
    assert resized.shape == (2, 20, 20, 3)
    assert resized.min() == 255  # only the middle third is left
    assert resize_frames(wide[0], (80, 240)).shape == (80, 240, 3)
    assert resize_frames(wide, (40, 120)) is wide


def test_shrinking_averages_instead_of_skipping_pixels():
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    np.testing.assert_allclose(resize_frames(stripes, (32, 32)), 100, atol=1)


@pytest.mark.parametrize("modality", ACTION_MODALITIES.values(), ids=ACTION_MODALITIES)
def test_every_field_of_an_action_shows_in_its_own_column(modality):
    frame = np.full((256, 70 * modality.action_dim, 3), 90, dtype=np.uint8)
    rest = np.zeros(modality.action_dim, dtype=np.float32)
    at_rest = draw_action(frame, modality, rest)
    assert (frame == 90).all()
    for index in range(modality.action_dim):
        action = rest.copy()
        action[index] = modality.high[index]
        changed = (draw_action(frame, modality, action) != at_rest).any((0, 2)).nonzero()[0]
        assert changed.size
        assert index * 70 <= changed.min()
        assert changed.max() < (index + 1) * 70


def test_bars_tell_the_sign():
    modality = ACTION_MODALITIES["end_effector"]
    frame = np.zeros((256, 448, 3), dtype=np.uint8)
    up, down = (
        draw_action(frame, modality, np.array([dx, 0, 0, 0, 0, 0, 0], dtype=np.float32)) for dx in (0.05, -0.05)
    )
    coloured = [(picture[:, :64] == (96, 178, 255)).all(-1).nonzero()[0] for picture in (up, down)]
    assert coloured[0].max() <= coloured[1].min()


def test_side_by_side_keeps_both_videos():
    left, right = moving_square(), 255 - moving_square()
    joined = side_by_side(left, right, ("a", "b"))
    assert joined.shape == (12, 64, 132, 3)
    np.testing.assert_array_equal(joined[:, 30:, :64], left[:, 30:])
    np.testing.assert_array_equal(joined[:, 30:, 68:], right[:, 30:])
    assert (joined[:, :20, :20] != left[:, :20, :20]).any()
    with pytest.raises(ValueError, match="equal lengths and heights"):
        side_by_side(left, right[:-1], ("a", "b"))


@pytest.mark.parametrize("fps", [10, 29.97])
def test_a_part_of_a_video_is_that_part_of_the_whole(tmp_path, fps):
    path = tmp_path / "long.mp4"
    steps = np.arange(70, dtype=np.uint8)[:, None, None, None]
    write_video(path, 3 * steps * np.ones((1, 32, 48, 3), np.uint8), fps)
    whole = read_video(path)
    count, rate = video_info(path)
    assert count == len(whole) == 70 and rate == pytest.approx(fps, rel=1e-3)
    for start, stop in ((0, 5), (33, 41), (69, 70), (50, None)):
        np.testing.assert_array_equal(read_video(path, start=start, stop=stop), whole[start:stop])
    small = read_video(path, start=60, stop=62, size=(16, 16))
    np.testing.assert_array_equal(small, resize_frames(whole[60:62], (16, 16)))
    with pytest.raises(ValueError, match=r"holds 70 video frames where frames 65 to 75 were expected"):
        read_video(path, start=65, stop=75)
    with pytest.raises(ValueError, match="cannot be read as a video"):
        video_info(tmp_path / "nothing.mp4")


def test_reading_a_part_ends_whatever_the_decoder_logs(tmp_path):
    """With threads that decode frames ahead, leaving early waits for ever once a log level is set."""
    path = tmp_path / "long.mp4"
    write_video(path, moving_square(60), 10)
    code = (
        "import av; av.logging.set_level(av.logging.ERROR)\n"
        "from astra_env.video import read_video\n"
        f"for start in range(30): assert len(read_video({str(path)!r}, start=start, stop=start + 3)) == 3"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_more_key_frames_make_a_larger_file_of_the_same_pictures(tmp_path):
    frames = moving_square(60)
    for name, every in (("few", None), ("many", 2)):
        write_video(tmp_path / f"{name}.mp4", frames, 10, key_every=every)
    few, many = (tmp_path / f"{name}.mp4" for name in ("few", "many"))
    assert many.stat().st_size > few.stat().st_size
    assert np.abs(read_video(many).astype(int) - read_video(few)).mean() < 1
