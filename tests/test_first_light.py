"""The first-light measurements on a tiny world and a toy recording."""

from __future__ import annotations

import dataclasses
import json
from typing import ClassVar

import numpy as np
import pytest
import torch
from tiny import tiny_world_model

from astra_env.actions import ACTION_MODALITIES
from astra_env.envs.start_states import StartStates
from astra_env.geometry import make_pose, rpy_to_matrix
from astra_env.models import WorldModel
from astra_env.models.reward_model import RewardModel
from benchmarks.cli import main
from benchmarks.imagination import load_bench, open_loop_frames
from benchmarks.pose_estimator import (
    HOME_ROTATION,
    displacement,
    fit_pose_estimator,
    pose_vectors,
    trained_pose_estimator,
)
from benchmarks.robot_following import DIRECTIONS, ROOM, RobotFollower, load_workspace
from benchmarks.runtime import smooth_actions
from benchmarks.writing import markers, replace_marked, rounded

MODALITY = ACTION_MODALITIES["end_effector"]
LOW, HIGH = np.array([0.45, -0.12, -0.1]), np.array([0.67, 0.12, 0.07])
NUM_CHUNKS = 15
BEGIN, END = markers("first-light")


def toy_episode(seed, split):
    """A red square that walks over a grey picture: its place shows x and y, the grey shows the gripper."""
    rng = np.random.default_rng(seed)
    actions = smooth_actions(NUM_CHUNKS, seed, np.array(MODALITY.low), np.array(MODALITY.high))
    walk = np.cumsum(0.01 * rng.normal(size=(4 * NUM_CHUNKS + 1, 3)), axis=0)
    positions = np.clip(rng.uniform(LOW, HIGH) + walk, LOW, HIGH)
    gripper = np.linspace(0, 1, 4 * NUM_CHUNKS + 1).astype(np.float32)
    frames = np.zeros((len(positions), 64, 64, 3), np.uint8)
    places = np.round((positions - LOW) / (HIGH - LOW) * 48).astype(int)
    for frame, (x, y, _), closed in zip(frames, places, gripper, strict=True):
        frame[:] = 250 * closed
        frame[x : x + 12, y : y + 12] = (250, 0, 30)
    poses = make_pose(np.broadcast_to(HOME_ROTATION, (len(positions), 3, 3)), positions).astype(np.float32)
    meta = {"task": "lift", "text": "", "behaviour": "toy", "seed": seed, "split": split, "fps": 20, "chunk_frames": 4}
    meta |= {"modality": MODALITY.name, "convention": MODALITY.to_json()}
    return {
        "frames": frames,
        "actions": actions,
        "measured_poses": poses,
        "commanded_poses": poses,
        "gripper": gripper,
        "reward": np.zeros(NUM_CHUNKS + 1, np.float32),
        "success": np.zeros(NUM_CHUNKS + 1, bool),
        "objects": np.zeros((len(frames), 1, 3), np.float32),
        "meta": np.array(json.dumps(meta)),
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A recorded data set of the toy."""
    root = tmp_path_factory.mktemp("data")
    for split, count, first in (("train", 12, 0), ("heldout", 5, 100)):
        (root / split).mkdir()
        for index in range(count):
            np.savez_compressed(root / split / f"episode_{index:05d}.npz", **toy_episode(first + index, split))
    manifest = {"workspace_m": [LOW.tolist(), HIGH.tolist()], "max_tilt_rad": 0.4, "max_yaw_rad": 0.8}
    (root / "dataset.json").write_text(json.dumps(manifest))
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, data):
    """An untrained world with all that an environment needs."""
    folder = tmp_path_factory.mktemp("world")
    tiny_world_model(perturbed=False, size=64).save_pretrained(folder)
    bundled = folder / "domains" / "robot"
    bundled.mkdir(parents=True)
    RewardModel().save(bundled)
    frames = np.stack([toy_episode(index, "heldout")["frames"][:17] for index in range(2)])
    StartStates(frames, np.zeros((2, 4, 7), np.float32)).save(bundled)
    return folder


@pytest.fixture(scope="module")
def bench(data, checkpoint):
    return load_bench(data, WorldModel.from_pretrained(checkpoint), episodes=5)


@pytest.fixture(scope="module")
def workspace(data):
    return load_workspace(data, episodes=5)


@pytest.mark.parametrize("axis", range(7))
def test_displacement_is_the_action_that_was_executed(axis):
    """Whatever the pose, also a turned one: units, axes and signs agree with the action table."""
    action = np.zeros((1, 7), np.float32)
    action[0, axis] = MODALITY.high[axis]
    start = make_pose(rpy_to_matrix([0.1, -0.2, 0.7]) @ HOME_ROTATION, [0.5, 0.05, 0.0])
    poses = MODALITY.integrate(start, action)
    vectors = torch.from_numpy(pose_vectors(poses, np.array([0.0, action[0, 6]])))
    torch.testing.assert_close(displacement(vectors[0], vectors[1]), torch.from_numpy(action[0]), atol=1e-5, rtol=0)


def toy_pictures(count, seed):
    """White squares on grey whose place is x and y."""
    share = torch.rand(count, 7, generator=torch.Generator().manual_seed(seed))
    frames = torch.full((count, 64, 64, 3), 60, dtype=torch.uint8)
    for frame, (x, y) in zip(frames, (48 * share[:, :2]).round().int().tolist(), strict=True):
        frame[x : x + 16, y : y + 16] = 255
    poses = torch.zeros(count, 7)
    poses[:, :2] = 0.2 * share[:, :2]
    return frames, poses


def test_the_estimator_learns_from_frames():
    frames, poses = toy_pictures(1024, seed=0)
    shown, truth = toy_pictures(64, seed=1)
    model = fit_pose_estimator(frames, poses, steps=150, batch_size=16)
    error, guess = (model(shown) - truth).abs().mean(0), (poses.mean(0) - truth).abs().mean(0)
    assert (error[:2] < 0.5 * guess[:2]).all()


def test_the_estimator_is_reproducible():
    first, second = (fit_pose_estimator(*toy_pictures(32, seed=0), steps=2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_estimator_is_cached_for_its_data_and_recipe_only(data, bench, tmp_path):
    cache = tmp_path / "pose_estimator.safetensors"
    first = trained_pose_estimator(data, bench.world_model.autoencoder, cache, steps=2, episodes=2)
    written = cache.stat().st_mtime_ns
    second = trained_pose_estimator(data, bench.world_model.autoencoder, cache, steps=2, episodes=2)
    assert cache.stat().st_mtime_ns == written
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    trained_pose_estimator(data, bench.world_model.autoencoder, cache, steps=3, episodes=2)
    assert cache.stat().st_mtime_ns != written
    cache.write_bytes(b"broken")
    with pytest.raises(ValueError, match="delete it"):
        trained_pose_estimator(data, bench.world_model.autoencoder, cache, steps=2, episodes=2)


@pytest.mark.parametrize("name", ["+dx", "-dx", "+dz", "+gripper", "-gripper"])
def test_starts_have_room_in_their_direction(bench, workspace, name):
    (axis, sign), follower = DIRECTIONS[name], RobotFollower(workspace, read_pose)
    starts = follower.starts(bench, name, 50)
    assert starts and starts == follower.starts(bench, name, 50)
    for episode, chunk in starts:
        value, end = workspace.vectors[episode, 4 * chunk, axis], (workspace.high if sign > 0 else workspace.low)[axis]
        assert sign * (end - value) >= ROOM[axis]


@dataclasses.dataclass
class ToyWorld:
    """Moves its gripper by `obedience` times the action and shows the pose as grey levels."""

    obedience: float
    modalities: ClassVar = {MODALITY.name: MODALITY}

    def init_state(self, frames, modality, actions, speeds):
        return torch.full((len(frames), 7), 0.5)

    def step(self, state, actions):
        moved = state + self.obedience * actions
        moved[:, 6] = state[:, 6] + self.obedience * 0.5 * (actions[:, 6] - state[:, 6])
        return moved

    def imagine(self, state, actions, **sampling):
        for action in actions.unbind(1):
            state = self.step(state, action)
        return state

    def decode(self, state):
        return state, state[:, None, None, None].expand(-1, 4, 1, 1, -1)


def read_pose(frames):
    return frames[:, 0, 0]


def test_following_tells_an_obedient_world_from_a_stubborn_one(bench, workspace):
    follower = RobotFollower(workspace, read_pose)
    for obedience, share in ((1.0, 1.0), (0.0, 0.0), (-1.0, 0.0)):
        toy = dataclasses.replace(bench, world_model=ToyWorld(obedience))
        for name in ("+dx", "-dy", "-dz", "+gripper", "-gripper"):
            entry = follower.follow(toy, name, 4)
            assert entry["num_starts"] > 0 and entry["right_way"] == share
            assert np.sign(entry["mean_displacement"]) == np.sign(obedience)


def test_open_loop_depends_on_the_actions_and_repeats_exactly(bench):
    rows = torch.arange(3)
    with torch.no_grad():
        first, second = (open_loop_frames(bench, rows, rows) for _ in range(2))
        one_by_one = torch.cat([open_loop_frames(bench, row, row) for row in rows.split(1)])
    assert first.shape == (3, 40, 64, 64, 3) and torch.equal(first, second)
    # the noise follows a row's place in its batch, so only the first row is the same world alone
    difference = (first[0].int() - one_by_one[0].int()).abs()
    assert difference.max() <= 2


def test_too_few_held_out_episodes_are_refused(data, checkpoint):
    with pytest.raises(ValueError, match="1 held-out episodes"):
        load_bench(data, WorldModel.from_pretrained(checkpoint), episodes=1)


def test_one_command_measures_everything_and_fills_the_readme(data, checkpoint, tmp_path, capsys, monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("benchmarks.first_light.GUIDANCE_SCALES", (1.0, 2.0))
    monkeypatch.setattr("benchmarks.first_light.STEP_COUNTS", (1, 2))
    readme, out = tmp_path / "README.md", tmp_path / "results" / "first_light.json"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    command = ["first-light", "--data", str(data), "--world-model", str(checkpoint), "--out", str(out)]
    main([*command, "--quick", "--readme", str(readme)])
    results = json.loads(out.read_text())
    loop = results["open_loop"]
    assert loop["horizons"] == list(range(1, 11))
    for measure in ("psnr", "psnr_last_frame", "ssim"):
        assert all(len(loop[measure][name]) == 10 for name in ("true", "shuffled", "still", "ceiling"))
    assert loop["num_episodes"] == 5 and len(loop["perceptual"]["true"]) == 3
    assert len(results["action_following"]["directions"]) == 14
    settings = {(entry["num_inference_steps"], entry["guidance_scale"]) for entry in results["sampling"]}
    assert settings == {(1, 1.0), (1, 2.0), (2, 1.0)}
    assert results["latency"]["2"]["median_ms"] > 0 and results["long_rollout"]["finite"]
    assert str(tmp_path) not in out.read_text()
    filled = readme.read_text()
    assert filled.startswith("before\n") and filled.endswith("after\n") and "old" not in filled
    assert "`+dx`" in filled and "at every horizon from 1 to 10" in filled
    assert all((out.parent / name).stat().st_size > 1000 for name in ("first_light.png", "contact_sheet.png"))
    main(["report", "--results", str(out), "--readme", str(readme)])
    assert readme.read_text() == filled
    assert "Action following" in capsys.readouterr().out


def test_a_readme_without_markers_is_left_alone(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="needs one line"):
        replace_marked(readme, "first-light", "table")
    assert readme.read_text() == "no markers"


def test_a_failure_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["report", "--results", str(tmp_path / "missing.json")])
    (told,) = capsys.readouterr().err.splitlines()
    assert exit_info.value.code == 2 and told.startswith("astra-bench report: ") and "missing.json" in told


def test_rounding_keeps_json_valid():
    assert rounded({1: float("nan"), "a": (1.234567, 3)}) == {"1": None, "a": [1.2346, 3]}
