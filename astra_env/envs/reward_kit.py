"""A kit of rewards: learned ones with several heads, goal pictures, poses, lanes, weighted sums, the user's function.

Each is what `astra_env.envs.rewards` calls a reward: a batched function of a `WorldState`, which environments and
planners share: ``gymnasium.make(id, reward=PoseGoal(pose))``. Gradients pass through all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from astra_env.envs.rewards import LIKELY, ON_PATH, Reward, RewardFunction, length, pose_error
from astra_env.models import WorldModel, WorldState
from astra_env.models.heads import head_folders
from astra_env.models.reward_model import FILE_NAME, RewardModel

DECODED_LATENTS = 4
"""Newest latents that a picture is decoded from: as far as the tiny decoder looks back."""
SCALES = (1, 2, 4, 8)
"""Pixels that pictures are averaged over before they are compared."""


class LearnedReward:
    """Reward, success and failure as heads learned them from labelled frames (`astra-env fit-reward`).

    Several heads that began from other weights agree where they know and differ where they guess: the reward is their
    mean less ``pessimism`` times their standard deviation, at least 0. Success is decided by its mean probability less
    so much, failure by its own and so much; the terms tell the means. Both end the episode unless ``ends`` is false.
    """

    def __init__(self, heads: Sequence[RewardModel], *, pessimism: float = 0.0, ends: bool = True) -> None:
        if not heads or len({len(head.features[-1].bias) for head in heads}) != 1:  # type: ignore[arg-type]
            raise ValueError(f"There are {len(heads)} heads, expected one or more, all of which know the same flags.")
        self.heads, self.pessimism, self.ends = list(heads), pessimism, ends

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        device: str | torch.device = "cpu",
        *,
        pessimism: float = 0.0,
        ends: bool = True,
    ) -> LearnedReward:
        """Read the heads that `fit_reward` wrote, or the one of a checkpoint's domain folder."""
        folders = head_folders(folder, FILE_NAME) or [Path(folder)]
        return cls([RewardModel.load(entry, torch.device(device)) for entry in folders], pessimism=pessimism, ends=ends)

    def __call__(self, state: WorldState) -> Reward:
        """Reward in [0, 1], 0 where the task has failed."""
        outputs = torch.stack([torch.stack(head(state.newest, state.speeds)) for head in self.heads])
        spread = outputs.std(0, correction=0)  # (1 + flags, B)
        doubt = self.pessimism * spread
        value, success, *failure = outputs.mean(0)
        terms = {"task_reward": value, "success_probability": success, "reward_spread": spread[0]}
        solved, failed = success - doubt[1] > LIKELY, torch.zeros_like(success, dtype=torch.bool)
        if failure:
            terms["failure_probability"], failed = failure[0], failure[0] + doubt[2] > LIKELY
        cautious = (value - doubt[0]).clamp(min=0)
        over = (solved | failed) & self.ends
        return Reward(cautious.where(~failed, 0.0), over, terms, solved & ~failed)


class PerceptualGoal:
    """Closeness to a goal picture as it looks: minus the distance of decoded frames, 0 at the goal.

    Args:
        world_model: decodes the worlds, and shows the goal as its autoencoder does, so that what it cannot draw does
            not count.
        picture: uint8 (H, W, 3) of the world's size.
        features: pixels (B, 3, H, W) in [-1, 1] -> maps (B, C, h, w) whose mean absolute differences count alike;
            `colours`, or the better but slower `astra_env.models.image_network.ImageNetwork`.
        reached: distance below which the goal counts as reached, which ends the episode; None for never.
    """

    def __init__(
        self,
        world_model: WorldModel,
        picture: np.ndarray,
        *,
        features: Callable[[Tensor], list[Tensor]] | None = None,
        reached: float | None = None,
    ) -> None:
        size = (*world_model.frame_size, 3)
        if picture.dtype != np.uint8 or picture.shape != size:
            raise ValueError(f"The goal picture is {picture.dtype} {picture.shape}, expected uint8 {size}; resize it.")
        self.world_model, self.features, self.reached = world_model, features or colours, reached
        frames = torch.from_numpy(picture).to(world_model.device).expand(1, 5, *size)  # a still second latent
        with torch.no_grad():
            self.goal = self.features(last_pixels(world_model, world_model.autoencoder.encode(frames)))

    def __call__(self, state: WorldState) -> Reward:
        """Reward of at most 0."""
        shown = self.features(newest_pixels(self.world_model, state))
        distance = torch.stack([(a - b).abs().mean((1, 2, 3)) for a, b in zip(shown, self.goal, strict=True)]).mean(0)
        done = distance < (0.0 if self.reached is None else self.reached)
        return Reward(-distance, done, {"perceptual_distance": distance})


def newest_pixels(world_model: WorldModel, state: WorldState) -> Tensor:
    """The last frames (B, 3, H, W) of worlds, in [-1, 1]; gradients pass through."""
    known = state.lengths.clamp(max=DECODED_LATENTS)
    pixels = torch.zeros(len(state), 3, *world_model.frame_size, device=state.latents.device)
    for count in known.unique().tolist():  # young worlds have fewer latents, and no row depends on its neighbours
        rows = torch.nonzero(known == count)[:, 0]
        pixels = pixels.index_add(0, rows, last_pixels(world_model, state.latents[rows, :, -count:]))
    return pixels


def last_pixels(world_model: WorldModel, latents: Tensor) -> Tensor:
    """The last frame (B, 3, H, W) of latents (B, C, T, h, w)."""
    autoencoder = world_model.autoencoder
    cache = autoencoder.init_cache(len(latents), *latents.shape[-2:])
    return autoencoder.decode_pixels(latents.float(), cache)[0][:, -1].float()


def colours(pixels: Tensor) -> list[Tensor]:
    """Pictures (B, 3, H, W) at four scales, without any network.

    The coarse ones still tell which way to go where nothing overlaps; the fine ones tell whether it fits.
    """
    return [F.avg_pool2d(pixels, scale) for scale in SCALES]


class PoseGoal:
    """Closeness of where the actions have led to a pose: of the gripper (end-effector distance), a car or a camera.

    Args:
        pose: (4, 4), or (B, 4, 4) for worlds with a goal each, seen from the episode's start as ``info["pose"]`` is.
        metres: distance that costs as much as ``radians`` do; the reward is 1 - tanh of both shares' sum.
        radians: None where only the place counts.
        reached: metres and radians from the pose within which it is reached, which ends the episode.
    """

    def __init__(
        self,
        pose: Tensor | np.ndarray,
        *,
        metres: float = 1 / 3,
        radians: float | None = 2 / 3,
        reached: tuple[float, float] = ON_PATH,
    ) -> None:
        self.pose = torch.as_tensor(pose, dtype=torch.float64)
        if self.pose.shape[-2:] != (4, 4) or self.pose.ndim > 3:
            raise ValueError(f"The pose is {tuple(self.pose.shape)}, expected (4, 4), or (B, 4, 4) for B worlds.")
        self.metres, self.radians, self.reached = metres, radians, reached

    def __call__(self, state: WorldState) -> Reward:
        """Reward in [0, 1], 1 at the pose."""
        distance, angle = pose_error(state.poses, self.pose.to(state.poses))
        far, there = distance / self.metres, distance < self.reached[0]
        if self.radians is not None:
            far, there = far + angle / self.radians, there & (angle < self.reached[1])
        return Reward((1 - far.tanh()).float(), there, {"pose_distance": distance, "pose_angle": angle})


class LaneKeeping:
    """Speed along a lane, and less of it beside the lane's middle: `PathReward` without a time-table, for cars.

    The reward is v cos(a) / ``speed`` at v m/s and a rad across the lane, at most 1, times 1 - (d / ``half_width``)^2
    at d metres from the middle. Leaving the lane is a failure and ends the episode; its end is a success.

    Args:
        path: poses (T + 1, 4, 4) or places (T + 1, 2 or more) along the lane's middle, seen from the episode's start
            (x forward, y left, metres).
        half_width: metres from the middle to the border.
        speed: m/s that are worth 1.
    """

    def __init__(self, path: Tensor | np.ndarray, *, half_width: float = 2.0, speed: float = 12.0) -> None:
        places = torch.as_tensor(path, dtype=torch.float64)
        places = places[:, :2, 3] if places.ndim == 3 else places[:, :2]
        if places.ndim != 2 or len(places) < 2 or bool((places.diff(dim=0).norm(dim=1) == 0).any()):
            raise ValueError(
                f"The lane is {tuple(torch.as_tensor(path).shape)}, expected two or more poses (T + 1, 4, 4) or places "
                "(T + 1, 2), each different from the one before."
            )
        self.places, self.half_width, self.speed = places, half_width, speed

    def __call__(self, state: WorldState) -> Reward:
        """Reward of at most 1; below 0 backwards, and 0 beside the lane."""
        places, here = self.places.to(state.poses), state.poses[:, None, :2, 3]
        along = places.diff(dim=0)  # (T, 2)
        lengths = along.norm(dim=1)
        tangents = along / lengths[:, None]
        reach = ((here - places[:-1]) * tangents).sum(-1)  # (B, T) metres along each piece
        inside = reach.clamp(min=0).minimum(lengths)
        offsets = here - places[:-1] - inside[..., None] * tangents
        nearest = offsets.square().sum(-1).argmin(1)
        rows = torch.arange(len(nearest), device=nearest.device)
        distance = length(offsets[rows, nearest])
        progress = (lengths.cumsum(0) - lengths)[nearest] + inside[rows, nearest]
        forward = (state.poses[:, :2, 0] * tangents[nearest]).sum(-1)  # cos of the angle across the lane
        off = distance > self.half_width
        at_end = (nearest == len(lengths) - 1) & (reach[rows, nearest] >= lengths[-1]) & ~off
        centred = 1 - (distance / self.half_width).square()
        value = (state.speeds * forward / self.speed).clamp(max=1) * centred.clamp(min=0)
        terms = {"lane_distance": distance, "lane_cosine": forward, "lane_progress": progress / lengths.sum()}
        return Reward(value.float(), off | at_end, terms, at_end)


class WeightedSum:
    """Several rewards, each times its weight: ``WeightedSum({"near": (1.0, PoseGoal(p)), "task": (2.0, learned)})``.

    The terms are each part's value before its weight, by its name, and the part's own terms behind its name and a
    slash. The episode is over where any part says so, and solved where such a part says so and none has failed.
    """

    def __init__(self, parts: Mapping[str, tuple[float, RewardFunction]]) -> None:
        if not parts:
            raise ValueError("There is nothing to sum, expected {name: (weight, reward)} with one part or more.")
        self.parts = dict(parts)

    def __call__(self, state: WorldState) -> Reward:
        """The sum; its range is that of the parts."""
        rewards = {name: (weight, function(state)) for name, (weight, function) in self.parts.items()}
        value = torch.stack([weight * reward.value for weight, reward in rewards.values()]).sum(0)
        terms: dict[str, Tensor] = {}
        solved, failed = torch.zeros_like(value, dtype=torch.bool), torch.zeros_like(value, dtype=torch.bool)
        for name, (_, reward) in rewards.items():
            terms[name] = reward.value
            terms |= {f"{name}/{term}": entry for term, entry in reward.terms.items()}
            success = reward.done if reward.success is None else reward.success
            solved, failed = solved | (reward.done & success), failed | (reward.done & ~success)
        return Reward(value, solved | failed, terms, solved & ~failed)


def from_function(function: Callable[[WorldState], Tensor], name: str = "reward") -> RewardFunction:
    """A reward of the user's own function from B worlds to values (B,); the episode never ends by it."""

    def reward(state: WorldState) -> Reward:
        value = function(state)
        if not isinstance(value, Tensor) or value.shape != (len(state),):
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"The reward function returned {given}, expected a tensor ({len(state)},): one a world.")
        return Reward(value, torch.zeros_like(value, dtype=torch.bool), {name: value})

    return reward
