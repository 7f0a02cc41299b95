from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings

import cv2
import numpy as np
import pytest
from children import free_port
from rrd import numbers, read

from astra_env.actions import ACTION_MODALITIES
from astra_env.visualization import Recording, log_rollout
from astra_env.visualization.layout import MOST_PICTURES
from benchmarks.recording import viewer_server

MODALITY = ACTION_MODALITIES["end_effector"]
pytestmark = pytest.mark.filterwarnings("error")  # Rerun warns of what it cannot log


def frames(num, *, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (num, size, size, 3), np.uint8)


def moved(x, y=0.0, z=0.0):
    pose = np.eye(4)
    pose[:3, 3] = x, y, z
    return pose


def wait_until(happened):
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def listens(port):
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def test_a_file_appears_whole_when_it_is_closed(tmp_path):
    path = tmp_path / "new" / "out.rrd"
    recording = Recording(path)
    recording.log_frames({"imagined": frames(3)})
    assert not path.exists()
    recording.close()
    recording.close()
    assert [entry.name for entry in path.parent.iterdir()] == ["out.rrd"]
    subprocess.run([sys.executable, "-m", "rerun", "rrd", "verify", str(path)], check=True, capture_output=True)


def test_all_is_told_with_the_time_of_the_world_its_steps_and_the_wall(tmp_path):
    began = time.time()
    with Recording(tmp_path / "out.rrd", modality=MODALITY, fps=20) as recording:
        recording.log_frames({"imagined": frames(1)})
        for reward in (0.5, 1.0):
            recording.log_action(np.zeros(7))
            recording.log_frames({"imagined": frames(4)})
            recording.log_reward(reward, {"goal": reward / 2})
    entities = read(tmp_path / "out.rrd")
    shown = entities["frames/imagined"]
    assert [row.frame for row in shown] == list(range(9))
    np.testing.assert_allclose([row.time for row in shown], np.arange(9) / 20, atol=1e-6)
    assert [row.step for row in shown] == [0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert all(began <= row.wall_time <= time.time() for row in shown)
    # actions stand at the frame that they start from, rewards at the last that they led to
    assert [row.frame for row in entities["action/dx"]] == [0, 4]
    assert [row.frame for row in entities["reward/total"]] == [4, 8]
    assert numbers(entities, "reward/terms/goal") == [0.25, 0.5]


def test_pictures_are_jpeg_unless_every_bit_is_wanted(tmp_path):
    picture = cv2.GaussianBlur(frames(1, size=64)[0], (0, 0), 4)
    for quality, name in ((92, "lossy"), (None, "exact")):
        with Recording(tmp_path / name, jpeg_quality=quality) as recording:
            recording.log_frames({"imagined": picture[None]})
    lossy, exact = (read(tmp_path / name)["frames/imagined"][0].values for name in ("lossy", "exact"))
    decoded = cv2.imdecode(np.array(lossy["EncodedImage:blob"][0], np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB).astype(float) - picture).mean() < 4
    np.testing.assert_array_equal(np.array(exact["Image:buffer"][0], np.uint8).reshape(picture.shape), picture)


def test_who_moves_leaves_a_line_behind(tmp_path):
    with Recording(tmp_path / "out.rrd", modality=MODALITY) as recording:
        recording.log_frames({"imagined": frames(1)}, moved(0)[None])
        recording.log_frames({"imagined": frames(2)}, np.stack([moved(1), moved(2)]))
        recording.begin_episode()
        recording.log_frames({"imagined": frames(2)}, np.stack([moved(7), moved(8)]))
    entities = read(tmp_path / "out.rrd")
    places = [row.values["Transform3D:translation"][0][0] for row in entities["world/body"] if len(row.values) < 3]
    assert places == [0, 1, 2, 7, 8]
    ways = [np.array(row.values["LineStrips3D:strips"][0])[:, 0].tolist() for row in entities["world/way"]]
    assert ways == [[0, 1, 2], [7, 8]]


def test_a_camera_stands_in_space_with_its_picture(tmp_path):
    with Recording(tmp_path / "out.rrd", modality=ACTION_MODALITIES["camera"]) as recording:
        recording.log_frames({"imagined": frames(1, size=32)}, np.eye(4)[None])
    names = {name for row in read(tmp_path / "out.rrd")["frames/imagined"] for name in row.values}
    assert {"Pinhole:image_from_camera", "Transform3D:translation", "EncodedImage:blob"} <= names


def test_plans_are_a_fan_from_bad_to_good_with_the_chosen_one_in_front(tmp_path):
    plans = np.stack([np.stack([moved(0), moved(step, end)]) for step, end in ((1, 0), (1, 1), (1, 2))])
    with Recording(tmp_path / "out.rrd", modality=MODALITY) as recording:
        recording.log_frames({"imagined": frames(1)})
        recording.log_candidates(plans, np.array([0.3, 0.9, 0.1]))
        recording.log_frames({"imagined": frames(1)})
        recording.log_candidates(plans, np.array([np.nan, 0.9, 0.1]))
        recording.log_candidates(plans, np.full(3, -np.inf))
        recording.log_plan(np.array([[0.1, 0.0], [0.9, 0.2]]))
        with pytest.raises(ValueError, match=r"poses \(3, 2, 4, 4\) and scores \(2,\), expected"):
            recording.log_candidates(plans, np.zeros(2))
    entities = read(tmp_path / "out.rrd")
    fan, best = (entities[f"world/plans/{name}"][0].values for name in ("considered", "chosen"))
    assert [strip[-1][1] for strip in fan["LineStrips3D:strips"]] == [2, 0, 1]
    assert len(set(fan["LineStrips3D:colors"])) == 3
    (_, finite), (_, better) = entities["world/plans/considered"], entities["world/plans/chosen"]  # of the second frame
    assert [strip[-1][1] for strip in finite.values["LineStrips3D:strips"]] == [2, 1]
    assert better.values["LineStrips3D:strips"] == best["LineStrips3D:strips"]
    assert best["LineStrips3D:strips"] == [fan["LineStrips3D:strips"][-1]]
    # negative radii are points of the screen
    assert abs(best["LineStrips3D:radii"][0]) > abs(fan["LineStrips3D:radii"][0])
    assert numbers(entities, "plan/best") == [0.9]
    assert numbers(entities, "plan/gain") == [0.9]


def test_a_fork_goes_on_from_the_present_and_leaves_the_trunk_alone(tmp_path):
    with Recording(tmp_path / "out.rrd", modality=MODALITY) as recording:
        recording.log_frames({"imagined": frames(5)}, np.stack([moved(x) for x in range(5)]))
        left = recording.fork("left")
        for branch, x in ((left, 10), (recording, 20)):
            branch.log_action(np.zeros(7))
            branch.log_frames({"imagined": frames(2)}, np.stack([moved(x), moved(x + 1)]))
        left.close()
        left.fork("further").log_event("here")
    entities = read(tmp_path / "out.rrd")
    assert [row.frame for row in entities["forks/left/frames/imagined"] if len(row.values) == 2][-2:] == [5, 6]
    assert [row.frame for row in entities["frames/imagined"]] == list(range(7))
    assert entities["forks/left/forks/further/events"][0].frame == 6
    ways = [entities[f"{prefix}world/way"][-1].values["LineStrips3D:strips"][0] for prefix in ("", "forks/left/")]
    assert [place[0] for place in ways[0]] == [0, 1, 2, 3, 4, 20, 21]
    assert [place[0] for place in ways[1]] == [0, 1, 2, 3, 4, 10, 11]


def test_a_rollout_shows_real_frames_beside_imagined_ones(tmp_path):
    views = {name: np.zeros((9, 16, 16, 3), np.uint8) for name in ("imagined", "recorded")}
    with Recording(tmp_path / "out.rrd", views=tuple(views), modality=MODALITY) as recording:
        poses = np.stack([moved(0), moved(4), moved(8)])
        log_rollout(recording, views, np.zeros((2, 7), np.float32), np.ones(2), [np.array([[0.1, 0.0]])] * 2, poses)
        assert recording.num_frames == 9
    entities = read(tmp_path / "out.rrd")
    assert len(entities["frames/imagined"]) == len(entities["frames/recorded"]) == 9
    assert [round(place[0]) for place in entities["world/way"][-1].values["LineStrips3D:strips"][0]] == list(range(9))
    assert numbers(entities, "reward/total") == [1, 1]


def test_a_new_episode_takes_away_what_belongs_to_the_last(tmp_path):
    with Recording(tmp_path / "out.rrd", views=("imagined", "recorded"), modality=MODALITY) as recording:
        recording.begin_episode()
        recording.log_picture("frames/goal", frames(1)[0])
        recording.log_frames({"imagined": frames(2), "recorded": frames(2)})
        recording.begin_episode()
        recording.log_frames({"imagined": frames(2)})
    entities = read(tmp_path / "out.rrd")
    for entity in ("world/plans", "world/target"):
        assert "Clear:is_recursive" in entities[entity][-1].values
    for entity in ("frames/recorded", "frames/goal"):
        blob = np.array(entities[entity][-1].values["EncodedImage:blob"][0], np.uint8)
        assert not cv2.imdecode(blob, cv2.IMREAD_COLOR).any()
    assert [row.step for row in entities["frames/imagined"]] == [0, 0, 1, 1]


def test_lengths_that_do_not_fit_are_refused(tmp_path):
    with Recording(tmp_path / "out.rrd") as recording:
        with pytest.raises(ValueError, match="different numbers of frames"):
            recording.log_frames({"imagined": frames(9), "recorded": frames(3)})
        with pytest.raises(ValueError, match="9 frames do not fit 3 actions"):
            log_rollout(recording, {"imagined": frames(9)}, np.zeros((3, 7)))
    recording = Recording(tmp_path / "out.rrd", modality=MODALITY)
    with pytest.raises(ValueError, match=r"has shape \(2,\), expected \(7,\): dx, dy"):
        recording.log_action(np.zeros(2))


def test_a_viewer_elsewhere_gets_what_a_file_would(tmp_path):
    port, saved = free_port(), tmp_path / "saved.rrd"
    url = f"rerun+http://127.0.0.1:{port}/proxy"
    with pytest.raises(ConnectionError, match=f"no Rerun viewer answers at {re.escape(url)}"):
        Recording(url)
    server = [sys.executable, "-m", "rerun", "--serve-grpc", "--bind", "127.0.0.1", "--port", str(port), "--save"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    listening = subprocess.Popen([*server, saved], **quiet)
    try:
        wait_until(lambda: listens(port))
        with Recording(url, modality=MODALITY) as recording:
            recording.log_frames({"imagined": frames(3, size=256)})
        wait_until(lambda: saved.stat().st_size > 200_000)  # noise does not shrink
    finally:
        os.killpg(listening.pid, signal.SIGKILL)  # the program that it started, too
        listening.wait(timeout=30)
    with warnings.catch_warnings(action="ignore"):  # it was cut off
        assert len(read(saved)["frames/imagined"]) == 3


def test_a_viewer_that_was_closed_before_is_no_error():
    with viewer_server() as (port, _):
        recording = Recording(f"rerun+http://127.0.0.1:{port}/proxy")
        recording.log_frames({"imagined": frames(1)})
    recording.log_frames({"imagined": frames(1)})
    recording.close()


def test_a_viewer_that_is_opened_gets_limits_of_memory(monkeypatch):
    opened = {}
    monkeypatch.setattr("astra_env.visualization.stream.rr.spawn", lambda **options: opened.update(options))
    with Recording("spawn") as recording:
        recording.log_frames({"imagined": frames(1)})
    assert opened["memory_limit"].endswith("B") and opened["server_memory_limit"].endswith("B")


def test_all_that_is_shown_has_its_panel(tmp_path):
    from rerun.chunk import RrdReader

    with Recording(tmp_path / "out.rrd", modality=MODALITY) as recording:
        recording.log_frames({"imagined": frames(1)}, np.eye(4)[None])
        recording.log_action(np.zeros(7))
        recording.log_reward(1.0, {})
        recording.fork("left").log_frames({"imagined": frames(1)})
    reader = RrdReader(tmp_path / "out.rrd")
    (store,) = reader.blueprints()
    assert _panels(reader.stream(store=store)) == {
        "imagined": "2D",
        "fork left": "2D",
        "poses and plans": "3D",
        "action [m]": "TimeSeries",
        "action [rad]": "TimeSeries",
        "action [0 open .. 1 closed]": "TimeSeries",
        "reward": "TimeSeries",
    }


def test_many_forks_leave_room_for_each_other(tmp_path):
    from rerun.chunk import RrdReader

    with Recording(tmp_path / "out.rrd", modality=MODALITY) as recording:
        recording.log_frames({"imagined": frames(1)})
        for index in range(30):
            recording.fork(str(index)).log_frames({"imagined": frames(1)})
    reader = RrdReader(tmp_path / "out.rrd")
    (store,) = reader.blueprints()
    assert list(_panels(reader.stream(store=store)).values()).count("2D") == MOST_PICTURES
    assert "forks/29/frames/imagined" in read(tmp_path / "out.rrd")


def _panels(chunks):
    """Name of each panel -> what it shows."""
    batches = [chunk.to_record_batch() for chunk in chunks]
    batches = [batch for batch in batches if "ViewBlueprint:display_name" in batch.schema.names]
    names, kinds = (
        [batch.column(f"ViewBlueprint:{column}").to_pylist()[0][0] for batch in batches]
        for column in ("display_name", "class_identifier")
    )
    return dict(zip(names, kinds, strict=True))


def test_a_missing_package_is_named():
    script = "import sys; sys.modules['rerun'] = None; import astra_env.visualization"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ImportError: recording needs the package rerun-sdk" in done.stderr
