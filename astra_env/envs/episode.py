"""Episodes as files: what led to them and digests of what came of it, so that anybody can check that it comes again."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from astra_env.models import WorldModel
from astra_env.models.checkpoint import checkpoint_digest

PICTURES = ("image", "frames", "actions", "goal", "path")
"""Options of `reset` that are kept as arrays."""


@dataclass(frozen=True)
class Episode:
    """N steps of one environment, recorded."""

    environment: str
    arguments: Mapping[str, Any]
    """Of `gymnasium.make`, world model included."""
    world_model: str
    """SHA-256 of the checkpoint, "" for one that is put together from several releases."""
    seed: int
    options: Mapping[str, Any]
    """Of `reset`."""
    actions: np.ndarray
    """(N, A), or (N,) numbers of keys."""
    rewards: np.ndarray
    """float64 (N,)."""
    latents: np.ndarray
    """float32 (N + 1, C, h, w): the newest one after the reset and after each step."""
    digests: tuple[str, ...]
    """SHA-256 of the N + 1 world states."""
    machine: Mapping[str, Any]
    """What rounding depends on."""

    def __len__(self) -> int:
        return len(self.actions)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file with everything but arrays in its JSON header."""
        path = Path(path)
        pictures = {name: np.asarray(value) for name, value in self.options.items() if name in PICTURES}
        arrays = {"actions": self.actions, "rewards": self.rewards, "latents": self.latents}
        arrays |= {f"options.{name}": value for name, value in pictures.items()}
        told = {name: value for name, value in vars(self).items() if name not in arrays}
        told["options"] = {name: value for name, value in self.options.items() if name not in pictures}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        contiguous = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
        save_file(contiguous, partial, metadata={"episode": json.dumps(told)})
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Episode:
        """Read what `save` wrote; ValueError when the file is not a whole episode."""
        try:
            with safe_open(path, "np") as file:
                told = json.loads(file.metadata()["episode"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            for name in [name for name in arrays if name.startswith("options.")]:
                told["options"][name.removeprefix("options.")] = arrays.pop(name)
            told["digests"] = tuple(told["digests"])
            return cls(**told, **arrays)
        except FileNotFoundError:
            raise FileNotFoundError(f"There is no episode at {path}; record one with astra-env rollout.") from None
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a whole episode ({error}); record it again.") from error


@dataclass(frozen=True)
class Replay:
    """How a replay compares with what was recorded."""

    same_machine: bool
    """Whether rounding is the same here, so that every bit has to be."""
    first_difference: int | None
    """The first state that is not the recorded one bit by bit; 0 is that after the reset."""
    deviations: np.ndarray
    """(N + 1,): root mean square of the newest latents' differences; latents have a variance of about 1."""


def record_episode(
    env: gymnasium.Env[Any, Any],
    policy: Callable[[Any, Mapping[str, Any]], Any],
    num_steps: int,
    *,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    watch: Callable[[Mapping[str, Any]], None] | None = None,
) -> Episode:
    """Act by a policy (observation, info) -> action until the episode ends, at most num_steps.

    Args:
        env: what `gymnasium.make` gave for one of this package's ids, with arguments that JSON can hold.
        policy: chooses each action.
        num_steps: most steps.
        seed: of the reset.
        options: of the reset.
        watch: is shown every info.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}, expected at least 1.")
    world: Any = env.unwrapped
    arguments = dict((env.spec or gymnasium.spec(world.environment)).kwargs)
    try:
        json.dumps(arguments)
    except TypeError as error:
        raise ValueError(f"An episode cannot hold all arguments of {world} ({error}); make it without.") from None
    observation, info = env.reset(seed=seed, options=options)
    trace, actions, rewards = [_trace(world)], [], []
    for _ in tqdm(range(num_steps), desc="imagining", unit="step"):
        if watch is not None:
            watch(info)
        action = policy(observation, info)
        observation, reward, terminated, truncated, info = env.step(action)
        trace.append(_trace(world))
        actions.append(np.asarray(action))
        rewards.append(float(reward))
        if terminated or truncated:
            break
    if watch is not None:
        watch(info)
    folder = world.world_model.folder
    return Episode(
        environment=world.environment,
        arguments=arguments,
        world_model="" if folder is None else checkpoint_digest(folder),
        seed=seed,
        options={name: str(value) if isinstance(value, Path) else value for name, value in (options or {}).items()},
        actions=np.stack(actions),
        rewards=np.array(rewards),
        latents=np.stack([latent for latent, _ in trace]),
        digests=tuple(digest for _, digest in trace),
        machine=machine(world.world_model),
    )


def replay_episode(episode: Episode, *, world_model: str | None = None) -> Replay:
    """Imagine a recorded episode anew and compare every state; ValueError where the world model is another one.

    Args:
        episode: what was recorded.
        world_model: where its world model is here, if it is not where it was.
    """
    arguments = {**episode.arguments, **({} if world_model is None else {"world_model": world_model})}
    env = gymnasium.make(episode.environment, **{k: v for k, v in arguments.items() if k != "environment"})
    world: Any = env.unwrapped
    folder = world.world_model.folder
    here = "" if folder is None else checkpoint_digest(folder)
    if here != episode.world_model:
        raise ValueError(
            f"The episode was recorded in a world model with the digest {episode.world_model[:12]}, but "
            f"{arguments.get('world_model', 'astra-tiny')} has {here[:12]}; name the one that it was recorded in."
        )
    env.reset(seed=episode.seed, options=dict(episode.options))
    trace = [_trace(world)]
    for action in tqdm(episode.actions, desc="imagining", unit="step"):
        env.step(action)
        trace.append(_trace(world))
    env.close()
    latents = np.stack([latent for latent, _ in trace])
    different = [index for index, (_, digest) in enumerate(trace) if digest != episode.digests[index]]
    return Replay(
        same_machine=machine(world.world_model) == dict(episode.machine),
        first_difference=different[0] if different else None,
        deviations=np.sqrt(np.square(latents - episode.latents).mean((1, 2, 3))),
    )


def _trace(world: Any) -> tuple[np.ndarray, str]:
    """The newest latent (C, h, w) of an environment's world and its state's digest."""
    state = world.save_state()
    return state.newest[0].float().cpu().numpy().copy(), state.digest()


def machine(world_model: WorldModel) -> dict[str, Any]:
    """What rounding depends on: processor, device, threads, number format and versions."""
    device = world_model.device
    return {
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "dtype": str(world_model.transformer.head.weight.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
