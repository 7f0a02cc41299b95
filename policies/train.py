"""`astra-policy train ID`: reinforcement learning in imagined worlds, with checkpoints, evaluations and curves."""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper

import astra_env  # noqa: F401  registers the ids
from astra_env.envs import ENVIRONMENTS
from astra_env.envs.domains import domain_folder
from astra_env.envs.target_kit import has_reward, load_reward
from astra_env.envs.worlds import load_world_model
from astra_env.flags import flag
from astra_env.writing import write_json
from policies.evaluate import Policy, evaluate
from policies.recipes import HYPERPARAMETERS, LEARN_EVERY, RECIPES, acting_space
from policies.sb3 import ALGORITHMS, LatentFeatures, SB3Policy, SB3VecEnv, VecMonitor, load, save
from policies.seeing import Seeing, Viewed
from policies.views import View, keep_models, view_of
from policies.worlds import SuccessAlone, make_imagined, make_real

CONFIG, LOG, POLICY, BEST = "policy_config.json", "evaluations.jsonl", "policy.zip", "best.zip"
MODELS = "models"
"""Folder of the models by whose readings the policy sees."""
CHECKPOINTS = "checkpoints"
"""Folder of the policies at every evaluation, STEP.zip, without what they replay."""


@dataclass(frozen=True)
class TrainPolicyConfig:
    """One run; each field is a flag of `astra-policy train` and says in its metadata what it means."""

    environment: str  # the id
    out: str = flag(dataclasses.MISSING, "folder of the run; what an earlier call began there goes on")
    algorithm: str | None = flag(None, "'ppo', 'sac', 'td3' or 'dqn'; the recipe of the id")
    world_model: str = flag("astra-tiny", "bundled name or checkpoint folder")
    where: str = flag("imagination", "'imagination', or 'simulator' to compare with: its own starts and rewards")
    observation: str = flag("latent", "'latent', or 'frame' for policies that see pictures")
    start_states: str = flag("bundled", "npz of clips that imagined episodes begin from (`astra-env starts`)")
    episode_steps: int = flag(20, "steps until an episode begins anew elsewhere")
    read_by: str | None = flag(
        None, "folder of models by whose readings the policy sees latents; the latents themselves"
    )
    reward: str | None = flag(None, "'task' or a folder: what tells the reward with pessimism; the world's own reward")
    pessimism: float = flag(1.0, "standard deviations of those heads that count against what they say")
    num_worlds: int = flag(16, "worlds at once")
    steps: int = flag(100_000, "of all worlds together")
    learning_rate: float | None = flag(None, "of the policy; the recipe of the id")
    gamma: float | None = flag(None, "discount of a reward one step later; the recipe of the id")
    seed: int = flag(0, "of the worlds and the policy")
    device: str = flag("cpu", "'cpu', 'cuda', …")
    eval_every: int = flag(10_000, "steps between evaluations in imagination and checkpoints")
    eval_episodes: int = flag(10, "episodes of an evaluation")


class KeptSuccess(VectorWrapper):
    """Rewards as a share of what is to come: (1 - gamma) times the world's, and gamma on top where success ends it.

    An episode that ends when its task is solved would otherwise earn less than one that dwells before the end. What is
    solved counts as if it were rewarded by 1 for ever; the value of a state is the mean reward ahead of it, in [0, 1].
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], gamma: float) -> None:
        if env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP:
            raise ValueError("KeptSuccess reads how a step ended; make the worlds with autoreset_mode='Disabled'.")
        super().__init__(env)
        self.gamma = gamma

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """As the worlds', with other rewards."""
        observations, rewards, terminations, truncations, told = self.env.step(actions)
        kept = self.gamma * (terminations & told["success"])
        return observations, (1 - self.gamma) * rewards + kept, terminations, truncations, told


def train_policy(config: TrainPolicyConfig) -> Path:
    """Learn a policy in imagined worlds, going on with what an earlier call began; returns OUT/policy.zip.

    OUT has the best policy by its evaluations (best.zip), the evaluations (evaluations.jsonl), the policy at each of
    them (checkpoints/STEP.zip), the configuration, and curves for TensorBoard. Evaluations are whole episodes from the
    bundled start states, in imagination, even where a run learns in the simulator: nothing real chooses a policy.

    A run that goes on has its weights, optimisers, number of steps and replayed steps again; its worlds begin anew,
    with seeds of their own.
    """
    config = completed(config)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    _write_config(config, out)
    if config.read_by is not None and not (out / MODELS).is_dir():
        keep_models(_task_folder(config) if config.read_by == "task" else Path(config.read_by), out / MODELS)
    worlds = make_worlds(config)
    model = _model(config, worlds, out)
    checkpoints = _Checkpoints(model, config, out)
    left = config.steps - model.num_timesteps
    if left > 0:
        model.learn(left, callback=checkpoints, reset_num_timesteps=False, tb_log_name="run")
        checkpoints.finish()
    worlds.close()
    return out / POLICY


def completed(config: TrainPolicyConfig) -> TrainPolicyConfig:
    """The configuration with what the recipe of its id says; ValueError where it cannot be carried out."""
    if config.environment not in RECIPES:
        raise ValueError(f"environment is {config.environment!r}, expected one of {sorted(RECIPES)}.")
    recipe = RECIPES[config.environment]
    algorithm = config.algorithm or recipe.algorithm
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm is {algorithm!r}, expected one of {sorted(ALGORITHMS)}.")
    keys = ENVIRONMENTS[config.environment].discrete
    if algorithm != "ppo" and (algorithm == "dqn") != keys:
        fitting = "'dqn' or 'ppo', which choose keys" if keys else "'ppo', 'sac' or 'td3', which act continuously"
        raise ValueError(f"algorithm is {algorithm!r}, expected {fitting}, for {config.environment}.")
    if config.observation not in ("latent", "frame"):
        raise ValueError(f"observation is {config.observation!r}, expected 'latent' or 'frame'.")
    if config.where not in ("imagination", "simulator"):
        raise ValueError(f"where is {config.where!r}, expected 'imagination' or 'simulator'.")
    if min(config.num_worlds, config.episode_steps) < 1:
        told = f"num_worlds is {config.num_worlds} and episode_steps {config.episode_steps}"
        raise ValueError(f"{told}, expected at least 1 each.")
    if config.where == "simulator" and config.num_worlds > 1 and ENVIRONMENTS[config.environment].domain == "driving":
        raise ValueError(f"num_worlds is {config.num_worlds}, expected 1: a process has one simulator of driving.")
    given = {"algorithm": algorithm, "gamma": config.gamma or recipe.gamma}
    return dataclasses.replace(config, **given, learning_rate=config.learning_rate or recipe.learning_rate)  # type: ignore[arg-type]


def make_worlds(config: TrainPolicyConfig) -> VecMonitor:
    """The worlds of a completed configuration, as Stable-Baselines3 takes them."""
    env: VectorEnv[Any, Any, Any]
    if config.where == "imagination":
        env = gymnasium.make_vec(
            config.environment,
            num_envs=config.num_worlds,
            vectorization_mode="vector_entry_point",
            autoreset_mode=AutoresetMode.DISABLED,
            max_episode_steps=config.episode_steps,
            start_states=config.start_states,
            **_world_options(config),
        )
    else:
        make = functools.partial(_make_simulator, config)
        env = SyncVectorEnv([make] * config.num_worlds, autoreset_mode=AutoresetMode.DISABLED)
    view = _view(config)
    env = env if view is None else Viewed(env, view)
    assert config.gamma is not None
    acting = acting_space(env.single_action_space, RECIPES[config.environment].limits)
    return VecMonitor(SB3VecEnv(KeptSuccess(env, config.gamma), acting))


def _task_folder(config: TrainPolicyConfig) -> Path:
    """What the world holds of the id's task."""
    spec, known = ENVIRONMENTS[config.environment], load_world_model(config.world_model, config.device).folder
    folder = domain_folder(known, spec.domain, spec.modality)
    if folder is None or not has_reward(folder / spec.task):
        raise ValueError(
            f"{config.world_model} has learned no reward of {config.environment}; name a folder of models."
        )
    return folder / spec.task


def _view(config: TrainPolicyConfig) -> View | None:
    models = None if config.read_by is None else Path(config.out) / MODELS
    return view_of(config.environment, config.observation, models, config.device)


def _make_simulator(config: TrainPolicyConfig) -> gymnasium.Env[Any, Any]:
    seen = load_world_model(config.world_model, config.device) if config.observation == "latent" else None
    return SuccessAlone(make_real(config.environment, seen, num_steps=config.episode_steps))


def _world_options(config: TrainPolicyConfig) -> dict[str, Any]:
    options: dict[str, Any] = {name: getattr(config, name) for name in ("world_model", "observation", "device")}
    if config.reward is not None:
        told: dict[str, Any] = {"pessimism": config.pessimism, "ends": not ENVIRONMENTS[config.environment].dwells}
        folder = _task_folder(config) if config.reward == "task" else config.reward
        options["reward"] = load_reward(folder, config.device, **told)
    return options


def _model(config: TrainPolicyConfig, worlds: VecMonitor, out: Path) -> Any:
    """Fresh, or as the last checkpoint has it."""
    algorithm = str(config.algorithm)
    if (out / POLICY).is_file():
        model = load(out / POLICY, algorithm, worlds, config.device)
        model.tensorboard_log = str(out / "tensorboard")  # the folder may have been moved
        model.set_random_seed(config.seed + model.num_timesteps)
        return model
    recipe = RECIPES[config.environment]
    own = recipe.hyperparameters if algorithm == recipe.algorithm else {}
    latents = isinstance(worlds.observation_space, Box) and len(worlds.observation_space.shape) == 3
    latents = latents and config.observation == "latent"
    return ALGORITHMS[algorithm](
        "MlpPolicy" if config.observation == "latent" else "CnnPolicy",
        worlds,
        learning_rate=config.learning_rate,
        gamma=config.gamma,
        seed=config.seed,
        device=config.device,
        tensorboard_log=str(out / "tensorboard"),
        policy_kwargs={"features_extractor_class": LatentFeatures} if latents else {},
        **HYPERPARAMETERS[algorithm] | _rhythm(config) | dict(own),
    )


def _rhythm(config: TrainPolicyConfig) -> dict[str, Any]:
    """After how many steps of all worlds what replays learns, so that a step of few is worth as much as one of many."""
    return {} if config.algorithm == "ppo" else {"train_freq": max(1, LEARN_EVERY // config.num_worlds)}


class _Checkpoints:
    """Evaluates a model in imagination and writes it, every so many steps: a callback of Stable-Baselines3's."""

    def __init__(self, model: Any, config: TrainPolicyConfig, out: Path) -> None:
        self._model, self._config, self._out = model, config, out
        self._world = make_imagined(config.environment, **_world_options(config))
        limits, view = RECIPES[config.environment].limits, _view(config)
        policy = SB3Policy(model, acting_space(self._world.action_space, limits))
        self._policy: Policy = policy if view is None else Seeing(policy, view, self._world)
        (out / CHECKPOINTS).mkdir(exist_ok=True)
        lines = (out / LOG).read_text().splitlines() if (out / LOG).is_file() else []
        # with success kept, as it is learned: what is solved early is not worth less
        self._best = max((json.loads(line)["mean_kept_return"] for line in lines), default=-np.inf)
        self._written = model.num_timesteps

    def __call__(self, known: dict[str, Any], _: dict[str, Any]) -> bool:
        """After each step of the worlds; learning goes on."""
        if self._model.num_timesteps - self._written >= self._config.eval_every:
            self._write()
        return True

    def finish(self) -> None:
        """After the last step, unless that was written."""
        if self._model.num_timesteps > self._written:
            self._write()

    def _write(self) -> None:
        evaluation = evaluate(self._world, self._policy, self._config.eval_episodes)
        told = evaluation.to_json(ENVIRONMENTS[self._config.environment].max_episode_steps)
        model, step = self._model, self._model.num_timesteps
        for name in ("success_rate", "mean_return", "mean_kept_return", "mean_length"):
            model.logger.record(f"eval/{name}", told[name])
        model.logger.dump(step)
        with (self._out / LOG).open("a") as file:
            file.write(json.dumps({"step": step, **told}) + "\n")
        save(model, self._out / POLICY, replay=True)
        save(model, self._out / CHECKPOINTS / f"{step}.zip")
        if told["mean_kept_return"] > self._best:
            save(model, self._out / BEST)
            self._best = told["mean_kept_return"]
        self._written = step


def _write_config(config: TrainPolicyConfig, out: Path) -> None:
    """The configuration as OUT/policy_config.json; ValueError where the run there was begun with another one."""
    limits = RECIPES[config.environment].limits
    # as JSON has them, to be compared
    described: dict[str, Any] = dataclasses.asdict(config) | {"limits": limits and [list(bound) for bound in limits]}
    path = out / CONFIG
    if path.is_file():
        free = {"steps", "out", "eval_every", "eval_episodes", "device"}
        if config.algorithm == "ppo":  # what is replayed is kept by world
            free.add("num_worlds")
        before = json.loads(path.read_text())
        changed = sorted(name for name in described.keys() - free if described[name] != before.get(name))
        if changed:
            told = ", ".join(f"{name} = {before.get(name)!r}" for name in changed)
            raise ValueError(f"{out} has a run with {told}; go on with the same, or choose another folder.")
    write_json(path, described)
