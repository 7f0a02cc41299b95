"""What is recorded of a world: an episode, and what else was tried on its way."""

from __future__ import annotations

from collections.abc import Iterable

from astra_env.play.timeline import Moment

TAKE_BYTES = 256 * 2**20
"""Of the frames of all that a visitor has recorded and not saved yet."""


class Take:
    """One episode, moment by moment, and its forks.

    Args:
        moments: with which it begins, one or more.

    Attributes:
        forks: what was undone, or happened in a second world meanwhile; each begins as the episode does, unless the
            second world was another from the beginning on.
        num_bytes: of the frames of all that came after the beginning.
        text: what the visitor has said of it, or nothing.
    """

    def __init__(self, moments: Iterable[Moment]) -> None:
        self.moments, self.num_bytes, self.text = list(moments), 0, ""
        self.forks: list[list[Moment]] = []

    def steps(self, now: Moment) -> int:
        """How many steps of the episode lead to a moment; 0 where it is none of its moments."""
        return self._place(now) or 0

    def fork(self, now: Moment) -> Take:
        """What begins as this did, up to a moment."""
        return Take([*self.moments[: self.steps(now)], now])

    def add(self, before: Moment, moment: Moment) -> None:
        """Go on from one moment to the next; from one that is not in the episode, it begins anew there."""
        self.end(before)
        if self.moments[-1] is not before:
            self.moments, self.forks, self.num_bytes = [before], [], 0
        self.moments.append(moment)
        self.num_bytes += moment.info["frames"].nbytes

    def end(self, now: Moment) -> None:
        """Let one of the moments be the last: what came after it was undone, and becomes a fork."""
        place = self._place(now)
        if place is not None and place + 1 < len(self.moments):
            self.forks.append(self.moments)
            self.moments = self.moments[: place + 1]

    def join(self, other: Take) -> None:
        """Take in what has happened in a second world."""
        self.forks += [other.moments, *other.forks]
        self.num_bytes += other.num_bytes

    def _place(self, now: Moment) -> int | None:
        return next((index for index in reversed(range(len(self.moments))) if self.moments[index] is now), None)
