"""Plan a motion of the arm from its URDF, see it imagined, and only then make it. Writes a video.

It needs the extra "manipulation": pip install ikpy.
"""

import gymnasium as gym
import numpy as np

import astra_env  # noqa: F401  (registers the ids)
from astra_env.geometry import make_pose, rpy_to_matrix
from astra_env.video import draw_action, resize_frames, write_video
from policies.manipulator import Manipulator, imagine

DOWN = np.diag([1.0, -1.0, -1.0])  # the gripper points down

arm = Manipulator()  # the bundled world's arm; Manipulator("other.urdf", tool="hand") reads another's
above = make_pose(DOWN, [0.50, 0.06, 0.03])
aside = make_pose(rpy_to_matrix([0, 0, 0.4]) @ DOWN, [0.60, -0.08, 0.02])
below = make_pose(rpy_to_matrix([0, 0, 0.4]) @ DOWN, [0.60, -0.08, -0.08])
motion = arm.plan([above, aside, below, below], grippers=[0, 0, 0, 1])
print(f"{len(motion.actions)} actions in {motion.times[-1]:.1f} s; joints at the end: {np.round(motion.joints[-1], 2)}")

env = gym.make("Astra-RT1-v0")
modality = env.unwrapped.action_modality
observation, info = env.reset(seed=3)
predicted = resize_frames(imagine(env, motion.actions), (384, 384))  # leaves room for the bars of the action
held = np.repeat(motion.actions, len(predicted) // len(motion.actions), axis=0)
video = [draw_action(frame, modality, action) for frame, action in zip(predicted, held, strict=True)]
write_video("outputs/imagine_motion.mp4", np.stack(video), fps=20)

for action in motion.actions:  # whoever likes what he saw makes it
    observation, reward, terminated, truncated, info = env.step(action)
print(f"the tool has moved by {np.round(info['pose'][:3, 3], 3)} m")

try:
    arm.plan([above, make_pose(DOWN, [1.2, 0.0, 0.0])])
except ValueError as error:
    print(error)
