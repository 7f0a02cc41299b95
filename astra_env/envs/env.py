"""AstraEnv: a Gymnasium environment whose simulator is a learned video world model."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch

from astra_env.envs import ENVIRONMENTS
from astra_env.envs.rewards import PathReward, Reward
from astra_env.envs.vector_env import AstraVectorEnv
from astra_env.envs.window import Window
from astra_env.envs.worlds import ImaginedWorlds, StepInfo
from astra_env.models import WorldState


class AstraEnv(ImaginedWorlds, gymnasium.Env[Any, Any]):
    """One imagined world; what each id imagines is the ``__doc__`` of its environment, and `astra-env list` prints all.

    ## Description
    Each step holds one action for one chunk of the video and denoises it: four frames (0.2 s) in the bundled world, 32
    in "astra-1.3b".

    ## Action Space
    A `Box` in physical units, whose fields, units, bounds, rate and frame `action_modality` holds, or a `Discrete`
    space of sets of keys.

    ## Observation Space
    `observation="frame"`: the newest frame uint8 (H, W, 3); `"chunk"`: its frames uint8 (T, H, W, 3); `"latent"`: the
    newest latent float32 (C, h, w).

    `info`: `frames` uint8 (T, H, W, 3) of the chunk; `pose` (4, 4) that the actions have led to, seen from the start;
    `speed` (m/s) of cars; `path` (T + 1, 4, 4), `path_pose` of now and `next_pose` (4, 4), where there is a path;
    `reward_terms`; and `success`, which Stable-Baselines3 reads as `is_success`.

    ## Rewards
    The task's reward in [0, 1], or 0 in a world that has learned none ("astra-1.3b"); with a goal image, minus
    the distance of latents to it; or any function from a `WorldState` to a `Reward`.

    ## Starting State
    A recorded clip drawn by the seed, or `options`: `image` (array or path), `frames` uint8 (T, H, W, 3) and, where
    known, the `actions` (ceil(T / 4) - 1, A) between their latents, a car's `speed` (m/s) at the last, by which the
    world knows how far it drives (0 if not told), `start` (index of a recorded clip), `goal` (array or path), `path`
    (poses, where the task is to follow one), and `prompt`, in worlds that read text.

    ## Episode End
    Terminates when the task is done or has failed, as the id tells; truncated after `max_episode_steps`.

    ## Arguments
    `world_model`: what `WorldModel.from_pretrained` takes, and `world_model_options` its further options; `domain`: the
    data set, of those that the world was trained on, whose start states and rewards are taken, if not the id's own;
    `num_inference_steps`, `guidance_scale`, `guidance_interval` (noise levels at which guidance acts) and
    `text_guidance_scale` override the checkpoint's defaults; `style` is added to every prompt ("in the rain");
    `clip_actions` clips instead of refusing actions out of bounds.

    ## Rendering
    `render_mode`: `"rgb_array"`: the newest frame (H, W, 3); `"rgb_array_list"`: all frames since `render` was last
    called, the newest one of the start and all of each chunk, `render_fps` of them a second; `"human"`: a window in
    which every chunk runs at its own speed above its action, in steps and resets, without calls of `render`.
    """

    metadata = {  # noqa: RUF012  (as Gymnasium declares it)
        "render_modes": ["human", "rgb_array", "rgb_array_list"],
        "render_fps": 5,
    }

    _frames: np.ndarray | None = None
    _window: Window | None = None

    def __init__(self, environment: str = "Astra-RT1-v0", *, render_mode: str | None = None, **options: Any) -> None:
        super().__init__(environment, render_mode=render_mode, **options)
        modes = self.metadata["render_modes"]
        if render_mode is not None and render_mode not in modes:
            raise ValueError(f"render_mode is {render_mode!r}, expected one of {modes}.")
        self._shown: list[np.ndarray] = []  # frames that `render` has not given yet
        fps = frame_rate(self)
        pictures = fps if render_mode == "rgb_array_list" else fps / self.world_model.chunk_frames
        self.metadata = {**self.metadata, "render_fps": pictures}
        if render_mode == "human":
            self._window = Window(environment, self.action_modality, fps)

    @property
    def path(self) -> np.ndarray | None:
        """The poses (T + 1, 4, 4) that the episode is to follow, seen from its start, where the task is that."""
        judge = self.reward_function
        return judge.path.cpu().numpy().copy() if isinstance(judge, PathReward) else None

    @torch.no_grad()
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; see the class for the options."""
        super().reset(seed=seed)
        state, rewards = self._begin([self.np_random], [options or {}])
        self.reward_function = rewards[0]
        observation, info = self._enter(state, self.reward_function(state))
        self._shown.clear()
        self._show(None)
        return observation, info

    @torch.no_grad()
    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Imagine one chunk under an action in physical units."""
        if self.state is None:
            raise RuntimeError("step() was called before reset(); call reset() first.")
        actions = torch.from_numpy(self.physical(action, ()))[None]
        state = self.world_model.step(self.state, actions, **self.sampling)
        reward = self.reward_function(state)
        observation, info = self._enter(state, reward)
        self._show(actions[0].numpy())
        return observation, float(reward.value[0]), bool(reward.done[0]), False, info

    def _enter(self, state: WorldState, reward: Reward) -> tuple[np.ndarray, dict[str, Any]]:
        """Make a state the environment's; its observation and what is told of it."""
        self.state, observations, told = self._observe(state, reward, self.reward_function)
        alone = {name: _row(value) for name, value in told.items()}
        if isinstance(told, StepInfo):
            self._frames = None
            return observations[0], StepInfo(alone, lambda: self._frames_of(state)[0])
        self._frames = told["frames"][0]
        return observations[0], alone

    def _show(self, action: np.ndarray | None) -> None:
        """Show or keep what a step under an action (A,) has brought, or the newest frame of a start (None)."""
        if self.render_mode in ("human", "rgb_array_list"):
            frames = self._newest_frames()[-1 if action is None else 0 :]
            if self._window is not None:
                self._window.show(frames, action)
            else:
                self._shown += [frame.copy() for frame in frames]

    @torch.no_grad()
    def render(self) -> np.ndarray | list[np.ndarray] | None:  # type: ignore[override]
        """The newest frame uint8 (H, W, 3), or a list of all since the last call; None for a window."""
        if self.render_mode == "rgb_array_list":
            shown, self._shown = self._shown, []
            return shown
        if self.render_mode != "rgb_array":
            return None
        if self.state is None:
            return np.zeros((*self.world_model.frame_size, 3), np.uint8)
        return self._newest_frames()[-1].copy()

    def _newest_frames(self) -> np.ndarray:
        """The frames (T, H, W, 3) of the newest chunk, decoded if nobody has seen them yet."""
        if self._frames is None:
            self._frames = self._frames_of(self.save_state())[0]
        return self._frames

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            self._window.close()

    def objective(self, state: WorldState) -> torch.Tensor:
        """Reward (B,) of any worlds under the episode's task or goal: what planners maximise."""
        return self.reward_function(state).value

    def fork(self, n: int, *, max_episode_steps: int | None = None) -> AstraVectorEnv:
        """A vector environment of n copies of this world, under the same task; they share its memory until they step.

        The copies draw the same noise, as the world itself would: only their actions tell them apart, until they are
        reset, by seeds that follow from this environment's. ``max_episode_steps`` is the id's own if it is None.
        """
        steps = ENVIRONMENTS[self.environment].max_episode_steps if max_episode_steps is None else max_episode_steps
        seeds = self.np_random.bit_generator.seed_seq.spawn(n)  # type: ignore[attr-defined]
        rngs = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]
        return AstraVectorEnv.forked(self, rngs, steps)

    def restore_state(self, state: WorldState) -> None:
        """Continue from a value that `save_state` gave (one world)."""
        if len(state) != 1:
            raise ValueError(f"The state holds {len(state)} worlds, expected 1; choose one with state[i].")
        self.state, self._frames = state, None


def frame_rate(worlds: ImaginedWorlds) -> float:
    """Frames a second of imagined worlds."""
    model = worlds.world_model
    return worlds.action_modality.rate_hz * model.chunk_frames / model.sampling.chunk_size


def _row(value: Any) -> Any:
    """What is told of the only world: a number, an array of its own, or the same of each term."""
    if isinstance(value, dict):
        return {name: _row(entry) for name, entry in value.items()}
    return value[0].copy() if value.ndim > 1 else value[0].item()
