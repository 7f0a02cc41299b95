from __future__ import annotations

import argparse
import json

import gymnasium
import numpy as np
import pytest
import torch
from tiny import save_checkpoint

import astra_env  # noqa: F401  registers the ids
from astra_env.actions import ACTION_MODALITIES
from astra_env.models.goal_model import GoalModel, save_goal_model
from benchmarks import cli, planning
from benchmarks.planning import Planner, RandomActor, Task, make_goal, pursue, render_planning, separation
from policies.objectives import mean_reward

TASK = Task("Astra-RT1-v0", metres=0.04, goal_steps=2, extra_steps=1)
SMALL = {"horizon": 1, "num_samples": 8, "num_iterations": 1}


class Gantry(gymnasium.Env):
    """A simulator without physics: the pose adds up what actions tell, and the picture is grey by how far it is."""

    def __init__(self):
        self.action_space = ACTION_MODALITIES["end_effector"].space()
        self.place = np.zeros(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-0.1, 0.1, 3)
        return self._told(1)

    def step(self, action):
        assert self.action_space.contains(action)
        self.place = self.place + action[:3]
        observation, info = self._told(4)
        return observation, 0.0, False, False, info

    def get_state(self):
        return {"place": self.place.copy()}

    def set_state(self, state):
        self.place = state["place"].copy()
        return self._told(1)

    def _told(self, count):
        pose = np.eye(4)
        pose[:3, 3] = self.place
        frames = np.full((count, 32, 32, 3), int(127 + 200 * self.place[0]), np.uint8)
        return frames[-1], {"frames": frames, "pose": pose}


def oracle(simulator, goal):
    """Goes straight to where the goal picture was taken."""

    class Oracle:
        def act(self, *_):
            way = np.zeros(7, np.float32)
            way[:3] = np.clip(goal.pose[:3, 3] - simulator.place, -0.05, 0.05)
            return way

    return Oracle()


def test_a_goal_is_out_of_reach_at_its_start_and_follows_from_the_seed():
    simulator = Gantry()
    for seed in range(5):
        goal, again = make_goal(simulator, TASK, seed), make_goal(simulator, TASK, seed)
        assert separation(goal.start, goal.pose)[0] > TASK.metres
        np.testing.assert_array_equal(goal.pose, again.pose)
        assert goal.frames.shape == (1 + 4 * planning.HISTORY_STEPS, 32, 32, 3)
        assert goal.actions.shape == (planning.HISTORY_STEPS, 7)


def test_success_is_the_real_pose_at_the_end():
    simulator = Gantry()
    goals = [make_goal(simulator, TASK, seed) for seed in range(8)]
    there = [pursue(simulator, TASK, goal, oracle(simulator, goal)) for goal in goals]
    lost = [pursue(simulator, TASK, goal, RandomActor(simulator.action_space, 0)) for goal in goals]
    assert all(outcome.success and outcome.metres < 1e-6 for outcome in there)
    assert np.mean([outcome.success for outcome in lost]) < 0.5
    assert all(outcome.success == (outcome.metres < TASK.metres) for outcome in lost)


def test_an_angle_counts_where_it_is_limited():
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    assert separation(turned, np.eye(4)) == pytest.approx((0.0, 0.3))
    assert TASK.near(turned, np.eye(4))
    assert not Task("Astra-Sekai-v0", metres=1.0, radians=0.2).near(turned, np.eye(4))


def test_the_imagined_world_begins_anew_from_all_real_frames(make):
    env, simulator = make(), Gantry()
    goal, seen, reset = make_goal(simulator, TASK, 0), [], env.reset

    def watched(**given):
        seen.append(given["options"])
        return reset(**given)

    env.reset = watched
    outcome = pursue(simulator, TASK, goal, Planner(env, 0, TASK, **SMALL))
    assert [len(options["frames"]) for options in seen] == [9, 13, 17]
    assert [len(options["actions"]) for options in seen] == [2, 3, 4]
    assert all(options["goal"] is goal.picture for options in seen)
    assert (seen[1]["frames"][-1] == int(127 + 200 * (goal.start[0, 3] + seen[1]["actions"][-1][0]))).all()
    assert len(outcome.ms) == len(outcome.rounds) == 3


def test_plans_are_judged_by_what_the_goal_model_reads(tmp_path):
    torch.manual_seed(0)
    checkpoint = save_checkpoint(tmp_path / "world", domains=["robot"])
    save_goal_model(GoalModel(dim=8), checkpoint / "domains" / "robot")
    env = gymnasium.make("Astra-RT1-v0", world_model=str(checkpoint), device="cpu")
    goal, judges = make_goal(Gantry(), TASK, 0), {}
    for judged in ("latents", "picture", "pose"):
        planner = Planner(env, 0, TASK, judged=judged, **SMALL)
        action = planner.act(goal.frames, goal.actions, goal.picture, planning.Outcome())
        assert env.action_space.contains(action)
        assert (planner.policy.score is mean_reward) == (judged == "latents")
        judges[judged] = TASK.judge(env, goal.frames[-1], goal.picture, judged)
    assert judges["latents"] is None
    state = env.unwrapped.save_state()
    motion = judges["picture"].distances(state)
    terms = judges["pose"](state).terms
    assert terms["pose_distance"].item() == pytest.approx(motion[0].item(), abs=1e-5)
    assert terms["pose_angle"].item() == pytest.approx(motion[1].item(), abs=1e-5)


def test_all_agents_are_measured_and_shown(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "make_simulator", lambda env_id: Gantry())
    monkeypatch.setattr(planning, "TASKS", {"robot": TASK})
    monkeypatch.setattr(planning, "PLAN", SMALL)
    monkeypatch.setattr(planning, "PLANNERS", {"cem": {"optimizer": "cem"}})
    monkeypatch.setattr(planning, "BUDGETS_MS", (1,))
    monkeypatch.setattr(planning, "BUDGET_PLAN", {**SMALL, "num_samples": 12, "num_iterations": 5})
    monkeypatch.setattr(planning, "BUDGETED", ("icem",))
    out = tmp_path / "planning.json"
    results = planning.planning(out, episodes=2, seed=5, tasks=["robot"], world_model=checkpoint)
    written = json.loads(out.read_text())["tasks"]["robot"]["agents"]
    assert written.keys() == {"random actions", "cem", "icem, 1 ms"}
    for agent in written.values():
        low, high = agent["success_interval"]
        assert 0 <= low <= agent["success"] <= high <= 1
    assert written["icem, 1 ms"]["rounds"] == 1 and written["random actions"]["median_ms"] is None
    monkeypatch.setattr(planning, "TASKS", {"robot": TASK, "other": TASK})
    both = planning.planning(out, episodes=2, seed=5, tasks=["other"], world_model=checkpoint)["tasks"]
    assert list(both) == ["robot", "other"] and both["robot"] == results["tasks"]["robot"]  # what is there stays
    alone = planning.planning(out, episodes=1, seed=5, tasks=["other"], world_model=checkpoint)
    assert list(alone["tasks"]) == ["other"]  # unless it was measured otherwise
    with pytest.raises(ValueError, match=r"tasks are \['lunar'\], expected some of \['other', 'robot'\]"):
        planning.planning(out, tasks=["lunar"], world_model=checkpoint)
    text = render_planning(results)
    assert "| icem, 1 ms | " in text and "end within 4 cm.\n" in text


def test_all_tasks_are_measured_unless_some_are_named():
    parser = argparse.ArgumentParser()
    cli._add_planning(parser)
    assert parser.parse_args([]).tasks == list(planning.TASKS)


@pytest.mark.simulator
@pytest.mark.parametrize("name", [pytest.param("robot", marks=pytest.mark.slow), "camera", "multicam"])
def test_goals_of_real_simulators(name):
    pytest.importorskip("mujoco")
    if name != "camera":
        pytest.importorskip("robosuite")
    task = planning.TASKS[name]
    simulator = planning.make_simulator(task.env_id)
    goal = make_goal(simulator, task, 0)
    _, info = simulator.set_state(goal.state)
    np.testing.assert_allclose(info["pose"], goal.start, atol=1e-6)
    assert not task.near(goal.start, goal.pose)
    simulator.close()
