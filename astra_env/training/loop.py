"""What all stages share: cosine schedule, moving average, gradient step, exact checkpoints, JSON log."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm


class Trainer:
    """Optimises a module for a fixed number of steps and resumes to the exact state from FOLDER/NAME.pt."""

    def __init__(
        self,
        module: nn.Module,
        folder: Path,
        name: str,
        *,
        num_steps: int,
        learning_rate: float,
        weight_decay: float = 0.02,
    ) -> None:
        self.module, self.folder, self.name, self.num_steps = module, folder, name, num_steps
        self.learning_rate, self.step_index = learning_rate, 0
        self.device = next(module.parameters()).device
        trained = [p for p in module.parameters() if p.requires_grad]
        decay, plain = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)
        self.average = {key: value.detach().clone() for key, value in module.state_dict().items()}
        self.generator = torch.Generator().manual_seed(0)
        self.progress = tqdm(total=num_steps, desc=name, unit="step", mininterval=5)
        self.running_loss: float | None = None

    @property
    def path(self) -> Path:
        """Where the exact state is kept."""
        return self.folder / f"{self.name}.pt"

    @property
    def done(self) -> bool:
        """Whether all steps were taken."""
        return self.step_index >= self.num_steps

    def step(self, loss: Tensor) -> None:
        """One optimiser step on loss: clipped gradients, warm-up and cosine decay, moving average of the weights."""
        warmup = min(1.0, (self.step_index + 1) / 200)
        rate = (
            self.learning_rate
            * warmup
            * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.step_index / self.num_steps)))
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.step_index += 1
        weight = 1 - min(0.999, self.step_index / (self.step_index + 50.0))
        with torch.no_grad():
            for key, value in self.module.state_dict().items():
                self.average[key].lerp_(value, weight)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(
                f"The loss of {self.name} is {value} at step {self.step_index}; resume and lower the rate."
            )
        self.running_loss = value if self.running_loss is None else 0.99 * self.running_loss + 0.01 * value
        self.progress.update()

    def log(self, **values: Any) -> None:
        """Append one JSON line to FOLDER/log.jsonl."""
        entry = {"stage": self.name, "step": self.step_index, "loss": self.running_loss, **values}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        self.progress.set_postfix({k: round(v, 4) for k, v in entry.items() if isinstance(v, float)})

    def save(self, **extra: Any) -> None:
        """Write the exact state; the former one stays until the new one is whole."""
        state = {
            "module": self.module.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "step_index": self.step_index,
            "running_loss": self.running_loss,
            "extra": extra,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.path)

    def resume(self) -> dict[str, Any]:
        """Continue from the saved state where there is one; returns what `save` was given besides."""
        if not self.path.is_file():
            return {}
        state = torch.load(self.path, weights_only=True, map_location=self.device)
        self.module.load_state_dict(state["module"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.step_index, self.running_loss = state["step_index"], state["running_loss"]
        self.progress.update(self.step_index)
        return state["extra"]

    def use_average(self) -> None:
        """Put the moving average into the module, for validation after the last step and for export."""
        self.module.load_state_dict(self.average)
