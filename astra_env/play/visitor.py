"""One visitor: takes orders and inputs, lets the world go on at its own pace, and sends what can be sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from astra_env.envs import ENVIRONMENTS
from astra_env.play.controls import KEY_SHARES, Controls
from astra_env.play.orders import ORDERS, field
from astra_env.play.packets import MAX_UPLOAD, encode_pictures, pack
from astra_env.play.saving import Saved
from astra_env.play.world import MAX_PROMPT, PlayWorld

IN_FLIGHT = 3
"""Most chunks that are on their way to a page; what comes to be meanwhile waits, and only the newest of it."""
MAX_ORDERS = 32
SEND_SECONDS = 20.0
"""A page that does not take a message for so long is gone."""
_LATENCIES = 512  # newest ones that percentiles are taken of


@dataclass
class Chunk:
    """Pictures that wait to be sent."""

    told: dict[str, Any]
    """Of the world, when it was as the pictures show it."""
    pictures: list[list[bytes]]
    input: int
    """Number of the newest input that had a part in it."""
    arrived: float | None
    """When the oldest of the inputs came that nothing sent has shown yet, on the loop's clock."""
    milliseconds: float
    """What imagining and encoding took."""


class Visitor:
    """A session: what a page is shown and may ask for.

    Args:
        world: the visitor's own.
        worker: where all worlds are imagined, one step at a time.
        out: folder of what is saved.
        name: of this visitor's files.
        seed: of the first start.
        idle_seconds: a visitor who has done nothing for so long has left.
    """

    def __init__(
        self, world: PlayWorld, worker: Executor, *, out: Path, name: str, seed: int = 0, idle_seconds: float = 600.0
    ) -> None:
        self.world, self.controls, self.playing = world, Controls(world.modality), True
        self.token = secrets.token_urlsafe(16)
        self.files: dict[str, Path] = {}
        """Name -> what this visitor may download."""
        self.dropped = 0
        """Chunks that were never sent, because newer ones had come."""
        self.latencies: deque[float] = deque(maxlen=_LATENCIES)
        """Milliseconds from an input's arrival to its first picture's departure."""
        self._worker, self._out, self._name, self._seed = worker, out, name, seed
        self._idle_seconds, self._saves = idle_seconds, 0
        self._orders: deque[Callable[[], Awaitable[None]]] = deque()
        self._news: deque[dict[str, Any]] = deque(maxlen=MAX_ORDERS)
        self._chunk: Chunk | None = None
        self._sent = self._seen = self._acted = 0
        self._called, self._unsent = asyncio.Event(), asyncio.Event()
        self._unacted: float | None = None
        self._touched = self._due = asyncio.get_running_loop().time()
        self._hurried = -math.inf

    # 1. What comes in

    def receive(self, text: str) -> None:
        """Take one message of the page.

        Raises:
            ValueError: it is none that is known.
        """
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError("A message was no JSON, expected an object with a type.") from None
        kind = message.get("type") if isinstance(message, dict) else None
        if kind == "seen":
            self._seen = min(max(self._seen, field(message, "number", int)), self._sent)
            self._unsent.set()
            return
        self._touched = asyncio.get_running_loop().time()
        if kind == "input":
            pressed = self.controls.receive(message)
            self._unacted = self._unacted or (self._touched if self.playing else None)
            if pressed and self._touched - self._hurried >= self.world.chunk_seconds:
                self._hurried = self._due = self._touched  # the rest of what is being shown is skipped
                self._called.set()
        elif kind in ORDERS:
            ORDERS[kind](self, message)
        else:
            raise ValueError(f"A message has the type {kind!r}, expected input, seen or one of {sorted(ORDERS)}.")

    def order(self, change: Callable[[], Any]) -> None:
        """Let the worker change the world; then the page is shown what has become of it."""

        async def carry_out() -> None:
            await self._show(change)

        self._queue(carry_out)

    def order_step(self, number: int) -> None:
        """One step under what is held now; number is that of the order among the inputs."""
        began = asyncio.get_running_loop().time()

        async def carry_out() -> None:
            self.controls.newest, self._unacted = max(self.controls.newest, number), began
            await self._step()

        self._queue(carry_out)

    def order_save(self) -> None:
        """Write what is recorded, beside the worlds' own work, and tell the page where it is."""
        self._saves += 1
        path = self._out / f"{self._name}-{self._saves}"

        async def carry_out() -> None:
            saved: Saved = await asyncio.to_thread(self.world.save, path)
            await self._show(lambda: None)  # pictures that come after the news know of it
            self.files |= {file.name: file for file in (saved.archive, saved.rerun)}
            links = [{"name": name, "url": f"files/{self.token}/{name}"} for name in self.files]
            self.tell({"type": "saved", "folder": str(path.parent.resolve()), "files": links})

        self._queue(carry_out)

    def play(self, on: bool) -> None:
        """Let time run, or stand still."""
        self.playing, self._unacted = on, None
        self.order(lambda: None)

    def _queue(self, order: Callable[[], Awaitable[None]]) -> None:
        if len(self._orders) >= MAX_ORDERS:
            raise ValueError(f"{MAX_ORDERS} orders wait already; wait a moment.")
        self._orders.append(order)
        self._called.set()

    # 2. The world's time

    async def live(self) -> None:
        """Carry out orders and let time run, until the visitor has been away for too long.

        A key that is pressed does not wait for the next step's turn: it begins at once, though only once in the time of
        a step, so that nobody makes the world run much faster.
        """
        loop, period = asyncio.get_running_loop(), self.world.chunk_seconds
        await self._carry_out(lambda: self._show(lambda: self.world.reset(self._seed)))
        while (left := self._touched + self._idle_seconds - loop.time()) > 0:
            if self._orders:
                await self._carry_out(self._orders.popleft())
            elif self.playing and loop.time() >= self._due:
                self._due = max(self._due, loop.time() - period) + period  # late by less than a step, it catches up
                await self._carry_out(self._step)
            else:
                self._called.clear()
                wait = min(left, self._due - loop.time()) if self.playing else left
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._called.wait(), max(0.0, wait))
        self.end(f"You did nothing for {self._idle_seconds:g} s, so this world has ended; reload the page.")

    async def _carry_out(self, order: Callable[[], Awaitable[None]]) -> None:
        """Do it; what cannot be done is told, and time stands still."""
        try:
            await order()
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            self.playing = False
            self.problem(str(error))
            await self._show(lambda: None)

    async def _step(self) -> None:
        action, arrived = self.controls.action(), self._unacted
        self._acted, self._unacted = self.controls.newest, None
        decide = self.world.decide  # in a thread of its own where it may take long, so that others go on
        given = await asyncio.to_thread(decide, action) if self.world.led else decide(action)
        await self._show(lambda: self.world.advance(given), arrived)

    async def _show(self, change: Callable[[], Any], arrived: float | None = None) -> None:
        """Change the world in the worker; what it shows then is to be sent next, instead of what still waits."""

        def work() -> tuple[dict[str, Any], list[list[bytes]], float]:
            began = time.perf_counter()
            change()
            frames = [branch.timeline.now.info["frames"] for branch in self.world.branches]
            pictures = [encode_pictures(chunk) for chunk in frames]
            world = self.world
            told = {"seed": world.seed, "branches": world.told(), "recording": world.recorded()}
            return told, pictures, 1000 * (time.perf_counter() - began)

        told, pictures, spent = await asyncio.get_running_loop().run_in_executor(self._worker, work)
        waiting = self._chunk
        if waiting is not None:
            self.dropped += 1
            arrived = arrived if waiting.arrived is None else waiting.arrived
        self._chunk = Chunk(told, pictures, self._acted, arrived, spent)
        self._unsent.set()

    # 3. What goes out

    async def deliver(
        self, send_text: Callable[[str], Awaitable[None]], send_bytes: Callable[[bytes], Awaitable[None]]
    ) -> None:
        """Send news, and the newest chunk whenever fewer than `IN_FLIGHT` are on their way.

        Raises:
            TimeoutError: the page takes nothing.
        """
        while True:
            await self._unsent.wait()
            self._unsent.clear()
            while self._news:
                await asyncio.wait_for(send_text(json.dumps(self._news.popleft())), SEND_SECONDS)
            chunk = self._chunk
            if chunk is not None and self._sent - self._seen < IN_FLIGHT:
                self._chunk, self._sent = None, self._sent + 1
                await asyncio.wait_for(send_bytes(self._packed(chunk)), SEND_SECONDS)
                if chunk.arrived is not None:
                    self.latencies.append(1000 * (asyncio.get_running_loop().time() - chunk.arrived))

    def _packed(self, chunk: Chunk) -> bytes:
        late = list(self.latencies)
        header = {
            "number": self._sent,
            "input": chunk.input,
            "playing": self.playing,
            "settings": self.controls.settings.tolist(),
            "milliseconds": round(chunk.milliseconds, 1),
            "latency": [round(float(value), 1) for value in np.percentile(late, (50, 95))] if late else None,
            "dropped": self.dropped,
            **chunk.told,
        }
        return pack(header, chunk.pictures)

    def tell(self, news: dict[str, Any]) -> None:
        """Let the page know something that is no picture."""
        self._news.append(news)
        self._unsent.set()

    def problem(self, text: str) -> None:
        """Tell the visitor in a sentence what is wrong."""
        self.tell({"type": "problem", "text": text})

    def end(self, text: str) -> None:
        """Tell the visitor in a sentence why the connection is about to end."""
        self.tell({"type": "end", "text": text})

    def hello(self) -> dict[str, Any]:
        """What a page has to know before the first picture."""
        world = self.world
        height, width = world.env.world_model.frame_size
        return {
            "type": "hello",
            "token": self.token,
            "environment": world.env.environment,
            "description": ENVIRONMENTS[world.env.environment].description,
            "modality": {**world.modality.to_json(), "absolute": list(world.modality.absolute)},
            "mouse": sorted(world.modality.mouse),
            "legend": self.controls.legend(),
            "key_share": KEY_SHARES.get(world.modality.name, 1.0),
            "discrete": world.choices is not None,
            "players": list(world.makers),
            "chunk_seconds": world.chunk_seconds,
            "frame_size": [width, height],
            "reads_text": world.reads_text,
            "limits": {"upload": MAX_UPLOAD, "prompt": MAX_PROMPT},
        }
