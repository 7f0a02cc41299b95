"""Plan towards a goal picture by the cross-entropy method, in imagination only."""

import gymnasium as gym

import astra_env  # noqa: F401  (registers the ids)
from policies.mpc import MPCPolicy

env = gym.make("Astra-RT1-v0")
env.reset(seed=0, options={"start": 0})
for _ in range(3):  # where three steps of one motion lead becomes the goal
    goal, *_ = env.step([0.03, 0.04, -0.02, 0, 0, 0, 0])

observation, info = env.reset(seed=0, options={"start": 0, "goal": goal})
policy = MPCPolicy(env, horizon=3, num_samples=32, num_iterations=2)
print(f"distance {info['reward_terms']['goal_distance']:.3f} at the start")
for step in range(3):
    observation, reward, terminated, truncated, info = env.step(policy.act(observation))
    print(f"distance {info['reward_terms']['goal_distance']:.3f} after step {step + 1}")
