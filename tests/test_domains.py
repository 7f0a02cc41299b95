"""The measurements of several domains, on synthetic recordings and tiny worlds."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from tiny import random_frames, tiny_world_model

from astra_env.actions import ACTION_MODALITIES
from astra_env.kinematics import interpolate_poses
from astra_env.simulators.collect import RECORDINGS
from astra_env.training.episodes import Episodes
from benchmarks.cli import main
from benchmarks.domain_table import CAMERA_MOTION, CAR_MOTION, DOMAINS
from benchmarks.domains import contact_strips
from benchmarks.imagination import START, Bench, open_loop_frames
from benchmarks.motion_following import MotionFollower, Start, chain_errors
from benchmarks.rare import recorded_returns, stopped_starts
from benchmarks.routing import expert_use, forced_expert, misrouted
from benchmarks.runtime import smooth_actions

DIMS = {"end_effector": 7, "vehicle": 2, "camera": 6}
NUM_CHUNKS = 15


def recorded(domain, seed, actions=None, blocked=()):
    """Frames, actions, measured and commanded poses, and speeds of an episode; at blocked chunks nothing moves."""
    modality = ACTION_MODALITIES["vehicle" if domain == "driving" else "camera"]
    low, high = np.array(modality.low), np.array(modality.high)
    actions = smooth_actions(NUM_CHUNKS, seed, low, high) if actions is None else actions
    carried_out = np.where(np.isin(np.arange(NUM_CHUNKS), blocked)[:, None], 0, actions)
    speed = 9.0 if domain == "driving" else 0.0
    times = np.arange(4 * NUM_CHUNKS + 1) / 4
    poses = interpolate_poses(modality.integrate(np.eye(4), carried_out, speed=speed), np.arange(NUM_CHUNKS + 1), times)
    commanded = poses.copy()
    for chunk in blocked:
        commanded[4 * chunk + 4] = modality.integrate(poses[4 * chunk], actions[chunk][None], speed=speed)[1]
    frames = random_frames(1, 4 * NUM_CHUNKS + 1, seed=seed)[0].numpy()
    speeds = speed + np.interp(times, np.arange(NUM_CHUNKS + 1), np.append(0, actions[:, -1].cumsum() / 5))
    return frames, actions, poses, commanded, speeds if domain == "driving" else np.zeros(len(times))


def bench_of(domain, world_model, episodes):
    """A bench over episodes as `recorded` returns them."""
    frames, actions, poses, commanded, speeds = (np.stack(part) for part in zip(*episodes, strict=True))
    labels = torch.zeros(len(frames), NUM_CHUNKS + 1)
    modality = "vehicle" if domain == "driving" else "camera"
    tensors = torch.from_numpy(frames), torch.from_numpy(actions).float()
    missed = np.abs(poses - commanded).max((-2, -1)) > 0.01
    return Bench(
        world_model,
        Episodes(domain, modality, *tensors, labels, labels > 0),
        poses,
        missed[:, 1:].reshape(len(frames), -1, 4).any(-1),
        speeds.astype(np.float32),
        ("a", "b", "b", "c", "c", "c")[: len(frames)],
    )


@pytest.fixture(scope="module")
def world_model():
    return tiny_world_model(action_dims=DIMS)


@pytest.fixture(scope="module")
def bench(world_model):
    return bench_of("camera", world_model, [recorded("camera", seed) for seed in range(6)])


def test_every_domain_that_can_be_recorded_is_measured():
    assert DOMAINS.keys() == RECORDINGS.keys()


# 1. Following


@dataclasses.dataclass
class ToyWorld:
    """Its frames hold the sum of all motions so far, as numbers; it does `obedience` times what it is told."""

    obedience: float
    modality: str
    device = torch.device("cpu")
    modalities: ClassVar = ACTION_MODALITIES

    @property
    def autoencoder(self):
        blank = SimpleNamespace(encode=lambda frames: frames, decode_video=self._blank)
        return blank

    def _blank(self, frames):
        return torch.zeros(*frames.shape[:2], 1, 1, DIMS[self.modality])

    def init_state(self, frames, modality, actions, speeds):
        return torch.zeros(2, len(frames), DIMS[modality])

    def step(self, state, actions):
        total, moving = state
        if self.modality == "vehicle":  # speed and yaw rate, which go on
            moving = torch.stack([moving[:, 0] + 0.2 * actions[:, 1], actions[:, 0]], dim=-1)
        else:
            moving = actions
        return torch.stack([total + self.obedience * moving, moving])

    def decode(self, state):
        return state, state[0, :, None, None, None].expand(-1, 4, 1, 1, -1)


def read_motions(video):
    """What a perfect estimator tells of `ToyWorld`'s frames; real pictures tell it nonsense."""
    fields = video.shape[-1] if video.shape[-1] != 3 else 6
    return video[:, ::4].flatten(2)[..., :fields].double().diff(dim=1)


@pytest.mark.parametrize(("obedience", "share"), [(1.0, 1.0), (0.0, 0.0), (-1.0, 0.0)])
@pytest.mark.parametrize("domain", ["driving", "camera"])
def test_following_tells_an_obedient_world_from_a_stubborn_one(domain, obedience, share):
    modality = "vehicle" if domain == "driving" else "camera"
    toy = bench_of(domain, ToyWorld(obedience, modality), [recorded(domain, seed) for seed in range(6)])
    motion = CAR_MOTION if domain == "driving" else CAMERA_MOTION
    follower = MotionFollower(DOMAINS[domain].probes, motion, read_motions)
    entries = [follower.follow(toy, name, 4) for name in follower.names]
    measured = [entry for entry in entries if entry["num_starts"]]
    assert len(measured) >= 4
    for entry in measured:
        assert entry["right_way"] == share
        assert np.sign(entry["mean_displacement"]) == np.sign(obedience)
        if obedience == 1 and domain == "camera":
            assert entry["mean_displacement"] == pytest.approx(entry["ideal_displacement"], rel=1e-4)


def test_a_reading_that_is_always_too_slow_does_not_hide_an_obedient_car():
    toy = bench_of("driving", ToyWorld(1.0, "vehicle"), [recorded("driving", seed) for seed in range(6)])

    def read_slowly(video):
        steps = torch.arange(video.shape[1] // 4)[:, None]
        return read_motions(video) - steps  # a metre in a second less with every step

    follower = MotionFollower(DOMAINS["driving"].probes, CAR_MOTION, read_slowly)
    assert follower.follow(toy, "accelerate", 4)["right_way"] == 0
    assert follower.follow(toy, "accelerate, not coast", 4)["right_way"] == 1


def test_the_path_errors_vanish_for_a_world_that_does_what_is_commanded():
    episodes = [recorded("camera", seed) for seed in range(3)]
    for obedience in (1.0, 0.0):
        toy = bench_of("camera", ToyWorld(obedience, "camera"), episodes)
        report = chain_errors(toy, MotionFollower({}, CAMERA_MOTION, read_motions), 3)
        assert report["num_windows"] == 3 and report["steps"] == [5, 10]
        for key in ("rotation", "translation"):
            expected = [0.0, 0.0] if obedience else report["standing_still"][key]
            np.testing.assert_allclose(report["imagined"][key], expected, atol=1e-4)
            assert min(report["standing_still"][key]) > 0.01


def test_room_is_where_the_recording_went(world_model):
    actions = np.zeros((NUM_CHUNKS, 6), np.float32)
    actions[6:9, 2] = 0.2
    bench = bench_of("camera", world_model, [recorded("camera", 0, actions)])
    assert Start(bench, 0, 5).room(2, 1) == pytest.approx(0.6, abs=1e-6)
    assert Start(bench, 0, 5).room(2, -1) == 0 and Start(bench, 0, 5).room(0, 1) == pytest.approx(0, abs=1e-6)
    assert Start(bench, 0, 12).room(2, -1) == pytest.approx(0.6, abs=1e-6)


# 2. Rare situations


def test_returns_and_stops_are_found_where_they_were_recorded(world_model):
    still = np.zeros((NUM_CHUNKS, 6), np.float32)
    turning, ahead = still.copy(), still.copy()
    turning[6:9, 5], turning[9:12, 5] = 0.15, -0.15
    ahead[:, 2] = 0.1
    episodes = [
        recorded("camera", 0, still),
        recorded("camera", 1, turning),
        recorded("camera", 2, ahead, blocked=(8, 9, 10, 11)),
    ]
    bench = bench_of("camera", world_model, episodes)
    found = recorded_returns(bench, 5)
    assert found[3] == [(1, 6)] and not any(episode != 1 for starts in found.values() for episode, _ in starts)
    assert [episode for episode, _ in stopped_starts(bench, 5)] == [2]
    chunk = stopped_starts(bench, 5)[0][1]
    assert bench.blocked[2, chunk : chunk + 5].sum() >= 3 and not bench.blocked[2, chunk - 1]


def test_contact_sheets_begin_with_the_rarest_behaviour(bench):
    strips = contact_strips(bench, count=4)
    assert [strip.label for strip in strips[::2]] == ["real, a", "real, b", "real, c", "real, b"]
    assert all(
        torch.equal(real.frames[0], shown.frames[0]) for real, shown in zip(strips[::2], strips[1::2], strict=True)
    )
    assert torch.equal(strips[0].frames[1], bench.heldout.frames[0, 4 * START + 4])


# 3. Routing


def test_wrong_routing_hands_the_network_the_same_numbers_and_changes_the_pictures(bench):
    actions, rows = bench.heldout.actions[:3, :2], torch.arange(2)
    encoded = bench.world_model.normalise(actions, ("camera",) * 3)
    right = open_loop_frames(bench, rows, rows)
    for other in ("vehicle", "end_effector"):
        wrong = misrouted(bench, other)
        torch.testing.assert_close(wrong.world_model.normalise(actions, (other,) * 3), encoded)
        assert not torch.equal(open_loop_frames(wrong, rows, rows), right)
    assert torch.equal(open_loop_frames(misrouted(bench, "camera"), rows, rows), right)
    assert bench.world_model.modalities["vehicle"].name == "vehicle"


def test_a_forced_expert_takes_all_and_leaves_no_trace(bench):
    world_model, use = bench.world_model, expert_use(bench)
    assert sum(use) == pytest.approx(1) and len(use) == 4
    right = open_loop_frames(bench, torch.arange(2), torch.arange(2))
    for expert in range(4):
        with forced_expert(world_model, expert):
            assert expert_use(bench)[expert] == pytest.approx(1)
    with forced_expert(world_model, int(np.argmin(use))):
        assert not torch.equal(open_loop_frames(bench, torch.arange(2), torch.arange(2)), right)
    assert expert_use(bench) == use


# 4. The command


def write_domain(root, domain):
    for split, count, first in (("train", 3, 0), ("heldout", 3, 10)):
        (root / split).mkdir(parents=True)
        for index in range(count):
            frames, actions, poses, commanded, speeds = recorded(domain, first + index)
            modality = ACTION_MODALITIES["vehicle" if domain == "driving" else "camera"]
            meta = {"domain": domain, "behaviour": "toy", "fps": 20, "chunk_frames": 4, "text": ""}
            meta |= {"modality": modality.name, **modality.to_json()}
            arrays = {"speed": speeds.astype(np.float32)} if domain == "driving" else {}
            np.savez_compressed(
                root / split / f"episode_{index:05d}.npz",
                frames=frames,
                actions=actions,
                measured_poses=poses.astype(np.float32),
                commanded_poses=commanded.astype(np.float32),
                reward=np.zeros(NUM_CHUNKS + 1, np.float32),
                success=np.zeros(NUM_CHUNKS + 1, bool),
                meta=np.array(json.dumps(meta)),
                **arrays,
            )
    (root / "dataset.json").write_text(json.dumps({"domain": domain}))
    return root


def test_one_command_measures_the_domains_and_fills_the_readme(world_model, tmp_path, capsys):
    checkpoint = tmp_path / "world"
    world_model.save_pretrained(checkpoint)
    pairs = [f"{domain}={write_domain(tmp_path / domain, domain)}" for domain in ("camera", "driving")]
    readme, out = tmp_path / "README.md", tmp_path / "results" / "domains.json"
    readme.write_text("before\n<!-- domains:begin -->\nstale\n<!-- domains:end -->\nafter\n")
    command = ["domains", "--data", *pairs, "--world-model", str(checkpoint), "--out", str(out), "--quick"]
    main([*command, "--readme", str(readme), "--single", f"driving={checkpoint}", "--teacher", str(checkpoint)])
    results = json.loads(out.read_text())
    assert results["domains"].keys() == {"camera", "driving"} and str(tmp_path) not in out.read_text()
    car, camera = results["domains"]["driving"], results["domains"]["camera"]
    assert car["joint"]["difference"] == [0] * 4 and car["joint"]["not_worse"] and "joint" not in camera
    for report in (car, camera):  # a world that is its own teacher
        assert report["teacher"]["student"] == report["teacher"]["teacher"]
        entry, loop = report["teacher"]["teacher"], report["open_loop"]
        assert entry["psnr"] == [loop["psnr"]["true"][loop["horizons"].index(k)] for k in entry["horizons"]]
    assert {"right", "as camera", "as end_effector"} < car["routing"].keys()
    assert {"1", "2", "4"} < car["denoising"].keys() and car["denoising"]["2"]["sharpness"] > 0
    assert camera["chains"]["num_windows"] == 2 and len(camera["following"]) == 12 and len(car["following"]) == 6
    assert {entry.rsplit(",")[0] for entry in car["rare"]["foreign"]} == {"drawn picture", "camera picture"}
    for name in ("contact_camera.png", "contact_driving.png", "rare_camera.png", "rare_driving.png"):
        assert (out.parent / name).stat().st_size > 1000
    filled = readme.read_text()
    assert filled.startswith("before\n") and filled.endswith("after\n") and "stale" not in filled
    assert "worse in none of these domains" in filled and "driving `brake`" in filled
    main(["report", "--results", str(out), "--readme", str(readme)])
    assert readme.read_text() == filled and "RotErr" in capsys.readouterr().out


def test_data_of_another_domain_is_refused(world_model, tmp_path, capsys):
    checkpoint = tmp_path / "world"
    world_model.save_pretrained(checkpoint)
    folder = write_domain(tmp_path / "camera", "camera")
    for given, reason in (
        (f"multicam={folder}", "'camera', expected 'multicam'"),
        (f"moon={folder}", "no domain 'moon'"),
    ):
        with pytest.raises(SystemExit) as exit_info:
            main(["domains", "--data", given, "--world-model", str(checkpoint), "--out", str(tmp_path / "out.json")])
        told = capsys.readouterr().err.splitlines()[-1]
        assert exit_info.value.code == 2 and told.startswith("astra-bench domains: ") and reason in told
