"""One visitor's world: inputs become actions, the past comes back exactly, forks differ by what is done in them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from rrd import numbers, read
from test_prompts import IMAGE, TEXT_DIM, Words
from tiny import tiny_world_model

from astra_env.actions import DISCRETE_ACTIONS
from astra_env.datasets import load_dataset
from astra_env.envs import ENVIRONMENTS
from astra_env.play import timeline
from astra_env.play import world as play_world
from astra_env.play.controls import Controls, nearest_choice
from astra_env.play.players import find_player
from astra_env.play.timeline import Timeline
from astra_env.play.world import HELD, YOU, PlayWorld

CAR = "Astra-NuScenes-v0"
PLANNER = "policies.mpc:MPCPolicy"
LEFT = np.array([0.3, 1.0], np.float32)


@pytest.fixture
def play(checkpoint):
    """Makes a world over the tiny checkpoint, after its first start."""

    def make(environment: str = CAR, *players: str) -> PlayWorld:
        world = PlayWorld(environment, players, world_model=checkpoint, device="cpu")
        world.reset(0)
        return world

    return make


def digests(world: PlayWorld) -> list[str]:
    return [branch.timeline.state.digest() for branch in world.branches]


# Time


def test_going_back_is_exact(play):
    world, seen = play(), []
    for step in range(6):
        world.step(LEFT * (-1) ** step)
        seen.append(digests(world)[0])
    world.go(2)
    assert digests(world) == [seen[1]] and world.told()[0]["newest"] == 6
    world.go(5)
    assert digests(world) == [seen[4]]  # until something else is done, the future is still there
    world.go(2)
    again = []
    for step in range(2, 6):
        world.step(LEFT * (-1) ** step)
        again.append(digests(world)[0])
    assert again == seen[2:]
    world.go(2)
    world.step(LEFT)
    world.step(LEFT)
    assert world.told()[0]["newest"] == 4 and digests(world)[0] != seen[3]
    world.go(-7)
    assert world.told()[0]["step"] == 0


def test_the_past_is_bounded(play, monkeypatch):
    world = play()
    size = timeline.num_bytes(world.main.state) + world.main.now.info["frames"].nbytes
    world.main.max_bytes = 4 * size
    for _ in range(9):
        world.step(LEFT)
    told = world.told()[0]
    assert (told["oldest"], told["step"]) == (6, 9)
    world.go(0)
    assert world.told()[0]["step"] == 6
    assert isinstance(world.main, Timeline) and world.main.fork(world.main.state).max_bytes == 4 * size


# Forks


def test_a_fork_is_the_same_world_until_something_else_is_done(play):
    world = play()
    world.step(LEFT)
    world.fork(YOU)
    world.step(-LEFT)
    first, second = digests(world)
    assert first == second
    world.choose(1, HELD)  # goes on with -LEFT
    world.step(LEFT)
    first, second = world.told()
    np.testing.assert_allclose(first["action"], LEFT)
    np.testing.assert_allclose(second["action"], -LEFT)
    assert len(set(digests(world))) == 2
    world.go(1)
    assert len(set(digests(world))) == 1
    world.go(3)
    kept = digests(world)[1]
    world.join(1)
    assert digests(world) == [kept] and len(world.told()) == 1


def test_other_noise_leads_elsewhere_under_the_same_actions(play):
    world = play()
    world.fork(YOU, other_noise=True)
    world.step(LEFT)
    assert len(set(digests(world))) == 2
    assert world.told()[0]["position"] == world.told()[1]["position"]


def test_who_acts_is_checked(play):
    world = play()
    for wrong in (lambda: world.fork("nobody"), lambda: world.choose(1, YOU), lambda: world.join(-1)):
        with pytest.raises(ValueError, match=r"^There is no "):
            wrong()
    assert len(world.branches) == 1


# Players


class Circling:
    """A policy that turns further with each step."""

    def __init__(self, env):
        self.steps = 0

    def act(self, observation):
        assert observation.shape == (32, 32, 3)
        self.steps += 1
        return np.array([0.1 * self.steps, 0.0], np.float32)


class Demanding:
    """A policy that wants more than the environment."""

    def __init__(self, env, more):
        pass


def braking(observation):
    return np.array([0.0, -1.0], np.float32)


def breaking(observation):
    raise KeyError("compass")


def test_policies_act_each_for_its_branch(play):
    name = f"{__name__}:Circling"
    world = play(CAR, name, f"{__name__}:braking", f"{__name__}:breaking", "random", PLANNER, f"{__name__}:Demanding")
    world.choose(0, name)
    world.step(LEFT)
    world.fork(name)
    world.step(LEFT)
    np.testing.assert_allclose([told["action"][0] for told in world.told()], [0.2, 0.1])
    for by in (f"{__name__}:braking", "random", PLANNER):
        world.choose(1, by)
        world.step(LEFT)
        assert world.told()[1]["action"] != LEFT.tolist()
    before = digests(world)
    world.choose(1, f"{__name__}:breaking")
    with pytest.raises(ValueError, match=r"breaking has failed: KeyError\('compass'\)"):
        world.step(LEFT)
    assert digests(world) == before  # neither branch has gone on
    with pytest.raises(ValueError, match=r"Demanding cannot act here: TypeError"):
        world.fork(f"{__name__}:Demanding")
    assert digests(world) == before


@pytest.mark.parametrize("name", ["nowhere:act", "astra_env.play.world:YOU", "math:missing", "?"])
def test_a_policy_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match=r"policy|expected a function"):
        find_player(name)


# Recording


def test_what_is_recorded_reads_back(play, tmp_path):
    world = play()
    with pytest.raises(ValueError, match="Nothing is recorded"):
        world.save(tmp_path / "none")
    world.step(LEFT)
    world.record(True)
    for _ in range(5):
        world.step(LEFT)
    world.go(4)  # what was undone is not part of it
    world.step(-LEFT)
    world.record(False)
    world.record(True)
    world.step(LEFT)
    world.go(0)
    world.step(-LEFT)  # back behind its beginning: the episode begins there
    shown = world.main.now.info["frames"]
    saved = world.save(tmp_path / "new" / "set")
    first, second = load_dataset("lerobot", saved.dataset)
    np.testing.assert_allclose(first.actions, np.repeat([LEFT, LEFT, LEFT, -LEFT], 4, axis=0), atol=1e-6)
    np.testing.assert_allclose(second.actions, np.repeat([-LEFT], 4, axis=0), atol=1e-6)
    assert (first.fps, first.text) == (20.0, ENVIRONMENTS[CAR].description)
    assert np.abs(second.frames[-4:].astype(int) - shown).mean() < 16  # random pictures are hard on a video
    assert saved.archive.stat().st_size > 1000 and saved.rerun.read_bytes()[:4] == b"RRF2"
    assert sorted(path.name for path in saved.dataset.parent.iterdir()) == ["set", "set.rrd", "set.zip"]
    assert world.takes == [] and world.take is None


def steering(entities, prefix: str = "") -> list[float]:
    return numbers(entities, f"{prefix}action/steering")


def test_what_was_undone_is_recorded_as_a_fork(play, tmp_path):
    world = play()
    world.record(True)
    for _ in range(4):
        world.step(LEFT)
    world.go(1)
    assert world.recorded() == {"steps": 1, "episodes": 0}
    world.go(2)
    for _ in range(2):
        world.step(-LEFT)
    world.go(3)
    entities = read(world.save(tmp_path / "set").rerun)
    np.testing.assert_allclose(steering(entities), [0.3, 0.3, -0.3], atol=1e-6)
    np.testing.assert_allclose(steering(entities, "forks/1/"), [0.3, 0.3], atol=1e-6)
    np.testing.assert_allclose(steering(entities, "forks/2/"), [-0.3], atol=1e-6)
    times = {name: [row.step for row in entities[f"{name}action/steering"]] for name in ("", "forks/1/", "forks/2/")}
    assert times == {"": [0, 1, 2], "forks/1/": [2, 3], "forks/2/": [3]}
    assert [row.frame for row in entities["forks/1/frames/imagined"]] == list(range(12, 20))


@pytest.mark.parametrize("keep", [0, 1])
def test_the_world_that_is_kept_is_the_episode_and_the_other_one_a_fork(play, tmp_path, keep):
    world = play()
    world.step(LEFT)
    world.record(True)
    world.step(LEFT)
    world.fork(HELD)
    world.step(-LEFT)
    world.join(keep)
    world.step(-LEFT)
    saved = world.save(tmp_path / "set")
    (clip,) = load_dataset("lerobot", saved.dataset)
    ways = ([0.3, -0.3, -0.3], [0.3, 0.3, 0.3])
    np.testing.assert_allclose(clip.actions[::4, 0], ways[keep], atol=1e-6)
    entities = read(saved.rerun)
    np.testing.assert_allclose(steering(entities), ways[keep], atol=1e-6)
    np.testing.assert_allclose(steering(entities, "forks/1/"), ways[1 - keep][1:2], atol=1e-6)


def test_a_fork_that_began_before_its_recording_is_one_from_the_start(play, tmp_path):
    world = play()
    world.fork(HELD)
    world.step(LEFT)
    world.record(True)
    world.step(-LEFT)
    world.record(False)
    world.record(True)
    world.step(LEFT)
    entities = read(world.save(tmp_path / "set").rerun)
    np.testing.assert_allclose(steering(entities), [-0.3, 0.3], atol=1e-6)
    for prefix in ("forks/1/", "forks/2/"):
        np.testing.assert_allclose(steering(entities, prefix), [0.0], atol=1e-6)
    *shown, black = entities["forks/1/frames/imagined"]  # the next episode begins
    assert [row.frame for row in shown] == [4, 5, 6, 7] and black.frame > 7
    encoded = np.array(black.values["EncodedImage:blob"][0], np.uint8)
    assert cv2.imdecode(encoded, cv2.IMREAD_COLOR).max() < 8


def test_recording_stops_where_it_would_be_too_large(play, monkeypatch, tmp_path):
    world = play()
    monkeypatch.setattr(play_world, "TAKE_BYTES", 5 * world.main.now.info["frames"].nbytes)
    for _ in range(2):
        world.record(True)
        for _ in range(4):
            world.step(LEFT)
    assert world.take is None and [len(take.moments) for take in world.takes] == [5, 3]
    with pytest.raises(ValueError, match="save them first"):
        world.record(True)
    world.save(tmp_path / "set")
    world.record(True)
    assert world.recorded() == {"steps": 0, "episodes": 0}


# Words


def test_words_are_for_worlds_that_read(play):
    world = play()
    assert not world.reads_text
    with pytest.raises(ValueError, match="reads no text"):
        world.set_prompt("rain")


def test_new_words_hold_in_all_branches_from_the_next_step_on(monkeypatch, tmp_path):
    world_model = tiny_world_model(text_dim=TEXT_DIM)
    world_model.text_encoder = Words()
    monkeypatch.setattr("astra_env.envs.worlds.load_world_model", lambda name, device: world_model)
    world = PlayWorld("Astra-RT1-v0")
    with pytest.raises(ValueError, match="no recorded start states"):
        world.reset(0)
    for needs_one in (lambda: world.step(np.zeros(7)), lambda: world.record(True), lambda: world.fork(YOU)):
        with pytest.raises(ValueError, match="no world yet; begin from a picture"):
            needs_one()
    world.reset(0, IMAGE)
    world.record(True)
    world.fork(YOU)
    ends = []
    for text in ("rain", "rain", "sun"):
        world.go(0)
        world.set_prompt(text)
        world.step(np.zeros(7, np.float32))
        ends.append(digests(world))
    assert ends[0] == ends[1] and ends[0][0] == ends[0][1] != ends[2][0] == ends[2][1]
    with pytest.raises(ValueError, match="1000 at most"):
        world.set_prompt("rain " * 300)
    (clip,) = load_dataset("lerobot", world.save(tmp_path / "set").dataset)
    assert clip.text == "sun"


# Keys


def test_worlds_of_keys_take_the_set_that_is_held(play):
    world = play("Astra-SpatialVID-v0")
    for number, keys in enumerate(DISCRETE_ACTIONS["camera"]):
        controls = Controls(world.modality)
        controls.receive({"keys": dict.fromkeys(keys, 1)})
        action = controls.action()
        assert nearest_choice(action, world.choices, world.modality) == number
        world.step(action)
        np.testing.assert_allclose(world.told()[0]["action"], action)
    assert {row["keys"][0] for row in controls.legend()} == set("wasd") | {"left", "right", "up", "down"}
