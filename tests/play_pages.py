"""Pages without a screen, and a server for them, for the tests of `astra-env play`."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json

import aiohttp
from aiohttp.test_utils import TestClient, TestServer

from astra_env.play.packets import unpack
from astra_env.play.server import PlayConfig, PlayServer, serve

CAR = "Astra-NuScenes-v0"


def file_of(picture, kind: str = "PNG", **options) -> bytes:
    """A picture of Pillow as the content of a file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


class Page:
    """A page without a screen: acknowledges pictures as they come, unless it is slow."""

    def __init__(self, websocket, *, slow: bool = False) -> None:
        self.websocket, self.slow, self.inputs = websocket, slow, 0
        self.chunks, self.news = [], []

    async def ask(self, kind: str, **entries) -> None:
        await self.websocket.send_json({"type": kind, **entries})

    async def receive(self) -> None:
        message = await self.websocket.receive(timeout=20)
        if message.type is aiohttp.WSMsgType.BINARY:
            self.chunks.append(unpack(message.data))
            if not self.slow:
                await self.ask("seen", number=self.header["number"])
        elif message.type is aiohttp.WSMsgType.TEXT:
            self.news.append(json.loads(message.data))
        else:
            raise ConnectionError(f"closed with {message}")

    @property
    def header(self) -> dict:
        return self.chunks[-1][0]

    @property
    def told(self) -> dict:
        return self.header["branches"][0]

    async def until(self, condition) -> None:
        while not (self.chunks and condition()):
            await self.receive()

    async def heard(self, kind: str) -> dict:
        while not (found := [news for news in self.news if news["type"] == kind]):
            await self.receive()
        self.news.remove(found[0])
        return found[0]

    async def ended(self) -> None:
        """Until the server closes the connection."""
        with contextlib.suppress(ConnectionError):
            while True:
                await self.receive()

    async def stand_still(self) -> None:
        """Paused at the start, with nothing on its way."""
        await self.ask("play", on=False)
        await self.ask("go", to=0)
        await self.until(lambda: not self.header["playing"] and self.told["step"] == 0)

    async def step(self, **keys: float) -> dict:
        """One step under keys; what is told of it."""
        self.inputs += 2
        before = self.told["step"]
        await self.ask("input", id=self.inputs - 1, keys=keys)
        await self.ask("step", id=self.inputs)
        await self.until(lambda: self.told["step"] == before + 1 and self.header["input"] == self.inputs)
        return self.told


@contextlib.asynccontextmanager
async def serving(config: PlayConfig, host: str = "127.0.0.1"):
    """The address of a server; OSError where it cannot listen."""
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    server = asyncio.create_task(serve(config, host, port=0, announce=address.set_result))
    try:
        await asyncio.wait([server, address], return_when=asyncio.FIRST_COMPLETED)
        yield address.result() if address.done() else await server
    finally:
        server.cancel()
        await asyncio.gather(server, return_exceptions=True)


def run_scenario(scenario, config: PlayConfig) -> None:
    """Run an async function of a client and of a function that opens pages, against a server."""

    async def go() -> None:
        server = PlayServer(config)
        async with TestClient(TestServer(server.application())) as client, contextlib.AsyncExitStack() as stack:

            async def open_page(**how) -> Page:
                return Page(await stack.enter_async_context(client.ws_connect("/socket")), **how)

            await asyncio.wait_for(scenario(client, open_page), 60)

    asyncio.run(go())
