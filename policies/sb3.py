"""Stable-Baselines3 on imagined worlds: all of them in one call of the network, actions in [-1, 1], policies back.

``PPO("CnnPolicy", SB3VecEnv(gymnasium.make_vec(id, num_envs=16, vectorization_mode="vector_entry_point")))``
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor, nn

try:
    from stable_baselines3 import DQN, PPO, SAC, TD3, HerReplayBuffer
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from stable_baselines3.common.vec_env import VecEnv, VecMonitor
except ImportError as error:
    raise ImportError("Stable-Baselines3 is not installed; run: pip install 'astra-env[rl]'") from error

__all__ = ["ALGORITHMS", "HerReplayBuffer", "LatentFeatures", "SB3Policy", "SB3VecEnv", "VecMonitor", "load", "save"]

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"ppo": PPO, "sac": SAC, "td3": TD3, "dqn": DQN}

Infos = list[dict[str, Any]]


class SB3VecEnv(VecEnv):
    """A vector environment of Gymnasium's as Stable-Baselines3 expects one.

    A row that ends begins anew in the same step, whatever the environment's autoreset mode: its last observation is in
    ``infos[row]["terminal_observation"]``, all else that is told of it is of its last step, and what is told of the
    new beginning is in ``reset_infos``. ``TimeLimit.truncated`` tells rows whose time was up from those that ended by
    themselves, whose value is not bootstrapped.

    Actions of a bounded `Box` are given in [-1, 1], since the fields of a physical action differ in size, as shares of
    ``acting`` where that is narrower than the environment's; numbers of keys stay as they are. ``seed`` and
    ``set_options`` hold for the next `reset`, as in Stable-Baselines3; options are `AstraEnv`'s, one dictionary a row.
    Attributes and methods are those of the vector environment, for any row.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], acting: Box | None = None) -> None:
        self.env, self._space = env, acting or env.single_action_space
        # A row can only be begun anew on its own where the environment does so itself or lets itself be told to.
        self._same_step = env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
        space = self._space
        if isinstance(space, Box):
            space = Box(-1, 1, space.shape, np.float32)
        super().__init__(env.num_envs, env.single_observation_space, space)
        self._actions: np.ndarray = np.zeros(0)

    # 1. Episodes

    def reset(self) -> Any:
        """Begin all rows, with the seeds and options that were set before."""
        seeds: Any = None if all(seed is None for seed in self._seeds) else self._seeds
        options = {"rows": self._options} if any(self._options) else None
        observations, told = self.env.reset(seed=seeds, options=options)
        self.reset_infos = [row_info(told, row) for row in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions of the next `step_wait`."""
        self._actions = rescaled(actions, self.action_space, self._space)

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, Infos]:
        """One step of all rows; those that end begin anew."""
        observations, rewards, terminations, truncations, told = self.env.step(self._actions)
        dones = terminations | truncations
        infos = [row_info(told, row) for row in range(self.num_envs)]
        if dones.any():
            observations = self._begin_anew(np.flatnonzero(dones).tolist(), dones, observations, told, infos)
        for row, info in enumerate(infos):
            info["TimeLimit.truncated"] = bool(truncations[row] and not terminations[row])
        return observations, np.asarray(rewards, np.float32), dones, infos

    def _begin_anew(
        self, rows: Sequence[int], dones: np.ndarray, observations: Any, told: Mapping[str, Any], infos: Infos
    ) -> Any:
        """Observations after the ended rows' new beginning; their infos become those of the last step."""
        if self._same_step:
            for row in rows:
                self.reset_infos[row] = infos[row]
                infos[row] = row_info(told["final_info"], row) | {"terminal_observation": told["final_obs"][row]}
            return observations
        fresh, told = self.env.reset(options={"reset_mask": dones})
        for row in rows:
            self.reset_infos[row] = row_info(told, row)
            infos[row]["terminal_observation"] = _row(observations, row)
        return fresh

    def close(self) -> None:
        """Close the vector environment."""
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """The newest frame of every row, None where nothing is rendered."""
        return self.env.render() or [None] * self.num_envs  # type: ignore[return-value]

    # 2. What belongs to the environment is the same for every row

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the vector environment, once for each row asked for."""
        return [self._attribute(attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the vector environment, for all rows."""
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise ValueError(f"{attr_name} belongs to all {self.num_envs} rows; set it without indices.")
        setattr(self.env.unwrapped, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """What a method of the vector environment gives, once for each row asked for; it is called once."""
        result = self._attribute(method_name)(*method_args, **method_kwargs)
        return [result] * len(list(self._get_indices(indices)))

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: Any = None) -> list:
        """False: rows are no environments of their own, so that nothing wraps one."""
        return [False] * len(list(self._get_indices(indices)))

    def _attribute(self, name: str) -> Any:
        """From the outermost wrapper that has it; Stable-Baselines3 expects AttributeError where none has."""
        layer: Any = self.env
        while layer is not self.env.unwrapped and name not in dir(layer):
            layer = layer.env
        return getattr(layer, name)


def row_info(told: Mapping[str, Any], row: int) -> dict[str, Any]:
    """What Gymnasium's ``info`` of many rows tells of one; arrays are views of theirs."""
    info: dict[str, Any] = {}
    for name, value in told.items():
        if name.startswith("_") or name.startswith("final_") or not told.get(f"_{name}", _EVERY)[row]:
            continue
        info[name] = row_info(value, row) if isinstance(value, dict) else value[row]
    return info


class _Every:
    """The mask of what is told without one: it holds for every row."""

    def __getitem__(self, row: int) -> bool:
        return True


_EVERY = _Every()


def _row(observations: Any, row: int) -> Any:
    """A copy of one row's observation, an array or a dictionary of arrays."""
    if isinstance(observations, dict):
        return {name: value[row].copy() for name, value in observations.items()}
    return observations[row].copy()


def rescaled(
    actions: np.ndarray, source: gymnasium.spaces.Space[Any], target: gymnasium.spaces.Space[Any]
) -> np.ndarray:
    """Actions (..., A) of one bounded `Box` as the same shares of another's range; others stay as they are."""
    if not isinstance(source, Box) or not isinstance(target, Box) or source == target:
        return actions
    share = (actions - source.low) / (source.high - source.low)
    # rounding must not lead out of bounds that are checked
    return np.clip(target.low + share * (target.high - target.low), target.low, target.high).astype(target.dtype)


class LatentFeatures(BaseFeaturesExtractor):
    """Latents (B, C, h, w) -> features (B, features_dim), for ``policy_kwargs={"features_extractor_class": ...}``.

    "CnnPolicy" is for pictures: its first convolution is as large as a whole latent. While it learns, noise of standard
    deviation ``noise`` is added, from torch's global generator as Stable-Baselines3's own: real latents are not quite
    as imagined ones.
    """

    def __init__(self, observation_space: Box, features_dim: int = 128, dim: int = 32, *, noise: float = 0.2) -> None:
        super().__init__(observation_space, features_dim)
        self.noise = noise
        channels, height, width = observation_space.shape
        self.layers = nn.Sequential(
            nn.Conv2d(channels, dim, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(dim, dim, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(dim * ((height + 1) // 2) * ((width + 1) // 2), features_dim),
            nn.LayerNorm(features_dim),
            nn.SiLU(),
        )

    def forward(self, observations: Tensor) -> Tensor:
        """See the class."""
        if self.training and self.noise:
            observations = observations + self.noise * torch.randn_like(observations)
        return self.layers(observations)


class SB3Policy:
    """A trained model as a policy of one world or of many: observations (...) -> actions in the world's units.

    Args:
        model: the model, whose actions are shares of the range of the world's.
        action_space: the space of one world's action.
        deterministic: whether the most likely action is taken, or one is drawn, from torch's global generator as
            Stable-Baselines3 does.
    """

    def __init__(
        self, model: BaseAlgorithm, action_space: gymnasium.spaces.Space[Any], *, deterministic: bool = True
    ) -> None:
        self.model, self.action_space, self.deterministic = model, action_space, deterministic

    def reset(self, seed: int | None = None) -> SB3Policy:
        """It remembers nothing; a seed decides what is drawn."""
        if seed is not None and not self.deterministic:
            torch.manual_seed(seed)
        return self

    def act(self, observation: Any) -> Any:
        """Actions (A,) or (N, A) in physical units, or numbers of keys."""
        action, _ = self.model.predict(observation, deterministic=self.deterministic)
        if isinstance(self.action_space, Discrete):
            return action if action.ndim else int(action)
        return rescaled(action, self.model.action_space, self.action_space)


def load(path: str | os.PathLike[str], algorithm: str, env: VecEnv | None = None, device: str = "cpu") -> BaseAlgorithm:
    """The model of a zip file, and what it has replayed where `save` put that beside it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the algorithm is not one of ``ALGORITHMS``.
    """
    path = Path(path)
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm is {algorithm!r}, expected one of {sorted(ALGORITHMS)}.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no policy at {path}; expected a zip that Stable-Baselines3 saved.")
    with warnings.catch_warnings():
        # of what was replayed over several steps, which is set up as it was saved
        warnings.filterwarnings("ignore", message="`n_steps=.* is ignored")
        model = ALGORITHMS[algorithm].load(path, env=env, device=device)
    replayed = _replay_file(path)
    if env is not None and isinstance(model, OffPolicyAlgorithm) and replayed.is_file():
        model.load_replay_buffer(replayed)
    return model


def save(model: BaseAlgorithm, path: str | os.PathLike[str], *, replay: bool = False) -> None:
    """Write a model as a zip file, and beside it what an off-policy one replays, if it is to go on learning."""
    path = Path(path)
    files = {path: model.save}
    if replay and isinstance(model, OffPolicyAlgorithm):
        files[_replay_file(path)] = model.save_replay_buffer
    for target, write in files.items():
        partial = target.with_name(f"partial-{target.name}")  # Stable-Baselines3 appends endings that it misses
        write(partial)
        os.replace(partial, target)


def _replay_file(path: Path) -> Path:
    return path.with_name(f"{path.stem}_replay.pkl")
