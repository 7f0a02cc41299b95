"""How well any policy does: in imagination, in the real simulator, alone or in many worlds at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from tqdm import tqdm

CONFIDENCE = 0.95
_Z = 1.959964  # normal quantile of CONFIDENCE, both sides


@runtime_checkable
class Policy(Protocol):
    """What acts in a world. Many worlds at once need one that takes observations (N, ...) and gives actions (N, A)."""

    def reset(self, seed: int | None = None) -> Any:
        """Forget the last episode; the seed decides all that is drawn in the next one."""

    def act(self, observation: Any) -> Any:
        """The action in physical units, or the number of keys."""


class FunctionPolicy:
    """A plain function from an observation to an action, as a `Policy`."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.act = function

    def reset(self, seed: int | None = None) -> FunctionPolicy:
        """A function remembers nothing."""
        return self


def as_policy(policy: Policy | Callable[[Any], Any]) -> Policy:
    """The policy itself, or a function as one; ValueError for anything else."""
    if isinstance(policy, Policy):
        return policy
    if not callable(policy):
        raise ValueError(f"policy is {policy!r}, expected a function of the observation, or reset(seed) and act().")
    return FunctionPolicy(policy)


@dataclass(frozen=True)
class Evaluation:
    """What E episodes came to."""

    returns: np.ndarray  # float64 (E,): sums of rewards
    successes: np.ndarray  # bool (E,): whether the task was solved at the end
    lengths: np.ndarray  # long (E,): steps
    first_seed: int  # of the first episode; the others follow

    @property
    def mean_return(self) -> float:
        """Mean sum of rewards."""
        return float(self.returns.mean())

    @property
    def success_rate(self) -> float:
        """Share of the episodes that ended with the task solved."""
        return float(self.successes.mean())

    def kept_returns(self, num_steps: int) -> np.ndarray:
        """Returns (E,) as if what is solved went on to earn 1 in each of an episode's ``num_steps``.

        Where success ends an episode, it earns less than dwelling before the goal does: plain returns then rank a
        policy that never gets there above one that does.
        """
        return self.returns + self.successes * np.maximum(num_steps - self.lengths, 0)

    def to_json(self, num_steps: int) -> dict[str, Any]:
        """Means with their 95 % intervals, and every episode; ``num_steps`` is the length of a whole one."""
        kept = self.kept_returns(num_steps)
        return {
            "episodes": len(self.returns),
            "first_seed": self.first_seed,
            "success_rate": self.success_rate,
            "success_interval": list(share_interval(self.successes)),
            "mean_return": self.mean_return,
            "return_interval": list(bootstrap_interval(self.returns)),
            "mean_kept_return": float(kept.mean()),
            "kept_return_interval": list(bootstrap_interval(kept)),
            "mean_length": float(self.lengths.mean()),
            "returns": self.returns.tolist(),
            "kept_returns": kept.tolist(),
            "successes": self.successes.tolist(),
            "lengths": self.lengths.tolist(),
        }


def bootstrap_interval(values: np.ndarray, *, num_samples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of values (E,): percentiles of the means of samples drawn with replacement."""
    rng = np.random.default_rng(seed)
    means = rng.choice(np.asarray(values, np.float64), (num_samples, len(values))).mean(1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def share_interval(flags: np.ndarray) -> tuple[float, float]:
    """95 % interval of a share (Wilson's): none of 20 does not mean never, as resampling would have it."""
    count, share = len(flags), float(np.mean(flags))
    middle, spread = share + _Z**2 / (2 * count), (share * (1 - share) / count + _Z**2 / (4 * count**2)) ** 0.5
    scale = 1 + _Z**2 / count
    return max(0.0, (middle - _Z * spread) / scale), min(1.0, (middle + _Z * spread) / scale)


def evaluate(
    env: gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any],
    policy: Policy | Callable[[Any], Any],
    episodes: int = 20,
    seed: int = 0,
    *,
    progress: bool = False,
) -> Evaluation:
    """Run a policy from ``reset(seed=seed)``, ``seed + 1``, and so on, one episode each.

    Args:
        env: an imagined world, a real one (`policies.worlds.RealWorld`), or many at once as a vector environment, for
            a policy that acts in all of them; the episodes are the same.
        policy: a `Policy`, or a function from an observation to an action.
        episodes: how many.
        seed: of the first.
        progress: whether to show a bar.

    Raises:
        ValueError: there are no episodes, or nothing that acts, or the environment begins rows anew in the step in
            which they end, so that their seeds could not be told.
    """
    if episodes < 1:
        raise ValueError(f"The number of episodes is {episodes}, expected at least 1.")
    agent = as_policy(policy)
    with tqdm(total=episodes, unit="episode", disable=not progress, mininterval=2) as bar:
        if isinstance(env, VectorEnv):
            return Evaluation(*_run_many(env, agent, episodes, seed, bar), seed)
        return Evaluation(*_run_one(env, agent, episodes, seed, bar), seed)


def _run_one(
    env: gymnasium.Env[Any, Any], policy: Policy, episodes: int, seed: int, bar: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    returns, successes, lengths = np.zeros(episodes), np.zeros(episodes, bool), np.zeros(episodes, int)
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        policy.reset(seed + episode)
        over = False
        while not over:
            observation, reward, terminated, truncated, info = env.step(policy.act(observation))
            returns[episode] += float(reward)
            lengths[episode] += 1
            over = terminated or truncated
        successes[episode] = bool(info.get("success", False))
        bar.update()
    return returns, successes, lengths


def _run_many(
    env: VectorEnv[Any, Any, Any], policy: Policy, episodes: int, seed: int, bar: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every row takes the next seed when its episode is over; rows for which none is left go on unseen."""
    if env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP:
        raise ValueError("evaluate() tells each episode its seed; make the worlds with autoreset_mode='Disabled'.")
    returns, successes, lengths = np.zeros(episodes), np.zeros(episodes, bool), np.zeros(episodes, int)
    num, done = env.num_envs, 0
    current = np.arange(num)  # the episode of each row
    seeds: Any = (seed + current).tolist()
    observations, _ = env.reset(seed=seeds)
    policy.reset(seed)
    while done < episodes:
        observations, rewards, terminations, truncations, told = env.step(policy.act(observations))
        rows = np.flatnonzero(current < episodes)
        returns[current[rows]] += rewards[rows]
        lengths[current[rows]] += 1
        over = terminations | truncations
        if not over.any():
            continue
        ended = rows[over[rows]]
        successes[current[ended]] = told.get("success", np.zeros(num, bool))[ended]
        done += len(ended)
        bar.update(len(ended))
        fresh = np.flatnonzero(over)
        current[fresh] = max(current.max() + 1, num) + np.arange(len(fresh))
        seeds = (seed + current).tolist()
        observations, _ = env.reset(seed=seeds, options={"reset_mask": over})
    return returns, successes, lengths
