"""Black-box maximisation over action sequences: all functions have one signature and stand in `OPTIMIZERS`.

An objective maps sequences (N, horizon, A) to values (N,), larger is better; a `Search` tells where to look and for how
long. The functions hold no state and draw every random number from the generator of the search.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from policies.search import Objective, Plan, Record, Search

Optimizer = Callable[..., Plan]
"""``optimizer(objective, search, **options) -> Plan``; the options are its own and have defaults."""


def cem(objective: Objective, search: Search, *, num_elites: int = 6, momentum: float = 0.0) -> Plan:
    """Cross-entropy method: samples around a mean, then moves mean and spread to the best samples, and repeats.

    Args:
        objective: evaluates all samples of a round in one call.
        search: where to look and for how long.
        num_elites: best samples that the next distribution is fitted to, at least 2.
        momentum: share of the previous mean and std that is kept at each update, 0 <= momentum < 1.
    """
    _check_elites(num_elites, search)
    mean, std, record = search.mean, search.std, Record(search)
    for index in search.rounds():
        samples = search.samples(mean, std, search.noise(search.num_samples), index)
        values = record.evaluate(objective, samples)
        elites = samples[values.topk(num_elites).indices]
        mean = momentum * mean + (1 - momentum) * elites.mean(0)
        std = momentum * std + (1 - momentum) * elites.std(0)
    return record.plan(mean, std)


def icem(
    objective: Objective,
    search: Search,
    *,
    num_elites: int = 6,
    momentum: float = 0.1,
    noise_exponent: float = 1.0,
    decay: float = 1.25,
    share_kept: float = 0.3,
) -> Plan:
    """The cross-entropy method with noise that is alike in neighbouring steps and elites that live on (iCEM).

    Pinneri et al., Sample-efficient Cross-Entropy Method for Real-time Planning, CoRL 2020 (arXiv 2008.06389).

    Args:
        objective: evaluates all samples of a round in one call.
        search: where to look and for how long; num_samples is the first round's, and of those below there are fewer.
        num_elites: best samples that the next distribution is fitted to, at least 2.
        momentum: share of the previous mean and std that is kept at each update, 0 <= momentum < 1.
        noise_exponent: the power of noise falls with frequency to this exponent; 0 is white.
        decay: each round has so many times fewer samples, but at least twice the elites.
        share_kept: share of the elites that compete in the next round with the values they have.
    """
    _check_elites(num_elites, search)
    mean, std, record = search.mean, search.std, Record(search)
    elites, worth = mean.new_empty(0, *mean.shape), mean.new_empty(0)
    for index in search.rounds():
        num = max(int(search.num_samples / decay**index), min(2 * num_elites, search.num_samples))
        samples = search.samples(mean, std, coloured(search.noise(num), noise_exponent), index)
        values = record.evaluate(objective, samples)
        kept = slice(int(share_kept * num_elites))
        samples, values = torch.cat([samples, elites[kept]]), torch.cat([values, worth[kept]])
        worth, best = values.topk(num_elites)
        elites = samples[best]
        mean = momentum * mean + (1 - momentum) * elites.mean(0)
        std = momentum * std + (1 - momentum) * elites.std(0)
    return record.plan(mean, std)


def mppi(objective: Objective, search: Search, *, temperature: float = 0.3, min_std: float = 0.1) -> Plan:
    """Model-predictive path integral control: all samples count, by the exponential of how good they are.

    Williams et al., Information Theoretic MPC for Model-Based Reinforcement Learning, ICRA 2017. As in TD-MPC2
    (arXiv 2310.16828) several rounds follow one another, and the spread follows the weights.

    Args:
        objective: evaluates all samples of a round in one call.
        search: where to look and for how long.
        temperature: low for the best sample alone, high for all alike; in standard deviations of a round's values, so
            that it does not depend on the objective's units.
        min_std: share of the first standard deviation that remains.
    """
    mean, std, record = search.mean, search.std, Record(search)
    for index in search.rounds():
        samples = search.samples(mean, std, search.noise(search.num_samples), index)
        values = record.evaluate(objective, samples)
        weights = _weights(values, temperature)[:, None, None]
        mean = (weights * samples).sum(0)
        std = (weights * (samples - mean).square()).sum(0).sqrt().maximum(min_std * search.std)
    return record.plan(mean, std)


def random_shooting(objective: Objective, search: Search) -> Plan:
    """Evaluates sequences drawn uniformly within the bounds and keeps the best: what any planner has to beat."""
    low, high, shape = search.low, search.high, search.mean.shape
    record, generator = Record(search), search.generator
    for index in search.rounds():
        shares = torch.rand(search.num_samples, *shape, generator=generator, device=generator.device).to(low)
        record.evaluate(objective, search.with_known(low + (high - low) * shares, index))
    return record.plan(((low + high) / 2).expand(shape), ((high - low) / 12**0.5).expand(shape))


def gradient_ascent(objective: Objective, search: Search, *, learning_rate: float = 0.2) -> Plan:
    """Adam up the objective's gradient from all samples of the first round at once.

    Each round is one evaluation and one step, after which what has left the bounds is put back on them. Undefined
    gradients move nothing.

    Args:
        objective: evaluates all samples in one call, differentiably; a sample's value depends on that sample alone.
        search: where to look and for how long.
        learning_rate: the first step as a share of half the range of each action field.
    """
    centre, half = (search.low + search.high) / 2, (search.high - search.low) / 2
    record = Record(search)
    starts = search.samples(search.mean, search.std, search.noise(search.num_samples), 0)
    shares = ((starts - centre) / half.clamp(min=1e-12)).requires_grad_()  # -1 .. 1 within the bounds
    adam = torch.optim.Adam([shares], lr=learning_rate)
    for _ in search.rounds():
        with torch.enable_grad():
            actions = centre + half * shares
            # rounding alone can lead out of the bounds here, and is to stop no gradient
            actions = actions + (actions.clamp(search.low, search.high) - actions).detach()
            values = record.evaluate(objective, actions)
            if not values.requires_grad:
                raise ValueError("The objective has no gradient; use another optimiser, or one that torch can follow.")
            (shares.grad,) = torch.autograd.grad(-values.sum(), shares)
        shares.grad.nan_to_num_(0.0, 0.0, 0.0)
        adam.step()
        with torch.no_grad():
            shares.clamp_(-1, 1)
    ends = (centre + half * shares.detach()).clamp(search.low, search.high)
    return record.plan(record.candidates[0], ends.std(0, correction=0))


def categorical_cem(objective: Objective, search: Search, *, num_elites: int = 6, momentum: float = 0.2) -> Plan:
    """The cross-entropy method over choices: a sequence has a row for each step, 1 at what is chosen and 0 elsewhere.

    Args:
        objective: evaluates all samples (N, horizon, choices) of a round in one call.
        search: where to look and for how long; its mean holds the probabilities of choices, its std is not used.
        num_elites: best samples that the next probabilities are fitted to, at least 2.
        momentum: share of the previous probabilities that is kept, so that no choice dies out at once.
    """
    _check_elites(num_elites, search)
    mean, record, num_choices = search.mean, Record(search), search.mean.shape[1]
    for index in search.rounds():
        chosen = torch.multinomial(mean, search.num_samples, replacement=True, generator=search.generator).T
        chosen[0] = mean.argmax(1)
        samples = search.with_known(F.one_hot(chosen, num_choices).to(mean), index)
        values = record.evaluate(objective, samples)
        elites = samples[values.topk(num_elites).indices]
        mean = momentum * mean + (1 - momentum) * elites.mean(0)
    return record.plan(mean, (mean * (1 - mean)).sqrt())


OPTIMIZERS: Mapping[str, Optimizer] = {
    "cem": cem,
    "icem": icem,
    "mppi": mppi,
    "random_shooting": random_shooting,
    "gradient_ascent": gradient_ascent,
}
"""Name -> optimiser of continuous actions."""
DISCRETE_OPTIMIZERS: Mapping[str, Optimizer] = {"cem": categorical_cem}
"""Name -> optimiser of choices."""


def coloured(noise: Tensor, exponent: float) -> Tensor:
    """White noise (N, horizon, A) -> noise of the same variance whose power falls as 1 / frequency^exponent."""
    horizon = noise.shape[1]
    frequencies = torch.fft.fftfreq(horizon, device=noise.device).abs().clamp(min=1 / horizon)
    gains = frequencies ** (-exponent / 2)
    gains = gains / gains.square().mean().sqrt()
    return torch.fft.ifft(torch.fft.fft(noise, dim=1) * gains[:, None], dim=1).real


def _weights(values: Tensor, temperature: float) -> Tensor:
    """Weights (N,) that sum to 1; undefined values get none, unless all are."""
    defined = values[values.isfinite()]
    if len(defined) == 0:
        return torch.full_like(values, 1 / len(values))
    return ((values - defined.max()) / (temperature * defined.std(correction=0) + 1e-12)).softmax(0)


def _check_elites(num_elites: int, search: Search) -> None:
    if not 2 <= num_elites <= search.num_samples:
        raise ValueError(f"num_elites must be between 2 and num_samples = {search.num_samples}, got {num_elites}.")
