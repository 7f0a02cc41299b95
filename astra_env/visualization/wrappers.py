"""Wrappers that record what an environment shows and is told, world by world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from astra_env.actions import DISCRETE_ACTIONS, ActionModality
from astra_env.envs.worlds import ImaginedWorlds, StepInfo
from astra_env.models import WorldState
from astra_env.models.inspection import denoising_frames, routing_weights
from astra_env.video import read_image
from astra_env.visualization.recording import Recording
from astra_env.visualization.rollouts import poses_between

DOUBT = {"uncertainty": "uncertainty/latent", "reward_uncertainty": "uncertainty/reward"}
"""What `info` tells of doubt -> the entity of its curve."""


class WorldLog:
    """Writes the episodes of one world into its recording.

    Args:
        recording: of this world alone.
        discrete: whether actions are numbers of keys.
        chunks_per_s: steps in a second of the world.
    """

    def __init__(self, recording: Recording, discrete: bool, chunks_per_s: float) -> None:
        self.recording, self.discrete, self.chunks_per_s = recording, discrete, chunks_per_s
        self._num_episodes = 0
        self._beside: dict[str, np.ndarray] = {}

    def beside(self, view: str, frames: np.ndarray) -> None:
        """Show frames uint8 (T, H, W, 3) of another view with the next T frames of this world."""
        self._beside[view] = np.concatenate([self._beside[view], frames]) if view in self._beside else frames

    def begin(self, info: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """An episode has begun."""
        self.recording.begin_episode(f"episode {self._num_episodes} starts")
        self._num_episodes += 1
        if options.get("goal") is not None:
            goal = options["goal"]
            self.recording.log_picture("frames/goal", read_image(goal) if isinstance(goal, str | Path) else goal)
        self._frames(info)
        if "path" in info:
            self.recording.log_target(info["path"])

    def step(self, action: Any, reward: float, info: Mapping[str, Any], end: str = "") -> None:
        """A step was made; `end` says how it ended the episode, if it did."""
        self._action(action)
        self._frames(info)
        self.recording.log_reward(reward, info.get("reward_terms", {}))
        told = {entity: info[name] for name, entity in DOUBT.items() if name in info}
        if "speed" in info:
            told["speed/speed"] = info["speed"]
        self.recording.log_scalars(told)
        if end:
            self.recording.log_event(end)

    def _action(self, action: Any) -> None:
        modality = self.recording.modality
        if self.discrete and modality is not None:
            keys = DISCRETE_ACTIONS[modality.name][int(action)]
            self.recording.log_action(modality.from_keys(keys), keys)
        else:
            self.recording.log_action(action)

    def _frames(self, info: Mapping[str, Any]) -> None:
        frames, pose, before = info["frames"], info.get("pose"), self.recording.pose
        num = len(frames)
        self.recording.fps = num * self.chunks_per_s
        views = {"imagined": frames}
        for view, waiting in list(self._beside.items()):
            if len(waiting) >= num:
                views[view], self._beside[view] = waiting[:num], waiting[num:]
        poses = None if pose is None else poses_between(pose if before is None else before, pose, num)
        self.recording.log_frames(views, poses)


class Inside:
    """What happens in the network during a step, computed when it is asked for.

    Args:
        env: an environment of astra-env.
        routing: tell which experts the action takes.
        denoising: show the picture that each denoising step expects in the end; the step is imagined once more.
    """

    def __init__(self, env: Any, *, routing: bool, denoising: bool) -> None:
        if (routing or denoising) and not isinstance(env, ImaginedWorlds):
            raise ValueError(f"routing and denoising look into an imagined world, expected an astra-env id, got {env}.")
        self.worlds = env if isinstance(env, ImaginedWorlds) else None
        self.routing, self.denoising = routing, denoising

    def before(self) -> WorldState | None:
        """The state that a step begins from, if anything of it will be told."""
        return self.worlds.state if self.worlds is not None and (self.routing or self.denoising) else None

    @torch.no_grad()
    def tell(self, recording: Recording, state: WorldState | None, action: Any) -> None:
        """Log what a step from the state of one world under its action has done, and the guidance in force."""
        if self.worlds is None:
            return
        world_model, sampling = self.worlds.world_model, self.worlds.sampling
        chosen = world_model.sampling.replaced(**sampling)
        recording.log_scalars({"guidance/actions": chosen.guidance_scale, "guidance/text": chosen.text_guidance_scale})
        if state is None:
            return
        physical = torch.from_numpy(self._physical(action))[None]
        if self.routing:
            weights = routing_weights(world_model, physical[:, None], state.modality, state.speeds)[0].tolist()
            recording.log_scalars({f"routing/expert_{index}": weight for index, weight in enumerate(weights)})
        if self.denoising:
            pictures = denoising_frames(world_model, state, physical, **sampling)[0, :, -1]
            recording.log_picture("denoising", np.concatenate(list(pictures.cpu().numpy()), axis=1))

    def _physical(self, action: Any) -> np.ndarray:
        """The action of one world in physical units, whether or not there are many."""
        assert self.worlds is not None
        values = np.asarray(action)
        if values.ndim == 0:
            return self.worlds.action_modality.discrete(DISCRETE_ACTIONS[self.worlds.modality])[int(values)]
        return self.worlds.action_modality.validate(values, clip=self.worlds.clip_actions)


class RecordRerun(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Records every episode of an environment whose `info["frames"]` holds the frames (T, H, W, 3) of a step.

    Beside the frames, what `info` tells is recorded: pose, path, speed, terms of the reward, uncertainty; and a goal
    picture given to `reset`. Put it below wrappers that change the units of actions. `env.recording` is the open
    :class:`Recording`, for more to be logged beside. Closing the environment completes the file.

    Args:
        env: the environment.
        target: .rrd file, "spawn", "connect" or an address, as `Recording` takes them; or a recording that is open,
            such as a fork of another's, which is left open.
        routing: tell which experts of the world model each action takes.
        denoising: show what each denoising step expects in the end, for which the step is imagined twice.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        target: str | Path | Recording,
        *,
        routing: bool = False,
        denoising: bool = False,
    ) -> None:
        super().__init__(env)
        self._inside = Inside(env.unwrapped, routing=routing, denoising=denoising)
        modality = env.get_wrapper_attr("action_modality") if env.has_wrapper_attr("action_modality") else None
        _check_actions(modality, env.action_space, env.unwrapped.action_space)
        self._owned = not isinstance(target, Recording)
        self.recording = target if isinstance(target, Recording) else Recording(target, modality=modality)
        discrete = isinstance(env.action_space, gymnasium.spaces.Discrete)
        self._log = WorldLog(self.recording, discrete, env.metadata.get("render_fps", 5))

    def log_beside(self, view: str, frames: np.ndarray) -> None:
        """Show frames uint8 (T, H, W, 3), such as what really came, beside the next T frames of the environment."""
        self._log.beside(view, frames)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Resets the environment and records the frames that the episode starts from."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._log.begin(info, options or {})
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps the environment and records action, frames, reward and its terms."""
        before = self._inside.before()
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._log.step(action, float(reward), info, _end(terminated, truncated))
        self._inside.tell(self.recording, before, action)
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        """Completes the file, unless it was opened elsewhere, and closes the environment."""
        try:
            if self._owned:
                self.recording.close()
        finally:
            super().close()


class RecordRerunVector(VectorWrapper[Any, Any, Any]):
    """As `RecordRerun`, for a vector environment: each world is recorded under `rows/<row>/`, on common time lines.

    A row that begins anew, in whatever autoreset mode, begins a new episode of its own.

    Args:
        env: the vector environment.
        target: as `RecordRerun` takes it.
        rows: which worlds are recorded; the first four if None.
        routing: tell which experts of the world model each action takes.
        denoising: show what each denoising step expects in the end, for which the step is imagined twice.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        target: str | Path | Recording,
        *,
        rows: Sequence[int] | None = None,
        routing: bool = False,
        denoising: bool = False,
    ) -> None:
        super().__init__(env)
        self.rows = list(range(min(4, env.num_envs)) if rows is None else rows)
        if not self.rows or not {*self.rows} <= {*range(env.num_envs)}:
            raise ValueError(f"rows {self.rows} are to be recorded, expected one or more of 0 to {env.num_envs - 1}.")
        world = env.unwrapped
        self._inside = Inside(world, routing=routing, denoising=denoising)
        modality = world.action_modality if isinstance(world, ImaginedWorlds) else None
        _check_actions(modality, env.action_space, world.action_space)
        self._owned = not isinstance(target, Recording)
        self.recording = target if isinstance(target, Recording) else Recording(target, modality=modality)
        discrete = isinstance(env.single_action_space, gymnasium.spaces.Discrete)
        rate = env.metadata.get("render_fps", 5)
        self._logs = {row: WorldLog(self.recording.row(row), discrete, rate) for row in self.rows}
        self._ended = np.zeros(env.num_envs, bool)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Resets the environments and records the frames that those episodes start from which begin now."""
        observations, info = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        given = dict(options or {})
        begun, own = given.pop("reset_mask", None), given.pop("rows", None) or [{}] * self.num_envs
        for row, log in self._logs.items():
            if begun is None or begun[row]:
                log.begin(_of_row(info, row), {**given, **own[row]})
        self._ended &= False if begun is None else ~np.asarray(begun)
        self._together()
        return observations, info

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Steps the environments and records what each recorded row has done."""
        before = self._inside.before()
        observations, rewards, terminations, truncations, info = self.env.step(actions)
        next_step = self.metadata.get("autoreset_mode") is AutoresetMode.NEXT_STEP
        restarted = info.get("_final_info", np.zeros(self.num_envs, bool))
        for row, log in self._logs.items():
            if next_step and self._ended[row]:
                log.begin(_of_row(info, row), {})
                continue
            last = _of_row(info["final_info"] if restarted[row] else info, row)
            log.step(actions[row], float(rewards[row]), last, _end(terminations[row], truncations[row]))
            self._inside.tell(log.recording, None if before is None else before[row], actions[row])
            if restarted[row]:
                log.begin(_of_row(info, row), {})
        self._ended = terminations | truncations
        self._together()
        return observations, rewards, terminations, truncations, info

    def _together(self) -> None:
        """All rows go on at the time of the one that has shown most."""
        latest = max((log.recording.clock for log in self._logs.values()), key=lambda clock: clock.num_frames)
        for recording in [self.recording, *(log.recording for log in self._logs.values())]:
            recording.clock = latest

    def close(self, **kwargs: Any) -> None:
        """Completes the file, unless it was opened elsewhere, and closes the environments."""
        try:
            if self._owned:
                self.recording.close()
        finally:
            super().close(**kwargs)


def _end(terminated: bool, truncated: bool) -> str:
    return "episode terminates" if terminated else "episode is truncated" if truncated else ""


def _of_row(info: Mapping[str, Any], row: int) -> dict[str, Any]:
    """What a vector environment tells of one of its worlds; the frames are decoded now, where nobody has seen them."""
    own = {
        name: _of_row(value, row) if isinstance(value, dict) else value[row]
        for name, value in info.items()
        if not name.startswith("_") and name not in ("final_obs", "final_info") and _holds(info, name, row)
    }
    return own | {"frames": info["frames"][row]} if isinstance(info, StepInfo) else own


def _holds(info: Mapping[str, Any], name: str, row: int) -> bool:
    """Whether an entry tells of this row: Gymnasium keeps a mask of the rows beside each."""
    return bool(info.get(f"_{name}", np.ones(row + 1, bool))[row])


def _check_actions(modality: ActionModality | None, given: Any, own: Any) -> None:
    if modality is not None and given != own:
        raise ValueError(
            f"A wrapper has made the actions {given} of {own}, which are recorded in units; put the recording below it."
        )
