"""Walk through imagined rooms with W A S D and the arrows: the actions are numbers of keys. Writes explore.mp4."""

import gymnasium as gym
import numpy as np

import astra_env  # noqa: F401  (registers the ids)
from astra_env.actions import DISCRETE_ACTIONS
from astra_env.video import resize_frames, write_video

env = gym.make("Astra-SpatialVID-v0")
keys = DISCRETE_ACTIONS["camera"]
observation, info = env.reset(seed=0)
video = [resize_frames(info["frames"], (384, 384))]
for pressed in [("w",)] * 4 + [("left",)] * 4 + [("right",)] * 4 + [("up",), ("down",), ("s",), ("s",)]:
    observation, reward, terminated, truncated, info = env.step(keys.index(pressed))
    video.append(resize_frames(info["frames"], (384, 384)))
write_video("explore.mp4", np.concatenate(video), fps=20)
x, y, z = info["pose"][:3, 3]
print(f"the camera went to {x:.2f} m right, {y:.2f} m down, {z:.2f} m ahead of its start, says its odometry")
