"""Policies by name: at random, scripted experts, your own function, plans, and models of other libraries."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import gymnasium
import numpy as np

from astra_env.actions import ACTION_MODALITIES, DISCRETE_ACTIONS, ActionModality
from astra_env.envs import ENVIRONMENTS
from astra_env.flags import named_value
from astra_env.simulators.behaviours import Behaviour
from policies.evaluate import Policy, as_policy
from policies.worlds import LastInfo


class RandomPolicy:
    """Draws every action evenly from the space, which the seed of an episode decides."""

    def __init__(self, action_space: gymnasium.spaces.Space[Any]) -> None:
        self.action_space = action_space

    def reset(self, seed: int | None = None) -> RandomPolicy:
        """Begin the draws anew."""
        self.action_space.seed(seed)
        return self

    def act(self, observation: Any) -> Any:
        """An action, whatever is seen."""
        return self.action_space.sample()


@dataclass(frozen=True)
class Expert:
    """A scripted behaviour, which knows where things are."""

    make: str
    """"module:function" of one that makes it from a generator; the behaviour itself where it draws nothing."""
    options: Mapping[str, Any]
    drawn: bool = True


_BEHAVIOURS = "astra_env.simulators"
EXPERTS: dict[str, Expert] = {
    "Astra-RT1-v0": Expert(f"{_BEHAVIOURS}.robot_behaviours:scripted_behaviour", {}),
    "Astra-RT1-Reach-v0": Expert(f"{_BEHAVIOURS}.robot_behaviours:reach_behaviour", {}, drawn=False),
    "Astra-NuScenes-v0": Expert(f"{_BEHAVIOURS}.driving_behaviours:lane_behaviour", {}, drawn=False),
    "Astra-Sekai-v0": Expert(f"{_BEHAVIOURS}.exploration_behaviours:visit_behaviour", {"goal": True}),
    "Astra-SpatialVID-v0": Expert(f"{_BEHAVIOURS}.exploration_behaviours:visit_behaviour", {"goal": True}),
    "Astra-MultiCam-v0": Expert(f"{_BEHAVIOURS}.multicam_behaviours:tracking_behaviour", {}, drawn=False),
}
"""Id -> who recorded the episodes in which its task is done."""


class ExpertPolicy:
    """The scripted expert of an id. It reads ``info``, not observations, so that it acts where that tells all.

    Args:
        environment: the id.
        world: the world that it acts in, which remembers its last ``info``.
    """

    def __init__(self, environment: str, world: LastInfo) -> None:
        spec = ENVIRONMENTS[environment]
        self._expert, self._world = EXPERTS[environment], world
        self._modality, self._keys = ACTION_MODALITIES[spec.modality], spec.discrete
        self.reset(0)

    def reset(self, seed: int | None = None) -> ExpertPolicy:
        """Begin anew, with what the seed draws."""
        made: Callable[..., Any] = resolve_name(self._expert.make)
        rng = np.random.default_rng(None if seed is None else [seed, 1])
        self._behaviour: Behaviour = made(rng, **self._expert.options) if self._expert.drawn else made
        return self

    def act(self, observation: Any) -> Any:
        """The action (A,) within the bounds, or the keys that are nearest to it."""
        try:
            action = self._modality.validate(self._behaviour(self._world.info), clip=True)
        except KeyError as error:
            raise ValueError(
                f"The expert needs to know {error}, which imagination does not; evaluate it in the simulator."
            ) from None
        return nearest_keys(action, self._modality) if self._keys else action


def nearest_keys(actions: np.ndarray, modality: ActionModality) -> Any:
    """The number of the set of keys, of ``DISCRETE_ACTIONS``, that is nearest to actions (A,) or (N, A)."""
    choices = modality.discrete(DISCRETE_ACTIONS[modality.name]) / np.array(modality.high)
    distances = np.square(actions[..., None, :] / np.array(modality.high) - choices).sum(-1)
    nearest = distances.argmin(-1)
    return nearest if nearest.ndim else int(nearest)


def load_policy(
    name: str,
    environment: str,
    world: LastInfo,
    *,
    algorithm: str | None = None,
    task: str = "",
    world_model: str = "astra-tiny",
) -> Policy:
    """A policy by name, for one world.

    Args:
        name: "random"; "expert"; "mpc", which plans in imagination, or "mpc:" and options of `MPCPolicy`, such as
            "mpc:futures=4,num_samples=16"; "module:function" of an observation, or a `Policy` there; a zip of
            Stable-Baselines3; the folder of a cloned policy or of `astra-policy train`; "lerobot:" and a folder or
            hub id.
        environment: the id.
        world: what it is to act in.
        algorithm: of the zip, where its run does not say ("ppo", "sac", "td3", "dqn").
        task: what a policy of LeRobot is told to do, by default what the id describes.
        world_model: what "mpc" plans in, a bundled name or checkpoint folder.

    Raises:
        ValueError: there is no such policy.
    """
    space, path = world.action_space, Path(name)
    if name == "random":
        return RandomPolicy(space)
    if name == "expert":
        return ExpertPolicy(environment, world)
    kind, _, more = name.partition(":")
    if kind == "mpc":
        from policies.replanning import ReplanningPolicy

        imagined = gymnasium.make(environment, world_model=world_model, observation="latent")
        try:
            return ReplanningPolicy(imagined, world, **dict(named_value(text) for text in more.split(",") if text))
        except TypeError as error:
            raise ValueError(f"policy is {name!r}, expected options of MPCPolicy ({error}).") from error
    if kind == "lerobot":
        from policies.lerobot import load_lerobot

        return load_lerobot(more, environment, world, task=task)
    if path.suffix == ".zip" or (path / "policy_config.json").is_file():
        return _trained(path if path.suffix == ".zip" else path / "best.zip", algorithm, environment, world)
    if path.is_dir():
        from policies.behaviour_cloning import ClonedPolicy

        return ClonedPolicy.load(path, keys=isinstance(space, gymnasium.spaces.Discrete))
    try:
        return as_policy(resolve_name(name))
    except (AttributeError, ImportError, ValueError) as error:
        known = "'random', 'expert', 'mpc', module:function, a .zip, a folder or lerobot:ID"
        raise ValueError(f"policy is {name!r}, expected {known} ({error}).") from error


def policy_observation(name: str) -> str:
    """What a policy sees, "frame" or "latent", by the configuration of the run that made it; "frame" if unknown."""
    return str(_run_config(Path(name)).get("observation", "frame"))


def _run_folder(path: Path) -> Path | None:
    """The folder of the run that wrote a zip, or that a path is; None if unknown."""
    # a run's checkpoints lie in a folder of theirs
    folders = path.parents[:2] if path.suffix == ".zip" else (path,)
    return next((folder for folder in folders if (folder / "policy_config.json").is_file()), None)


def _run_config(path: Path) -> dict[str, Any]:
    """The configuration of the run that wrote a zip, or of the run in a folder; empty if unknown."""
    folder = _run_folder(path)
    told: dict[str, Any] = {} if folder is None else json.loads((folder / "policy_config.json").read_text())
    return told


def _trained(path: Path, algorithm: str | None, environment: str, world: LastInfo) -> Policy:
    from policies.recipes import acting_space
    from policies.sb3 import SB3Policy, load
    from policies.seeing import Seeing
    from policies.views import view_of

    config, folder = _run_config(path), _run_folder(path)
    algorithm = algorithm or config.get("algorithm")
    if algorithm is None:
        raise ValueError(f"{path} does not say its algorithm; name it with --algorithm.")
    policy = SB3Policy(load(path, algorithm), acting_space(world.action_space, config.get("limits")))
    if folder is None:
        return policy
    models = folder / "models" if config.get("read_by") else None
    view = view_of(environment, config["observation"], models)
    return policy if view is None else Seeing(policy, view, world)
