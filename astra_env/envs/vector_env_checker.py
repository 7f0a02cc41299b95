"""`check_vector_env`: whether a vector environment keeps Gymnasium's contract, whose own checker sees single ones only.

It uses nothing of astra-env: any `gymnasium.vector.VectorEnv` may be checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

Step = tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]


def check_vector_env(
    env: VectorEnv[Any, Any, Any],
    single: Callable[[], gymnasium.Env[Any, Any]] | None = None,
    *,
    num_steps: int = 60,
    tolerance: float = 1e-4,
) -> None:
    """Raise AssertionError, in one sentence, at the first part of the contract that an environment breaks.

    Checked are the spaces, types and shapes of what `reset` and `step` return, the masks of infos, that seeds decide
    everything and whole numbers seed row i with seed + i, that arrays are the caller's own, that rows are independent
    of their neighbours, wrong arguments, partial resets and what the autoreset mode promises.

    Args:
        env: any vector environment; it is reset many times, and not closed.
        single: makes one environment of the kind, to which each row is compared.
        num_steps: steps within which some row's episode ends; autoreset is checked only if one does.
        tolerance: how far what should be equal may be apart, relative to the largest value.
    """
    _check_spaces(env)
    walks = [_walk(env, 3), _walk(env, 3)]
    _same(walks[0], walks[1], 0.0, "after reset(seed=3), the same actions led to different results")
    _check_seeds(env)
    _check_fresh_arrays(env)
    if env.num_envs > 1:
        _check_neighbours(env, tolerance)
    if single is not None:
        _check_against(env, single(), tolerance)
    _check_autoreset(env, num_steps)


def _actions(env: Any, num: int, seed: int = 0) -> list[Any]:
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(num)]


def _walk(env: Any, seed: Any, num: int = 3) -> list[Any]:
    """Copies of all that some steps return."""
    seen = [_copied(env.reset(seed=seed))]
    return seen + [_copied(env.step(actions)) for actions in _actions(env, num)]


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copied(entry) for name, entry in value.items()}
    if isinstance(value, tuple):
        return tuple(_copied(entry) for entry in value)
    return value.copy() if isinstance(value, np.ndarray) else value


def _same(first: Any, second: Any, tolerance: float, complaint: str) -> None:
    """Whether nested results are equal, numbers up to a tolerance."""
    if isinstance(first, dict):
        assert first.keys() == second.keys(), f"{complaint}: {sorted(first)} is told, then {sorted(second)}"
        for name in first:
            _same(first[name], second[name], tolerance, complaint)
    elif isinstance(first, tuple | list) or getattr(first, "dtype", None) == np.dtype(object):
        for one, other in zip(first, second, strict=True):
            _same(one, other, tolerance, complaint)
    elif isinstance(first, np.ndarray | float) and np.issubdtype(np.asarray(first).dtype, np.number):
        one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
        whole = np.asarray(first).dtype == np.uint8  # pictures are rounded to whole numbers
        allowed = max(tolerance * max(1.0, np.nanmax(np.abs(one), initial=0.0)), float(whole)) if tolerance else 0.0
        assert one.shape == other.shape, f"{complaint}: shapes {one.shape} and {other.shape}"
        gap = np.nanmax(np.abs(one - other), initial=0.0)
        assert gap <= allowed and (np.isnan(one) == np.isnan(other)).all(), f"{complaint}: they are {gap:.3g} apart"
    else:
        assert np.array_equal(first, second), f"{complaint}: {first!r} and {second!r}"


def _row(value: Any, row: int) -> Any:
    """What a batched observation holds of one row."""
    if isinstance(value, dict):
        return {name: _row(entry, row) for name, entry in value.items()}
    return tuple(_row(entry, row) for entry in value) if isinstance(value, tuple) else value[row]


# The parts of the contract


def _check_spaces(env: Any) -> None:
    assert isinstance(env, VectorEnv), f"{type(env)} is no gymnasium.vector.VectorEnv"
    num = env.num_envs
    for name in ("observation_space", "action_space"):
        whole, part = getattr(env, name), getattr(env, f"single_{name}")
        expected = batch_space(part, num)
        assert whole == expected, f"{name} is {whole}, expected {expected}: single_{name} for {num} rows"
    assert isinstance(env.metadata.get("autoreset_mode"), AutoresetMode), (
        "metadata['autoreset_mode'] is no AutoresetMode"
    )
    result = env.reset(seed=0)
    assert isinstance(result, tuple) and len(result) == 2, "reset() did not return (observations, infos)"
    assert result[0] in env.observation_space, "the observations of reset() are not in observation_space"
    _check_info(result[1], num, "reset()")
    for actions in _actions(env, 3):
        _check_step(env.step(actions), env)


def _check_step(step: Step, env: Any) -> None:
    assert isinstance(step, tuple) and len(step) == 5, "step() did not return five values"
    observations, rewards, terminations, truncations, infos = step
    assert observations in env.observation_space, "the observations of step() are not in observation_space"
    for name, value, kind in (
        ("rewards", rewards, np.floating),
        ("terminations", terminations, np.bool_),
        ("truncations", truncations, np.bool_),
    ):
        right = isinstance(value, np.ndarray) and value.shape == (env.num_envs,) and np.issubdtype(value.dtype, kind)
        assert right, f"{name} is {value!r}, expected an array ({env.num_envs},) of {kind.__name__}"
    assert np.isfinite(rewards).all(), f"rewards are {rewards}, expected finite numbers"
    _check_info(infos, env.num_envs, "step()")


def _check_info(infos: Any, num: int, source: str) -> None:
    assert isinstance(infos, dict), f"the infos of {source} are {type(infos)}, expected a dictionary"
    for name, value in infos.items():
        if name.startswith("_"):
            right = isinstance(value, np.ndarray) and value.shape == (num,) and value.dtype == bool
            assert right, f"the mask {name!r} of {source} is {value!r}, expected bool ({num},)"
            continue
        assert f"_{name}" in infos, f"{source} tells {name!r} without the mask '_{name}' of the rows that it is told of"
        if isinstance(value, dict):
            _check_info(value, num, source)
        else:
            assert len(value) == num, f"{name!r} of {source} has {len(value)} rows, expected {num}"


def _check_seeds(env: Any) -> None:
    num = env.num_envs
    number, listed = env.reset(seed=5)[0], env.reset(seed=list(range(5, 5 + num)))[0]
    _same(_copied(number), _copied(listed), 0.0, "reset(seed=5) and reset(seed=[5, 6, …]) are not the same")
    try:
        env.reset(seed=[1] * (num + 1))
    except ValueError:
        return
    raise AssertionError(f"reset() took {num + 1} seeds for {num} rows, expected a ValueError")


def _check_fresh_arrays(env: Any) -> None:
    kept = [env.reset(seed=1)] + [env.step(actions) for actions in _actions(env, 2)]
    copies = [_copied(entry) for entry in kept]
    for actions in _actions(env, 2, seed=1):
        env.step(actions)
    _same(kept, copies, 0.0, "a later step changed arrays that an earlier one had returned")


def _check_neighbours(env: Any, tolerance: float) -> None:
    """The first row under its own seed and actions, beside two different sets of neighbours."""
    num, rows = env.num_envs, []
    first, mixed = _actions(env, 1, seed=0)[0], _actions(env, 1, seed=1)[0]
    if not isinstance(mixed, np.ndarray):
        return  # composite actions are not mixed here
    mixed[0] = first[0]
    for seeds, actions in ((list(range(num)), first), ([0, *range(50, 49 + num)], mixed)):
        env.reset(seed=seeds)
        observations, rewards, terminations, _, _ = env.step(actions)
        rows.append(_copied((_row(observations, 0), rewards[:1], terminations[:1])))
    _same(rows[0], rows[1], tolerance, "row 0 depends on the seeds and actions of its neighbours")


def _check_against(env: Any, single: gymnasium.Env[Any, Any], tolerance: float) -> None:
    """The last row, and a single environment from its seed."""
    row = env.num_envs - 1
    assert single.observation_space == env.single_observation_space, "single_observation_space is not the single one's"
    assert single.action_space == env.single_action_space, "single_action_space is not the single one's"
    complaint = f"row {row} from seed {3 + row} does not do what a single environment does"
    observations, _ = env.reset(seed=3)
    _same(_copied(_row(observations, row)), single.reset(seed=3 + row)[0], tolerance, complaint)
    for actions in _actions(env, 3):
        alone = single.step(list(iterate(env.action_space, actions))[row])
        observations, rewards, terminations, truncations, _ = env.step(actions)
        together = (_row(observations, row), float(rewards[row]))
        _same(_copied(together), (alone[0], float(alone[1])), tolerance, complaint)
        assert (bool(terminations[row]), bool(truncations[row])) == (alone[2], alone[3]), complaint
        if alone[2] or alone[3]:
            break
    single.close()


def _check_autoreset(env: Any, num_steps: int) -> None:
    mode = env.metadata["autoreset_mode"]
    env.reset(seed=2)
    for actions in _actions(env, num_steps):
        step = env.step(actions)
        _check_step(step, env)
        ended = step[2] | step[3]
        if ended.any():
            {
                AutoresetMode.NEXT_STEP: _check_next_step,
                AutoresetMode.SAME_STEP: _check_same_step,
                AutoresetMode.DISABLED: _check_disabled,
            }[mode](env, step, ended)
            return


def _check_next_step(env: Any, step: Step, ended: np.ndarray) -> None:
    assert "final_obs" not in step[4], "NEXT_STEP tells 'final_obs', which belongs to SAME_STEP"
    _, rewards, terminations, truncations, _ = env.step(_actions(env, 1)[0])
    calm = (rewards[ended] == 0).all() and not (terminations | truncations)[ended].any()
    assert calm, "the step after an episode's end is its reset: expected reward 0 and no end there"


def _check_same_step(env: Any, step: Step, ended: np.ndarray) -> None:
    infos = step[4]
    for name in ("final_obs", "final_info"):
        assert name in infos, f"SAME_STEP ended an episode without telling {name!r}"
        mask = infos[f"_{name}"]
        assert np.array_equal(mask, ended), f"the mask of {name!r} is {mask}, expected the ended rows {ended}"
    for row in np.flatnonzero(ended):
        last = infos["final_obs"][row]
        assert last in env.single_observation_space, f"final_obs[{row}] is not in single_observation_space"


def _check_disabled(env: Any, step: Step, ended: np.ndarray) -> None:
    before = _copied(step[0])
    observations, _ = env.reset(options={"reset_mask": ended.copy()})
    for row in np.flatnonzero(~ended).tolist():
        _same(_copied(_row(observations, row)), _row(before, row), 0.0, f"a partial reset changed row {row} too")
    _check_step(env.step(_actions(env, 1)[0]), env)
