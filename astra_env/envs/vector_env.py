"""AstraVectorEnv: many imagined worlds in one batch, one call of the network for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from astra_env.envs.rewards import RewardFunction, joined
from astra_env.envs.worlds import ImaginedWorlds, StepInfo
from astra_env.models import WorldState


class AstraVectorEnv(ImaginedWorlds, VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """N worlds of one id, for ``gymnasium.make_vec(id, num_envs=N, vectorization_mode="vector_entry_point")``.

    A row is decided by its own seed, options and actions: its neighbours change it by no more than rounding (1e-4 on
    latents). It imagines what ``gymnasium.make(id)`` does from the same seed.

    ## Spaces
    Batches of `AstraEnv`'s: observations (N, …), actions (N, A) or, for numbers of keys, (N,).

    ## Starting State
    ``reset(seed=s)`` seeds row i with s + i; a list seeds each row. ``options`` are `AstraEnv`'s, for all rows, and
    ``rows``: a list of N dictionaries with what is different for each; ``reset_mask`` (bool (N,)) resets some rows and
    leaves the others as they are.

    ## Episode End
    Rows terminate as the id tells and are truncated after `max_episode_steps`. `autoreset_mode` says what follows:
    NEXT_STEP begins the row anew in the next step, whose action is ignored; SAME_STEP at once, with the last
    observation in ``info["final_obs"]`` and all else in ``info["final_info"]``; DISABLED leaves it to `reset`.

    ## Arguments
    `num_envs`: worlds; `max_episode_steps`: of every row, None for no end; all others are `AstraEnv`'s.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  (as Gymnasium declares it)
        "render_modes": ["rgb_array"],
        "render_fps": 5,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        environment: str = "Astra-RT1-v0",
        *,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **options: Any,
    ) -> None:
        super().__init__(environment, **options)
        self._widen(num_envs, max_episode_steps, autoreset_mode)

    @classmethod
    def forked(
        cls, worlds: ImaginedWorlds, rngs: Sequence[np.random.Generator], max_episode_steps: int | None
    ) -> AstraVectorEnv:
        """Copies of a single environment's world, one for each generator that their later resets draw from."""
        env = cls.__new__(cls)
        # of the single environment, whose window shows one world
        alone = {"spec", "metadata", "_frames", "_shown", "_window", "_np_random", "_np_random_seed"}
        vars(env).update({name: value for name, value in vars(worlds).items() if name not in alone})
        env.render_mode = worlds.render_mode and "rgb_array"
        env._widen(len(rngs), max_episode_steps, AutoresetMode.NEXT_STEP)
        env._rngs, env.state = list(rngs), worlds.save_state().repeat(len(rngs))
        return env

    def _widen(self, num_envs: int, max_episode_steps: int | None, autoreset_mode: AutoresetMode | str) -> None:
        """From the spaces of one world to those of N."""
        if num_envs < 1:
            raise ValueError(f"The number of worlds is {num_envs}, expected at least 1.")
        self.num_envs, self.max_episode_steps = num_envs, max_episode_steps
        rate = self.action_modality.rate_hz / self.world_model.sampling.chunk_size  # chunks a second
        mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "render_fps": rate, "autoreset_mode": mode}
        self.single_action_space, self.single_observation_space = self.action_space, self.observation_space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._rngs: list[np.random.Generator] = [np_random()[0] for _ in range(num_envs)]
        self._rewards: list[RewardFunction] = [self.reward_function] * num_envs
        self._observations = np.zeros(self.observation_space.shape or (), self.observation_space.dtype)
        self._ended = np.zeros(num_envs, bool)

    @property
    def autoreset_mode(self) -> AutoresetMode:
        """What follows the end of a row's episode."""
        mode: AutoresetMode = self.metadata["autoreset_mode"]
        return mode

    # 1. Beginning

    @torch.no_grad()
    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin episodes in all rows, or in those of ``options["reset_mask"]``."""
        options = dict(options or {})
        mask = self._reset_mask(options.pop("reset_mask", None))
        own = options.pop("rows", None) or [{}] * self.num_envs
        seeds = [seed + row for row in range(self.num_envs)] if isinstance(seed, int | np.integer) else seed
        seeds = [None] * self.num_envs if seeds is None else list(seeds)
        for name, given in (("seeds", seeds), ("rows", own)):
            if len(given) != self.num_envs:
                raise ValueError(f"reset() got {len(given)} {name}, expected one for each of {self.num_envs} worlds.")
        rows = np.flatnonzero(mask).tolist()
        for row in rows:
            if seeds[row] is not None:
                self._rngs[row] = np_random(seeds[row])[0]
        info: dict[str, Any] = {}
        self._begin_rows(rows, [{**options, **own[row]} for row in rows], info)
        return self._observations.copy(), self._told(info)

    def _reset_mask(self, mask: np.ndarray | None) -> np.ndarray:
        if mask is None:
            return np.ones(self.num_envs, bool)
        if np.shape(mask) != (self.num_envs,) or np.asarray(mask).dtype != bool or not np.any(mask):
            raise ValueError(f"reset_mask is {mask!r}, expected bool ({self.num_envs},), at least one of them True.")
        if self.state is None and not np.all(mask):
            raise ValueError("reset_mask leaves out worlds that were never reset; reset all of them first.")
        return np.asarray(mask)

    def _begin_rows(self, rows: Sequence[int], options: Sequence[Mapping[str, Any]], info: dict[str, Any]) -> None:
        """Put fresh worlds into some rows: state, rewards, observations and what info tells of them."""
        fresh, rewards = self._begin([self._rngs[row] for row in rows], options)
        judge = joined(rewards)
        fresh, observations, told = self._observe(fresh, judge(fresh), judge)
        self._observations[rows] = observations
        _put(info, rows, told, self.num_envs)
        for row, reward in zip(rows, rewards, strict=True):
            self._rewards[row] = reward
        self.reward_function = joined(self._rewards)
        self.state = fresh if self.state is None or len(rows) == self.num_envs else self.state.replaced(rows, fresh)
        self._ended[rows] = False

    def _told(self, info: dict[str, Any]) -> dict[str, Any]:
        """Where latents are observed, the frames of what is now are decoded when they are asked for."""
        state = self.save_state()
        return StepInfo(info, lambda: self._frames_of(state)) if self.observation == "latent" else info

    # 2. Going on

    @torch.no_grad()
    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Imagine one chunk of every world; rows that begin anew ignore their action and give reward 0."""
        if self.state is None:
            raise RuntimeError("step() was called before reset(); call reset() first.")
        starting, given = np.flatnonzero(self._ended).tolist(), np.array(actions)
        if starting and self.autoreset_mode is AutoresetMode.DISABLED:
            raise ValueError(f"The episodes of rows {starting} are over; reset them with options={{'reset_mask': …}}.")
        if given.shape[:1] == (self.num_envs,):
            given[starting] = 0
        physical = torch.from_numpy(self.physical(given, (self.num_envs,)))
        state = self.world_model.step(self.state, physical, **self.sampling)
        reward = self.reward_function(state)
        self.state, self._observations, told = self._observe(state, reward, self.reward_function)
        info: dict[str, Any] = {}
        _put(info, range(self.num_envs), told, self.num_envs)
        values = reward.value.double().cpu().numpy().copy()
        terminations, truncations = reward.done.cpu().numpy().copy(), self._too_long(state)
        values[starting], terminations[starting], truncations[starting] = 0, False, False
        if starting:
            self._begin_rows(starting, [{}] * len(starting), info)
        self._ended = terminations | truncations
        if self._ended.any() and self.autoreset_mode is AutoresetMode.SAME_STEP:
            self._restart(info)
        return self._observations.copy(), values, terminations, truncations, self._told(info)

    def end(self, rows: np.ndarray) -> None:
        """Let the episodes of some rows (bool (N,)) be over, as a wrapper does that truncates them.

        They begin anew as after any other end; ValueError with SAME_STEP, where that would have been before.
        """
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            raise ValueError("Rows that begin anew in the same step cannot be ended after it; choose another mode.")
        self._ended |= rows

    def _too_long(self, state: WorldState) -> np.ndarray:
        steps = state.num_steps.cpu().numpy()
        return steps >= (np.inf if self.max_episode_steps is None else self.max_episode_steps)

    def _restart(self, info: dict[str, Any]) -> None:
        """Begin the ended rows anew; what was seen and told of them last goes into final_obs and final_info."""
        ended, last = self._ended.copy(), self._told(_of_rows(info, self._ended))
        rows, observations = np.flatnonzero(ended).tolist(), np.full(self.num_envs, None, object)
        for row in rows:
            observations[row] = self._observations[row].copy()
        self._begin_rows(rows, [{}] * len(rows), info)
        info |= {"final_obs": observations, "_final_obs": ended, "final_info": last, "_final_info": ended.copy()}

    @torch.no_grad()
    def render(self) -> tuple[np.ndarray, ...] | None:
        """The newest frame of every world, uint8 (H, W, 3) each."""
        if self.render_mode != "rgb_array" or self.state is None:
            return None
        return tuple(frames[-1].copy() for frames in self._frames_of(self.state))

    # 3. The worlds as a value

    def objective(self, state: WorldState) -> torch.Tensor:
        """Reward (N,) of N worlds, row by row under the tasks of the environment's rows."""
        return self.reward_function(state).value

    def restore_state(self, state: WorldState) -> None:
        """Continue from a value that `save_state` gave (N worlds)."""
        if len(state) != self.num_envs:
            raise ValueError(f"The state holds {len(state)} worlds, expected {self.num_envs}.")
        self.state = state
        self._ended[:] = False


def _put(info: dict[str, Any], rows: Sequence[int], told: Mapping[str, Any], num_envs: int) -> None:
    """Write what is told of some rows into arrays of all, with a mask of the rows beside each, as Gymnasium has it."""
    chosen = list(rows)
    for name, mask in info.items():
        if name.startswith("_"):
            mask[chosen] = False
    for name, value in told.items():
        if isinstance(value, dict):
            _put(info.setdefault(name, {}), chosen, value, num_envs)
        else:
            if name not in info:
                info[name] = np.zeros((num_envs, *value.shape[1:]), value.dtype)
            info[name][chosen] = value
        info.setdefault(f"_{name}", np.zeros(num_envs, bool))[chosen] = True


def _of_rows(info: Mapping[str, Any], rows: np.ndarray) -> dict[str, Any]:
    """A copy of what is told, of some rows (bool (N,)) only."""
    return {
        name: _of_rows(value, rows)
        if isinstance(value, dict)
        else value & rows
        if name.startswith("_")
        else value.copy()
        for name, value in info.items()
    }
