"""Wrappers that tell how far a dream can be trusted, pay less where it cannot, and end it where it breaks.

``TruncateWhenUncertain(Pessimistic(Uncertainty(gymnasium.make(id))), limit=0.8)``; those of vector environments have
``Vector`` before their names. `astra_env.envs.futures` says what is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from astra_env.envs.env import AstraEnv
from astra_env.envs.futures import FILE_NAME, Calibration, Futures, Spread
from astra_env.envs.vector_env import AstraVectorEnv
from astra_env.envs.worlds import ImaginedWorlds

TERMS = ("uncertainty", "reward_uncertainty")
"""What `info` tells: the expected error of the latent, and how far the reward differs between futures."""


class Uncertainty(gymnasium.Wrapper[Any, Any, Any, Any]):
    """``info["uncertainty"]`` and ``info["reward_uncertainty"]`` of one imagined world, by K futures in one batch.

    ``uncertainty`` is the error to expect of the newest latent, where the world has a calibration for its domain, else
    the root mean squared distance of the futures itself; ``reward_uncertainty`` is that of their rewards. Both are 0 at
    the start. After `restore_state` the futures begin anew from the restored state.

    Args:
        env: an environment of astra-env, under wrappers that leave its actions as they are.
        num_samples: futures; the measures do not grow with their number, but rest on more.
        calibration: instead of the domain's own.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], *, num_samples: int = 4, calibration: Calibration | None = None
    ) -> None:
        super().__init__(env)
        if not isinstance(env.unwrapped, AstraEnv):
            raise ValueError(f"Uncertainty needs an environment of astra-env, got {env}; for many, VectorUncertainty.")
        _check_actions(env.action_space, env.unwrapped.action_space)
        self.world, self.futures = env.unwrapped, Futures(env.unwrapped, num_samples)
        self.calibration = calibration or _calibration(self.world)
        self._seen: Any = None  # the state that the futures belong to

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `AstraEnv.reset`."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._begin()
        info.update(dict.fromkeys(TERMS, 0.0))
        return observation, info

    @torch.no_grad()
    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See `AstraEnv.step`."""
        if self.world.save_state() is not self._seen:
            self._begin()
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._seen = self.world.save_state()
        physical = self.world.physical(np.asarray(action), ())[None]
        spread = self.futures.step(physical, self._seen, self.world.reward_function)
        info.update({name: float(value[0]) for name, value in _told(spread, self.calibration).items()})
        return observation, reward, terminated, truncated, info

    def _begin(self) -> None:
        self._seen = self.world.save_state()
        self.futures.begin(self._seen)


class VectorUncertainty(VectorWrapper[Any, Any, Any]):
    """As `Uncertainty`, for `AstraVectorEnv`: both are arrays (N,), of a row's last step in ``final_info`` as well."""

    def __init__(
        self, env: VectorEnv[Any, Any, Any], *, num_samples: int = 4, calibration: Calibration | None = None
    ) -> None:
        super().__init__(env)
        if not isinstance(env.unwrapped, AstraVectorEnv):
            raise ValueError(f"VectorUncertainty needs a vector environment of astra-env, got {env}.")
        _check_actions(env.action_space, env.unwrapped.action_space)
        self.world, self.futures = env.unwrapped, Futures(env.unwrapped, num_samples)
        self.calibration = calibration or _calibration(self.world)
        self._seen: Any = None

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """See `AstraVectorEnv.reset`; rows that go on keep their futures."""
        mask, followed = (options or {}).get("reset_mask"), self._seen is not None and self._seen is self.world.state
        observations, info = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        self._seen = self.world.save_state()
        self.futures.begin(self._seen, None if mask is None or not followed else np.flatnonzero(mask).tolist())
        begun = np.ones(self.num_envs, bool) if mask is None else np.asarray(mask)
        _put(info, {name: np.zeros(self.num_envs) for name in TERMS}, begun)
        return observations, info

    @torch.no_grad()
    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """See `AstraVectorEnv.step`."""
        before, judge = self.world.save_state(), self.world.reward_function
        if before is not self._seen:
            self.futures.begin(before)
        observations, rewards, terminations, truncations, info = self.env.step(actions)
        self._seen = after = self.world.save_state()
        fresh = (after.num_steps == 0).cpu().numpy()
        rows, given = np.flatnonzero(fresh).tolist(), np.array(actions)
        same_step = self.world.autoreset_mode is AutoresetMode.SAME_STEP
        if not same_step:
            given[fresh] = 0  # rows that began anew have ignored their actions
        physical = self.world.physical(given, (self.num_envs,))
        if same_step and rows:  # their last state has been replaced: it is imagined again, as it was
            last = self.world.world_model.step(before[rows], torch.from_numpy(physical[rows]), **self.world.sampling)
            after = after.replaced(rows, last)
        spread = self.futures.step(physical, after, judge)
        if rows:
            self.futures.begin(self._seen, rows)
        told = _told(spread, self.calibration)
        if "final_info" in info:
            _put(info["final_info"], told, info["_final_info"])
        _put(info, {name: np.where(fresh, 0.0, value) for name, value in told.items()}, np.ones(self.num_envs, bool))
        return observations, rewards, terminations, truncations, info


class Pessimistic(gymnasium.Wrapper[Any, Any, Any, Any]):
    """The reward less a penalty for what is not known of it: r - ``penalty`` u, around `Uncertainty`.

    Args:
        env: an environment whose `info` tells the term.
        penalty: weight of the uncertainty.
        term: "reward_uncertainty", which is in the reward's units, or "uncertainty", the latent's.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, penalty: float = 1.0, term: str = "reward_uncertainty") -> None:
        super().__init__(env)
        self.penalty, self.term = penalty, _checked(term)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See `AstraEnv.step`."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward - self.penalty * _of(info, self.term), terminated, truncated, info


class VectorPessimistic(VectorWrapper[Any, Any, Any]):
    """As `Pessimistic`, around `VectorUncertainty`."""

    def __init__(
        self, env: VectorEnv[Any, Any, Any], *, penalty: float = 1.0, term: str = "reward_uncertainty"
    ) -> None:
        super().__init__(env)
        self.penalty, self.term = penalty, _checked(term)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """See `AstraVectorEnv.step`."""
        observations, rewards, terminations, truncations, info = self.env.step(actions)
        doubt = _of(info, self.term)
        if "final_info" in info:  # the reward is that of the last step
            doubt = np.where(info["_final_info"], _of(info["final_info"], self.term), doubt)
        return observations, rewards - self.penalty * doubt, terminations, truncations, info


class TruncateWhenUncertain(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Truncates the episode where the dream breaks: where ``info["uncertainty"]`` is above ``limit``.

    ``info["truncated_reason"]`` is "uncertain" there, and "time" where the environment truncates.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, limit: float) -> None:
        super().__init__(env)
        self.limit = limit

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See `AstraEnv.step`."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        broken = bool(_of(info, "uncertainty") > self.limit)
        if truncated or broken:
            info["truncated_reason"] = "time" if truncated else "uncertain"
        return observation, reward, terminated, truncated or broken, info


class VectorTruncateWhenUncertain(VectorWrapper[Any, Any, Any]):
    """As `TruncateWhenUncertain`, around `VectorUncertainty`; rows begin anew as after any other end.

    ValueError for an environment that resets in the same step: it would have to do so before it is known.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], *, limit: float) -> None:
        super().__init__(env)
        if not isinstance(env.unwrapped, AstraVectorEnv) or env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP:
            raise ValueError(
                "VectorTruncateWhenUncertain needs a vector environment of astra-env with autoreset_mode 'NextStep' or "
                f"'Disabled', got {env} with {env.metadata['autoreset_mode']}."
            )
        self.world, self.limit = env.unwrapped, limit

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """See `AstraVectorEnv.step`."""
        observations, rewards, terminations, truncations, info = self.env.step(actions)
        broken = np.asarray(_of(info, "uncertainty") > self.limit)
        self.world.end(broken)
        reasons = np.where(truncations, "time", np.where(broken, "uncertain", "")).astype(object)
        _put(info, {"truncated_reason": reasons}, truncations | broken)
        return observations, rewards, terminations, truncations | broken, info


def _told(spread: Spread, calibration: Calibration | None) -> dict[str, np.ndarray]:
    """Arrays (B,) of all terms."""
    latent, reward = (value.detach().double().cpu().numpy() for value in (spread.latent, spread.reward))
    return dict(zip(TERMS, (latent if calibration is None else calibration(latent), reward), strict=True))


def _put(info: dict[str, Any], told: Mapping[str, np.ndarray], rows: np.ndarray) -> None:
    """Write arrays of all rows, with Gymnasium's mask of those that they hold for."""
    for name, value in told.items():
        info[name], info[f"_{name}"] = value, rows.copy()


def _of(info: Mapping[str, Any], term: str) -> Any:
    if term not in info:
        raise ValueError(f"info tells no {term!r}; put the wrapper Uncertainty, or VectorUncertainty, below this one.")
    return info[term]


def _checked(term: str) -> str:
    if term not in TERMS:
        raise ValueError(f"term is {term!r}, expected one of {TERMS}.")
    return term


def _check_actions(given: Any, own: Any) -> None:
    if given != own:
        raise ValueError(
            f"A wrapper has made the actions {given} of {own}, by which the futures go; put Uncertainty below it."
        )


def _calibration(world: ImaginedWorlds) -> Calibration | None:
    """That of the world's domain, where it has one."""
    folder = world.folder
    return Calibration.load(folder) if folder is not None and (folder / FILE_NAME).is_file() else None
