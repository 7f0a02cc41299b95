"""Goal pictures as rewards: how far a world is from one, as a network has learned it from recordings and dreams."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.envs.reward_kit import newest_pixels
from astra_env.envs.rewards import Reward, length
from astra_env.kinematics import RigidMotion
from astra_env.models import WorldModel, WorldState
from astra_env.models.goal_model import AnyGoalModel


class LearnedGoal:
    """Closeness to where a goal picture was taken: minus the distance that a `GoalModel` reads off what worlds show.

    Gradients pass through it: ``gymnasium.make(id, reward=LearnedGoal(model, world_model, picture))``.

    Args:
        model: from `astra-env fit-goal`.
        world_model: whose autoencoder encodes the picture, and decodes worlds where the model reads pictures.
        picture: uint8 (H, W, 3) of the world's size.
        metres: distance that costs as much as ``radians`` do.
        radians: None where only the place counts.
        reached: metres and radians within which the goal counts as reached, which ends the episode; None for never.
    """

    def __init__(
        self,
        model: AnyGoalModel,
        world_model: WorldModel,
        picture: np.ndarray,
        *,
        metres: float = 1.0,
        radians: float | None = None,
        reached: tuple[float, float] | None = None,
    ) -> None:
        size = (*world_model.frame_size, 3)
        if picture.dtype != np.uint8 or picture.shape != size:
            raise ValueError(f"The goal picture is {picture.dtype} {picture.shape}, expected uint8 {size}; resize it.")
        self.model, self.metres, self.radians, self.reached = model, metres, radians, reached
        self.world_model = world_model
        self.goal = self._seen(picture)

    @torch.no_grad()
    def _seen(self, picture: np.ndarray) -> Tensor:
        """A picture uint8 (H, W, 3) as the model is shown it, (1, C, h, w)."""
        still = torch.from_numpy(picture)[None].to(self.world_model.device)
        if self.model.reads_pictures:
            return still.movedim(-1, 1).float() / 127.5 - 1
        return self.world_model.autoencoder.encode(still[None])[:, :, 0]

    def __call__(self, state: WorldState) -> Reward:
        """Reward of at most 0, in multiples of the metres and radians given."""
        distance, angle = self.distances(state)
        far = distance / self.metres
        done = torch.zeros_like(far, dtype=torch.bool)
        if self.radians is not None:
            far = far + angle / self.radians
        if self.reached is not None:
            done = (distance < self.reached[0]) & ((angle < self.reached[1]) | (self.radians is None))
        return Reward(-far, done, {"goal_distance": distance, "goal_angle": angle})

    def distances(self, state: WorldState) -> tuple[Tensor, Tensor]:
        """Metres and radians (B,) from worlds to the goal."""
        motions = self._motions(state, None).unflatten(1, (2, 3))
        distance, angle = length(motions).unbind(1)
        return distance, angle

    def _motions(self, state: WorldState, picture: np.ndarray | None) -> Tensor:
        """From worlds, or from where a picture is of, to the goal, (B, 6)."""
        if not self.model.reads_pictures:
            shown = state.newest
        elif picture is None:
            shown = newest_pixels(self.world_model, state)
        else:
            shown = self._seen(picture).expand(len(state), -1, -1, -1)
        return self.model(shown, self.goal.expand(len(state), -1, -1, -1))

    def pose(self, state: WorldState, picture: np.ndarray | None = None) -> Tensor:
        """Where the goal's picture was taken (B, 4, 4), as worlds of one modality tell it, seen from where they began.

        It is read best off what was seen and not imagined; `PoseGoal` leads plans there. ``picture`` uint8 (H, W, 3) is
        what the worlds' newest frame was encoded from, where that is known: it shows more than the latent keeps.
        """
        motions = self._motions(state, picture).detach().cpu().double()
        kinematics = ACTION_MODALITIES[state.modality[0]].kinematics
        turns = torch.from_numpy(geometry.axis_angle_to_matrix(motions[:, 3:].numpy())).to(state.poses)
        way, poses = motions[:, :3, None].to(state.poses), state.poses.clone()
        rotations = state.poses[:, :3, :3]
        if isinstance(kinematics, RigidMotion) and not kinematics.moving:
            rotated = turns @ rotations
        else:
            rotated, way = rotations @ turns, rotations @ way
        poses[:, :3, :3], poses[:, :3, 3:] = rotated, poses[:, :3, 3:] + way
        return poses
