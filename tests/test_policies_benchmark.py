"""Policies in imagination and for real: from the same beginnings, each measured once, ranked by what they come to."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
from tiny import save_checkpoint

from astra_env.actions import ACTION_MODALITIES
from astra_env.envs.lifting import Lift
from astra_env.geometry import make_pose
from astra_env.models.target_model import TargetModel
from benchmarks import policies as bench
from benchmarks.policies import (
    FINALS,
    SHARES,
    Candidate,
    SameStarts,
    Sizes,
    Sometimes,
    candidates,
    policies,
    rank_violation,
    ranking,
    render_policies,
)
from policies import worlds
from policies.agents import RandomPolicy
from policies.evaluate import as_policy
from policies.worlds import LastInfo

ID = "Astra-RT1-v0"


class Stage(gym.Env):
    """A simulator of one shade, drawn by the seed; the reward is half at first, and the task is solved in step 3."""

    def __init__(self, modality: str = "end_effector", **told: object) -> None:
        self.action_space = ACTION_MODALITIES[modality].space()
        self.observation_space = gym.spaces.Box(0, 255, (32, 32, 3), np.uint8)
        self.told, self.count, self.shade = told, 0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.shade = 0, int(self.np_random.integers(256))
        return self._see(1)

    def step(self, action):
        self.count += 1
        observation, info = self._see(4)
        return observation, 0.5, False, False, info

    def _see(self, num):
        frames = np.full((num, 32, 32, 3), self.shade, np.uint8)
        return frames[-1], {"frames": frames, "success": self.count >= 3, **self.told}


def measured(*returns):
    """Policies that came to so much (imagination, simulator), in three episodes each."""
    spread = np.array([-0.5, 0.0, 0.5])
    return {
        f"policy {index}": {
            "imagination": {"kept_returns": (imagined + spread).tolist()},
            "simulator": {"kept_returns": (real + spread).tolist()},
        }
        for index, (imagined, real) in enumerate(returns)
    }


def test_imagination_begins_with_the_simulators_picture(make):
    real = Stage(speed=6.5)
    env = SameStarts(make(id="Astra-NuScenes-v0"), real)
    for seed in (3, 8):
        _, info = env.reset(seed=seed)
        assert info["speed"] == 6.5
        seen = env.unwrapped.save_state().newest
        shade = real.reset(seed=seed)[1]["frames"][-1]
        env.env.reset(seed=0, options={"image": shade})
        np.testing.assert_allclose(seen, env.unwrapped.save_state().newest, atol=1e-5)
    first, again, other = (env.reset(seed=seed)[0] for seed in (3, 3, 8))
    assert (first == again).all() and (first != other).any()
    with pytest.raises(ValueError, match="reset it with one"):
        env.reset()


def test_imagination_follows_the_simulators_path(make):
    path = np.stack([make_pose(np.eye(3), (0.1 * x, 0.0, 1.0)) for x in range(6)])
    env = SameStarts(make(id="Astra-MultiCam-v0"), Stage("camera", path=path))
    _, info = env.reset(seed=0)
    np.testing.assert_allclose(info["path"][:, :3, 3], path[:, :3, 3] - (0.0, 0.0, 1.0), atol=1e-9)


def test_a_run_is_known_by_its_files(tmp_path):
    assert candidates(tmp_path).keys() == {"random", "scripted expert", "MPC"}
    for name in ("imagination/best.zip", "imagination/policy.zip", "simulator/best.zip", "simulator/policy.zip"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "imagination" / "checkpoints").mkdir()
    for step in (900, 10_000):
        (tmp_path / "imagination" / "checkpoints" / f"{step}.zip").touch()
    found = candidates(tmp_path)
    # what learned in imagination is chosen there; in the simulator, it is the last one
    for kind, file in {"imagination": "best.zip", "simulator": "policy.zip"}.items():
        assert found[FINALS[kind][0]] == Candidate(str(tmp_path / kind / file))
    assert FINALS["without_pessimism"][0] not in found
    assert list(found)[-2:] == ["imagination, 900 steps", "imagination, 10000 steps"]
    (tmp_path / "clone").mkdir()
    shares = [candidate.random_share for candidate in candidates(tmp_path).values()][-4:]
    assert shares == [0.0, *SHARES]


def test_a_share_of_the_steps_is_at_random():
    space = ACTION_MODALITIES["end_effector"].space()
    still = as_policy(lambda seen: np.zeros(7, np.float32) if seen is None else np.full(7, seen, np.float32))
    for share in (0.0, 0.25, 1.0):
        policy = Sometimes(still, space, share).reset(seed=3)
        actions = [policy.act(None) for _ in range(400)]
        moved = [bool(action.any()) for action in actions]
        assert abs(np.mean(moved) - share) < 0.07
        policy.reset(seed=3)
        assert all((policy.act(None) == action).all() for action in actions)


def test_a_policy_of_pictures_is_shown_the_newest_frame():
    world = LastInfo(Stage())
    world.reset(seed=0)
    seen = []
    Sometimes(as_policy(lambda frame: seen.append(frame) or 0), world.action_space, 0.0, world).reset(0).act("latent")
    assert seen[0].shape == (32, 32, 3) and (seen[0] == world.env.shade).all()


def test_a_ranking_is_as_good_as_the_agreement():
    agreeing = ranking(measured((1, 2), (2, 4), (3, 6), (8, 16)))
    assert agreeing["policies"] == 4 and agreeing["rank_violation"] == 0
    assert agreeing["pearson"] == pytest.approx(1) == agreeing["spearman"]
    low, high = agreeing["pearson_interval"]
    assert 0.5 < low <= high <= 1
    reversed_ = ranking(measured((1, 6), (2, 4), (3, 2)))
    assert reversed_["pearson"] == pytest.approx(-1) and reversed_["rank_violation"] == pytest.approx((4 + 2 + 4) / 3)
    assert ranking(measured((1, 2), (2, 4), (3, 6), (8, 16))) == agreeing


def test_what_cannot_be_ranked_is_none():
    assert ranking(measured((1, 2), (2, 4))) is None
    assert ranking(measured((1, 2), (1, 3), (1, 4))) is None  # all the same in imagination
    assert ranking(measured((1, 2), (2, 4)) | {"MPC": {"simulator": {"kept_returns": [1.0]}}}) is None


def test_one_policy_under_two_names_counts_once():
    three = measured((1, 2), (2, 4), (3, 1))
    assert ranking(three | {"best": three["policy 1"]}) == ranking(three)


def test_a_wrong_order_costs_what_it_loses_for_real():
    """As in SIMPLER: of each policy the worst pair, and the mean of those."""
    assert rank_violation(np.array([1.0, 2.0, 3.0]), np.array([5.0, 7.0, 9.0])) == 0
    assert rank_violation(np.array([1.0, 3.0, 2.0]), np.array([5.0, 7.0, 9.0])) == pytest.approx((0 + 2 + 2) / 3)


@pytest.fixture
def stage(monkeypatch, checkpoint):
    """Simulators without physics, and policies without thought."""
    monkeypatch.setattr(worlds, "make_simulator", lambda environment: Stage())
    asked = []

    def load(name, environment, world, world_model):
        asked.append(name)
        assert world_model == checkpoint and world.observation_space.shape == (16, 4, 4)
        return RandomPolicy(world.action_space)

    monkeypatch.setattr(bench, "load_policy", load)
    return asked


def test_every_policy_is_measured_once_and_shown(checkpoint, tmp_path, stage):
    out, sizes = tmp_path / "policies.json", Sizes(episodes=2, planned_episodes=1, seed=7)
    results = policies(tmp_path / "runs", [ID], out, sizes, checkpoint)
    assert json.loads(out.read_text()) == results
    assert stage == ["random", "random", "expert", "mpc"]  # two of which imagination cannot have
    agents = results["environments"][ID]["agents"]
    assert [told.keys() for told in agents.values()] == [{"simulator", "imagination"}, {"simulator"}, {"simulator"}]
    real = agents["random"]["simulator"]
    assert real["first_seed"] == 7 and real["lengths"] == [3, 3] and real["success_rate"] == 1
    assert real["kept_returns"] == [1.5 + 47] * 2  # half for three steps, then 1 to the end
    assert agents["MPC"]["simulator"]["episodes"] == 1
    assert results["environments"][ID]["ranking"] is None
    runs = tmp_path / "runs" / ID / "imagination"
    (runs / "checkpoints").mkdir(parents=True)
    (runs / "checkpoints" / "64.zip").touch()
    again = policies(tmp_path / "runs", [ID], out, sizes, checkpoint)
    assert stage[4:] == [str(runs / "checkpoints" / "64.zip")] * 2
    assert again["environments"][ID]["agents"]["random"] == agents["random"]
    text = render_policies(again)
    assert f"**{ID}**" in text and "| MPC | 100 % (21 % to 100 %) | 48.5 (48.5 to 48.5) | – | 1 |" in text
    assert "64 steps" not in text
    policies(tmp_path / "runs", [ID], out, Sizes(episodes=1, planned_episodes=1, seed=7), checkpoint)
    assert len(stage) == 6 + 6  # other sizes are measured anew


def test_dreams_end_where_they_are_no_longer_trusted(checkpoint, tmp_path, stage, monkeypatch):
    out, sizes = tmp_path / "policies.json", Sizes(episodes=2, planned_episodes=1)
    policies(tmp_path, [ID], out, sizes, checkpoint)
    monkeypatch.setitem(bench.IMAGINED_STEPS, ID, 2)
    told = policies(tmp_path, [ID], out, sizes, checkpoint)["environments"][ID]
    assert stage == ["random", "random", "expert", "mpc"] * 2  # measured anew
    assert told["num_steps"] == {"simulator": 50, "imagination": 2}
    agent = told["agents"]["random"]
    assert agent["imagination"]["lengths"] == [2, 2] and agent["simulator"]["lengths"] == [3, 3]


def test_imagination_judges_a_lift_as_the_simulator_does(tmp_path, stage):
    """What leads those who learn to the grasp is no part of what policies are compared by."""
    folder = save_checkpoint(tmp_path, domains=["robot"]) / "domains" / "robot"
    TargetModel(dim=8, latent_size=4, num_outputs=6).save(folder)
    both = bench._Worlds(ID, str(tmp_path))
    both._imagined.reset(seed=0)
    reward = both._imagined.get_wrapper_attr("reward_function")
    assert isinstance(reward, Lift) and not reward.shaped and reward.slack == 0
    both.close()


def test_the_setting_of_a_run_is_told(checkpoint, tmp_path, stage):
    run = tmp_path / ID / "simulator"
    (run / "checkpoints").mkdir(parents=True)
    names = ("algorithm", "where", "observation", "episode_steps", "num_worlds")
    names += ("gamma", "learning_rate", "seed", "read_by", "reward", "pessimism")
    (run / "policy_config.json").write_text(
        json.dumps(dict.fromkeys(names, "told") | {"out": "elsewhere", "read_by": "a/b/told"})
    )
    for step in (8, 16):
        (run / "checkpoints" / f"{step}.zip").touch()
    results = policies(tmp_path, [ID], tmp_path / "out.json", Sizes(1, 1), checkpoint)
    told = results["environments"][ID]["runs"]
    assert told["imagination"] is None and told["simulator"] == dict.fromkeys(names, "told") | {"steps": 16}


def test_a_ranking_is_shown_under_its_table():
    agents = {
        name: {place: {**told, "success_rate": 0.5, "success_interval": [0.1, 0.9], "mean_kept_return": 2.0,
                       "kept_return_interval": [1.0, 3.0], "episodes": 3} for place, told in both.items()}
        for name, both in measured((1, 2), (2, 4), (3, 6)).items()
    }  # fmt: skip
    num_steps = {"simulator": 50, "imagination": 12}
    results = {"environments": {ID: {"num_steps": num_steps, "agents": agents, "ranking": ranking(agents)}}}
    text = render_policies(results)
    assert "| return in 12 imagined steps |" in text
    assert "| policy 0 | 50 % (10 % to 90 %) | 2.0 (1.0 to 3.0) | 2.0 | 3 |" in text
    assert "3 policies: r = 1.00 (" in text and text.endswith("ranks 1.00.")
