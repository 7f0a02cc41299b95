"""Recording episodes: whole files that a seed and actions reproduce, whatever the simulator."""

from __future__ import annotations

import importlib.util
import json
from pkgutil import resolve_name

import numpy as np
import pytest
from gymnasium.utils import seeding

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets import load_dataset
from astra_env.simulators.collect import HELDOUT_SEED, RECORDINGS, choose, collect
from astra_env.simulators.recording import Recording

NUM_CHUNKS, NUM_FRAMES = 3, 13
PACKAGES = {"robot": "robosuite", "driving": "metadrive", "camera": "mujoco", "multicam": "robosuite"}
MODALITY = ACTION_MODALITIES["camera"]


class Drifter:
    """A camera in front of nothing, which fails in the episode of one seed: a stand-in for a simulator."""

    modality = MODALITY

    def __init__(self, variant: str) -> None:
        self.faulty = variant == "faulty"

    def reset(self, *, seed):
        if self.faulty and seed == HELDOUT_SEED:
            raise ArithmeticError("the sky fell")
        self.pose = geometry.make_pose(np.eye(3), seeding.np_random(seed)[0].normal(size=3))
        return None, self.info(self.pose[None])

    def step(self, action):
        poses = MODALITY.integrate(self.pose, MODALITY.split(action, 4))[1:]
        self.pose = poses[-1]
        return None, self.reward(), False, False, self.info(poses)

    def reward(self):
        return float(np.exp(-np.linalg.norm(self.pose[:3, 3])))

    def info(self, poses):
        frames = np.zeros((len(poses), 8, 8, 3), np.uint8)
        return {"frames": frames, "poses": poses, "commanded_poses": poses, "success": self.reward() > 0.3}


def drifting(**variants: float) -> Recording:
    return Recording(
        make=Drifter,
        variants=variants,
        behaviours={"random": 0.5, "forward": 0.5},
        make_behaviour=lambda name, rng, info: (
            lambda info: rng.normal(size=6) * (name == "random") + [0, 0, 1, 0, 0, 0]
        ),
        text="drift",
        packages=("numpy",),
    )


DRIFTING, FAULTY = drifting(calm=0.5, windy=0.5), drifting(faulty=1.0)


@pytest.fixture
def stand_ins(monkeypatch):
    monkeypatch.setitem(RECORDINGS, "drifting", "test_collect:DRIFTING")
    monkeypatch.setitem(RECORDINGS, "faulty", "test_collect:FAULTY")


def collect_some(domain, out):
    return collect(domain, out, episodes=2, heldout=1, workers=1, num_chunks=NUM_CHUNKS)


def contents(out):
    return {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*.npz"))}


def test_episodes_are_kept_and_missing_ones_are_recorded_again(stand_ins, tmp_path):
    manifest = collect_some("drifting", tmp_path)
    recorded = contents(tmp_path)
    assert len(recorded) == 3
    described = json.loads(manifest.read_text())
    assert described["domain"] == "drifting"
    assert described["counts"] == {"train": 2, "heldout": 1}
    assert described["first_seeds"] == {"train": 0, "heldout": HELDOUT_SEED}
    (tmp_path / "train" / "episode_00001.npz").unlink()
    kept = {path: (tmp_path / path).stat().st_mtime_ns for path in contents(tmp_path)}
    collect_some("drifting", tmp_path)
    assert {path: (tmp_path / path).stat().st_mtime_ns for path in kept} == kept
    assert set(contents(tmp_path)) == set(recorded)
    assert not list(tmp_path.rglob("*.tmp"))
    with pytest.raises(ValueError, match=r"has episodes of 'drifting', expected 'faulty'"):
        collect_some("faulty", tmp_path)
    (tmp_path / "heldout" / "episode_00000.npz").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"episode_00000.npz is not a whole episode"):
        collect_some("drifting", tmp_path)


def test_a_failing_episode_is_named_and_the_others_are_kept(stand_ins, tmp_path):
    with pytest.raises(RuntimeError, match=rf"faulty episode with seed {HELDOUT_SEED} .*the sky fell") as failure:
        collect_some("faulty", tmp_path)
    assert "in reset" in str(failure.value.__cause__), "the worker's own traceback is shown"
    assert not (tmp_path / "heldout" / "episode_00000.npz").exists()


def test_an_unknown_domain_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"no domain 'submarine' .*'camera', 'driving', 'multicam', 'robot'"):
        collect("submarine", tmp_path)


def test_the_choice_of_behaviour_follows_the_seed_and_its_share_but_not_the_scene():
    """For each behaviour, the first numbers that a simulator lays its scene out with are spread over their range."""
    chosen = [choose(DRIFTING, seed) for seed in range(400)]
    assert chosen == [choose(DRIFTING, seed) for seed in range(400)]
    first_numbers = np.array([seeding.np_random(seed)[0].random(4) for seed in range(400)])
    for kind, names in enumerate((DRIFTING.variants, DRIFTING.behaviours)):
        for name in names:
            rows = first_numbers[[choice[kind] == name for choice in chosen]]
            assert 150 < len(rows) < 250
            np.testing.assert_allclose(rows.mean(axis=0), 0.5, atol=0.1)
            assert (np.ptp(rows, axis=0) > 0.9).all()


@pytest.fixture(scope="module", params=RECORDINGS)
def recorded(request, tmp_path_factory):
    """Domain and folder of two training episodes and a held-out one."""
    if importlib.util.find_spec(PACKAGES[request.param]) is None:
        pytest.skip(f"{PACKAGES[request.param]}: make simulators")
    out = tmp_path_factory.mktemp(request.param)
    collect_some(request.param, out)
    return request.param, out


@pytest.mark.simulator
def test_every_domain_records_whole_episodes(recorded):
    domain, out = recorded
    recording = resolve_name(RECORDINGS[domain])
    for split, seeds in (("train", [0, 1]), ("heldout", [HELDOUT_SEED])):
        dataset = load_dataset("recorded", out, split=split)
        assert dataset.domain == domain
        assert len(dataset) == len(seeds)
        for index, seed in enumerate(seeds):
            arrays = dataset.arrays(index)
            meta = json.loads(str(arrays["meta"]))
            assert (meta["seed"], meta["split"], meta["text"]) == (seed, split, recording.text)
            assert (meta["task"], meta["behaviour"]) == choose(recording, seed)
            assert arrays["frames"].shape == (NUM_FRAMES, 64, 64, 3)
            assert arrays["frames"].dtype == np.uint8
            assert arrays["measured_poses"].shape == arrays["commanded_poses"].shape == (NUM_FRAMES, 4, 4)
            ACTION_MODALITIES[dataset.modality].validate(arrays["actions"])
            assert len(arrays["actions"]) == NUM_CHUNKS
            assert arrays["reward"].shape == arrays["success"].shape == (NUM_CHUNKS + 1,)
            assert all(len(arrays[name]) == NUM_FRAMES for name in recording.tracks)
            assert all(array.dtype in (np.float32, np.uint8, bool) for name, array in arrays.items() if name != "meta")


@pytest.mark.simulator
def test_a_file_is_what_its_seed_and_actions_give_again(recorded):
    domain, out = recorded
    recording = resolve_name(RECORDINGS[domain])
    arrays = load_dataset("recorded", out).arrays(1)
    meta = json.loads(str(arrays["meta"]))
    simulator = recording.make(meta["task"])
    try:
        infos, rewards = [simulator.reset(seed=meta["seed"])[1]], [simulator.reward()]
        for action in arrays["actions"]:
            _, reward, _, _, info = simulator.step(action)
            infos.append(info)
            rewards.append(reward)
    finally:
        simulator.close()
    np.testing.assert_array_equal(np.concatenate([info["frames"] for info in infos]), arrays["frames"])
    for name, track in {"measured_poses": "poses", "commanded_poses": "commanded_poses", **recording.tracks}.items():
        np.testing.assert_allclose(np.concatenate([info[track] for info in infos]), arrays[name], atol=1e-6)
    np.testing.assert_allclose(rewards, arrays["reward"], atol=1e-6)
    for name in ("success", "failure"):
        assert (name in arrays) == (name in infos[0])
        if name in arrays:
            np.testing.assert_array_equal([info[name] for info in infos], arrays[name])


@pytest.mark.simulator
def test_a_recorded_clip_says_where_its_actions_lead(recorded):
    """From the measured pose that a chunk begins at, its shares of the action lead through the commanded poses."""
    domain, out = recorded
    dataset = load_dataset("recorded", out)
    for index in range(len(dataset)):
        clip, arrays = dataset[index], dataset.arrays(index)
        modality = ACTION_MODALITIES[clip.modality]
        assert clip.text == resolve_name(RECORDINGS[domain]).text
        np.testing.assert_array_equal(clip.poses, arrays["measured_poses"])
        shares = clip.actions.reshape(NUM_CHUNKS, 4, -1)
        np.testing.assert_allclose(modality.combine(shares), arrays["actions"], atol=1e-6)
        for chunk in range(NUM_CHUNKS if domain != "robot" else 0):  # a workspace holds the robot's commands back
            first = 4 * chunk
            speed = float(arrays["speed"][first]) if "speed" in arrays else 0.0
            led = modality.integrate(clip.poses[first], shares[chunk], speed=speed, rate_hz=clip.fps)[1:]
            np.testing.assert_allclose(led, arrays["commanded_poses"][first + 1 : first + 5], atol=1e-3)


def test_every_domain_is_recorded_here():
    assert set(PACKAGES) == set(RECORDINGS)
