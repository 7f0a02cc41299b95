"""`astra-env demo`: a scripted action sequence and a plan towards a goal picture, imagined by the bundled world.

The planner is a plug-in, named "module:Class" and resolved when the demo runs: the library stays below the policies.
"""

from __future__ import annotations

import os
import pkgutil
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from tqdm import tqdm

from astra_env.actions import ActionModality
from astra_env.envs.env import AstraEnv
from astra_env.models.checkpoint import checkpoint_folder
from astra_env.video import draw_action, resize_frames, side_by_side, write_video
from astra_env.visualization import Recording, log_rollout

ENVIRONMENT = "Astra-RT1-v0"
PLANNER = "policies.mpc:MPCPolicy"
FILE_NAME = "demo.npz"
VIDEO_SIZE = (384, 384)


@dataclass(frozen=True)
class Demonstration:
    """What the real simulator recorded: frames uint8 (4 N + 1, H, W, 3), actions (N, A), a goal uint8 (H, W, 3)."""

    frames: np.ndarray
    actions: np.ndarray
    goal: np.ndarray

    @classmethod
    def load(cls, folder: Path) -> Demonstration:
        """Reads demo.npz of a checkpoint, or of the bundled one where a checkpoint has none."""
        path = folder / FILE_NAME
        if not path.is_file():
            path = checkpoint_folder("astra-tiny") / FILE_NAME
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["frames"], arrays["actions"], arrays["goal"])

    @property
    def chunk_frames(self) -> int:
        """Frames that follow from one action."""
        return (len(self.frames) - 1) // len(self.actions)

    @property
    def history(self) -> dict[str, np.ndarray]:
        """The still frames that imagination begins from, with their actions: options of `AstraEnv.reset`."""
        still = self.num_still
        return {"frames": self.frames[: 1 + still * self.chunk_frames], "actions": self.actions[:still]}

    @property
    def num_still(self) -> int:
        """Actions before the first that moves anything: what they show is the history that imagination begins from."""
        return int(self.actions.any(axis=1).argmax())


@dataclass(frozen=True)
class Rollout:
    """Imagined frames uint8 (1 + N n, H, W, 3), the actions (N, A) and rewards (N,), and seconds of each step (N,)."""

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    seconds: np.ndarray


def run_demo(
    out: str | Path, *, seed: int = 0, world_model: str = "astra-tiny", num_plan_steps: int = 6
) -> dict[str, Any]:
    """Imagines both parts, writes `demo.mp4` and `demo.rrd` into a folder, and prints what happens.

    Returns:
        `psnr` of the imagined chunks against the recorded ones in dB (list), `step_ms` (median), `goal_distance` at
        the start and after every planned step (list), and the two paths `video` and `recording`.
    """
    out = Path(out)
    demonstration = Demonstration.load(checkpoint_folder(world_model))
    env: Any = gymnasium.make(ENVIRONMENT, world_model=world_model)
    modality = env.unwrapped.action_modality
    print(f"{ENVIRONMENT}: {_describe(env.unwrapped)}")
    still = demonstration.num_still
    real = demonstration.frames[still * demonstration.chunk_frames :]
    script = demonstration.actions[still:]
    print(f"\n1. {len(script)} scripted actions from one recorded start: {_summary(modality, script)}.")
    scripted = _imagine_script(env, demonstration, seed)
    psnr = [_psnr(a, b) for a, b in zip(_chunks(scripted), _chunks(scripted, real), strict=True)]
    step_ms = 1000 * float(np.median(scripted.seconds))
    print(f"   {step_ms:.1f} ms a step (median) for {1000 / modality.rate_hz:.0f} ms of video.")
    print(f"   PSNR against the simulator's recording of the same actions: {_after(psnr)}.")
    print(f"\n2. Planning {num_plan_steps} actions towards a goal picture, by imagining candidates ({PLANNER}).")
    planned, distances, searches = _imagine_plan(env, demonstration, seed, num_plan_steps)
    print(f"   Distance to the goal in latent space: {distances[0]:.3f} at the start, {distances[-1]:.3f} at the end.")

    goal = np.broadcast_to(demonstration.goal, planned.frames.shape)
    video, recording = out / "demo.mp4", out / "demo.rrd"
    fps = modality.rate_hz * demonstration.chunk_frames
    parts = [
        _picture(modality, scripted, real, ("imagined", "recorded in the simulator")),
        _picture(modality, planned, goal, ("imagined: the plan", "goal")),
    ]
    write_video(video, np.concatenate(parts), fps)
    with Recording(recording, views=("imagined", "recorded", "goal"), modality=modality, fps=fps) as log:
        log.log_event("scripted actions begin")
        log_rollout(log, {"imagined": scripted.frames, "recorded": real}, scripted.actions, scripted.rewards)
        log.log_event("the plan towards the goal begins")
        log_rollout(log, {"imagined": planned.frames, "goal": goal}, planned.actions, planned.rewards, plans=searches)
    env.close()
    print(f"\n{video}  opens in any browser or video player: imagination left, the real recording or the goal right.")
    print(f"{recording}  opens with: {_rerun_command()} {recording}")
    return {"psnr": psnr, "step_ms": step_ms, "goal_distance": distances, "video": video, "recording": recording}


def _imagine_script(env: gymnasium.Env, demonstration: Demonstration, seed: int) -> Rollout:
    """Imagines the recorded actions from the history before them."""
    still = demonstration.num_still
    _, info = env.reset(seed=seed, options=demonstration.history)
    return _rollout(env, info, tqdm(demonstration.actions[still:], desc="   imagining", unit="step"))


def _imagine_plan(
    env: gymnasium.Env, demonstration: Demonstration, seed: int, num_steps: int
) -> tuple[Rollout, list[float], list[np.ndarray]]:
    """Plans and imagines; returns the rollout, the distances to the goal, and each search's history of values."""
    observation, info = env.reset(seed=seed, options=demonstration.history | {"goal": demonstration.goal})
    policy = pkgutil.resolve_name(PLANNER)(env, horizon=3).reset(seed=seed)
    distances, searches = [info["reward_terms"]["goal_distance"]], []

    def actions() -> Any:
        for _ in tqdm(range(num_steps), desc="   planning", unit="step"):
            yield policy.act(observation)
            searches.append(policy.plan.history.numpy())

    rollout = _rollout(env, info, actions())
    return rollout, distances + [-float(reward) for reward in rollout.rewards], searches


def _rollout(env: gymnasium.Env, info: dict[str, Any], actions: Any) -> Rollout:
    """Steps through actions as they come, beginning after a reset that gave `info`."""
    frames, taken, rewards, seconds = [info["frames"][-1:]], [], [], []
    for action in actions:
        started = time.perf_counter()
        _, reward, _, _, info = env.step(action)
        seconds.append(time.perf_counter() - started)
        frames.append(info["frames"])
        taken.append(action)
        rewards.append(reward)
    return Rollout(np.concatenate(frames), np.stack(taken), np.array(rewards, float), np.array(seconds))


def _picture(modality: ActionModality, rollout: Rollout, beside: np.ndarray, labels: tuple[str, str]) -> np.ndarray:
    """The video of one part: two enlarged views with the action of the moment drawn below them."""
    joined = side_by_side(resize_frames(rollout.frames, VIDEO_SIZE), resize_frames(beside, VIDEO_SIZE), labels)
    # room below the pictures, a fifth of the whole, where the action hides nothing
    joined = np.pad(joined, ((0, 0), (0, VIDEO_SIZE[0] // 4), (0, 0), (0, 0)))
    per_action = (len(joined) - 1) // len(rollout.actions)
    # the picture that an action starts from shows it too
    shown = np.concatenate([rollout.actions[:1], rollout.actions.repeat(per_action, axis=0)])
    return np.stack([draw_action(frame, modality, action) for frame, action in zip(joined, shown, strict=True)])


def _chunks(rollout: Rollout, frames: np.ndarray | None = None) -> Sequence[np.ndarray]:
    """The frames after the first, divided by action."""
    return np.split((rollout.frames if frames is None else frames)[1:], len(rollout.actions))


def _psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 arrays in dB."""
    error = np.square(first.astype(np.float64) - second).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def _after(psnr: Sequence[float]) -> str:
    """The figures after 1, 5, 10, … steps and at the end."""
    steps = sorted({step for step in (1, 5, 10, 20, len(psnr)) if step <= len(psnr)})
    return ", ".join(f"{psnr[step - 1]:.1f} dB after {step}" for step in steps) + " steps"


def _summary(modality: ActionModality, actions: np.ndarray) -> str:
    """The fields that the actions move, in order of appearance."""
    moved = [modality.fields[index] for action in actions for index in action.nonzero()[0]]
    return "out and back along " + ", ".join(dict.fromkeys(moved))


def _describe(env: AstraEnv) -> str:
    """The world in one line."""
    millions = sum(parameter.numel() for parameter in env.world_model.parameters()) / 1e6
    where = f"{env.world_model.device}, {torch.get_num_threads()} threads"
    return f"a learned video world of {millions:.1f}M parameters imagines a robot arm at a table ({where})"


def _rerun_command() -> str:
    """How to start the viewer from here: by name, or in this interpreter's environment."""
    return "rerun" if shutil.which("rerun") else os.path.relpath(Path(sys.executable).with_name("rerun"))
