"""The server of `astra-env play`: a page, a WebSocket for each visitor, uploads and downloads."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

try:
    from aiohttp import WSMsgType, web
except ImportError as error:
    raise ImportError("astra-env play needs the package aiohttp; install it with: pip install '.[play]'") from error

from astra_env.play.orders import check_seed
from astra_env.play.packets import MAX_UPLOAD, read_upload
from astra_env.play.players import RANDOM
from astra_env.play.visitor import Visitor
from astra_env.play.world import PlayWorld

PAGE = Path(__file__).with_name("page")
MAX_MESSAGE = 16 * 1024
"""Bytes of one message of a page; pictures are uploaded otherwise."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_LOG = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class PlayConfig:
    """What is played, by how many, and where what they save goes."""

    environment: str
    """A key of `ENVIRONMENTS`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of `gymnasium.make`."""
    players: tuple[str, ...] = ()
    """Policies, as `find_player` knows them, beside "random"."""
    out: str = "outputs/play"
    seed: int = 0
    """Of each visitor's first start."""
    max_visitors: int = 8
    idle_seconds: float = 600.0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.max_visitors < 1:
            raise ValueError(f"{self.max_visitors} visitors may play at once, expected 1 or more.")


class PlayServer:
    """Visitors with a world each; one thread imagines for all of them in turn, so that they share one model.

    Args:
        config: see `PlayConfig`.
        host: the name or address under which it is reached, besides localhost and plain addresses.
    """

    def __init__(self, config: PlayConfig, host: str = "127.0.0.1") -> None:
        self.config, self.host = config, host
        self.visitors: dict[str, Visitor] = {}
        self._worker = ThreadPoolExecutor(1, "imagination")
        self._present = self._welcomed = 0

    def application(self) -> web.Application:
        """The routes; the worker ends when the application is cleaned up."""
        application = web.Application(middlewares=[self._guard], client_max_size=MAX_UPLOAD)
        application.router.add_get("/", _index)
        application.router.add_get("/socket", self._socket)
        application.router.add_post("/image/{token}", self._image)
        application.router.add_get("/files/{token}/{name}", self._file)
        application.router.add_static("/page", PAGE)

        async def close(_: web.Application) -> None:
            self._worker.shutdown(cancel_futures=True)

        application.on_cleanup.append(close)
        return application

    # 1. Who may come in

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Pages of other sites get nothing: neither under a name that they lead here, nor from their own origin."""
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        if not self._known(host):
            raise web.HTTPForbidden(text=f"This server is not {host}; open it by its address or as localhost.")
        if origin is not None and urlsplit(origin).netloc != host:
            raise web.HTTPForbidden(text=f"Pages of {origin} may not use this server.")
        try:
            response = await handler(request)
        except web.HTTPException as refused:
            refused.headers.update(HEADERS)
            raise
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    def _known(self, host: str) -> bool:
        """Whether a Host header names this server in a way that no other site's name can."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in ("localhost", self.host.lower()):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    # 2. Visitors

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=MAX_MESSAGE, heartbeat=20, compress=False)
        await socket.prepare(request)
        async with self._welcome(socket) as visitor:
            if visitor is not None:
                await self._serve(socket, visitor)
        await socket.close()
        return socket

    @contextlib.asynccontextmanager
    async def _welcome(self, socket: web.WebSocketResponse) -> AsyncIterator[Visitor | None]:
        """A new visitor, or None where there is no room; it is forgotten at the end."""
        if self._present >= self.config.max_visitors:
            text = f"{self._present} visitors are here already, which is all that this server takes; come back later."
            await socket.send_str(json.dumps({"type": "end", "text": text}))
            yield None
            return
        self._present += 1
        self._welcomed += 1
        config, name = self.config, f"{self.config.environment}-{time.strftime('%Y%m%d-%H%M%S')}-{self._welcomed}"
        try:
            players = dict.fromkeys((RANDOM, *config.players))
            world = await asyncio.get_running_loop().run_in_executor(
                self._worker, lambda: PlayWorld(config.environment, tuple(players), **config.options)
            )
            visitor = Visitor(
                world,
                self._worker,
                out=Path(config.out),
                name=name,
                seed=config.seed,
                idle_seconds=config.idle_seconds,
            )
            self.visitors[visitor.token] = visitor
            try:
                yield visitor
            finally:
                del self.visitors[visitor.token]
        finally:
            self._present -= 1

    async def _serve(self, socket: web.WebSocketResponse, visitor: Visitor) -> None:
        """Until the page leaves, the visitor has been away for too long, or something breaks."""
        visitor.tell(visitor.hello())
        listening, living, delivering = tasks = [
            asyncio.create_task(_listen(socket, visitor)),
            asyncio.create_task(visitor.live()),
            asyncio.create_task(visitor.deliver(socket.send_str, socket.send_bytes)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if living.done() and not living.cancelled() and living.exception() is not None:
                _LOG.error("A visitor's world has broken.", exc_info=living.exception())
                visitor.end(f"The world has broken: {living.exception()!r}; reload the page.")
            if living.done() and not delivering.done():
                await asyncio.wait([listening, delivering], timeout=1, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _visitor(self, request: web.Request) -> Visitor:
        visitor = self.visitors.get(request.match_info["token"])
        if visitor is None:
            raise web.HTTPNotFound(text="That visit is over; reload the page.")
        return visitor

    # 3. Uploads and downloads

    async def _image(self, request: web.Request) -> web.Response:
        """Start anew from a picture: the whole body is the file."""
        visitor = self._visitor(request)
        try:
            content = await request.read()
            image = await asyncio.to_thread(read_upload, content)
            visitor.order(lambda: visitor.world.reset(visitor.world.seed, {"image": image}))
        except web.HTTPRequestEntityTooLarge:
            limit = MAX_UPLOAD // 2**20
            return web.Response(status=413, text=f"The picture is too large, expected {limit} MB at most.")
        except ValueError as error:
            return web.Response(status=400, text=str(error))
        return web.Response(text="")

    async def _file(self, request: web.Request) -> web.FileResponse:
        name = request.match_info["name"]
        path = self._visitor(request).files.get(name)
        if path is None:
            raise web.HTTPNotFound(text=f"There is no file {name} of this visit.")
        return web.FileResponse(path, headers={"Content-Disposition": f'attachment; filename="{name}"'})


async def _index(request: web.Request) -> web.FileResponse:
    return web.FileResponse(PAGE / "index.html")


async def _listen(socket: web.WebSocketResponse, visitor: Visitor) -> None:
    """Hand a page's messages to its visitor; what is wrong with one is told."""
    async for message in socket:
        try:
            if message.type is not WSMsgType.TEXT:
                raise ValueError("A message was no text, expected JSON; pictures are uploaded otherwise.")
            visitor.receive(message.data)
        except ValueError as error:
            visitor.problem(str(error))


async def serve(
    config: PlayConfig, host: str = "127.0.0.1", port: int = 8000, announce: Callable[[str], None] = _LOG.info
) -> None:
    """Serve until cancelled.

    Args:
        config: what is played.
        host: the name or address to be reached under.
        port: 0 for any that is free.
        announce: is told the address once pages can be opened.

    Raises:
        OSError: nothing can listen there.
        ValueError: there is no such port.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"The port is {port}, expected 0 to {2**16 - 1}.")
    runner = web.AppRunner(PlayServer(config, host).application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise OSError(
                    f"Nothing can listen at {host}:{port} ({error.strerror}); choose another --host."
                ) from None
            raise OSError(f"Port {port} of {host} is in use; choose another with --port, 0 for any.") from None
        name = f"[{host}]" if ":" in host else host
        announce(f"http://{name}:{runner.addresses[0][1]}/")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
