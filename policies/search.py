"""What optimisers of action sequences share: where they look and for how long, what they found so far and in the end.

An objective maps sequences (N, horizon, A) to values (N,), larger is better.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

Objective = Callable[[Tensor], Tensor]


class Plan(NamedTuple):
    """The outcome of a search.

    Attributes:
        actions: the best sequence evaluated, (horizon, A), within the bounds.
        value: its objective, a scalar tensor.
        mean: centre of the final sampling distribution, (horizon, A).
        std: its standard deviation, (horizon, A).
        history: best and mean objective of each round, (rounds, 2): as many as there was time for.
        candidates: the best sequences, best first, (K, horizon, A), K <= num_kept.
        values: their objectives, (K,).
    """

    actions: Tensor
    value: Tensor
    mean: Tensor
    std: Tensor
    history: Tensor
    candidates: Tensor
    values: Tensor

    @property
    def num_iterations(self) -> int:
        """Rounds that the search had time for."""
        return len(self.history)

    def judged_anew(self, values: Tensor) -> Plan:
        """The same candidates, best first by other values (K,)."""
        order = values.argsort(descending=True, stable=True)
        candidates, values = self.candidates[order], values[order]
        return self._replace(actions=candidates[0], value=values[0], candidates=candidates, values=values)


def _always(done: int) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Search:
    """Where to look and for how long.

    Attributes:
        mean: first centre, (horizon, A); of choices, their probabilities.
        std: first standard deviation (not variance), (horizon, A), in the units of the actions.
        low: lower bounds, (A,).
        high: upper bounds, (A,).
        generator: source of all randomness.
        num_samples: sequences a round.
        num_iterations: rounds at most.
        num_kept: best sequences that are told in the end.
        known: sequences worth trying first, (K, horizon, A), such as the rest of an earlier plan.
        keep_going: is asked, from the second round on, after how many rounds whether there is time for one more.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    generator: torch.Generator
    num_samples: int = 32
    num_iterations: int = 3
    num_kept: int = 1
    known: Tensor | None = None
    keep_going: Callable[[int], bool] = _always

    def __post_init__(self) -> None:
        for name in ("num_samples", "num_iterations", "num_kept"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1.")

    def rounds(self) -> Iterator[int]:
        """The numbers of the rounds; at least one."""
        for index in range(self.num_iterations):
            if index > 0 and not self.keep_going(index):
                return
            yield index

    def noise(self, num: int) -> Tensor:
        """Standard normal (num, horizon, A)."""
        shape = (num, *self.mean.shape)
        return torch.randn(shape, generator=self.generator, device=self.generator.device).to(self.mean)

    def samples(self, mean: Tensor, std: Tensor, noise: Tensor, index: int) -> Tensor:
        """Sequences (N, horizon, A) within the bounds; the mean itself is the first, so no good guess is lost."""
        drawn = mean + std * noise
        drawn[0] = mean
        return self.with_known(drawn.clamp(self.low, self.high), index)

    def with_known(self, samples: Tensor, index: int) -> Tensor:
        """In the first round, the known sequences take the places of the last samples."""
        if index > 0 or self.known is None or len(samples) == 1:
            return samples
        known = self.known[: len(samples) - 1].clamp(self.low, self.high)
        return torch.cat([samples[: len(samples) - len(known)], known])


class Record:
    """The best sequences so far and how the rounds went."""

    def __init__(self, search: Search) -> None:
        self.num_kept = search.num_kept
        self.candidates, self.values = search.mean.new_empty(0, *search.mean.shape), search.mean.new_empty(0)
        self.history: list[Tensor] = []

    def evaluate(self, objective: Objective, samples: Tensor) -> Tensor:
        """The values (N,) of the samples, which are remembered; undefined ones are the worst."""
        values = objective(samples)
        if values.shape != samples.shape[:1]:
            shape = tuple(values.shape)
            raise ValueError(f"The objective returned {shape}, expected ({len(samples)},): a value for each sample.")
        values = values.to(samples).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
        found = values.detach()
        candidates, worth = torch.cat([self.candidates, samples.detach()]), torch.cat([self.values, found])
        best = worth.argsort(descending=True, stable=True)[: self.num_kept]
        self.candidates, self.values = candidates[best], worth[best]
        self.history.append(torch.stack([found.max(), found.mean()]))
        return values

    def plan(self, mean: Tensor, std: Tensor) -> Plan:
        """What was found, with the last sampling distribution."""
        history = torch.stack(self.history)
        return Plan(self.candidates[0], self.values[0], mean, std, history, self.candidates, self.values)
