"""An imagined car changes to the lane on its right, along way points, and stops at the last. Writes a video."""

import gymnasium as gym
import numpy as np

import astra_env  # noqa: F401  (registers the ids)
from astra_env.video import draw_action, resize_frames, write_video
from policies.vehicle import PurePursuit

WAY_POINTS = [[8, 0], [22, -3.5], [42, -3.5]]  # metres: x forward, y left

env = gym.make("Astra-NuScenes-v0")
observation, info = env.reset(seed=0, options={"start": 1})
driver = PurePursuit(WAY_POINTS, info["pose"], target_speed=7.0)
video = []
for step in range(50):
    action = driver.act(observation, info)
    observation, reward, terminated, truncated, info = env.step(action)
    large = resize_frames(info["frames"], (384, 384))  # leaves room for the bars of the action
    video += [draw_action(frame, env.unwrapped.action_modality, action) for frame in large]
    if step % 5 == 0:
        x, y = info["pose"][:2, 3]
        off = driver.cross_track(info)
        print(f"{info['speed']:4.1f} m/s at ({x:5.1f}, {y:4.1f}) m, {off:+.2f} m off the path")
    if driver.remaining < 1:
        break
write_video("outputs/drive_waypoints.mp4", np.stack(video), fps=20)
