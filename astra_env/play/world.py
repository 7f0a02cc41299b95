"""One visitor's world: it goes on, goes back, forks into two that can be compared, and is recorded."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

import astra_env  # noqa: F401  registers the ids
from astra_env.actions import DISCRETE_ACTIONS, ActionModality
from astra_env.envs.env import AstraEnv
from astra_env.models import WorldState
from astra_env.play.controls import heading, nearest_choice
from astra_env.play.players import Player, find_player
from astra_env.play.saving import Saved, save_takes
from astra_env.play.take import TAKE_BYTES, Take
from astra_env.play.timeline import Moment, Timeline

YOU, HELD = "you", "held"
"""Who may act in a branch, beside the players: the visitor, or the action of the moment when it was chosen."""
MAX_PROMPT = 1000


@dataclass
class Branch:
    """One of the worlds that a visitor sees."""

    timeline: Timeline
    by: str = YOU
    player: Player | None = None
    held: np.ndarray | None = None
    """The physical action (A,) that is held, where that is who acts."""
    take: Take | None = None
    """What is being recorded of it; there is one of all branches or of none."""


class PlayWorld:
    """Imagined worlds of one visitor; all that they share with other visitors is the model's weights.

    Args:
        environment: a key of `ENVIRONMENTS`.
        players: names that `find_player` knows.
        options: of `gymnasium.make`, such as ``world_model=``.

    Raises:
        ValueError: a name or an option is not known.
    """

    def __init__(self, environment: str, players: Sequence[str] = (), **options: Any) -> None:
        made: Any = gymnasium.make(environment, disable_env_checker=True, **options)
        self.env: AstraEnv = made.unwrapped  # without a limit of time
        self.modality: ActionModality = self.env.action_modality
        self.choices: np.ndarray | None = None
        self.makers = {name: find_player(name) for name in players}
        if isinstance(self.env.action_space, gymnasium.spaces.Discrete):
            sets = DISCRETE_ACTIONS[self.modality.name]
            known = {key: self.modality.keys[key] for key in dict.fromkeys(key for keys in sets for key in keys)}
            self.modality = dataclasses.replace(self.modality, keys=known)
            self.choices = self.modality.discrete(sets)
        self.reads_text = self.env.world_model.text_encoder is not None
        self.takes: list[Take] = []
        """Episodes that are recorded and not saved yet."""
        self.seed, self.prompt = 0, ""
        self.branches: list[Branch] = []

    @property
    def chunk_seconds(self) -> float:
        """Time that a step shows."""
        return self.env.world_model.sampling.chunk_size / self.modality.rate_hz

    @property
    def main(self) -> Timeline:
        """The time line of the first branch, which is the one that is recorded; ValueError before there is one."""
        self._check(0)
        return self.branches[0].timeline

    @property
    def take(self) -> Take | None:
        """What is being recorded of the first branch."""
        return self.branches[0].take if self.branches else None

    # 1. Going on

    def reset(self, seed: int, options: Mapping[str, Any] | None = None) -> None:
        """A new start, as `AstraEnv.reset` makes it; what was being recorded ends."""
        observation, info = self.env.reset(seed=seed, options=dict(options or {}))
        self.env.action_space.seed(seed)
        self.record(False)
        self.seed, self.prompt = seed, ""
        by = self.branches[0].by if self.branches else YOU
        self.branches = [Branch(Timeline(self.env.save_state(), Moment(0, info, observation, None)))]
        self.choose(0, by)

    def step(self, action: np.ndarray) -> None:
        """One step of all branches; action (A,) is the visitor's, which holds where nobody else acts.

        Raises:
            ValueError: a player has failed, or its action is none; no branch has gone on then.
        """
        self.advance(self.decide(action))

    @property
    def led(self) -> bool:
        """Whether a player acts somewhere, who may take long to decide."""
        return any(branch.player is not None for branch in self.branches)

    def decide(self, action: np.ndarray) -> list[Any]:
        """What is done next in each branch, as the environment takes it: see `step`."""
        self._check(0)
        return [self._given(branch, action) for branch in self.branches]

    def _given(self, branch: Branch, action: np.ndarray) -> Any:
        """In worlds of keys, the number of the set of keys that is nearest to the action that holds here."""
        if branch.player is not None:
            self.env.restore_state(branch.timeline.state)  # a planner looks at it
            try:
                return branch.player(branch.timeline.now.observation)
            except Exception as error:  # a plug-in may raise anything
                raise ValueError(f"{branch.by} has failed: {error!r}.") from error
        chosen = action if branch.held is None else branch.held
        return chosen if self.choices is None else nearest_choice(chosen, self.choices, self.modality)

    def advance(self, given: Sequence[Any]) -> None:
        """Imagine the next step of each branch under what was decided for it."""
        steps = [self._imagine(branch.timeline, entry) for branch, entry in zip(self.branches, given, strict=True)]
        for branch, step in zip(self.branches, steps, strict=True):
            before = branch.timeline.now
            branch.timeline.add(*step)
            if branch.take is not None:
                branch.take.add(before, branch.timeline.now)
        if self._num_bytes > TAKE_BYTES:
            self.record(False)

    def _imagine(self, timeline: Timeline, given: Any) -> tuple[WorldState, Moment]:
        """The state and the moment to which a time line goes on."""
        self.env.restore_state(timeline.state)
        observation, reward, over, _, info = self.env.step(given)
        physical = self.env.physical(given, ())
        return self.env.save_state(), Moment(timeline.now.step + 1, info, observation, physical, reward, over)

    def set_prompt(self, text: str) -> None:
        """Describe the worlds anew from now on."""
        if not self.reads_text:
            raise ValueError(f"{self.env.environment} reads no text in this world model.")
        if len(text) > MAX_PROMPT:
            raise ValueError(f"The prompt has {len(text)} letters, expected {MAX_PROMPT} at most.")
        for branch in self.branches:
            self.env.restore_state(branch.timeline.state)
            self.env.set_prompt(text)
            branch.timeline.amend(self.env.save_state())
        self.prompt = text

    # 2. Going back, and elsewhere

    def go(self, step: int) -> None:
        """Make a remembered step now, in all branches."""
        for branch in self.branches:
            branch.timeline.go(step)

    def fork(self, by: str, *, other_noise: bool = False) -> None:
        """Let a second world begin where the first one is.

        Args:
            by: who acts there, as in `choose`.
            other_noise: whether it draws noise of its own, so that even the same actions lead elsewhere.
        """
        state = self.main.state
        if other_noise:
            state = dataclasses.replace(state, seeds=state.seeds + 2**31)  # no episode begins with such a seed
        other = Branch(self.main.fork(state), take=self.take.fork(self.main.now) if self.take else None)
        self._act(other, by)
        self.join(0)
        self.branches.append(other)

    def join(self, keep: int) -> None:
        """Go on with one of the branches only."""
        self._check(keep)
        self._gather(self.branches[keep])
        self.branches = [self.branches[keep]]

    def choose(self, branch: int, by: str) -> None:
        """Who acts in a branch from now on: ``YOU``, ``HELD`` (the last action again and again) or a player."""
        self._check(branch)
        self._act(self.branches[branch], by)

    def _act(self, branch: Branch, by: str) -> None:
        if by not in (YOU, HELD) and by not in self.makers:
            raise ValueError(f"There is no {by!r} to act; there are {[YOU, HELD, *self.makers]}.")
        try:
            branch.player = self.makers[by](self.env) if by in self.makers else None
        except Exception as error:  # a plug-in may raise anything
            raise ValueError(f"{by} cannot act here: {error!r}.") from error
        last = branch.timeline.now.action
        branch.held = (np.zeros(self.modality.action_dim, np.float32) if last is None else last) if by == HELD else None
        branch.by = by

    def _check(self, branch: int) -> None:
        if not self.branches:
            raise ValueError("There is no world yet; begin from a picture of your own.")
        if not 0 <= branch < len(self.branches):
            raise ValueError(f"There is no branch {branch}; there are {len(self.branches)}.")

    # 3. Recording

    def record(self, on: bool) -> None:
        """Begin an episode of what the first branch does, or end it; one without a step is forgotten.

        What the second branch does meanwhile, and what was undone, are forks of it.

        Raises:
            ValueError: so much is recorded already that no more is kept, or there is no world yet.
        """
        if self.take is not None:
            self.take.end(self.main.now)
            self._gather(self.branches[0])
            self.take.text = self.prompt
            if len(self.take.moments) > 1:
                self.takes.append(self.take)
        for branch in self.branches:
            branch.take = None
        if on:
            self._check(0)
            if self._num_bytes > TAKE_BYTES:
                raise ValueError(f"{TAKE_BYTES >> 20} MB are recorded, which is all that is kept; save them first.")
            for branch in self.branches:
                branch.take = Take([branch.timeline.now])

    def _gather(self, kept: Branch) -> None:
        """Let what is recorded of one branch have what is recorded of the other as a fork."""
        for branch in self.branches:
            if branch is not kept and kept.take is not None and branch.take is not None:
                kept.take.join(branch.take)

    @property
    def _num_bytes(self) -> int:
        """Of the frames of all that is recorded."""
        takes = [*self.takes, *(branch.take for branch in self.branches if branch.take is not None)]
        return sum(take.num_bytes for take in takes)

    def save(self, path: str | os.PathLike[str]) -> Saved:
        """Write all recorded episodes, as `save_takes` does, and forget them."""
        self.record(False)
        saved = save_takes(self.env, self.takes, Path(path))
        self.takes = []
        return saved

    # 4. Telling

    def recorded(self) -> dict[str, Any]:
        """Steps of the episode that is being recorded, None if none is, and how many others wait to be saved."""
        steps = None if self.take is None else self.take.steps(self.main.now)
        return {"steps": steps, "episodes": len(self.takes)}

    def told(self) -> list[dict[str, Any]]:
        """What a page shows of each branch beside its pictures."""
        return [self._told(branch) for branch in self.branches]

    def _told(self, branch: Branch) -> dict[str, Any]:
        timeline, now = branch.timeline, branch.timeline.now
        pose = now.info["pose"]
        told = {
            "by": branch.by,
            "step": now.step,
            "oldest": timeline.oldest,
            "newest": timeline.newest,
            "seconds": round(now.step * self.chunk_seconds, 3),
            "action": None if now.action is None else [round(float(value), 5) for value in now.action],
            "reward": round(float(now.reward), 4),
            "over": now.over,
            "success": bool(now.info["success"]),
            "position": [round(float(value), 4) for value in pose[:3, 3]],
            "heading": round(math.degrees(heading(pose, self.modality)), 2),
        }
        return told | ({"speed": round(float(now.info["speed"]), 3)} if "speed" in now.info else {})
