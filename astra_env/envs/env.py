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

from astra_env.envs import ENVIRONMENTS
from astra_env.envs.rewards import GoalReward, Reward, RewardFunction, TaskReward, no_reward
from astra_env.envs.start_states import StartStates
from astra_env.models import WorldModel, WorldState
from astra_env.models.reward_model import FILE_NAME as REWARD_FILE
from astra_env.models.reward_model import RewardModel
from astra_env.video import read_image, resize_frames

OBSERVATIONS = ("frame", "chunk", "latent")
RESET_OPTIONS = ("image", "frames", "actions", "goal", "start", "prompt")


@functools.lru_cache(maxsize=4)
def load_world_model(name: str, device: str | None, **options: Any) -> WorldModel:
    """Environments of one process share the weights: they are frozen and hold no state."""
    return WorldModel.from_pretrained(name, device=device, **options)


class AstraEnv(gymnasium.Env):
    """One imagined world.

    ## Description
    Each step holds one action for one chunk of the video and denoises it: four frames (0.2 s) in the bundled world, 32
    in "astra-1.3b".

    ## Action Space
    `Box` in physical units, one row of the table for each field; `action_modality` holds names, units, bounds, rate
    and frame. For `Astra-RT1-v0` (`end_effector`, base axes: x forward, y left, z up):

    | index | field | unit | min | max |
    | --- | --- | --- | --- | --- |
    | 0-2 | dx dy dz | m | -0.05 | 0.05 |
    | 3-5 | droll dpitch dyaw | rad | -0.25 | 0.25 |
    | 6 | gripper | 0 open, 1 closed | 0 | 1 |

    ## Observation Space
    `observation="frame"`: the newest frame uint8 (H, W, 3); `"chunk"`: its frames uint8 (T, H, W, 3); `"latent"`: the
    newest latent float32 (C, h, w).

    ## Rewards
    The task's learned reward in [0, 1], or 0 in a world that has learned none ("astra-1.3b"); with a goal image, minus
    the distance of latents to it; or any function from a `WorldState` to a `Reward`.

    ## Starting State
    A recorded clip drawn by the seed, or `options`: `image` (array or path), `frames` uint8 (T, H, W, 3) and, where
    known, the `actions` (ceil(T / 4) - 1, A) between their latents, `start` (index of a recorded clip), `goal` (array
    or path), and `prompt`, in worlds that read text.

    ## Episode End
    Terminates when the learned head sees success (task reward only); truncated after `max_episode_steps`.

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
        self.modality = ENVIRONMENTS[environment].modality
        if self.modality not in self.world_model.modalities:
            known = sorted(self.world_model.modalities)
            raise ValueError(f"{environment} needs {self.modality!r} actions, but {world_model} knows {known}.")
        self.action_modality = self.world_model.modalities[self.modality]
        self.action_space = self.action_modality.space()
        self.observation_space = self._observation_space()
        folder = self.world_model.folder
        self._start_states = folder if start_states == "bundled" else Path(start_states)
        if reward is None and folder is not None and (folder / REWARD_FILE).is_file():
            reward = TaskReward(RewardModel.load(folder, self.world_model.device))
        self._task_reward = self.reward_function = reward or no_reward
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
        frames, actions = self._start(options)
        self.state = self.world_model.init_state(
            torch.from_numpy(frames)[None],
            self.modality,
            prompts=self._prompts(options.get("prompt")),
            actions=None if actions is None else torch.from_numpy(actions)[None],
            seeds=[int(self.np_random.integers(2**31))],
        )
        self.reward_function = self._task_reward
        if options.get("goal") is not None:
            goal = torch.from_numpy(self._image(options["goal"]))[None, None].to(self.world_model.device)
            self.reward_function = GoalReward(self.world_model.autoencoder.encode(goal)[0, :, 0])
        return self._observe(self.reward_function(self.state))[:2]

    def _start(self, options: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
        """Frames uint8 (T, H, W, 3) to begin with, and the actions between them where they are known."""
        drawn = self.np_random.random()  # always drawn, so that a seed means the same noise whatever the start
        if options.get("image") is not None:
            return self._image(options["image"])[None], None
        if options.get("frames") is not None:
            known = options.get("actions")
            return np.asarray(options["frames"]), None if known is None else self.action_modality.validate(known)
        count = len(self.start_states)
        start = options.get("start")
        index = int(drawn * count) if start is None else int(start)
        if not 0 <= index < count:
            raise ValueError(f"start is {index}, expected 0 to {count - 1}: there are {count} recorded start states.")
        return self.start_states.frames[index], self.start_states.actions[index]

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
        if np.shape(action) != self.action_space.shape:
            raise ValueError(f"The action has shape {np.shape(action)}, expected {self.action_space.shape}.")
        action = self.action_modality.validate(action, clip=self.clip_actions)
        actions = torch.from_numpy(action)[None]
        self.state = self.world_model.step(self.state, actions, **self.sampling)  # type: ignore[arg-type]
        reward = self.reward_function(self.state)
        observation, info = self._observe(reward)
        return observation, float(reward.value[0]), bool(reward.done[0]), False, info

    def _observe(self, reward: Reward) -> tuple[np.ndarray, dict[str, Any]]:
        assert self.state is not None
        self.state, frames = self.world_model.decode(self.state)
        self._frames = frames[0].cpu().numpy()
        info = {
            "frames": self._frames.copy(),
            "reward_terms": {name: float(value[0]) for name, value in reward.terms.items()},
        }
        if self.observation == "latent":
            return self.state.newest[0].float().cpu().numpy().copy(), info
        return (self._frames[-1] if self.observation == "frame" else self._frames).copy(), info

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
