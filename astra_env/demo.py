"""`astra-env demo`: scripted actions in every domain of a world and a plan towards a goal picture, all imagined.

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
from astra_env.envs import ENVIRONMENTS
from astra_env.envs.domains import FOLDER
from astra_env.envs.worlds import load_world_model
from astra_env.models import WorldModel
from astra_env.models.checkpoint import checkpoint_folder
from astra_env.video import draw_action, resize_frames, side_by_side, write_video
from astra_env.visualization import Recording, RecordRerun, log_rollout

PLANNER = "policies.mpc:MPCPolicy"
FILE_NAME = "demo.npz"
VIDEO_SIZE = (384, 384)
NUM_CANDIDATES = 24
"""Plans that a recording shows for each planned action."""


@dataclass(frozen=True)
class Demonstration:
    """What the real simulator recorded: frames uint8 (4 N + 1, H, W, 3) and actions (N, A)."""

    frames: np.ndarray
    actions: np.ndarray
    speed: float = 0.0
    """Of a car where its script begins, in m/s."""
    goal: np.ndarray | None = None
    """A picture to plan towards, uint8 (H, W, 3)."""

    @classmethod
    def load(cls, folder: Path, domain: str, frame_size: tuple[int, int]) -> Demonstration:
        """Reads demo.npz of a domain from a folder of domains, or the bundled one, at a size (H, W)."""
        path = folder / domain / FILE_NAME
        if not path.is_file():
            path = checkpoint_folder("astra-tiny") / FOLDER / domain / FILE_NAME
        with np.load(path, allow_pickle=False) as arrays:
            frames = resize_frames(arrays["frames"], frame_size)
            goal = resize_frames(arrays["goal"], frame_size) if "goal" in arrays else None
            return cls(frames, arrays["actions"], float(arrays["speed"]), goal)

    @property
    def chunk_frames(self) -> int:
        """Frames that follow from one action."""
        return (len(self.frames) - 1) // len(self.actions)

    @property
    def history(self) -> dict[str, Any]:
        """The frames before the script, with their actions: options of `AstraEnv.reset`."""
        still = self.num_still
        frames = self.frames[: 1 + still * self.chunk_frames]
        return {"frames": frames, "actions": self.actions[:still], "speed": self.speed}

    @property
    def num_still(self) -> int:
        """Actions before the first that is not 0: what they show is the history that imagination begins from."""
        return int(self.actions.any(axis=1).argmax())


@dataclass(frozen=True)
class Rollout:
    """Imagined frames uint8 (1 + N n, H, W, 3), actions (N, A), rewards (N,), seconds of each step (N,), and poses.

    These are (N + 1, 4, 4).
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    seconds: np.ndarray
    poses: np.ndarray


def demonstrations(world_model: WorldModel) -> dict[str, Demonstration]:
    """Environment id -> recording, for the domains in the world's folder; else for the first of each modality."""
    folder = Path() if world_model.folder is None else world_model.folder / FOLDER
    usable = {
        env_id: spec
        for env_id, spec in ENVIRONMENTS.items()
        if spec.modality in world_model.modalities and not spec.discrete and not spec.task
    }
    shown = [env_id for env_id, spec in usable.items() if (folder / spec.domain).is_dir()]
    if not shown:
        modalities = [spec.modality for spec in usable.values()]
        shown = [env_id for index, env_id in enumerate(usable) if modalities.index(modalities[index]) == index]
    size = world_model.frame_size
    return {env_id: Demonstration.load(folder, ENVIRONMENTS[env_id].domain, size) for env_id in shown}


def run_demo(
    out: str | Path, *, seed: int = 0, world_model: str = "astra-tiny", num_plan_steps: int = 6
) -> dict[str, Any]:
    """Imagines every domain, writes `demo.mp4` and a Rerun recording a domain into a folder, and prints what happens.

    Returns:
        the path `video`, and for each domain a dictionary: `psnr` of the imagined chunks against the recorded ones in
        dB (list), `step_ms` (median), the path `recording`, and where there is a plan, `goal_distance` at the start
        and after every planned step (list).
    """
    out = Path(out)
    loaded = load_world_model(world_model, None)
    millions = sum(parameter.numel() for parameter in loaded.parameters()) / 1e6
    print(f"A learned video world of {millions:.1f}M parameters ({loaded.device}, {torch.get_num_threads()} threads)")
    results: dict[str, Any] = {"video": out / "demo.mp4"}
    parts, fps = [], 0.0
    for env_id, demonstration in demonstrations(loaded).items():
        env: Any = gymnasium.make(env_id, world_model=world_model)
        domain, modality = ENVIRONMENTS[env_id].domain, env.unwrapped.action_modality
        fps = modality.rate_hz * demonstration.chunk_frames
        recording = out / f"{domain}.rrd"
        print(f"\n{env_id}: {ENVIRONMENTS[env_id].description}")
        with Recording(recording, views=("imagined", "recorded", "goal"), modality=modality, fps=fps) as log:
            figures, pictures = _show_script(env, demonstration, log, seed)
            if demonstration.goal is not None:
                distances, plan = _show_plan(env, demonstration, log, seed, num_plan_steps)
                figures, pictures = figures | {"goal_distance": distances}, [*pictures, *plan]
        env.close()
        results[domain] = figures | {"recording": recording}
        parts += pictures
    write_video(results["video"], np.concatenate(parts), fps)
    recordings = " ".join(str(figures["recording"]) for name, figures in results.items() if name != "video")
    print(f"\n{results['video']}  opens in any browser or video player: imagination left, the recording or goal right.")
    print(f"{_rerun_command()} {recordings}  shows them with actions, rewards and plans on a timeline.")
    return results


def _show_script(
    env: gymnasium.Env, demonstration: Demonstration, log: Recording, seed: int
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Imagines the script, logs it beside the recording; returns the figures and the video's pictures."""
    modality: ActionModality = env.unwrapped.action_modality  # type: ignore[attr-defined]
    still = demonstration.num_still
    real = demonstration.frames[still * demonstration.chunk_frames :]
    print(f"  {len(demonstration.actions) - still} scripted actions: {_summary(modality, demonstration.actions)}.")
    scripted = _imagine_script(env, demonstration, seed)
    psnr = [_psnr(a, b) for a, b in zip(_chunks(scripted), _chunks(scripted, real), strict=True)]
    step_ms = 1000 * float(np.median(scripted.seconds))
    print(f"  {step_ms:.1f} ms a step (median) for {1000 / modality.rate_hz:.0f} ms of video.")
    print(f"  PSNR against the simulator's recording of the same actions: {_after(psnr)}.")
    log.log_event("scripted actions begin")
    views = {"imagined": scripted.frames, "recorded": real}
    log_rollout(log, views, scripted.actions, scripted.rewards, poses=scripted.poses)
    pictures = _picture(modality, scripted, real, ("imagined", "recorded in the simulator"))
    return {"psnr": psnr, "step_ms": step_ms}, [pictures]


def _show_plan(
    env: gymnasium.Env, demonstration: Demonstration, log: Recording, seed: int, num_steps: int
) -> tuple[list[float], list[np.ndarray]]:
    """Plans towards the goal and logs it; returns the distances to it and the video's pictures."""
    modality: ActionModality = env.unwrapped.action_modality  # type: ignore[attr-defined]
    print(f"  Planning {num_steps} actions towards a goal picture, by imagining candidates ({PLANNER}).")
    log.log_event("the plan towards the goal begins")
    planned, distances = _imagine_plan(RecordRerun(env, log), demonstration, seed, num_steps)
    print(f"  Distance to the goal in latent space: {distances[0]:.3f} at the start, {distances[-1]:.3f} at the end.")
    assert demonstration.goal is not None
    goal = np.broadcast_to(demonstration.goal, planned.frames.shape)
    return distances, [_picture(modality, planned, goal, ("imagined: the plan", "goal"))]


def _imagine_script(env: gymnasium.Env, demonstration: Demonstration, seed: int) -> Rollout:
    """Imagines the recorded actions from the history before them."""
    still = demonstration.num_still
    _, info = env.reset(seed=seed, options=demonstration.history)
    return _rollout(env, info, tqdm(demonstration.actions[still:], desc="  imagining", unit="step"))


def _imagine_plan(
    env: RecordRerun, demonstration: Demonstration, seed: int, num_steps: int
) -> tuple[Rollout, list[float]]:
    """Plans and imagines while it is recorded, candidates included; the rollout and the distances to the goal."""
    observation, info = env.reset(seed=seed, options=demonstration.history | {"goal": demonstration.goal})
    policy = pkgutil.resolve_name(PLANNER)(env, horizon=3, num_kept=NUM_CANDIDATES).reset(seed=seed)
    start = info["reward_terms"]["goal_distance"]

    def actions() -> Any:
        for _ in tqdm(range(num_steps), desc="  planning", unit="step"):
            action = policy.act(observation)
            env.recording.log_plan(policy.plan.history.numpy())
            env.recording.log_candidates(policy.candidate_poses(), policy.plan.values.numpy())
            yield action

    rollout = _rollout(env, info, actions())
    return rollout, [start] + [-float(reward) for reward in rollout.rewards]


def _rollout(env: gymnasium.Env, info: dict[str, Any], actions: Any) -> Rollout:
    """Steps through actions as they come, beginning after a reset that gave `info`."""
    frames, poses, taken, rewards, seconds = [info["frames"][-1:]], [info["pose"]], [], [], []
    for action in actions:
        started = time.perf_counter()
        _, reward, _, _, info = env.step(action)
        seconds.append(time.perf_counter() - started)
        frames.append(info["frames"])
        poses.append(info["pose"])
        taken.append(action)
        rewards.append(reward)
    values = np.array(rewards, float), np.array(seconds)
    return Rollout(np.concatenate(frames), np.stack(taken), *values, np.stack(poses))


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


def _rerun_command() -> str:
    """How to start the viewer from here: by name, or in this interpreter's environment."""
    return "rerun" if shutil.which("rerun") else os.path.relpath(Path(sys.executable).with_name("rerun"))
