"""ImaginedWorlds: what single and vector environments share, for any number of worlds."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
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
from astra_env.envs.rewards import GoalReward, PathReward, Remembering, Reward, RewardFunction, no_reward
from astra_env.envs.start_states import StartStates
from astra_env.envs.target_kit import has_reward, load_reward
from astra_env.kinematics import BicycleMotion
from astra_env.models import WorldModel, WorldState
from astra_env.video import read_image, resize_frames

OBSERVATIONS = ("frame", "chunk", "latent")
RESET_OPTIONS = ("image", "frames", "actions", "speed", "goal", "path", "start", "prompt")


@functools.lru_cache(maxsize=4)
def load_world_model(name: str, device: str | None, **options: Any) -> WorldModel:
    """Environments of one process share the weights: they are frozen and hold no state."""
    return WorldModel.from_pretrained(name, device=device, **options)


class StepInfo(dict[str, Any]):
    """What a step tells; where nobody saw the `frames`, they are decoded when they are asked for by that name."""

    def __init__(self, told: Mapping[str, Any], frames: Callable[[], np.ndarray]) -> None:
        super().__init__(told)
        self._decode = frames

    def __missing__(self, key: str) -> Any:
        if key != "frames":
            raise KeyError(key)
        self[key] = self._decode()
        return self[key]

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)  # another process gets what is known, and no world model


class ImaginedWorlds:
    """Worlds under one task: how they begin, go on, are judged and shown. `AstraEnv` holds one, `AstraVectorEnv` many.

    The arguments are told by `AstraEnv`.
    """

    def __init__(
        self,
        environment: str = "Astra-RT1-v0",
        *,
        world_model: str | os.PathLike[str] = "astra-tiny",
        world_model_options: Mapping[str, Any] | None = None,
        domain: str | None = None,
        observation: str = "frame",
        reward: RewardFunction | None = None,
        start_states: str | os.PathLike[str] = "bundled",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        text_guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        style: str | None = None,
        device: str | None = None,
        render_mode: str | None = None,
        clip_actions: bool = False,
    ) -> None:
        if observation not in OBSERVATIONS:
            raise ValueError(f"observation is {observation!r}, expected one of {OBSERVATIONS}.")
        self.render_mode, self.observation, self.clip_actions = render_mode, observation, clip_actions
        self.sampling: dict[str, Any] = {
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "text_guidance_scale": text_guidance_scale,
            "guidance_interval": guidance_interval,
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
        self.observation_space: gymnasium.spaces.Space[Any] = self._observation_space()
        folder = domain_folder(self.world_model.folder, domain or spec.domain, self.modality)
        if domain is not None and (folder is None or folder.name != domain):
            raise ValueError(f"{world_model} has no recordings of {domain!r}; leave out domain, or train it on them.")
        self.folder = folder  # what the checkpoint holds of the domain
        self._start_states = folder if start_states == "bundled" else Path(start_states)
        self._follows_path = spec.follows_path and reward is None
        heads = None if folder is None else folder / spec.task
        if reward is None and heads is not None and has_reward(heads) and not spec.follows_path:
            reward = load_reward(heads, self.world_model.device, ends=not spec.dwells)
        self.reward_function: RewardFunction = reward or no_reward
        self._task_reward = self.reward_function
        self.state: WorldState | None = None

    def _observation_space(self) -> gymnasium.spaces.Box:
        height, width = self.world_model.frame_size
        if self.observation == "latent":
            channels = self.world_model.transformer.config.in_channels
            return gymnasium.spaces.Box(-np.inf, np.inf, (channels, height // 8, width // 8), np.float32)
        shape = (height, width, 3) if self.observation == "frame" else (self.world_model.chunk_frames, height, width, 3)
        return gymnasium.spaces.Box(0, 255, shape, np.uint8)

    # 1. Beginning

    @functools.cached_property
    def start_states(self) -> StartStates:
        """The recorded clips that episodes begin from; read when first used."""
        if self._start_states is None:
            raise ValueError("This world has no recorded start states; reset with options={'image': your picture}.")
        return StartStates.load(self._start_states)

    def _begin(
        self, rngs: Sequence[np.random.Generator], options: Sequence[Mapping[str, Any]]
    ) -> tuple[WorldState, list[RewardFunction]]:
        """Fresh worlds and the reward function of each; a row is decided by its generator and options alone."""
        for row in options:
            if unknown := sorted(set(row) - set(RESET_OPTIONS)):
                raise ValueError(f"reset() got the options {unknown}, expected some of {RESET_OPTIONS}.")
        starts = [self._start(rng, row) for rng, row in zip(rngs, options, strict=True)]
        seeds = [int(rng.integers(2**31)) for rng in rngs]
        kinds = [(len(frames), actions is None) for frames, actions, _ in starts]
        states, order = [], []
        for kind in dict.fromkeys(kinds):  # histories of one length are encoded together
            rows = [row for row, entry in enumerate(kinds) if entry == kind]
            known = [actions for row in rows if (actions := starts[row][1]) is not None]
            state = self.world_model.init_state(
                torch.from_numpy(np.stack([starts[row][0] for row in rows])),
                self.modality,
                prompts=self._prompts([options[row].get("prompt") for row in rows]),
                actions=torch.from_numpy(np.stack(known)) if known else None,
                seeds=[seeds[row] for row in rows],
                speeds=[starts[row][2] for row in rows],
            )
            states.append(state)
            order += rows
        goals: dict[int, RewardFunction] = {}
        rewards = [self._episode_reward(rng, row, goals) for rng, row in zip(rngs, options, strict=True)]
        fresh, task = WorldState.cat(states)[torch.tensor(order).argsort()], self._task_reward
        if isinstance(task, Remembering):
            rewards = [
                own if reward is task else reward for own, reward in zip(task.begun(fresh), rewards, strict=True)
            ]
        return fresh, rewards

    def _start(
        self, rng: np.random.Generator, options: Mapping[str, Any]
    ) -> tuple[np.ndarray, np.ndarray | None, float]:
        """Frames uint8 (T, H, W, 3) to begin with, the actions between them where they are known, and the speed."""
        drawn = rng.random()  # always drawn, so that a seed means the same noise whatever the start
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

    def _image(self, image: np.ndarray | str | Path) -> np.ndarray:
        """A user's picture, cropped and resized to the world's frame."""
        pixels = read_image(image) if isinstance(image, str | Path) else np.asarray(image)
        height, width = self.world_model.frame_size
        picture = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        if not picture or pixels.shape[0] < height or pixels.shape[1] < width:
            size = f"H, W of at least {height}, {width}"
            raise ValueError(f"The image is {pixels.dtype} {pixels.shape}, expected uint8 (H, W, 3) with {size}.")
        return resize_frames(pixels[None], (height, width))[0]

    def _prompts(self, prompts: Sequence[str | None]) -> list[str] | None:
        """Each prompt with the environment's style; None where there is neither."""
        worded = [", ".join(part for part in (prompt, self.style) if part) for prompt in prompts]
        return worded if any(worded) else None

    def _episode_reward(
        self, rng: np.random.Generator, options: Mapping[str, Any], goals: dict[int, RewardFunction]
    ) -> RewardFunction:
        """The task's reward, or that of a goal image or of a path."""
        goal, path = options.get("goal"), options.get("path")
        if goal is not None:
            if id(goal) not in goals:
                pixels = torch.from_numpy(self._image(goal))[None, None].to(self.world_model.device)
                goals[id(goal)] = GoalReward(self.world_model.autoencoder.encode(pixels)[0, :, 0])
            return goals[id(goal)]
        if not self._follows_path:
            if path is not None:
                raise ValueError(f"{self.environment} got a path, but its reward follows none; leave the option out.")
            return self._task_reward
        num_steps = ENVIRONMENTS[self.environment].max_episode_steps
        drawn = random_path(self.action_modality, rng, num_steps)
        followed = drawn if path is None else checked_path(path)
        return PathReward(torch.from_numpy(followed).to(self.world_model.device))

    # 2. Going on

    def set_prompt(self, prompt: str) -> None:
        """Describe the world anew; the words hold from the next step on."""
        state = self.save_state()
        self.state = self.world_model.with_prompts(state, self._prompts([prompt] * len(state)))

    def physical(self, actions: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Actions float32 (*shape, A) in physical units, checked; numbers of keys have the shape itself."""
        if isinstance(self.action_space, gymnasium.spaces.Discrete | gymnasium.spaces.MultiDiscrete):
            given, last = np.asarray(actions), len(self._choices) - 1
            whole = given.shape == shape and np.issubdtype(given.dtype, np.integer)
            if not whole or given.min(initial=0) < 0 or given.max(initial=0) > last:
                many = f", an array {shape}" if shape else ""
                raise ValueError(f"The action is {actions!r}, expected a whole number from 0 to {last}{many}.")
            return self._choices[given]
        if np.shape(actions) != self.action_space.shape:
            raise ValueError(f"The action has shape {np.shape(actions)}, expected {self.action_space.shape}.")
        return self.action_modality.validate(actions, clip=self.clip_actions)

    # 3. Judging and showing

    def _observe(
        self, state: WorldState, reward: Reward, judge: RewardFunction
    ) -> tuple[WorldState, np.ndarray, dict[str, Any]]:
        """The state as its pictures were decoded, observations (B, …), and what `info` tells of B worlds.

        Where latents are observed, frames are decoded when they are asked for.
        """
        success = (reward.done if reward.success is None else reward.success).cpu().numpy()
        told: dict[str, Any] = {
            "reward_terms": {name: value.detach().cpu().numpy().astype(float) for name, value in reward.terms.items()},
            "success": success,
            "is_success": success.copy(),
            **self._motion(state),
            **_paths(state, judge),
        }
        if self.observation == "latent":
            return state, state.newest.float().cpu().numpy().copy(), StepInfo(told, lambda: self._frames_of(state))
        state, pixels = self.world_model.decode(state)
        frames = pixels.cpu().numpy()
        return state, (frames[:, -1] if self.observation == "frame" else frames).copy(), {"frames": frames, **told}

    @torch.no_grad()
    def _frames_of(self, state: WorldState) -> np.ndarray:
        """Frames uint8 (B, T, H, W, 3) of the newest chunk."""
        return self.world_model.decode(state)[1].cpu().numpy()

    def _motion(self, state: WorldState) -> dict[str, np.ndarray]:
        """What `info` tells of pose and speed."""
        told = {"pose": state.poses.cpu().numpy().copy()}
        if isinstance(self.action_modality.kinematics, BicycleMotion):
            told["speed"] = state.speeds.cpu().numpy().copy()
        return told

    # 4. The worlds as a value

    def save_state(self) -> WorldState:
        """The worlds as a value; it can be saved to a file, restored or copied."""
        if self.state is None:
            raise RuntimeError("save_state() was called before reset(); there is no world yet.")
        return self.state


def _paths(state: WorldState, judge: RewardFunction) -> dict[str, np.ndarray]:
    """The path of each world, where it has led to and where it goes next, where they follow paths of one length."""
    if not isinstance(judge, PathReward):
        return {}
    told = (
        judge.path.expand(len(state), *judge.path.shape[-3:]),
        judge.pose(state.num_steps),
        judge.pose(state.num_steps + 1),
    )
    return dict(zip(("path", "path_pose", "next_pose"), (poses.cpu().numpy().copy() for poses in told), strict=True))
