"""Record an episode for Rerun: what was commanded and shown, which plans were considered, and two other futures."""

import gymnasium as gym

import astra_env  # noqa: F401  (registers the ids)
from astra_env.visualization import RecordRerun, RecordRerunVector
from policies.mpc import MPCPolicy

env = RecordRerun(gym.make("Astra-Sekai-v0"), "plan.rrd", routing=True)  # or "spawn", to watch it as it goes
observation, info = env.reset(seed=2)
policy = MPCPolicy(env, horizon=5, num_samples=24, num_iterations=2, num_kept=24).reset(seed=0)
for step in range(6):
    action = policy.act(observation)
    env.recording.log_candidates(policy.candidate_poses(), policy.plan.values.numpy())
    if step == 3:  # what else might have come, from here on
        futures = RecordRerunVector(env.unwrapped.fork(2), env.recording.fork("else"))
        futures.action_space.seed(0)
        for _ in range(3):
            futures.step(futures.action_space.sample())
    observation, reward, terminated, truncated, info = env.step(action)
env.close()
print("rerun plan.rrd")
