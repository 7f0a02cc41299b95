"""AstraEnv: a Gymnasium environment whose simulator is a learned video world model."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from astra_env.actions import DISCRETE_ACTIONS
from astra_env.envs import ENVIRONMENTS
from astra_env.envs.describe import describe
from astra_env.envs.domains import domain_folder
from astra_env.envs.paths import checked_path, random_path
from astra_env.envs.rewards import GoalReward, PathReward, Reward, RewardFunction, TaskReward, no_reward
from astra_env.envs.start_states import StartStates
from astra_env.kinematics import BicycleMotion
from astra_env.models import WorldModel, WorldState
from astra_env.models.reward_model import FILE_NAME as REWARD_FILE
from astra_env.models.reward_model import RewardModel
from astra_env.video import read_image, resize_frames

OBSERVATIONS = ("frame", "chunk", "latent")
RESET_OPTIONS = ("image", "frames", "actions", "speed", "goal", "path", "start", "prompt")


@functools.lru_cache(maxsize=4)
def load_world_model(name: str, device: str | None, **options: Any) -> WorldModel:
    """Environments of one process share the weights: they are frozen and hold no state."""
    return WorldModel.from_pretrained(name, device=device, **options)


class AstraEnv(gymnasium.Env):
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
    known, the `actions` (ceil(T / 4) - 1, A) between their latents and the `speed` (m/s) at the last, `start` (index of
    a recorded clip), `goal` (array or path), `path` (poses, where the task is to follow one), and `prompt`, in worlds
    that read text.

    ## Episode End
    Terminates when the task is done or has failed, as the id tells; truncated after `max_episode_steps`.

    ## Arguments
    `world_model`: what `WorldModel.from_pretrained` takes, and `world_model_options` its further options;
    `num_inference_steps`, `guidance_scale` and `text_guidance_scale` override
    the checkpoint's defaults; `style` is added to every prompt ("in the rain"); `clip_actions` clips instead of
    refusing actions out of bounds.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012  (as Gymnasium declares it)

    def __init__(
        self,
        environment: str = "Astra-RT1-v0",
        *,
        world_model: str | os.PathLike[str] = "astra-tiny",
        world_model_options: Mapping[str, Any] | None = None,
        observation: str = "frame",
        reward: RewardFunction | None = None,
        start_states: str | os.PathLike[str] = "bundled",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        text_guidance_scale: float | None = None,
        style: str | None = None,
        device: str | None = None,
        render_mode: str | None = None,
        clip_actions: bool = False,
    ) -> None:
        if observation not in OBSERVATIONS:
            raise ValueError(f"observation is {observation!r}, expected one of {OBSERVATIONS}.")
        self.render_mode, self.observation, self.clip_actions = render_mode, observation, clip_actions
        self.sampling = {
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "text_guidance_scale": text_guidance_scale,
        }
        self.style = style
        self.world_model = load_world_model(str(world_model), device, **world_model_options or {})
        self.environment, spec = environment, ENVIRONMENTS[environment]
        self.modality, self.__doc__ = spec.modality, describe(environment)
        if self.modality not in self.world_model.modalities:
            known = sorted(self.world_model.modalities)
            raise ValueError(f"{environment} needs {self.modality!r} actions, but {world_model} knows {known}.")
        self.action_modality = self.world_model.modalities[self.modality]
        self.action_space: gymnasium.spaces.Space[Any] = self.action_modality.space()
        if spec.discrete:
            self._choices = self.action_modality.discrete(DISCRETE_ACTIONS[self.modality])
            self.action_space = gymnasium.spaces.Discrete(len(self._choices))
        self.observation_space = self._observation_space()
        folder = domain_folder(self.world_model.folder, spec.domain, self.modality)
        self._start_states = folder if start_states == "bundled" else Path(start_states)
        self._follows_path = spec.follows_path and reward is None
        if reward is None and folder is not None and (folder / REWARD_FILE).is_file() and not spec.follows_path:
            reward = TaskReward(RewardModel.load(folder, self.world_model.device))
        self._task_reward = self.reward_function = reward or no_reward
        self.path: np.ndarray | None = None
        self.state: WorldState | None = None
        self._frames: np.ndarray | None = np.zeros(
            (self.world_model.chunk_frames, *self.world_model.frame_size, 3), np.uint8
        )

    def _observation_space(self) -> gymnasium.spaces.Box:
        height, width = self.world_model.frame_size
        if self.observation == "latent":
            channels = self.world_model.transformer.config.in_channels
            return gymnasium.spaces.Box(-np.inf, np.inf, (channels, height // 8, width // 8), np.float32)
        shape = (height, width, 3) if self.observation == "frame" else (self.world_model.chunk_frames, height, width, 3)
        return gymnasium.spaces.Box(0, 255, shape, np.uint8)

    @functools.cached_property
    def start_states(self) -> StartStates:
        """The recorded clips that episodes begin from; read when first used."""
        if self._start_states is None:
            raise ValueError("This world has no recorded start states; reset with options={'image': your picture}.")
        return StartStates.load(self._start_states)

    @torch.no_grad()
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; see the class for the options."""
        super().reset(seed=seed)
        options = options or {}
        unknown = sorted(set(options) - set(RESET_OPTIONS))
        if unknown:
            raise ValueError(f"reset() got the options {unknown}, expected some of {RESET_OPTIONS}.")
        frames, actions, speed = self._start(options)
        state = self.world_model.init_state(
            torch.from_numpy(frames)[None],
            self.modality,
            prompts=self._prompts(options.get("prompt")),
            actions=None if actions is None else torch.from_numpy(actions)[None],
            seeds=[int(self.np_random.integers(2**31))],
            speeds=[speed],
        )
        self.reward_function, self.path = self._episode_reward(options.get("goal"), options.get("path"))
        self.state = state
        return self._observe(self.reward_function(self.state))[:2]

    def _episode_reward(
        self, goal: np.ndarray | str | Path | None, path: np.ndarray | None
    ) -> tuple[RewardFunction, np.ndarray | None]:
        """The task's reward, or that of a goal image or of a path, which comes with it."""
        if goal is not None:
            pixels = torch.from_numpy(self._image(goal))[None, None].to(self.world_model.device)
            return GoalReward(self.world_model.autoencoder.encode(pixels)[0, :, 0]), None
        if not self._follows_path:
            if path is not None:
                raise ValueError(f"{self.environment} got a path, but its reward follows none; leave the option out.")
            return self._task_reward, None
        num_steps = ENVIRONMENTS[self.environment].max_episode_steps
        drawn = random_path(self.action_modality, self.np_random, num_steps)
        followed = drawn if path is None else checked_path(path)
        return PathReward(torch.from_numpy(followed).to(self.world_model.device)), followed

    def _start(self, options: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray | None, float]:
        """Frames uint8 (T, H, W, 3) to begin with, the actions between them where they are known, and the speed."""
        drawn = self.np_random.random()  # always drawn, so that a seed means the same noise whatever the start
        speed = options.get("speed")
        if options.get("image") is not None:
            return self._image(options["image"])[None], None, float(speed or 0)
        if options.get("frames") is not None:
            known = options.get("actions")
            actions = None if known is None else self.action_modality.validate(known)
            return np.asarray(options["frames"]), actions, float(speed or 0)
        starts, start = self.start_states, options.get("start")
        index = int(drawn * len(starts)) if start is None else int(start)
        if not 0 <= index < len(starts):
            count = len(starts)
            raise ValueError(f"start is {index}, expected 0 to {count - 1}: there are {count} recorded start states.")
        if speed is None and starts.speeds is not None:
            speed = starts.speeds[index]
        return starts.frames[index], starts.actions[index], float(speed or 0)

    def _prompts(self, prompt: str | None) -> list[str] | None:
        """The prompt with the environment's style, as a batch of one."""
        parts = [part for part in (prompt, self.style) if part]
        return [", ".join(parts)] if parts else None

    def set_prompt(self, prompt: str) -> None:
        """Describe the world anew; the words hold from the next step on."""
        self.state = self.world_model.with_prompts(self.save_state(), self._prompts(prompt))

    def _image(self, image: np.ndarray | str | Path) -> np.ndarray:
        """A user's picture, cropped and resized to the world's frame."""
        pixels = read_image(image) if isinstance(image, str | Path) else np.asarray(image)
        height, width = self.world_model.frame_size
        picture = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        if not picture or pixels.shape[0] < height or pixels.shape[1] < width:
            size = f"H, W of at least {height}, {width}"
            raise ValueError(f"The image is {pixels.dtype} {pixels.shape}, expected uint8 (H, W, 3) with {size}.")
        return resize_frames(pixels[None], (height, width))[0]

    @torch.no_grad()
    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Imagine one chunk under an action in physical units."""
        if self.state is None:
            raise RuntimeError("step() was called before reset(); call reset() first.")
        actions = torch.from_numpy(self._physical(action))[None]
        self.state = self.world_model.step(self.state, actions, **self.sampling)  # type: ignore[arg-type]
        reward = self.reward_function(self.state)
        observation, info = self._observe(reward)
        return observation, float(reward.value[0]), bool(reward.done[0]), False, info

    def _physical(self, action: np.ndarray | int) -> np.ndarray:
        """The action float32 (A,) in physical units, checked."""
        if isinstance(self.action_space, gymnasium.spaces.Discrete):
            if not self.action_space.contains(action):
                raise ValueError(
                    f"The action is {action!r}, expected a whole number from 0 to {len(self._choices) - 1}."
                )
            return self._choices[int(action)]
        if np.shape(action) != self.action_space.shape:
            raise ValueError(f"The action has shape {np.shape(action)}, expected {self.action_space.shape}.")
        return self.action_modality.validate(action, clip=self.clip_actions)

    def _observe(self, reward: Reward) -> tuple[np.ndarray, dict[str, Any]]:
        assert self.state is not None
        self.state, frames = self.world_model.decode(self.state)
        self._frames = frames[0].cpu().numpy()
        success = bool((reward.done if reward.success is None else reward.success)[0])
        info = {
            "frames": self._frames.copy(),
            "reward_terms": {name: float(value[0]) for name, value in reward.terms.items()},
            "success": success,
            "is_success": success,
            **self._motion(self.state),
        }
        if self.observation == "latent":
            return self.state.newest[0].float().cpu().numpy().copy(), info
        return (self._frames[-1] if self.observation == "frame" else self._frames).copy(), info

    def _motion(self, state: WorldState) -> dict[str, Any]:
        """What `info` tells of pose, speed and path."""
        told: dict[str, Any] = {"pose": state.poses[0].cpu().numpy().copy()}
        if isinstance(self.action_modality.kinematics, BicycleMotion):
            told["speed"] = float(state.speeds[0])
        if self.path is not None:
            now, last = int(state.num_steps[0]), len(self.path) - 1
            told["path"] = self.path.copy()
            told["path_pose"], told["next_pose"] = (self.path[min(now + ahead, last)].copy() for ahead in (0, 1))
        return told

    @torch.no_grad()
    def render(self) -> np.ndarray | None:
        """The newest frame, uint8 (H, W, 3)."""
        if self.render_mode != "rgb_array":
            return None
        if self._frames is None:  # a state was restored: its picture is decoded where it is asked for
            assert self.state is not None
            self._frames = self.world_model.decode(self.state)[1][0].cpu().numpy()
        return self._frames[-1].copy()

    def objective(self, state: WorldState) -> torch.Tensor:
        """Reward (B,) of any worlds under the episode's task or goal: what planners maximise."""
        return self.reward_function(state).value

    def save_state(self) -> WorldState:
        """The world as a value; it can be saved to a file, restored or copied."""
        if self.state is None:
            raise RuntimeError("save_state() was called before reset(); there is no world yet.")
        return self.state

    def restore_state(self, state: WorldState) -> None:
        """Continue from a value that `save_state` gave (one world)."""
        if len(state) != 1:
            raise ValueError(f"The state holds {len(state)} worlds, expected 1; choose one with state[i].")
        self.state, self._frames = state, None
