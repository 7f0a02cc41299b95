"""Policies of LeRobot in imagined and real worlds; tested with lerobot 0.6.1, which needs Python 3.12."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from astra_env.actions import ACTION_MODALITIES, DISCRETE_ACTIONS
from astra_env.envs import ENVIRONMENTS
from astra_env.geometry import pose_to_vector7
from policies.agents import nearest_keys
from policies.worlds import LastInfo

STATE = "observation.state"
ACTIONS_PER_STEP = 4
"""Actions that `astra-env export` writes for a step, one a frame, of the bundled world and of the simulators."""


class LeRobotPolicy:
    """A policy of LeRobot in one world, which it sees as a data set of `astra-env export` shows it.

    Its picture is the newest one, at the size that it has learned from. As ``observation.state`` it is told the pose
    (x, y, z, qx, qy, qz, qw) that its actions have led to since the episode began and, of cars, the speed. It acts once
    a frame, and what it does in the frames of a step becomes one action within the bounds, or the nearest keys.

    Args:
        policy: what ``PreTrainedPolicy.from_pretrained`` gives.
        environment: the id, which tells what actions mean.
        world: what it acts in.
        processors: the two that ``make_pre_post_processors`` gives.
        task: what it is told to do, by default what the id describes, as in exported data sets.
        num_actions: its actions in one step; 1 for a policy that has learned from whole steps.
    """

    def __init__(
        self,
        policy: Any,
        environment: str,
        world: LastInfo,
        *,
        processors: tuple[Callable[[dict[str, Any]], dict[str, Any]], Callable[[Tensor], Tensor]] = (dict, Tensor.cpu),
        task: str = "",
        num_actions: int = ACTIONS_PER_STEP,
    ) -> None:
        spec = ENVIRONMENTS[environment]
        if not policy.config.image_features:
            raise ValueError(f"The policy looks at no picture, only at {sorted(policy.config.input_features)}.")
        self.policy, self.world, self.task, self.num_actions = policy, world, task or spec.description, num_actions
        self.image, feature = next(iter(policy.config.image_features.items()))
        self._before, self._after = processors
        self._size = tuple(feature.shape[1:])
        self._modality = ACTION_MODALITIES[spec.modality]
        self._choices = self._modality.discrete(DISCRETE_ACTIONS[spec.modality]) if spec.discrete else None
        self.reset(0)

    def reset(self, seed: int | None = None) -> LeRobotPolicy:
        """Forget the actions that are queued; the seed decides what is drawn, from torch's global generator."""
        if seed is not None:
            torch.manual_seed(seed)
        self.policy.reset()
        self._pose = np.eye(4)
        return self

    def act(self, observation: np.ndarray) -> Any:
        """The action (A,), or the number of keys, for a frame uint8 (H, W, 3)."""
        parts = self._parts({self.image: self._pixels(observation), STATE: self._state(), "task": [self.task]})
        action = choice = self._modality.validate(self._modality.combine(parts), clip=True)
        if self._choices is not None:
            choice = nearest_keys(action, self._modality)
            action = self._choices[choice]
        speed = self.world.info.get("speed", 0.0)
        self._pose = self._modality.integrate(self._pose, action[None], speed=speed)[1]
        return choice

    @torch.no_grad()
    def _parts(self, told: dict[str, Any]) -> np.ndarray:
        """What it does (n, A) in the frames of a step."""
        try:
            parts = [self._after(self.policy.select_action(self._before(told))) for _ in range(self.num_actions)]
        except KeyError as error:
            raise ValueError(f"The policy also wants {error}; a world shows {self.image!r} and {STATE!r}.") from error
        return torch.cat(parts).float().cpu().numpy()

    def _pixels(self, observation: np.ndarray) -> Tensor:
        pixels = torch.tensor(observation).movedim(-1, 0)[None].float() / 255  # (1, 3, H, W)
        same = pixels.shape[2:] == self._size
        return pixels if same else F.interpolate(pixels, self._size, mode="bilinear", antialias=True)

    def _state(self) -> Tensor:
        info, wanted = self.world.info, self.policy.config.input_features.get(STATE)
        speed = [info["speed"]] if "speed" in info else []
        state = torch.tensor([*pose_to_vector7(self._pose), *speed], dtype=torch.float32)
        if wanted is not None and tuple(wanted.shape) != state.shape:
            raise ValueError(
                f"The policy wants {STATE} of shape {tuple(wanted.shape)}, but the world tells {tuple(state.shape)}: "
                "the pose since the episode began, and a car's speed; train it on what astra-env export writes."
            )
        return state[None]


def load_lerobot(
    path: str, environment: str, world: LastInfo, *, task: str = "", num_actions: int = ACTIONS_PER_STEP
) -> LeRobotPolicy:
    """A policy of LeRobot from a folder or the hub, with its own processors; the rest is as in `LeRobotPolicy`.

    Raises:
        ImportError: lerobot is not installed.
    """
    try:
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors
    except ImportError as error:
        raise ImportError("There is no lerobot; with Python 3.12 or newer, run: pip install 'lerobot>=0.6'") from error
    config = PreTrainedConfig.from_pretrained(path)
    with contextlib.redirect_stdout(sys.stderr):  # it says there that it reads weights
        policy = get_policy_class(config.type).from_pretrained(path, config=config)
    # a policy remembers where it was trained; config.device is there or has been replaced
    device = {"device_processor": {"device": config.device}}
    processors = make_pre_post_processors(config, pretrained_path=path, preprocessor_overrides=device)
    return LeRobotPolicy(policy, environment, world, processors=processors, task=task, num_actions=num_actions)
