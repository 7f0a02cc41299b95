"""Wrappers that record: all that an environment tells, of one world and of many."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import RescaleAction
from rrd import numbers, read
from tiny import actions_of

from astra_env.actions import ACTION_MODALITIES
from astra_env.envs.uncertainty import Uncertainty
from astra_env.visualization import RecordRerun, RecordRerunVector
from policies.mpc import MPCPolicy

pytestmark = pytest.mark.filterwarnings("error::rerun.error_utils.RerunWarning")


class ChunkEnv(gymnasium.Env):
    """Four new frames a step, and nothing of what an imagined world tells besides."""

    metadata = {"render_fps": 5}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        frames = np.zeros((1, 16, 16, 3), np.uint8)
        return frames[-1], {"frames": frames}

    def step(self, action):
        frames = self.np_random.integers(0, 255, (4, 16, 16, 3), np.uint8)
        return frames[-1], 0.5, False, True, {"frames": frames}


@pytest.fixture
def make_vec(checkpoint):
    def make_envs(mode, **options):
        kind = {"vectorization_mode": "vector_entry_point", "autoreset_mode": mode, "max_episode_steps": 2}
        world = {"world_model": checkpoint, "device": "cpu"}
        return gymnasium.make_vec("Astra-RT1-v0", num_envs=3, **kind, **world, **options)

    return make_envs


def test_any_environment_with_frames_is_recorded(tmp_path):
    env = RecordRerun(ChunkEnv(), tmp_path / "out.rrd")
    env.reset(seed=0)
    env.step(2)
    env.close()
    env.close()
    entities = read(tmp_path / "out.rrd")
    assert len(entities["frames/imagined"]) == 5
    assert numbers(entities, "action/0") == [2]
    assert [row.values["TextLog:text"][0] for row in entities["events"]] == ["episode 0 starts", "episode is truncated"]


def test_an_episode_tells_all_that_info_does(tmp_path, make):
    goal = np.full((32, 32, 3), 90, np.uint8)
    env = RecordRerun(Uncertainty(make()), tmp_path / "out.rrd", routing=True)
    env.reset(seed=0, options={"goal": goal})
    env.log_beside("recorded", np.zeros((8, 32, 32, 3), np.uint8))
    actions, told = actions_of(3), []
    for action in actions:
        told.append(env.step(action))
    env.close()
    entities = read(tmp_path / "out.rrd")
    assert len(entities["frames/imagined"]) == 16
    assert [row.frame for row in entities["frames/recorded"]] == list(range(4, 12))  # as far as it is known
    assert len(entities["frames/goal"]) == 1
    for index, field in enumerate(ACTION_MODALITIES["end_effector"].fields):
        np.testing.assert_allclose(numbers(entities, f"action/{field}"), actions[:, index], rtol=1e-6)
    np.testing.assert_allclose(numbers(entities, "reward/total"), [step[1] for step in told])
    distances = [step[4]["reward_terms"]["goal_distance"] for step in told]
    np.testing.assert_allclose(numbers(entities, "reward/terms/goal_distance"), distances)
    np.testing.assert_allclose(numbers(entities, "uncertainty/latent"), [step[4]["uncertainty"] for step in told])
    assert numbers(entities, "guidance/actions") == [env.unwrapped.world_model.sampling.guidance_scale] * 3
    experts = np.array([numbers(entities, f"routing/expert_{index}") for index in range(4)])
    np.testing.assert_allclose(experts.sum(0), 1, atol=1e-5)
    place = [row for row in entities["world/body"] if "Transform3D:translation" in row.values][-1]
    np.testing.assert_allclose(place.values["Transform3D:translation"][0], told[-1][4]["pose"][:3, 3], atol=1e-6)


def test_being_recorded_changes_nothing(tmp_path, make):
    plain, recorded = make(), RecordRerun(make(), tmp_path / "out.rrd", routing=True, denoising=True)
    first, second = plain.reset(seed=1)[0], recorded.reset(seed=1)[0]
    np.testing.assert_array_equal(first, second)
    for action in actions_of(2):
        np.testing.assert_array_equal(plain.step(action)[0], recorded.step(action)[0])
    recorded.close()


def test_keys_are_shown_with_the_arrow_that_they_mean(tmp_path, make):
    env = RecordRerun(make(id="Astra-SpatialVID-v0"), tmp_path / "out.rrd", routing=True)
    env.reset(seed=0)
    for action in (1, 8, 0):  # W, right, none
        env.step(action)
    env.close()
    entities = read(tmp_path / "out.rrd")
    assert np.allclose(numbers(entities, "action/dz"), [0.2, 0, 0])
    ahead, right, none = (row.values["Arrows2D:vectors"] for row in entities["frames/imagined/action/arrows"])
    assert abs(ahead[0][0]) < 1e-4 and ahead[0][1] < -1  # into the picture is up
    assert right[0][0] > 1 and abs(right[0][1]) < 1e-4
    assert not none
    signs = entities["frames/imagined/action/signs"][0].values
    colours = signs["Points2D:colors"]
    assert [sign for sign, own in zip(signs["Points2D:labels"], colours, strict=True) if own == colours[0]] == ["W"]


def test_each_denoising_step_is_a_picture_where_asked_for(tmp_path, make):
    env = RecordRerun(make(num_inference_steps=3, guidance_scale=2.0), tmp_path / "out.rrd", denoising=True)
    env.reset(seed=0)
    env.step(actions_of(1)[0])
    env.close()
    entities = read(tmp_path / "out.rrd")
    assert len(entities["denoising"]) == 1
    assert numbers(entities, "guidance/actions") == [2.0]


def test_a_planners_candidates_stand_where_they_would_lead(tmp_path, make):
    env = RecordRerun(make(id="Astra-NuScenes-v0"), tmp_path / "out.rrd")
    observation, _ = env.reset(seed=0)
    policy = MPCPolicy(env, horizon=3, num_samples=8, num_iterations=1, num_kept=8).reset(seed=0)
    for _ in range(2):
        action = policy.act(observation)
        env.recording.log_candidates(policy.candidate_poses(), policy.plan.values.numpy())
        observation, _, _, _, info = env.step(action)
    env.close()
    entities = read(tmp_path / "out.rrd")
    fan = entities["world/plans/considered"][-1].values["LineStrips3D:strips"]
    assert [len(strip) for strip in fan] == [4] * 8
    chosen = entities["world/plans/chosen"][-1].values["LineStrips3D:strips"][0]
    np.testing.assert_allclose(chosen[1], info["pose"][:3, 3], atol=1e-4)  # the first step was carried out


@pytest.mark.parametrize(
    ("mode", "starts", "acted"),
    [("NextStep", [0, 12], [0, 1, 3, 4]), ("SameStep", [0, 12, 24], [0, 1, 2, 3, 4]), ("Disabled", [0, 12], [0, 1, 3])],
)
def test_rows_are_recorded_apart_and_begin_anew(tmp_path, make_vec, mode, starts, acted):
    envs = RecordRerunVector(make_vec(mode), tmp_path / "out.rrd", rows=[0, 2], routing=True)
    envs.reset(seed=0)
    actions, rewards = np.stack([actions_of(5, seed=row) for row in range(3)], axis=1), {}
    for step in range(acted[-1] + 1):
        if mode == "Disabled" and step == 2:
            envs.reset(options={"reset_mask": np.ones(3, bool)})
        else:
            rewards[step] = envs.step(actions[step])[1]
    envs.close()
    entities = read(tmp_path / "out.rrd")
    assert not any(entity.startswith(("rows/1/", "frames/")) for entity in entities)
    for row in (0, 2):
        events = [entry for entry in entities[f"rows/{row}/events"] if "starts" in entry.values["TextLog:text"][0]]
        assert [entry.frame + (entry.frame > 0) for entry in events] == starts
        seen = [rewards[step][row] for step in acted]
        np.testing.assert_allclose(numbers(entities, f"rows/{row}/reward/total"), seen)
        np.testing.assert_allclose(numbers(entities, f"rows/{row}/action/dx"), actions[acted, row, 0], rtol=1e-6)


def test_a_row_that_begins_alone_waits_for_nobody(tmp_path, make_vec):
    envs = RecordRerunVector(make_vec("Disabled", observation="latent"), tmp_path / "out.rrd")
    envs.reset(seed=0)
    envs.step(actions_of(3))
    envs.reset(options={"reset_mask": np.array([True, False, False])})
    envs.step(actions_of(3))
    envs.close()
    entities = read(tmp_path / "out.rrd")
    alone, others = ([row.frame for row in entities[f"rows/{index}/frames/imagined"]] for index in (0, 1))
    assert alone == list(range(16))
    assert others == [*range(8), *range(12, 16)]  # their time goes on with that of the first


def test_forks_of_an_environment_go_into_forks_of_its_recording(tmp_path, make):
    env = RecordRerun(make(), tmp_path / "out.rrd")
    env.reset(seed=0)
    env.step(actions_of(1)[0])
    futures = RecordRerunVector(env.unwrapped.fork(2), env.recording.fork("futures"))
    futures.step(actions_of(2))
    futures.close()
    env.step(actions_of(1)[0])
    env.close()
    entities = read(tmp_path / "out.rrd")
    for prefix in ("", "forks/futures/rows/0/", "forks/futures/rows/1/"):
        assert entities[f"{prefix}reward/total"][-1].frame == 11
        assert len(entities[f"{prefix}world/way"][-1].values["LineStrips3D:strips"][0]) == 12


def test_what_cannot_be_recorded_is_told(tmp_path, make, make_vec):
    low, high = np.full(7, -1, np.float32), np.full(7, 1, np.float32)
    with pytest.raises(ValueError, match="which are recorded in units; put the recording below it"):
        RecordRerun(RescaleAction(make(), low, high), tmp_path / "out.rrd")
    with pytest.raises(ValueError, match="look into an imagined world, expected an astra-env id"):
        RecordRerun(ChunkEnv(), tmp_path / "out.rrd", denoising=True)
    for rows in ([0, 3], []):
        with pytest.raises(ValueError, match=r"are to be recorded, expected one or more of 0 to 2"):
            RecordRerunVector(make_vec("NextStep"), tmp_path / "out.rrd", rows=rows)
