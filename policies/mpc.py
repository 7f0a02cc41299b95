"""Model-predictive control inside an imagined environment: plan, act once, plan again from where that led."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from astra_env.envs.env import AstraEnv
from astra_env.envs.futures import average, worst_case
from policies.objectives import Score, mean_reward
from policies.optimizers import DISCRETE_OPTIMIZERS, OPTIMIZERS
from policies.search import Objective, Plan, Search

Risk = Callable[[Objective, int], Objective]
"""What plans are worth, of what they are worth in each of several futures; see `astra_env.envs.futures`."""

NUM_KNOWN = 3
"""Sequences of a plan, without their first step, that the next search tries first."""


class MPCPolicy:
    """Chooses each action by a search over futures imagined in the environment's own world model.

    Every round of a search imagines its samples as one batch of forks of the environment's present state, in latent
    space: no picture is decoded. The next search starts from the rest of the last plan.

    Args:
        env: an astra-env environment with a `Box` or `Discrete` action space, wrapped or not.
        horizon: steps that a plan looks ahead.
        optimizer: a name of `OPTIMIZERS`, or of `DISCRETE_OPTIMIZERS` where actions are numbers.
        score: what a plan is worth, by default the mean of the environment's objective over its steps.
        num_samples: plans imagined at once.
        num_iterations: rounds of sampling for one action, at most.
        std_scale: initial standard deviation as a share of half the range of each action field.
        futures: in so many futures each plan is imagined, which differ by their noise and not from plan to plan.
        risk: what these make of it: `worst_case`, `average`, `lower_bound` of `astra_env.envs.futures`, or yours.
        num_inference_steps: denoising steps of the search, None for the environment's own; few make a draft.
        budget_ms: time for one action: no round begins that is not expected to end within it. There is at least one.
        verify: so many of the best plans are imagined again, under `verify_noises` noises that the search has not
            seen, and their mean value decides, or `risk` if the search has several futures; 0 trusts the search.
        verify_noises: noises of the verification.
        verify_steps: denoising steps of the verification, None for the environment's own.
        num_kept: best plans that `plan.candidates` tells, at least; more than a few are for looking at.
        clock: tells the time in seconds.
        options: of the optimiser, such as `num_elites` or `temperature`.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        *,
        horizon: int = 4,
        optimizer: str = "cem",
        score: Score = mean_reward,
        num_samples: int = 32,
        num_iterations: int = 3,
        std_scale: float = 0.5,
        futures: int = 1,
        risk: Risk = worst_case,
        num_inference_steps: int | None = None,
        budget_ms: float | None = None,
        verify: int = 0,
        verify_noises: int = 2,
        verify_steps: int | None = None,
        num_kept: int = NUM_KNOWN,
        clock: Callable[[], float] = time.perf_counter,
        **options: Any,
    ) -> None:
        self.world: AstraEnv = _imagined(env)
        table = DISCRETE_OPTIMIZERS if self._discrete else OPTIMIZERS
        if optimizer not in table:
            space = self.world.action_space
            raise ValueError(f"optimizer is {optimizer!r}, expected one of {sorted(table)} for the actions {space}.")
        inspect.signature(table[optimizer]).bind(None, None, **options)  # a wrong option is told now
        self._optimize, self._options = table[optimizer], options
        self.horizon, self.score, self.budget_ms, self.clock = horizon, score, budget_ms, clock
        self.num_samples, self.num_iterations = num_samples, num_iterations
        self.futures, self._risk = futures, risk if futures > 1 else average
        self.verify, self.verify_noises, self.num_kept = verify, verify_noises, num_kept
        own = self.world.sampling
        self._draft = own if num_inference_steps is None else {**own, "num_inference_steps": num_inference_steps}
        self._final = own if verify_steps is None else {**own, "num_inference_steps": verify_steps}
        self._low, self._high, self._mean, self._std = self._first_guess(std_scale)
        self.plan: Plan | None = None
        self.reset()

    @property
    def _discrete(self) -> bool:
        return isinstance(self.world.action_space, gymnasium.spaces.Discrete)

    def _first_guess(self, std_scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Bounds (A,), mean and standard deviation (horizon, A) before anything is known."""
        space = self.world.action_space
        if isinstance(space, gymnasium.spaces.Discrete):  # one field a choice, which is 1 where it is taken
            low, high = torch.zeros(int(space.n)), torch.ones(int(space.n))
            mean, std = high / int(space.n), low
        else:
            assert isinstance(space, gymnasium.spaces.Box)  # there is no third kind
            low, high = torch.from_numpy(space.low), torch.from_numpy(space.high)
            mean, std = (low + high) / 2, std_scale * (high - low) / 2
        return low, high, mean.repeat(self.horizon, 1), std.repeat(self.horizon, 1)

    def reset(self, seed: int | None = None) -> MPCPolicy:
        """Forgets the last plan and restarts the random numbers; call it when an episode begins."""
        self._generator = torch.Generator().manual_seed(0 if seed is None else seed)
        self._verify_seconds = 0.0
        self.plan = None
        return self

    def act(self, observation: Any) -> Any:
        """Plans from the environment's present state and returns the first action: float32 (A,), or a number.

        The observation is not looked at: the state that the environment imagines from says more. The whole plan
        stays in `self.plan`.
        """
        began = self.clock()
        with torch.no_grad():
            objective = self._objective(self.futures, self._draft)
            plan = self._optimize(objective, self._search(began), **self._options)
            self.plan = self._verified(plan) if self.verify > 0 else plan
        first = self.plan.actions[0].numpy()
        return first.argmax() if self._discrete else first.copy()

    def candidate_poses(self) -> np.ndarray:
        """Poses (K, horizon + 1, 4, 4) that the last plan's candidates lead through, seen from the episode's start.

        They begin at the environment's present pose, so ask before its next step. RuntimeError before the first plan.
        """
        if self.plan is None:
            raise RuntimeError("candidate_poses() was called before act(); there is no plan yet.")
        state, actions = self.world.save_state(), self.plan.candidates
        actions = actions @ self._choices if self._discrete else actions
        pose, speed = state.poses[0].cpu().numpy(), float(state.speeds[0])
        modality = self.world.action_modality
        return np.stack([modality.integrate(pose, plan, speed=speed) for plan in actions.numpy()])

    def _search(self, began: float) -> Search:
        """Around what remains of the last plan, where there is one."""
        mean, known, last = self._mean, None, self.plan
        if last is not None:
            mean, known = _later(last.mean), _later(last.candidates[:NUM_KNOWN])
            if self._discrete:  # what was never chosen may be right one step later
                mean = (mean + self._mean) / 2
        return Search(
            mean,
            self._std,
            self._low,
            self._high,
            self._generator,
            num_samples=self.num_samples,
            num_iterations=self.num_iterations,
            num_kept=max(self.verify, self.num_kept, NUM_KNOWN),
            known=known,
            keep_going=lambda done: self._time_for_one_more(began, done),
        )

    def _time_for_one_more(self, began: float, done: int) -> bool:
        """Whether a further round, as long as those before, and a verification, as long as the last, end in time."""
        if self.budget_ms is None:
            return True
        elapsed = self.clock() - began
        return 1000 * (elapsed + elapsed / done + self._verify_seconds) <= self.budget_ms

    def _verified(self, plan: Plan) -> Plan:
        """The best plans, judged under noises that are new to them."""
        began, best = self.clock(), plan.candidates[: self.verify]
        values = self._objective(self.verify_noises, self._final)(best)
        self._verify_seconds = self.clock() - began
        return plan._replace(candidates=best).judged_anew(values)

    def _objective(self, num_futures: int, sampling: dict[str, Any]) -> Objective:
        """What plans (N, horizon, A) are worth in fresh futures, all of them imagined as one batch.

        All plans share their noise, so that they differ by their actions only; it is the planner's own and not the
        noise that the environment goes on to draw.
        """
        seeds = self._seeds(num_futures)
        return self._risk(lambda plans: self._evaluate(plans, seeds, sampling), num_futures)

    def _evaluate(self, sequences: Tensor, seeds: Tensor, sampling: dict[str, Any]) -> Tensor:
        """Scores (N,) of plans (N, horizon, A), imagined as one batch; seeds of noise each serve as many neighbours."""
        actions = sequences @ self._choices if self._discrete else sequences
        state, num = self.world.save_state(), len(actions)
        seeds = seeds.repeat_interleave(num // len(seeds)).to(state.seeds)
        states = [dataclasses.replace(state.repeat(num), seeds=seeds)]
        for action in actions.unbind(1):
            states.append(self.world.world_model.step(states[-1], action, **sampling))
        return self.score(self.world, states[1:], actions).cpu()

    @property
    def _choices(self) -> Tensor:
        """Physical actions (choices, A) that numbers stand for."""
        return torch.from_numpy(self.world.physical(np.arange(len(self._low)), self._low.shape))

    def _seeds(self, num: int) -> Tensor:
        return torch.randint(2**31, (num,), generator=self._generator)


def _imagined(env: gymnasium.Env[Any, Any]) -> AstraEnv:
    """The imagined environment under any wrappers that leave its actions as they are."""
    world = env.unwrapped
    if not isinstance(world, AstraEnv):
        raise ValueError(f"MPCPolicy plans in one imagined world, expected an environment of astra-env, got {env}.")
    if env.action_space != world.action_space:
        raise ValueError(
            f"A wrapper has made the actions {env.action_space} of {world.action_space}, in which MPCPolicy plans; "
            "give it the environment below that wrapper."
        )
    return world


def _later(sequences: Tensor) -> Tensor:
    """What remains of sequences (..., horizon, A) after their first step; the last step is done again."""
    return torch.cat([sequences[..., 1:, :], sequences[..., -1:, :]], dim=-2)
