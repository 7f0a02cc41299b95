"""One training step on any number of processes through accelerate: the same gradient, average and files on all.

The state on the disk holds whole tensors, whether weights are copied to each process (DDP) or shared out among them
(FSDP), so a run goes on with another number of processes too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from astra_env.models.flow_matching import add_noise
from astra_env.models.transformer import AstraTransformer
from astra_env.training.windows import Batch


class Denoiser(nn.Module):
    """The loss of a batch as one forward pass, which is what wrappers for several processes see.

    load_balancing weighs the loss by which experts share the rows of a process equally.
    """

    def __init__(self, transformer: AstraTransformer, load_balancing: float = 0.0) -> None:
        super().__init__()
        self.transformer, self.load_balancing = transformer, load_balancing

    def forward(self, batch: Batch) -> Tensor:
        """Weighted mean squared error of the velocity, a scalar."""
        transformer, dtype = self.transformer, self.transformer.head.weight.dtype
        table = torch.cat([batch.past, batch.actions], dim=1).to(dtype)
        known, given = torch.cat([batch.known, batch.given], dim=1).to(dtype), batch.given.to(dtype)
        prompts = batch.prompts if transformer.config.text_dim is not None else None
        cache, past = transformer.encode_history(batch.slots, batch.lengths, table, known, batch.modality, prompts)
        features = transformer.action_features(batch.actions.to(dtype), given, batch.modality)
        noisy = add_noise(batch.target, batch.noise, batch.sigma)
        velocity = transformer(noisy, batch.sigma, features, cache)
        errors = (velocity.float() - (batch.noise - batch.target)).square().flatten(1).mean(1)
        # a process whose rows lack a modality has a gradient of zero for its projector, as all have to agree on which
        unused = [p.sum() for p in transformer.action_experts.projectors.parameters() if p.requires_grad]
        loss = (batch.weight * errors).mean() + 0.0 * sum(unused, torch.zeros((), device=errors.device))
        if self.load_balancing:
            loss = loss + self.load_balancing * (past.load_balancing_loss() + features.load_balancing_loss())
        return loss


def make_accelerator(precision: str) -> Any:
    """The `accelerate.Accelerator` of this process, as `accelerate launch` started it, or of a single one.

    precision is that of products, one of `PRECISIONS`. Under --use_fsdp the transformer is one unit of FSDP 2, since
    its parts are also called one by one.

    Raises:
        ImportError: accelerate is not installed.
        ValueError: FSDP where accelerate does not do it.
    """
    try:
        from accelerate import Accelerator, FullyShardedDataParallelPlugin
    except ImportError as error:
        raise ImportError("Fine-tuning needs accelerate; run: pip install 'astra-env[training]'") from error
    plugin = None
    if os.environ.get("ACCELERATE_USE_FSDP", "false") == "true":
        # inputs stay as they are: noise levels and targets in bfloat16 are others
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        policy = MixedPrecisionPolicy(dtype, torch.float32, torch.float32, cast_forward_inputs=False)
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="NO_WRAP",
            cpu_ram_efficient_loading=False,
            mixed_precision_policy=policy,
        )
    # told, or several processes on a CPU would not find each other
    cpu = plugin is None and not torch.cuda.is_available()
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision, fsdp_plugin=plugin)
    if plugin is not None and not accelerator.is_fsdp2:
        raise ValueError("--use_fsdp shares weights out among several GPUs, and there is one at most; leave it out.")
    return accelerator


class Run:
    """Weights that learn, their optimiser and their moving average, on all processes alike.

    Args:
        denoiser: its parameters with `requires_grad` learn; wrapped in place.
        accelerator: of this process.
        weight_decay: of matrices.
        betas: of AdamW.
        average_decay: of the moving average at most; it is shorter at the beginning.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        accelerator: Any,
        *,
        weight_decay: float,
        betas: tuple[float, float],
        average_decay: float,
    ) -> None:
        self.accelerator, self.average_decay, self.step_index = accelerator, average_decay, 0
        self.running_loss: float | None = None
        trained = [p for p in denoiser.parameters() if p.requires_grad]
        decay, plain = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], betas=betas)
        self.model, self.optimizer = accelerator.prepare(denoiser, optimizer)
        self.denoiser = denoiser
        self.average = {name: value.detach().clone() for name, value in self.trained.items()}

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name."""
        return {name: p for name, p in self.denoiser.transformer.named_parameters() if p.requires_grad}

    def gradients(self, batches: Sequence[Batch]) -> Tensor:
        """Leave the mean gradient over the batches of all processes; returns their losses (processes, batches)."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self.model(batch.to(self.accelerator.device))
                self.accelerator.backward(loss / len(batches))
            losses.append(loss.detach().float())
        return self.accelerator.gather(torch.stack(losses)[None])

    def clip(self, max_norm: float) -> float:
        """Shorten the gradient to at most this norm; returns the norm that it had."""
        norm = self.accelerator.clip_grad_norm_(list(self.trained.values()), max_norm)
        return float(whole(norm))

    @torch.no_grad()
    def step(self, learning_rate: float, loss: float) -> None:
        """Move the weights, and their average after them; the loss joins its running mean."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.step_index += 1
        self.running_loss = loss if self.running_loss is None else 0.99 * self.running_loss + 0.01 * loss
        weight = 1 - min(self.average_decay, self.step_index / (self.step_index + 50.0))
        for name, value in self.trained.items():
            self.average[name].lerp_(value.detach(), weight)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the transformer computes with the average, whole in every process."""
        current = {name: value.detach().clone() for name, value in self.trained.items()}
        self.use_average()
        shared_out = isinstance(self.model, FSDPModule)
        try:
            if shared_out:
                self.model.unshard()
            yield
        finally:
            if shared_out:
                self.model.reshard()
            _copy(current, self.trained)

    def use_average(self) -> None:
        """Put the moving average into the weights."""
        _copy(self.average, self.trained)

    def save(self, path: Path) -> None:
        """Write the exact state; the former one stays until the new one is whole."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = {
            "weights": {name: whole(value.detach()).cpu() for name, value in self.trained.items()},
            "average": {name: whole(value).cpu() for name, value in self.average.items()},
            "optimizer": get_optimizer_state_dict(self.denoiser, self.optimizer.optimizer, options=options),
            "step_index": self.step_index,
            "running_loss": self.running_loss,
        }
        if self.accelerator.is_main_process:
            partial = path.with_name(path.name + ".partial")
            torch.save(state, partial)
            os.replace(partial, path)
        self.accelerator.wait_for_everyone()

    def resume(self, path: Path) -> bool:
        """Continue from the saved state; returns whether there is one.

        Raises:
            ValueError: it is of other weights, or not all processes see it.
        """
        seen = self.accelerator.gather(torch.tensor([path.is_file()], device=self.accelerator.device))
        if not seen.any():
            return False
        if not seen.all():
            raise ValueError(f"Some processes do not see {path}; choose a folder that all machines share.")
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        if state["weights"].keys() != self.trained.keys():
            raise ValueError(f"{path} is the state of a run that trains other weights; choose another folder.")
        _copy(state["weights"], self.trained)
        _copy(state["average"], self.average)
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(self.denoiser, self.optimizer.optimizer, state["optimizer"], options=options)
        self.step_index, self.running_loss = state["step_index"], state["running_loss"]
        return True

    def whole_weights(self) -> dict[str, Tensor]:
        """All of the transformer's weights on the CPU, gathered from all processes."""
        return {name: whole(value.detach()).cpu() for name, value in self.denoiser.transformer.state_dict().items()}


def whole(value: Tensor) -> Tensor:
    """A tensor that is shared out among processes, gathered; others as they are."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, value in target.items():
        given = source[name]
        if isinstance(value, DTensor) and not isinstance(given, DTensor):
            given = distribute_tensor(given.to(value.device), value.device_mesh, value.placements)
        value.copy_(given)
