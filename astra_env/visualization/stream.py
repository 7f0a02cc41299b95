"""Where a recording goes: a file, a viewer that is opened, or one that is open; and the time that is told with it."""

from __future__ import annotations

import dataclasses
import shutil
import socket
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from astra_env.visualization.sdk import rr, rrb

VIEWER_MEMORY, SERVER_MEMORY = "2GB", "64MB"
"""Beyond these the viewer that "spawn" opens, and what feeds it, forget the oldest."""
LOCAL_VIEWER = "rerun+http://127.0.0.1:9876/proxy"
FILE_SECONDS = 2.0
"""Longest time that something waits before it is written to a file: chunks of many rows are small."""


@dataclasses.dataclass(frozen=True)
class Clock:
    """Frames, seconds of the world and steps so far."""

    num_frames: int = 0
    seconds: float = 0.0
    num_steps: int = 0

    def next_frame(self, fps: float) -> Clock:
        """One frame later; the first one is at 0 s."""
        seconds = self.seconds + 1 / fps if self.num_frames else 0.0
        return dataclasses.replace(self, num_frames=self.num_frames + 1, seconds=seconds)

    def next_step(self) -> Clock:
        """One step later."""
        return dataclasses.replace(self, num_steps=self.num_steps + 1)


class Stream:
    """Rerun's stream to one target, stamped with a clock.

    Args:
        name: of the application; viewers keep one arrangement of panels for each.
        target: as `Recording` takes it.

    Attributes:
        live: whether it goes to a viewer, which shows it as it comes.
    """

    def __init__(self, name: str, target: str) -> None:
        self._path: Path | None = None
        self._stamp: tuple[Clock, int] | None = None
        self.live = target in ("spawn", "connect") or "://" in target
        batches = None if self.live else rr.ChunkBatcherConfig(flush_tick=FILE_SECONDS)
        self._stream = rr.RecordingStream(name, batcher_config=batches)
        self._stream.set_log_time_enabled(False)
        self._stream.set_log_tick_enabled(False)
        if target == "spawn":
            limits = {"memory_limit": VIEWER_MEMORY, "server_memory_limit": SERVER_MEMORY}
            rr.spawn(executable_path=_viewer(), recording=self._stream, **limits)
        elif self.live:
            url = LOCAL_VIEWER if target == "connect" else target
            _check_listens(url)
            self._stream.connect_grpc(url)
        else:
            self._path = Path(target)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._stream.save(self._unfinished(self._path))

    def log(self, clock: Clock, entity: str, content: rr.AsComponents) -> None:
        """Log at a time; that of the wall is when the clock was first seen to stand there."""
        stamp = clock, threading.get_ident()  # Rerun keeps a time for each thread
        if stamp != self._stamp:
            self._stamp = stamp
            self._stream.set_time("frame", sequence=max(clock.num_frames - 1, 0))
            self._stream.set_time("time", duration=clock.seconds)
            self._stream.set_time("step", sequence=clock.num_steps)
            self._stream.set_time("wall_time", timestamp=time.time())
        self._stream.log(entity, content)

    def log_static(self, entity: str, content: rr.AsComponents) -> None:
        """Log what holds at all times."""
        self._stream.log(entity, content, static=True)

    def arrange(self, blueprint: rrb.Blueprint) -> None:
        """Have the viewer show it so."""
        self._stream.send_blueprint(blueprint)

    def close(self) -> None:
        """Send what is left, and give a file its name."""
        try:
            self._stream.flush()
        except RuntimeError:  # so does Rerun say that a viewer was closed before
            if not self.live:
                raise
        self._stream.disconnect()
        if self._path is not None:
            self._unfinished(self._path).replace(self._path)

    @staticmethod
    def _unfinished(path: Path) -> Path:
        return path.with_name(path.name + ".tmp")


def _viewer() -> str | None:
    """The viewer beside this interpreter, where no other is found by name."""
    beside = Path(sys.executable).with_name("rerun")
    return str(beside) if shutil.which("rerun") is None and beside.exists() else None


def _check_listens(url: str) -> None:
    """ConnectionError where nobody is there: nothing would be shown, and all of it kept for a viewer to come."""
    place = urlsplit(url)
    try:
        socket.create_connection((place.hostname or "", place.port or 9876), timeout=5.0).close()
    except OSError as error:
        raise ConnectionError(
            f"no Rerun viewer answers at {url} ({error}); start one with `rerun`, or let target be 'spawn'"
        ) from error
