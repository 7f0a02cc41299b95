"""Training: fit the autoencoder, encode once, fit the world model, fit the reward head; each resumes after a kill."""

from __future__ import annotations

from astra_env.training.train import TrainConfig, train

__all__ = ["TrainConfig", "train"]
