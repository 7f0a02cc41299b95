"""What an environment id is, in the sections of Gymnasium's documentation, written from its row of the table."""

from __future__ import annotations

from textwrap import fill

from astra_env.actions import ACTION_MODALITIES, DISCRETE_ACTIONS, ActionModality
from astra_env.envs import ENVIRONMENTS, EnvironmentSpec

_TEXT = """{name}: {description}.

## Description
A learned video world model imagines it. An action is held for one chunk of the video: four frames (0.2 s) in the
bundled world.

## Action Space
{actions}

## Observation Space
`observation="frame"`: the newest frame, uint8 (H, W, 3); `"chunk"`: the frames of the step, uint8 (T, H, W, 3);
`"latent"`: the newest latent, float32 (C, h, w).

## Rewards
{rewards}

## Starting State
A recorded clip that the seed draws, or a picture or frames of yours: see the options of `AstraEnv`.{path}

## Episode End
{episode_end}
"""
_PATH = """
The seed draws the path too; `options={"path": poses}` (T + 1, 4, 4) replaces it, seen from its first pose."""
_UNLEARNED = " A world that has learned no such head gives 0 and goes on."


def describe(environment: str) -> str:
    """Markdown on one id of ``ENVIRONMENTS``, with its table of actions."""
    spec = ENVIRONMENTS[environment]
    return _TEXT.format(
        name=environment,
        description=spec.description,
        actions=_action_table(spec),
        rewards=fill(spec.rewards if spec.follows_path else spec.rewards + _UNLEARNED, 120),
        path=_PATH if spec.follows_path else "",
        episode_end=fill(f"{spec.episode_end} Truncated after {spec.max_episode_steps} steps.", 120),
    )


def _action_table(spec: EnvironmentSpec) -> str:
    modality = ACTION_MODALITIES[spec.modality]
    told = f"`{modality.name}` actions at {modality.rate_hz:g} Hz; {modality.frame}."
    if spec.discrete:
        choices = DISCRETE_ACTIONS[modality.name]
        rows = [
            f"| {index} | {' '.join(keys) or 'none'} | {_effect(modality, keys)} |"
            for index, keys in enumerate(choices)
        ]
        head = f"`Discrete({len(choices)})`, sets of keys for {told}", "", "| action | keys | moves |"
        return "\n".join([*head, "| --- | --- | --- |", *rows])
    bounds = zip(modality.fields, modality.units, modality.low, modality.high, strict=True)
    rows = [f"| {i} | {name} | {unit} | {low:g} to {high:g} |" for i, (name, unit, low, high) in enumerate(bounds)]
    head = f"`Box` float32 ({modality.action_dim},), {told}", "", "| index | field | unit | bounds |"
    return "\n".join([*head, "| --- | --- | --- | --- |", *rows])


def _effect(modality: ActionModality, keys: tuple[str, ...]) -> str:
    """The fields that keys change, with their values."""
    moves = zip(modality.fields, modality.units, modality.from_keys(keys), strict=True)
    return ", ".join(f"{name} {value:g} {unit}" for name, unit, value in moves if value) or "nothing"
