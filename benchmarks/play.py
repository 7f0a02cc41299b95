"""How long it takes from a key to its picture in `astra-env play`: the real server, over loopback, on this machine.

A client without a screen presses keys at random times and waits for the first picture that they have had a part in,
as a page does. Where a Chromium is there, the page's own measurement is taken too, from the key's event to the picture
on its canvas. The server is a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import cv2
import numpy as np

from astra_env.play.packets import unpack
from astra_env.writing import write_json
from benchmarks.browser import find_browser, open_page
from benchmarks.runtime import machine, resident_mb
from benchmarks.writing import number, rounded, table

IDS = ("Astra-RT1-v0", "Astra-NuScenes-v0", "Astra-Sekai-v0")
KEY = "a"
_START_SECONDS, _ANSWER_SECONDS = 120.0, 60.0
_LATENCY = "document.getElementById('latency-page').textContent"


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    presses: int = 100
    page_presses: int = 60
    visitors: tuple[int, ...] = (2, 4)  # at once, beside one alone
    streamed_steps: int = 10_000
    memory_points: int = 10


QUICK = Sizes(presses=5, page_presses=4, visitors=(2,), streamed_steps=40, memory_points=2)


def play(out: Path, sizes: Sizes | None = None, world_model: str = "astra-tiny") -> dict[str, Any]:
    """Measure and write the figures as JSON."""
    sizes = sizes or Sizes()
    measured = {**asyncio.run(_latencies(sizes, world_model)), **asyncio.run(_memory(sizes, world_model))}
    results = rounded({**asdict(sizes), "machine": machine(), **measured})
    write_json(out, results)
    return results


async def _latencies(sizes: Sizes, world_model: str) -> dict[str, Any]:
    """Key to picture, with what else the processor does meanwhile: the mean number of running programs, these too."""
    told: dict[str, Any] = {}
    for environment in IDS:
        async with _server(environment, world_model) as (address, _):
            told[environment] = await _one_visitor(address, sizes)
    visitors = {}
    async with _server(IDS[1], world_model) as (address, _):
        for count in sizes.visitors:
            visitors[str(count)] = await _several(address, count, sizes.presses)
    several = {"environment": IDS[1], "visitors": visitors}
    return {"key_to_picture": told, "several": several, "running_programs": os.getloadavg()[1]}


async def _memory(sizes: Sizes, world_model: str) -> dict[str, Any]:
    async with _server(IDS[1], world_model) as (address, process):
        return {"memory": await _stream(address, process, sizes)}


@contextlib.asynccontextmanager
async def _server(environment: str, world_model: str) -> AsyncIterator[tuple[str, int]]:
    """The address and the process of `astra-env play`."""
    program = "from astra_env.cli import main; main()"
    command = ("-c", program, "play", environment, "--port", "0", "--world-model", world_model)
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), _START_SECONDS)).decode()
        found = re.search(r"http://\S+", line)
        if found is None:
            raise RuntimeError(f"astra-env play said {line!r}, expected its address.")
        yield found.group(), process.pid
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


class Client:
    """A page without a screen."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, seed: int = 0) -> None:
        self.socket, self.inputs = socket, 0
        self.header: dict[str, Any] = {}
        self.rng = np.random.default_rng(seed)

    async def receive(self) -> None:
        """The next pictures, of which the first is decoded."""
        while True:
            message = await self.socket.receive(timeout=_ANSWER_SECONDS)
            if message.type is aiohttp.WSMsgType.BINARY:
                self.header, pictures = unpack(message.data)
                cv2.imdecode(np.frombuffer(pictures[0][0], np.uint8), cv2.IMREAD_COLOR)
                await self.socket.send_json({"type": "seen", "number": self.header["number"]})
                return
            if message.type is not aiohttp.WSMsgType.TEXT:
                raise ConnectionError(f"The server has closed the connection: {message}.")

    async def send(self, kind: str, **entries: Any) -> None:
        """One message that is numbered as an input."""
        self.inputs += 1
        await self.socket.send_json({"type": kind, "id": self.inputs, **entries})

    async def answered(self) -> float:
        """Milliseconds from now to the first picture that all messages so far have had a part in."""
        began = time.perf_counter()
        while self.header.get("input", -1) < self.inputs:
            await self.receive()
        return 1000 * (time.perf_counter() - began)

    async def press(self) -> float:
        """Milliseconds from a key that goes down, after a random pause, to its first picture."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.rng.uniform(0.3, 0.7)):
                while True:
                    await self.receive()
        await self.send("input", keys={KEY: 1})
        milliseconds = await self.answered()
        await self.send("input", keys={})
        return milliseconds

    async def single_step(self) -> float:
        """Milliseconds from the order of a single step to its first picture, while time stands still."""
        await self.send("step")
        return await self.answered()


@contextlib.asynccontextmanager
async def _client(address: str, seed: int = 0) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{address}socket") as socket:
        client = Client(socket, seed)
        for _ in range(3):  # the first pictures warm up
            await client.receive()
        yield client


async def _one_visitor(address: str, sizes: Sizes) -> dict[str, Any]:
    """Key to picture while time runs; order to picture of a single step; and what a page in a browser measures."""
    async with _client(address) as client:
        running = [await client.press() for _ in range(sizes.presses)]
        await client.send("play", on=False)
        stepping = [await client.single_step() for _ in range(sizes.presses)]
    told = {"running": _percentiles(running), "single_step": _percentiles(stepping), "page": None}
    if find_browser() is not None:
        told["page"] = await _page(address, sizes.page_presses)
    return told


async def _page(address: str, presses: int) -> dict[str, Any]:
    """What a page says after so many presses."""
    rng = np.random.default_rng(0)
    async with open_page(address) as page:
        await page.wait_for("document.getElementById('clock').textContent.includes('step 3')")
        for count in range(1, presses + 1):
            await asyncio.sleep(rng.uniform(0.3, 0.7))
            await page.press(KEY)
            await page.wait_for(f"{_LATENCY}.endsWith('({count})')")
            await page.release(KEY)
        p50, p95, count = map(int, re.findall(r"(\d+)(?= ms|\))", await page.evaluate(_LATENCY)))
    return {"p50": p50, "p95": p95, "n": count}


async def _several(address: str, count: int, presses: int) -> dict[str, Any]:
    """Key to picture for visitors who play at once, and how much of the time of their worlds has passed in a second."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(_client(address, seed)) for seed in range(count)]
        began, before = time.perf_counter(), [_seconds(client) for client in clients]
        share = -(-presses // count)

        async def keep_on(client: Client) -> list[float]:
            return [await client.press() for _ in range(share)]

        times = await asyncio.gather(*map(keep_on, clients))
        spent = time.perf_counter() - began
    passed = [_seconds(client) - start for client, start in zip(clients, before, strict=True)]
    return {**_percentiles([value for entry in times for value in entry]), "pace": min(passed) / spent}


def _seconds(client: Client) -> float:
    return float(client.header["branches"][0]["seconds"])


async def _stream(address: str, process: int, sizes: Sizes) -> dict[str, Any]:
    """Memory of the server in MB while one visitor is sent so many steps, as fast as they come."""
    every = sizes.streamed_steps // sizes.memory_points
    megabytes = []
    async with _client(address) as client:
        await client.send("play", on=False)
        began = time.perf_counter()
        for step in range(1, sizes.streamed_steps + 1):
            await client.single_step()
            if step % every == 0:
                megabytes.append({"steps": step, "mb": resident_mb(process)})
        spent = time.perf_counter() - began
    return {"steps": sizes.streamed_steps, "steps_per_s": sizes.streamed_steps / spent, "resident": megabytes}


def _percentiles(milliseconds: list[float]) -> dict[str, Any]:
    p50, p95 = np.percentile(milliseconds, (50, 95)).tolist()
    return {"p50": p50, "p95": p95, "n": len(milliseconds)}


def render_play(results: dict[str, Any]) -> str:
    """The figures as Markdown."""

    def both(entry: dict[str, Any] | None) -> str:
        return "–" if entry is None else f"{number(entry['p50'], 0)} / {number(entry['p95'], 0)}"

    rows = [
        [f"`{name}`", *(both(entry[kind]) for kind in ("page", "running", "single_step"))]
        for name, entry in results["key_to_picture"].items()
    ]
    several = results["several"]
    rows += [
        [f"`{several['environment']}`, {count} visitors at once", "–", both(entry), "–"]
        for count, entry in several["visitors"].items()
    ]
    header = [
        f"key to picture: median / 95th of {results['presses']}, ms",
        f"page in Chromium (of {results['page_presses']})",
        "client without a screen",
        "single step",
    ]
    resident = results["memory"]["resident"]
    first, last = resident[0], resident[-1]
    memory = (
        f"The server holds {number(first['mb'], 0)} MB after {first['steps']:,} streamed steps and "
        f"{number(last['mb'], 0)} MB after {last['steps']:,}."
    )
    return f"{table(header, rows)}\n\n{memory}"
