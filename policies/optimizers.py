"""Black-box maximisation over action sequences.

An objective maps sequences (N, horizon, A) to values (N,), larger is better. The functions here hold no state and
draw every random number from the generator that they are given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Objective = Callable[[Tensor], Tensor]


class Plan(NamedTuple):
    """The outcome of an optimisation.

    Attributes:
        actions: the best sequence evaluated, (horizon, A), within the bounds.
        value: its objective, a scalar tensor.
        mean: centre of the final sampling distribution, (horizon, A).
        std: its standard deviation, (horizon, A).
        history: best and mean objective of each iteration, (num_iterations, 2).
    """

    actions: Tensor
    value: Tensor
    mean: Tensor
    std: Tensor
    history: Tensor


def cem(
    objective: Objective,
    mean: Tensor,
    std: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    num_samples: int,
    num_iterations: int,
    num_elites: int,
    generator: torch.Generator,
    momentum: float = 0.0,
) -> Plan:
    """Cross-entropy method: samples around a mean, then moves mean and spread to the best samples, and repeats.

    The mean itself is always among the samples, so a good initial guess is never lost.

    Args:
        objective: evaluates all samples of an iteration in one call.
        mean: initial centre, (horizon, A).
        std: initial standard deviation, (horizon, A), in the units of the actions.
        low: lower bounds, (A,).
        high: upper bounds, (A,).
        num_samples: sequences per iteration.
        num_iterations: rounds of sampling.
        num_elites: best samples that the next distribution is fitted to, at least 2.
        generator: source of all randomness.
        momentum: share of the previous mean and std that is kept at each update, 0 <= momentum < 1.
    """
    if not 2 <= num_elites <= num_samples:
        raise ValueError(f"num_elites must be between 2 and num_samples = {num_samples}, got {num_elites}")
    best_actions, best_value, history = mean, mean.new_tensor(-torch.inf), []
    for _ in range(num_iterations):
        noise = torch.randn((num_samples, *mean.shape), generator=generator, device=generator.device).to(mean)
        noise[0] = 0.0
        samples = (mean + std * noise).clamp(low, high)  # (N, horizon, A)
        values = _evaluate(objective, samples)
        elites = samples[values.topk(num_elites).indices]
        mean = momentum * mean + (1 - momentum) * elites.mean(0)
        std = momentum * std + (1 - momentum) * elites.std(0)
        best_actions, best_value = _better(samples, values, best_actions, best_value)
        history.append(torch.stack([values.max(), values.mean()]))
    return Plan(best_actions, best_value, mean, std, torch.stack(history))


def random_shooting(
    objective: Objective,
    low: Tensor,
    high: Tensor,
    *,
    horizon: int,
    num_samples: int,
    num_iterations: int,
    generator: torch.Generator,
) -> Plan:
    """Evaluates sequences drawn uniformly within the bounds and keeps the best: what any planner has to beat.

    Args:
        objective: evaluates all samples of an iteration in one call.
        low: lower bounds, (A,).
        high: upper bounds, (A,).
        horizon: actions per sequence.
        num_samples: sequences per iteration.
        num_iterations: rounds of sampling; together they cost as much as `cem` with the same numbers.
        generator: source of all randomness.
    """
    shape = (num_samples, horizon, len(low))
    mean = ((low + high) / 2).expand(shape[1:])
    std = ((high - low) / 12**0.5).expand(shape[1:])
    best_actions, best_value, history = mean, mean.new_tensor(-torch.inf), []
    for _ in range(num_iterations):
        samples = low + (high - low) * torch.rand(shape, generator=generator, device=generator.device).to(low)
        values = _evaluate(objective, samples)
        best_actions, best_value = _better(samples, values, best_actions, best_value)
        history.append(torch.stack([values.max(), values.mean()]))
    return Plan(best_actions, best_value, mean, std, torch.stack(history))


def _evaluate(objective: Objective, samples: Tensor) -> Tensor:
    """Returns the values (N,) of the samples, with undefined ones as the worst."""
    values = objective(samples)
    if values.shape != samples.shape[:1]:
        raise ValueError(f"the objective returned {tuple(values.shape)}, expected ({len(samples)},): a value a sample")
    return values.to(samples).nan_to_num(nan=-torch.inf, neginf=-torch.inf)


def _better(samples: Tensor, values: Tensor, best_actions: Tensor, best_value: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the best of the samples and the best so far, with its value."""
    index = values.argmax()
    if values[index] > best_value:
        return samples[index], values[index]
    return best_actions, best_value
