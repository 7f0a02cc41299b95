"""What goes over the wire: inputs become actions, and pictures come whole or not at all."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from play_pages import file_of

from astra_env.actions import ACTION_MODALITIES
from astra_env.play.controls import WORDS, Controls, heading
from astra_env.play.packets import encode_pictures, pack, read_upload, unpack


@pytest.mark.parametrize("name", ACTION_MODALITIES)
def test_keys_are_those_of_the_table(name):
    modality = ACTION_MODALITIES[name]
    for key in modality.keys:
        controls = Controls(modality)
        controls.receive({"keys": {key: 1}})
        np.testing.assert_array_equal(controls.action(), modality.from_keys([key]))
    for row in Controls(modality).legend():
        assert row["word"] in {word for pair in WORDS[name].values() for word in pair}


@pytest.mark.parametrize("name", ACTION_MODALITIES)
def test_left_is_left(name):
    modality, controls = ACTION_MODALITIES[name], Controls(ACTION_MODALITIES[name])
    controls.receive({"keys": {"left": 1}})
    pose = modality.integrate(np.eye(4), [controls.action()] * 2, speed=3.0)[-1]
    assert heading(pose, modality) > 0.1
    controls.receive({"keys": {"right": 0.5}})
    pose = modality.integrate(np.eye(4), [controls.action()] * 2, speed=3.0)[-1]
    assert heading(pose, modality) < -0.05


def test_arrows_stand_for_letters_where_they_mean_nothing_else():
    controls = Controls(ACTION_MODALITIES["vehicle"])
    controls.receive({"keys": {"up": 1, "left": 0.5}})
    np.testing.assert_allclose(controls.action(), [0.3, 3.0])
    controls.receive({"keys": {"a": 1, "right": 1}})  # cancel, as does what is let go before the next step
    np.testing.assert_allclose(controls.action(), [0.0, 0.0], atol=1e-6)


def test_a_tap_between_two_steps_counts_once():
    controls = Controls(ACTION_MODALITIES["camera"])
    controls.receive({"keys": {"w": 1}})
    controls.receive({"keys": {}, "mouse": [10, 0]})
    action = controls.action()
    assert action[2] == np.float32(0.2) and action[5] == np.float32(0.02)
    assert not controls.action().any()


def test_an_absolute_field_is_toggled_or_set():
    controls = Controls(ACTION_MODALITIES["end_effector"])
    seen = []
    for keys in ({"space": 1}, {"space": 1, "w": 1}, {}, {"space": 1}, {}):
        controls.receive({"keys": keys})
        seen.append(controls.action()[6])
    assert seen == [1, 1, 1, 0, 0]
    controls.receive({"sliders": {"gripper": 0.25, "dx": 7}})
    np.testing.assert_allclose(controls.action()[[0, 6]], [0.05, 0.25])


@pytest.mark.parametrize(
    "message",
    [
        {"keys": {"y": 1}},
        {"keys": {"w": "much"}},
        {"keys": ["w"]},
        {"sliders": {"height": 1}},
        {"sliders": {"dx": float("nan")}},
        {"mouse": [1]},
        {"mouse": [True, 0]},
        {"id": "first"},
        {"id": 10**400},
    ],
)
def test_a_wrong_input_is_one_sentence_and_nothing_of_it_counts(message):
    controls = Controls(ACTION_MODALITIES["end_effector"])
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        controls.receive({"keys": {"space": 1, "w": 1}} | message)
    assert not controls.action().any()


# Pictures


def test_packets_hold_the_pictures():
    frames = np.zeros((2, 16, 24, 3), np.uint8)
    frames[..., 0], frames[1] = 200, 40
    header, pictures = unpack(pack({"branches": [{"by": "you"}, {}]}, [encode_pictures(frames)] * 2))
    assert header["branches"][0]["by"] == "you" and [len(files) for files in pictures] == [2, 2]
    for file, frame in zip(pictures[1], frames, strict=True):
        assert np.abs(read_upload(file).astype(int) - frame).max() < 8


def test_uploads_are_read_upright_and_bounded():
    picture = Image.new("RGB", (40, 20), (250, 10, 10))
    picture.paste((10, 10, 250), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    upright = read_upload(file_of(picture, "JPEG", exif=exif, quality=95))
    assert upright.shape == (40, 20, 3) and upright[5, 10, 2] > 200 > upright[35, 10, 2]
    assert read_upload(file_of(Image.new("LA", (9, 9)))).shape == (9, 9, 3)
    bomb = file_of(Image.new("1", (8000, 6000)))
    for content, told in ((bomb, "40 million"), (b"GIF89a", "no picture"), (b"", "no picture"), (bytes(9 << 20), "MB")):
        with pytest.raises(ValueError, match=told):
            read_upload(content)
    with pytest.raises(ValueError, match="no picture"):
        read_upload(file_of(picture, "PNG")[:60])


@pytest.mark.filterwarnings("ignore:::PIL")
def test_damaged_uploads_are_told_in_our_words():
    told, exif = set(), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    for kind in ("JPEG", "PNG"):
        whole = file_of(Image.new("RGB", (4, 4)), kind, exif=exif)
        for place in range(120):
            for wrong in (8, 24, 63):
                try:
                    read_upload(whole[:place] + bytes([wrong]) + whole[place + 1 :])
                except ValueError as error:
                    told.add(str(error)[:30])
    assert told == {"This is no picture that can be"}
