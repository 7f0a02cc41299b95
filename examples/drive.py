"""Drive an imagined car with keys: speed up, steer left and right, brake. Writes drive.mp4."""

import gymnasium as gym
import numpy as np

import astra_env  # noqa: F401  (registers the ids)
from astra_env.video import draw_action, resize_frames, write_video

env = gym.make("Astra-NuScenes-v0")
modality = env.unwrapped.action_modality
observation, info = env.reset(seed=0)
video, gentle = [], np.array([0.15, 0.6], np.float32)  # shares of full steering and full acceleration
for keys in [("w",)] * 4 + [("a",)] * 4 + [("d",)] * 4 + [("s",)] * 4:
    action = gentle * modality.from_keys(keys)
    observation, reward, terminated, truncated, info = env.step(action)
    large = resize_frames(info["frames"], (384, 384))  # leaves room for the bars of the action
    video += [draw_action(frame, modality, action) for frame in large]
    print(f"{'+'.join(keys)}: {info['speed']:5.1f} m/s, reward {reward:.2f}")
write_video("drive.mp4", np.stack(video), fps=20)
