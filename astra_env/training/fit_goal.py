"""`astra-env fit-goal DATA`: how far a world is from a goal picture, learned from recorded episodes and their poses."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets.recorded import RecordedDataset
from astra_env.flags import flag
from astra_env.kinematics import RigidMotion
from astra_env.models import WorldModel
from astra_env.models.autoencoder import VideoAutoencoder
from astra_env.models.camera_motion import CameraMotion
from astra_env.models.goal_model import AnyGoalModel, GoalModel, save_goal_model
from astra_env.training.bundle import NUM_CHUNKS
from astra_env.training.dreams import imagine_episodes
from astra_env.training.episodes import FRAMES_PER_ACTION, Episodes, encode_episodes, load_episodes
from astra_env.writing import write_json

PIECE = 2 * NUM_CHUNKS
"""Chunks of an episode that are dreamt at a time: the first half is known, the second half imagined."""


@dataclass(frozen=True)
class FitGoalConfig:
    """One fit; each field is a flag of `astra-env fit-goal` and says in its metadata what it means."""

    data: str  # recorded episodes: a folder of train/ and heldout/
    out: str = flag(
        dataclasses.MISSING, "folder of the network; a checkpoint's domain folder gives it to plans in that world"
    )
    world_model: str = flag("astra-tiny", "bundled name or checkpoint folder whose worlds are measured")
    num_steps: int = flag(3000, "steps of training")
    batch_size: int = flag(128, "pairs of a batch; half of those of latents begin in a dream")
    episodes: int = flag(800, "recorded episodes to learn from and to test on, at most")
    apart: int = flag(8, "steps that a world and its goal are apart in an episode, at most")
    seed: int = flag(0, "of the weights, the dreams and the batches")

    def __post_init__(self) -> None:
        if min(self.num_steps, self.batch_size, self.episodes, self.apart) < 1:
            raise ValueError(
                f"num_steps is {self.num_steps}, batch_size {self.batch_size}, episodes {self.episodes} and apart "
                f"{self.apart}, expected at least 1 of each."
            )


@dataclass(frozen=True)
class Views:
    """Latents (M, C, h, w) of worlds, or pictures uint8 (M, H, W, 3), and of which moments: episode and time (M,)."""

    shown: Tensor
    episode: Tensor
    time: Tensor


@dataclass(frozen=True)
class Sights:
    """What is known of T moments of E episodes: the ends of their chunks, or where pictures are read all frames."""

    views: tuple[Views, ...]  # as they were, and as the world imagines them
    stills: Tensor  # (E, T, ...): the picture at each moment, or its latent, as a goal is encoded
    poses: Tensor  # float64 (E, T, 4, 4)
    moving: bool  # whether motions are seen from the pose where they begin, as this modality's actions are

    @property
    def pictures(self) -> bool:
        """Whether they are pictures and not latents."""
        return self.stills.dtype == torch.uint8

    def span(self, steps: int) -> int:
        """Moments in so many steps."""
        return steps * FRAMES_PER_ACTION if self.pictures else steps

    def pairs(self, views: Views, index: Tensor, apart: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Worlds, goals so many moments later in the same episode or at its end, and the motions (B, 6) between."""
        episode, time = views.episode[index], views.time[index]
        later = (time + apart).clamp(0, self.stills.shape[1] - 1)
        motions = motion_between(self.poses[episode, time], self.poses[episode, later], moving=self.moving)
        return _input(views.shown[index]), _input(self.stills[episode, later]), motions


def _input(shown: Tensor) -> Tensor:
    """Pictures as a model takes them; latents as they are."""
    return shown.movedim(-1, 1).float() / 127.5 - 1 if shown.dtype == torch.uint8 else shown


def motion_between(poses: Tensor, goals: Tensor, *, moving: bool) -> Tensor:
    """Metres and axis times angle, float32 (B, 6), from poses to goals (B, 4, 4).

    Either as seen from the pose, or along the axes in which both are told.
    """
    turns = poses[:, :3, :3].transpose(1, 2)
    way = goals[:, :3, 3] - poses[:, :3, 3]
    if moving:
        way, turn = (turns @ way[:, :, None])[:, :, 0], turns @ goals[:, :3, :3]
    else:
        turn = goals[:, :3, :3] @ turns
    return torch.cat([way, torch.from_numpy(geometry.matrix_to_axis_angle(turn.numpy()))], dim=1).float()


def fit_goal(config: FitGoalConfig) -> dict[str, float]:
    """Write OUT/goal_model.safetensors and OUT/goals.json, which it returns.

    It tells, on held-out episodes, how long the errors of ways (m) and turns (rad) are and how well distances
    correlate, from recorded and from imagined worlds, and what always guessing no motion would be worth.
    """
    began = time.perf_counter()
    world_model = WorldModel.from_pretrained(config.world_model)
    train, heldout = (read_sights(config, world_model, split) for split in ("train", "heldout"))
    model = train_goal_model(train, config)
    report = {
        f"{kind}_{name}": value
        for kind, views in zip(("recorded", "imagined"), heldout.views, strict=True)
        for name, value in goal_report(model, heldout, views, config).items()
    }
    report["seconds"] = round(time.perf_counter() - began, 1)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    save_goal_model(model, out)
    write_json(out / "goals.json", report)
    return report


def train_goal_model(sights: Sights, config: FitGoalConfig) -> AnyGoalModel:
    """A network that has seen pairs of all distances alike, as many from dreams as from recordings.

    Of cameras that move, it has seen recordings alone, and half of them in a mirror.
    """
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = CameraMotion() if sights.pictures else GoalModel(sights.stills.shape[2])
    spread = torch.cat([_drawn(sights, views, 1024, config.apart, generator)[2] for views in sights.views]).square()
    model.scale.copy_(spread.mean(0).unflatten(0, (2, 3)).mean(1).sqrt().clamp(min=1e-4).repeat_interleave(3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, config.num_steps + 1)
    count = -(-config.batch_size // len(sights.views))
    for _ in tqdm(range(config.num_steps), desc=f"goals of {Path(config.data).name}", unit="step", mininterval=5):
        drawn = [_drawn(sights, views, count, config.apart, generator) for views in sights.views]
        shown, goals, motions = (torch.cat(part) for part in zip(*drawn, strict=True))
        if sights.pictures:
            shown, goals, motions = _some_mirrored(shown, goals, motions, generator)
        optimizer.zero_grad()
        model.loss(shown, goals, motions).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def _drawn(
    sights: Sights, views: Views, count: int, apart: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    index, span = torch.randint(len(views.shown), (count,), generator=generator), sights.span(apart)
    return sights.pairs(views, index, torch.randint(-span, span + 1, (count,), generator=generator))


def _some_mirrored(
    shown: Tensor, goals: Tensor, motions: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Half of the pairs of pictures as a mirror shows them: right is left, and turns about y and z go the other way."""
    mirrored = torch.rand(len(motions), generator=generator) < 0.5
    shown, goals = (torch.where(mirrored[:, None, None, None], part.flip(-1), part) for part in (shown, goals))
    return shown, goals, torch.where(mirrored[:, None], motions * motions.new_tensor([-1, 1, 1, 1, -1, -1]), motions)


@torch.no_grad()
def goal_report(model: AnyGoalModel, sights: Sights, views: Views, config: FitGoalConfig) -> dict[str, float]:
    """Mean lengths of errors in metres and radians over a pair of every view, and the correlation of distances."""
    generator = torch.Generator().manual_seed(config.seed)
    furthest = sights.span(config.apart)
    span = torch.randint(-furthest, furthest + 1, (len(views.shown),), generator=generator)
    parts = []
    for index in torch.arange(len(views.shown)).split(512):
        shown, goals, motions = sights.pairs(views, index, span[index])
        parts.append(torch.stack([model(shown, goals), motions]))
    told, true = torch.cat(parts, dim=1).unflatten(-1, (2, 3)).movedim(2, 1)  # (way and turn, M, 3) each
    errors, lengths = (told - true).norm(dim=-1).mean(1), true.norm(dim=-1).mean(1)
    pairs = torch.stack([told.norm(dim=-1), true.norm(dim=-1)], dim=1)
    likeness = [torch.corrcoef(pair)[0, 1].nan_to_num() for pair in pairs]  # 0 where nothing moves at all
    return {
        "metres_error": errors[0].item(),
        "radians_error": errors[1].item(),
        "metres_guessing": lengths[0].item(),
        "radians_guessing": lengths[1].item(),
        "metres_correlation": likeness[0].item(),
        "radians_correlation": likeness[1].item(),
        "num_pairs": len(views.shown),
    }


# Reading


def read_sights(config: FitGoalConfig, world_model: WorldModel, split: str) -> Sights:
    """Encode and imagine the episodes of a split.

    Where actions move a camera, poses are the camera's, and pictures are read. It is learned from real ones, and tested
    on imagined ones, too.
    """
    episodes = load_episodes(config.data, split, config.episodes, frame_size=world_model.frame_size[0])
    count, num_chunks = episodes.actions.shape[:2]
    if num_chunks < PIECE:
        raise ValueError(f"Episodes of {config.data} have {num_chunks} chunks, expected at least {PIECE}.")
    kinematics = ACTION_MODALITIES[episodes.modality].kinematics
    moving = not isinstance(kinematics, RigidMotion) or kinematics.moving
    pictures = isinstance(kinematics, RigidMotion) and kinematics.moving
    if pictures:
        seen = stills = episodes.frames
    else:
        seen = encode_episodes(world_model.autoencoder, episodes)
        stills = encode_stills(world_model.autoencoder, episodes)
    times, poses = seen.shape[1], read_poses(config.data, split, count)
    views = [Views(seen.flatten(0, 1), torch.arange(count).repeat_interleave(times), torch.arange(times).repeat(count))]
    if not pictures or split == "heldout":
        views.append(_dreamt(world_model, episodes, config.seed, decode=pictures))
    return Sights(tuple(views), stills, poses[:, :: 1 if pictures else FRAMES_PER_ACTION], moving)


def _dreamt(world_model: WorldModel, episodes: Episodes, seed: int, *, decode: bool) -> Views:
    """The second half of every piece of episodes, imagined."""
    firsts = range(0, episodes.actions.shape[1] - PIECE + 1, PIECE)
    dreams = [imagine_episodes(world_model, piece_of(episodes, first), seed=seed)[0] for first in firsts]
    if decode:
        dreams = [_last_frames(world_model, latents) for latents in dreams]
    moments = torch.cat([torch.arange(first + NUM_CHUNKS + 1, first + PIECE + 1) for first in firsts])
    moments *= FRAMES_PER_ACTION if decode else 1
    count = len(episodes)
    return Views(
        torch.cat(dreams, dim=1).flatten(0, 1),
        torch.arange(count).repeat_interleave(len(moments)),
        moments.repeat(count),
    )


@torch.no_grad()
def _last_frames(world_model: WorldModel, latents: Tensor) -> Tensor:
    """The last frame of each of latents (E, T, C, h, w) of streams, uint8 (E, T, H, W, 3)."""
    autoencoder, parts = world_model.autoencoder, []
    for part in latents.transpose(1, 2).split(64):
        frames, _ = autoencoder.decode(part.to(world_model.device), autoencoder.init_cache(len(part), *part.shape[-2:]))
        parts.append(frames[:, FRAMES_PER_ACTION - 1 :: FRAMES_PER_ACTION].cpu())
    return torch.cat(parts)


def piece_of(episodes: Episodes, first: int) -> Episodes:
    """``PIECE`` chunks of every episode."""
    ends, chunks = slice(first, first + PIECE + 1), slice(first, first + PIECE)
    frames = slice(FRAMES_PER_ACTION * first, FRAMES_PER_ACTION * (first + PIECE) + 1)
    return dataclasses.replace(
        episodes,
        frames=episodes.frames[:, frames],
        actions=episodes.actions[:, chunks],
        rewards=episodes.rewards[:, ends],
        success=episodes.success[:, ends],
        failure=None if episodes.failure is None else episodes.failure[:, ends],
        speeds=None if episodes.speeds is None else episodes.speeds[:, ends],
    )


@torch.no_grad()
def encode_stills(autoencoder: VideoAutoencoder, episodes: Episodes) -> Tensor:
    """Latents (E, N + 1, C, h, w) of the pictures at the ends of chunks, each by itself."""
    pictures = episodes.frames[:, ::FRAMES_PER_ACTION]
    device = next(autoencoder.parameters()).device
    parts = tqdm(pictures.flatten(0, 1).split(64), desc=f"stills of {episodes.name}", unit="batch", mininterval=5)
    latents = torch.cat([autoencoder.encode(part[:, None].to(device))[:, :, 0].cpu() for part in parts])
    return latents.unflatten(0, pictures.shape[:2])


def read_poses(root: str, split: str, count: int) -> Tensor:
    """Measured poses float64 (E, T, 4, 4) of all frames of the first episodes."""
    dataset = RecordedDataset(root, split)
    poses = [dataset.arrays(index, "measured_poses")["measured_poses"] for index in range(count)]
    return torch.from_numpy(np.stack(poses).astype(np.float64))
