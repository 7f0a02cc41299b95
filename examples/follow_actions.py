"""Hold one axis at a time and see how the imagined arm answers: writes follow_actions.mp4."""

import gymnasium as gym
import numpy as np

import astra_env  # noqa: F401  (registers the ids)
from astra_env.video import draw_action, resize_frames, write_video

env = gym.make("Astra-RT1-v0")
modality = env.unwrapped.action_modality
observation, info = env.reset(seed=3)
video = []
for axis in range(modality.action_dim):
    for sign in (1, -1):
        action = np.zeros(modality.action_dim, np.float32)
        action[axis] = max(sign * modality.high[axis] * 0.8, modality.low[axis])
        for _ in range(2):
            observation, reward, terminated, truncated, info = env.step(action)
            large = resize_frames(info["frames"], (384, 384))  # leaves room for the bars of the action
            video += [draw_action(frame, modality, action) for frame in large]
write_video("follow_actions.mp4", np.stack(video), fps=20)
print(f"wrote follow_actions.mp4: {len(video)} frames, 2 steps of each direction")
