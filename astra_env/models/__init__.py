"""The world model: a chunk-wise autoregressive video diffusion transformer over a causal video autoencoder."""

from astra_env.models.state import WorldState
from astra_env.models.world_model import WorldModel

__all__ = ["WorldModel", "WorldState"]
