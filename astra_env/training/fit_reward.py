"""`astra-env fit-reward DATA`: heads that read a reward off latents, from labelled frames and in minutes."""

from __future__ import annotations

import csv
import dataclasses
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from astra_env.datasets.recorded import RecordedDataset
from astra_env.envs import ENVIRONMENTS
from astra_env.flags import flag
from astra_env.models import WorldModel
from astra_env.models.reward_model import RewardModel
from astra_env.simulators import TASKS
from astra_env.training.dreams import imagine_episodes
from astra_env.training.episodes import FRAMES_PER_ACTION, Episodes, encode_episodes, load_episodes
from astra_env.training.rewards import reward_report, train_head
from astra_env.video import read_image, read_video, resize_frames
from astra_env.writing import write_json

LABELS = {"success": 1.0, "failure": 0.0}
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
STILL_FRAMES = 9
"""Frames that a picture is shown for: its first latent is a start's, the two after it are those of a world at rest."""
Parts = list[tuple[Tensor, Episodes]]
"""Latents (E, T, C, h, w) of recorded episodes, and of imagined ones, each with their labels."""
Labelled = Sequence[tuple[Path, float]]
"""Files of pictures and clips, and the reward of each."""


@dataclass(frozen=True)
class FitRewardConfig:
    """One fit; each field is a flag of `astra-env fit-reward` and says in its metadata what it means."""

    data: str  # recorded episodes, a folder of success/ and failure/, or a CSV of file,label
    out: str = flag(
        dataclasses.MISSING, "folder of the heads; a checkpoint's domain folder gives that world the reward"
    )
    world_model: str = flag("astra-tiny", "bundled name or checkpoint folder whose autoencoder reads the frames")
    imagined: bool = flag(False, "learn from recorded episodes as the world imagines them, too: policies exploit less")
    task: str | None = flag(None, "id whose task is told by where things were recorded; None for the recorded reward")
    num_heads: int = flag(3, "heads that begin from different weights; where they differ, none knows")
    num_steps: int = flag(2000, "steps of training of each head")
    batch_size: int = flag(256, "latents of a batch")
    episodes: int = flag(400, "recorded episodes to learn from and to test on, at most")
    heldout_share: float = flag(0.25, "share of labelled files that tell how good the heads are")
    seed: int = flag(0, "of the weights, the batches and what is held out")

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.num_steps < 1 or not 0 < self.heldout_share < 1:
            raise ValueError(
                f"num_heads is {self.num_heads}, num_steps {self.num_steps} and heldout_share {self.heldout_share}, "
                "expected at least 1, at least 1, and a share between 0 and 1."
            )


def fit_reward(config: FitRewardConfig) -> dict[str, float]:
    """Write OUT/reward_model.safetensors, further heads in OUT/head_I, and OUT/rewards.json, which it returns.

    It tells the error of the reward, precision, recall and rate of success (and of failure, where it is recorded) on
    held-out frames, and how many latents and seconds it took. ``LearnedReward.load(OUT)`` reads the heads.
    """
    began = time.perf_counter()
    world_model = WorldModel.from_pretrained(config.world_model)
    train, heldout = _read(config, world_model)
    examples = [_examples(*part) for part in train]
    latents, rewards, labels, *speeds = (torch.cat(part) for part in zip(*examples, strict=True))
    heads = [
        train_head(
            latents,
            rewards,
            labels.T,
            *speeds,
            name=f"{config.data}, head {index + 1} of {config.num_heads}",
            seed=config.seed + index,
            num_steps=config.num_steps,
            batch_size=config.batch_size,
        )
        for index in range(config.num_heads)
    ]
    report = reward_report(functools.partial(_mean, heads), *heldout[0])
    for part in heldout[1:]:
        told = reward_report(functools.partial(_mean, heads), *part)
        report |= {f"imagined_{name}": value for name, value in told.items()}
    report |= {
        "num_heads": config.num_heads,
        "num_train_latents": len(latents),
        "seconds": round(time.perf_counter() - began, 1),
    }
    _write(heads, report, Path(config.out))
    return report


def _examples(latents: Tensor, episodes: Episodes) -> tuple[Tensor, ...]:
    """Latents (N, C, h, w), rewards (N,), flags (N, F) and, of vehicles, speeds (N,)."""
    flags = [episodes.success] + ([] if episodes.failure is None else [episodes.failure])
    speeds = () if episodes.speeds is None else (episodes.speeds.flatten(),)
    labels = torch.stack([entry.flatten().float() for entry in flags], dim=1)
    return latents.flatten(0, 1), episodes.rewards.flatten(), labels, *speeds


def _mean(heads: Sequence[RewardModel], latents: Tensor, speeds: Tensor) -> tuple[Tensor, ...]:
    """What the heads say on average."""
    return torch.stack([torch.stack(head(latents, speeds)) for head in heads]).mean(0).unbind(0)


def _write(heads: Sequence[RewardModel], report: dict[str, float], out: Path) -> None:
    for index, head in enumerate(heads):
        folder = out / f"head_{index}" if index else out
        folder.mkdir(parents=True, exist_ok=True)
        head.save(folder)
    write_json(out / "rewards.json", report)


# Reading


def _read(config: FitRewardConfig, world_model: WorldModel) -> tuple[Parts, Parts]:
    """What to learn from and what is held out; imagined episodes are parts of their own."""
    root = Path(config.data)
    if root.is_dir() and (root / "train").is_dir():
        size = world_model.frame_size[0]
        splits = [load_episodes(root, split, config.episodes, frame_size=size) for split in ("train", "heldout")]
        if config.task is not None:
            splits = [
                judged(part, root, split, config.task) for part, split in zip(splits, ("train", "heldout"), strict=True)
            ]
        if not splits[0].labelled:
            raise ValueError(f"The rewards recorded in {root} are all the same; label frames of both kinds.")
        read = [[(encode_episodes(world_model.autoencoder, part), part.without_frames())] for part in splits]
        if config.imagined:
            for parts, split in zip(read, splits, strict=True):
                parts.append(imagine_episodes(world_model, split, seed=config.seed))
        return read[0], read[1]
    if config.imagined:
        raise ValueError(f"{root} has pictures without actions, expected recorded episodes; leave out imagined.")
    files = _files_of_csv(root) if root.suffix.lower() == ".csv" else _files_of_folder(root)
    train, heldout = _split(files, config.heldout_share, config.seed)
    return [_encode_files(world_model, train, root.stem)], [_encode_files(world_model, heldout, root.stem)]


def judged(episodes: Episodes, root: Path, split: str, task: str) -> Episodes:
    """Episodes with the reward and success of another id's task, by the poses and objects that were recorded."""
    if task not in TASKS:
        raise ValueError(f"task is {task!r}, expected one of {sorted(TASKS)}, or none for the recorded reward.")
    if ENVIRONMENTS[task].modality != episodes.modality:
        raise ValueError(f"{root} has {episodes.modality} actions, expected those of {task}; choose other recordings.")
    dataset, told, num_frames = RecordedDataset(root, split), [], FRAMES_PER_ACTION * episodes.actions.shape[1] + 1
    for index in range(len(episodes)):
        arrays = dataset.arrays(index, "measured_poses", "objects")
        if len(arrays["objects"]) != num_frames:
            have = f"{dataset.paths[index]} tells of {len(arrays['objects'])} frames"
            raise ValueError(
                f"{have}, expected {num_frames}, an action for each {FRAMES_PER_ACTION}; record it at 5 Hz."
            )
        moments = slice(None, None, FRAMES_PER_ACTION)
        told.append(TASKS[task]({"pose": arrays["measured_poses"][moments], "objects": arrays["objects"][moments]}))
    rewards, success = (torch.from_numpy(np.stack(part)) for part in zip(*told, strict=True))
    return dataclasses.replace(episodes, rewards=rewards.float(), success=success, failure=None)


def _files_of_folder(root: Path) -> Labelled:
    """Pictures and clips in ROOT/success and ROOT/failure."""
    missing = [name for name in LABELS if not (root / name).is_dir()]
    if missing:
        raise ValueError(
            f"{root} has no {' and no '.join(missing)} folder; expected recorded episodes (train/ and heldout/), "
            "pictures or clips in success/ and failure/, or a CSV file of file,label."
        )
    return [
        (path, label)
        for name, label in LABELS.items()
        for path in sorted((root / name).rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    ]


def _files_of_csv(table: Path) -> Labelled:
    """Rows of file (beside the table, or absolute) and label: success, failure or a reward from 0 to 1."""
    if not table.is_file():
        raise FileNotFoundError(f"There is no table at {table}; expected a CSV file with the columns file,label.")
    with table.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    files = []
    for number, row in enumerate(rows, start=2):
        try:
            label = row["label"].strip().lower()
            value = LABELS[label] if label in LABELS else float(label)
            files.append((table.parent / row["file"].strip(), value))
        except (KeyError, AttributeError, TypeError, ValueError):
            value = -1.0
        if not 0 <= value <= 1:
            raise ValueError(
                f"Line {number} of {table} is {dict(row)}, expected a file and a label: success, failure or a reward "
                "from 0 to 1."
            )
    return files


def _split(files: Labelled, share: float, seed: int) -> tuple[Labelled, Labelled]:
    """Files to learn from and held out, of successes and of others as many each by the share, and at least one."""
    rng = np.random.default_rng(seed)
    train: list[tuple[Path, float]] = []
    heldout: list[tuple[Path, float]] = []
    for solved in (True, False):
        group = [entry for entry in files if (entry[1] == 1) == solved]
        if len(group) < 2:
            raise ValueError(
                f"There are {len(group)} files of {'success' if solved else 'failure'}, expected at least 2: one to "
                "learn from and one to test on."
            )
        order = rng.permutation(len(group))
        count = min(max(1, round(share * len(group))), len(group) - 1)
        heldout += [group[index] for index in order[:count]]
        train += [group[index] for index in order[count:]]
    return train, heldout


@torch.no_grad()
def _encode_files(world_model: WorldModel, files: Labelled, name: str) -> tuple[Tensor, Episodes]:
    """Latents (1, N, C, h, w) of all files; each has the label of its file."""
    latents, rewards = [], []
    for path, label in tqdm(files, desc=f"encoding {name}", unit="file", mininterval=5):
        frames = _frames(path, world_model.frame_size)
        encoded = world_model.autoencoder.encode(torch.from_numpy(frames)[None].to(world_model.device))[0].cpu()
        latents.append(encoded.transpose(0, 1))
        rewards.append(torch.full((encoded.shape[1],), label))
    labels = torch.cat(rewards)[None]
    empty = torch.zeros(1, 0)
    return torch.cat(latents)[None], Episodes(name, "", empty, empty, labels, labels == 1)


def _frames(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Frames uint8 (T, H, W, 3) of a clip, or of a picture held still."""
    if path.suffix.lower() not in PICTURES:
        return read_video(path, size=size)
    return np.repeat(resize_frames(read_image(path), size)[None], STILL_FRAMES, axis=0)
