"""Gymnasium environments whose simulator is a learned video world model.

Importing this package registers the ids of :data:`astra_env.envs.ENVIRONMENTS`, so that
``gymnasium.make("Astra-RT1-v0")`` works afterwards. Nothing else is loaded until an environment is made.
"""

from __future__ import annotations

import gymnasium

from astra_env.envs import ENVIRONMENTS

__version__ = "0.1.0"

for _id, _spec in ENVIRONMENTS.items():
    gymnasium.register(
        id=_id,
        entry_point="astra_env.envs.env:AstraEnv",
        vector_entry_point="astra_env.envs.vector_env:AstraVectorEnv",
        max_episode_steps=_spec.max_episode_steps,
        # the environments check what they are given; Gymnasium's checker fails for good after a refused first reset
        disable_env_checker=True,
        kwargs={"environment": _id},
    )
