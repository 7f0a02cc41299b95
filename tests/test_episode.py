"""Episodes come again bit by bit, here and in another process, and what differs is told."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from tiny import random_frames, save_checkpoint

import astra_env  # noqa: F401  registers the ids
from astra_env.cli import main
from astra_env.envs import ENVIRONMENTS
from astra_env.envs.episode import Episode, machine, record_episode, replay_episode
from astra_env.models import WorldState


def recorded(checkpoint, environment="Astra-RT1-v0", options=None, **arguments):
    env = gym.make(environment, world_model=checkpoint, device="cpu", **arguments)
    env.action_space.seed(0)
    return record_episode(env, lambda observation, info: env.action_space.sample(), 3, seed=5, options=options)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_an_episode_comes_again(checkpoint, tmp_path, environment):
    episode = recorded(checkpoint, environment)
    episode.save(tmp_path / "episode")
    replay = replay_episode(Episode.load(tmp_path / "episode"))
    assert replay.first_difference is None and replay.same_machine and not replay.deviations.any()
    assert len(set(episode.digests)) == len(episode) + 1 == len(episode.latents)


def test_a_file_holds_all_of_it(checkpoint, tmp_path):
    frames = random_frames(1, 5)[0].numpy()
    episode = recorded(checkpoint, "Astra-NuScenes-v0", {"frames": frames, "speed": 4.0}, guidance_scale=1.5)
    episode.save(tmp_path / "folder" / "episode")
    loaded = Episode.load(tmp_path / "folder" / "episode")
    for field in dataclasses.fields(Episode):
        value, expected = getattr(loaded, field.name), getattr(episode, field.name)
        if field.name == "options":
            assert np.array_equal(value.pop("frames"), frames) and value == {"speed": 4.0}
        else:
            assert np.array_equal(value, expected) if isinstance(value, np.ndarray) else value == expected
    assert replay_episode(Episode.load(tmp_path / "folder" / "episode")).first_difference is None
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["episode"]


def test_what_differs_is_told(checkpoint):
    episode = recorded(checkpoint)
    actions = episode.actions.copy()
    actions[1] *= -1
    replay = replay_episode(dataclasses.replace(episode, actions=np.clip(actions, episode.actions.min(0), 1)))
    assert replay.first_difference == 2
    assert (replay.deviations[:2] == 0).all() and (replay.deviations[2:] > 0).all()
    other = dataclasses.replace(episode, machine={**episode.machine, "processor": "an abacus"})
    assert not replay_episode(other).same_machine


def test_another_world_model_is_refused(checkpoint, tmp_path):
    episode = recorded(checkpoint)
    other = save_checkpoint(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["sampling"]["num_inference_steps"] = 2
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="name the one that it was recorded in"):
        replay_episode(episode, world_model=str(other))
    assert replay_episode(episode, world_model=checkpoint).first_difference is None


def test_what_json_cannot_hold_is_refused(checkpoint):
    with pytest.raises(ValueError, match="not JSON serializable"):
        recorded(checkpoint, reward=lambda state: None)


def test_files_that_are_no_episodes_are_refused(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match="no episode at"):
        Episode.load(tmp_path / "nowhere")
    recorded(checkpoint).save(tmp_path / "whole")
    (tmp_path / "torn").write_bytes((tmp_path / "whole").read_bytes()[:-7])
    (tmp_path / "text").write_text("no episode")
    for name in ("torn", "text"):
        with pytest.raises(ValueError, match="is not a whole episode"):
            Episode.load(tmp_path / name)


def test_the_commands_record_and_check(checkpoint, tmp_path, capsys):
    episode, video = tmp_path / "one.episode", tmp_path / "one.mp4"
    common = ["Astra-MultiCam-v0", "--world-model", checkpoint, "--steps", "4"]
    main(["rollout", *common, "--record", str(episode), "--video", str(video)])
    assert f"astra-env replay {episode}" in capsys.readouterr().out and video.stat().st_size > 0
    main(["replay", str(episode)])
    assert "All 5 states are the recorded ones" in capsys.readouterr().out
    spoilt = dataclasses.replace(Episode.load(episode), digests=("0" * 64,) * 5)
    spoilt.save(episode)
    with pytest.raises(SystemExit):
        main(["replay", str(episode)])
    assert "something has changed" in capsys.readouterr().err
    dataclasses.replace(spoilt, machine={}).save(episode)
    main(["replay", str(episode)])
    assert "within 0.05" in capsys.readouterr().out
    dataclasses.replace(spoilt, machine={}, latents=spoilt.latents + 1).save(episode)
    with pytest.raises(SystemExit):
        main(["replay", str(episode)])
    assert "more than 0.05" in capsys.readouterr().err


def test_the_machine_tells_what_rounding_depends_on(checkpoint):
    env = gym.make("Astra-RT1-v0", world_model=checkpoint, device="cpu").unwrapped
    told = machine(env.world_model)
    assert told["dtype"] in ("bfloat16", "float32") and told["device"] == "cpu" and told["processor"]


CONTINUE = """
import json, sys
import gymnasium, torch
import astra_env
from astra_env.models import WorldState
checkpoint, folder, names = sys.argv[1], sys.argv[2], sys.argv[3:]
digests = {}
for name in names:
    env = gymnasium.make(name, world_model=checkpoint, device="cpu")
    env.reset(seed=1)
    env.unwrapped.restore_state(WorldState.load(f"{folder}/{name}"))
    env.action_space.seed(2)
    for _ in range(2):
        env.step(env.action_space.sample())
    digests[name] = env.unwrapped.save_state().digest()
print(json.dumps(digests))
"""


def test_a_world_goes_on_bit_by_bit_in_another_process(checkpoint, tmp_path):
    expected = {}
    for name in ENVIRONMENTS:
        env = gym.make(name, world_model=checkpoint, device="cpu")
        env.reset(seed=3)
        env.step(env.action_space.sample())
        env.unwrapped.save_state().save(tmp_path / name)
        assert WorldState.load(tmp_path / name).digest() == env.unwrapped.save_state().digest()
        env.action_space.seed(2)
        for _ in range(2):
            env.step(env.action_space.sample())
        expected[name] = env.unwrapped.save_state().digest()
    command = [sys.executable, "-c", CONTINUE, checkpoint, str(tmp_path), *ENVIRONMENTS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == expected
