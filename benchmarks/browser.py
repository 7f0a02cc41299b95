"""A headless Chromium that a program looks at pages with, by the DevTools protocol over its WebSocket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-quic",
)
_START_SECONDS, _ANSWER_SECONDS = 60.0, 30.0
_CODES = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, " ": 32, ".": 190, ",": 188}


def find_browser() -> str | None:
    """Path of a Chromium, or None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Page:
    """One page of a browser; `open_page` makes it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._numbers = socket, itertools.count(1)

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol.

        Raises:
            RuntimeError: with what the browser says of a failure.
            ConnectionError: it has ended.
        """
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:  # events come in between
            message = await self._socket.receive(timeout=_ANSWER_SECONDS)
            if message.type is not aiohttp.WSMsgType.TEXT:
                raise ConnectionError(f"The browser has ended before it answered {method}.")
            answer = json.loads(message.data)
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method} failed: {answer['error']['message']}")
                return answer["result"]

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited where it is a promise."""
        told = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise RuntimeError(f"{expression} failed: {told['exceptionDetails']}")
        return told["result"].get("value")

    async def wait_for(self, expression: str, seconds: float = 30.0) -> Any:
        """The value of an expression once it is true; TimeoutError if it does not become so."""
        async with asyncio.timeout(seconds):
            while not (value := await self.evaluate(expression)):
                await asyncio.sleep(0.05)
        return value

    async def press(self, key: str) -> None:
        """A key goes down, as `KeyboardEvent.key` calls it, and stays there."""
        await self._key("rawKeyDown", key)

    async def release(self, key: str) -> None:
        """It comes up again."""
        await self._key("keyUp", key)

    async def _key(self, kind: str, key: str) -> None:
        code = _CODES.get(key, ord(key[0].upper()))
        name = f"Key{key.upper()}" if len(key) == 1 and key.isalpha() else key
        await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=name, windowsVirtualKeyCode=code)

    async def screenshot(self, path: Path) -> None:
        """Write what is seen as PNG."""
        told = await self.call("Page.captureScreenshot", format="png")
        partial = path.with_name("partial-" + path.name)
        partial.write_bytes(base64.b64decode(told["data"]))
        partial.replace(path)


@contextlib.asynccontextmanager
async def open_page(address: str, size: tuple[int, int] = (1280, 720)) -> AsyncIterator[Page]:
    """A page in a fresh browser with a window of that many pixels.

    Raises:
        FileNotFoundError: there is no browser.
        RuntimeError: it does not start.
    """
    browser = find_browser()
    if browser is None:
        raise FileNotFoundError(f"There is no browser; install one of {NAMES}.")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            *(browser, *_FLAGS, f"--window-size={size[0]},{size[1]}", f"--user-data-dir={profile}", "about:blank"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            port = await _port(Path(profile) / "DevToolsActivePort", process)
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    pages = [entry for entry in await answer.json(content_type=None) if entry["type"] == "page"]
                async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    page = Page(socket)
                    width, height = size
                    await page.call(
                        "Emulation.setDeviceMetricsOverride",
                        width=width,
                        height=height,
                        deviceScaleFactor=1,
                        mobile=False,
                    )
                    await page.call("Page.navigate", url=address)
                    await page.wait_for("location.href !== 'about:blank' && document.readyState === 'complete'")
                    yield page
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _port(file: Path, process: asyncio.subprocess.Process) -> int:
    """The port that the browser writes down once it listens; RuntimeError where it ends before."""
    async with asyncio.timeout(_START_SECONDS):
        while not file.is_file() or not file.read_text().strip():
            if process.returncode is not None:
                raise RuntimeError(f"The browser has ended with code {process.returncode} before it showed a page.")
            await asyncio.sleep(0.05)
    return int(file.read_text().split()[0])
