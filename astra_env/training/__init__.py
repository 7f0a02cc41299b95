"""Training: fit the autoencoder, encode once, fit the world model, fit the reward head; each resumes after a kill."""

from __future__ import annotations

from astra_env.training.distill import DistillConfig, distill
from astra_env.training.train import TrainConfig, train

__all__ = ["DistillConfig", "TrainConfig", "distill", "train"]
