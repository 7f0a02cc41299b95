from __future__ import annotations

import cv2
import numpy as np
import pytest

from astra_env.actions import ACTION_MODALITIES
from astra_env.cli import main
from astra_env.pictures import GAP, LINE, contact_sheet, encode_image, enlarged, with_action, write_image
from astra_env.video import read_image, read_video, video_info, write_video

CAR = ACTION_MODALITIES["vehicle"]


def pictures(num, height=8, width=12, seed=0):
    return np.random.default_rng(seed).integers(256, size=(num, height, width, 3), dtype=np.uint8)


def colourful(num=12, size=48):
    """Squares of changing colours that wander over a gradient."""
    frames = np.empty((num, size, size, 3), np.uint8)
    frames[:] = np.linspace(40, 200, size)[:, None, None]
    for index in range(num):
        frames[index, 10:20, 2 * index : 2 * index + 10] = (20, 60 + 10 * index, 220)
    return frames


@pytest.mark.parametrize("fps", [20, 12.5, 25])
def test_a_gif_has_every_frame_at_its_time_and_in_its_colours(tmp_path, fps):
    frames = colourful()
    write_video(tmp_path / "clip.gif", frames, fps)
    count, rate = video_info(tmp_path / "clip.gif")
    assert count == 12 and rate == pytest.approx(fps, rel=0.02)
    assert np.abs(read_video(tmp_path / "clip.gif").astype(int) - frames).mean() < 3
    assert b"NETSCAPE2.0" in (tmp_path / "clip.gif").read_bytes()  # which repeats
    assert [path.name for path in tmp_path.iterdir()] == ["clip.gif"]


@pytest.mark.parametrize(
    "frames", [np.zeros((5, 16, 16, 3), np.uint8), colourful(1)[:, :31, :33]], ids=["still", "one"]
)
def test_gifs_of_little(tmp_path, frames):
    write_video(tmp_path / "clip.gif", list(frames), 10)
    read = read_video(tmp_path / "clip.gif")
    assert read.shape == frames.shape and np.abs(read.astype(int) - frames).mean() < 3


def test_enlarged_pixels_are_squares():
    frames = pictures(2)
    large = enlarged(frames, 40)
    assert large.shape == (2, 24, 36, 3)
    np.testing.assert_array_equal(large[:, 1::3, 2::3], frames)
    np.testing.assert_array_equal(enlarged(frames, 5), frames)


def test_the_action_stands_below_the_picture():
    frames = pictures(3, 200, 320)
    rest, steered = (with_action(frames, CAR, np.array([angle, 0], np.float32)) for angle in (0, 0.5))
    assert rest.shape == (3, 250, 320, 3)
    np.testing.assert_array_equal(rest[:, :200], frames)
    assert (rest != steered)[:, 200:, :160].any() and not (rest != steered)[:, :, 160:].any()
    assert not with_action(frames, CAR, None)[:, 200:].any()


def test_a_contact_sheet_shows_every_picture_in_its_row():
    rows = [pictures(3), pictures(2, seed=1)]
    sheet = contact_sheet(rows, scale=2)
    height, width = 16 + GAP, 24 + GAP
    assert sheet.shape == (2 * height, 3 * width, 3)
    for r, row in enumerate(rows):
        for k, picture in enumerate(row):
            part = sheet[r * height : r * height + 16, k * width : k * width + 24]
            np.testing.assert_array_equal(part[::2, 1::2], picture)
    assert (sheet[height:, 2 * width :] == 255).all()
    labelled = contact_sheet(rows, ["first", ""], scale=2)
    assert labelled.shape[0] == sheet.shape[0] + 2 * LINE
    assert (labelled[:LINE] < 128).any() and (labelled[LINE + height : 2 * LINE + height] == 255).all()


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        ([], None, "needs rows"),
        ([pictures(0)], None, "needs rows"),
        ([pictures(1)[0]], None, "needs rows"),
        ([pictures(1)], ["a", "b"], "1 rows got 2 labels"),
    ],
)
def test_a_contact_sheet_of_something_else_is_an_error(rows, labels, message):
    with pytest.raises(ValueError, match=message):
        contact_sheet(rows, labels)


def test_pictures_survive_their_files(tmp_path):
    picture = cv2.resize(pictures(1)[0], (96, 64), interpolation=cv2.INTER_CUBIC)
    write_image(tmp_path / "new" / "a.png", picture)
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "a.png"), picture)
    for suffix in ("jpg", "webp"):
        write_image(tmp_path / f"a.{suffix}", picture)
        assert np.abs(read_image(tmp_path / f"a.{suffix}").astype(int) - picture).mean() < 20
    assert len(encode_image(picture, ".webp", quality=20)) < len(encode_image(picture, ".webp", quality=90))
    with pytest.raises(ValueError, match=r"cannot be written as '.bmp', expected one of \('.png'"):
        write_image(tmp_path / "a.bmp", picture)
    assert sorted(path.name for path in tmp_path.rglob("a*")) == ["a.jpg", "a.png", "a.webp"]


@pytest.mark.parametrize("video", ["one.gif", "one.mp4"])
def test_a_rollout_is_shown_with_its_actions(checkpoint, tmp_path, video):
    common = ["rollout", "Astra-MultiCam-v0", "--world-model", checkpoint, "--steps", "7"]
    main([*common, "--video", str(tmp_path / video), "--contact-sheet", str(tmp_path / "one.png")])
    assert video_info(tmp_path / video) == (1 + 4 * 7, 20.0)
    assert read_video(tmp_path / video).shape[1:] == (400, 320, 3)
    sheet = read_image(tmp_path / "one.png")
    assert sheet.shape == (2 * (LINE + 400 + GAP), 5 * (320 + GAP), 3)
    assert not sheet[LINE + 320 : LINE + 400, :320].any()  # nothing led to the start
    assert (sheet[LINE + 320 : LINE + 400, 322:642] > 128).any()
