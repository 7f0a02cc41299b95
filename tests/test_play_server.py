"""The server of `astra-env play` over real sockets: what pages may ask for, and what they do not do to each other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import zipfile

import aiohttp
import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image
from test_play import file_of

from astra_env.cli import main
from astra_env.datasets import load_dataset
from astra_env.play import visitor as visitors
from astra_env.play.packets import MAX_UPLOAD, encode_pictures, unpack
from astra_env.play.server import PlayConfig, PlayServer
from astra_env.play.world import PlayWorld

CAR = "Astra-NuScenes-v0"


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


@pytest.fixture
def run(checkpoint, tmp_path):
    """Runs a scenario, an async function of a client and of a function that opens pages, against a server."""

    def run_scenario(scenario, environment: str = CAR, **config) -> None:
        async def go() -> None:
            options = {"world_model": checkpoint, "device": "cpu"}
            server = PlayServer(PlayConfig(environment, options, out=str(tmp_path / "out"), **config))
            async with TestClient(TestServer(server.application())) as client, contextlib.AsyncExitStack() as stack:

                async def open_page(**how) -> Page:
                    return Page(await stack.enter_async_context(client.ws_connect("/socket")), **how)

                await asyncio.wait_for(scenario(client, open_page), 60)

        asyncio.run(go())

    return run_scenario


def test_a_page_is_told_all_it_needs_and_shown_what_its_keys_do(run):
    async def scenario(client, open_page):
        page = await open_page()
        hello = await page.heard("hello")
        assert (hello["environment"], hello["chunk_seconds"], hello["discrete"]) == (CAR, 0.2, False)
        assert hello["modality"]["units"] == ["rad", "m/s^2"] and hello["legend"] and hello["players"] == ["random"]
        await page.ask("input", id=5, keys={"w": 1, "left": 1})
        await page.until(lambda: page.header["input"] == 5)
        np.testing.assert_allclose(page.told["action"], [0.6, 3.0], atol=1e-6)
        await page.until(lambda: page.told["heading"] > 20)
        (pictures,) = page.chunks[-1][1]
        assert len(pictures) == 4 and all(file[:2] == b"\xff\xd8" for file in pictures)
        assert len(page.header["latency"]) == 2

    run(scenario)


def test_time_stands_still_goes_on_and_back(run):
    async def scenario(client, open_page):
        page = await open_page()
        await page.stand_still()
        first = await page.step(left=1)
        pictures = page.chunks[-1][1]
        assert first["step"] == 1
        await page.step()
        await page.ask("go", to=0)
        await page.until(lambda: page.told["step"] == 0)
        assert page.told["newest"] == 2 and await page.step(left=1) == first and page.chunks[-1][1] == pictures
        await page.ask("reset", seed=4)
        await page.until(lambda: page.header["seed"] == 4)
        assert page.told["step"] == 0
        await page.ask("play", on=True)
        await page.until(lambda: page.told["step"] >= 2)

    run(scenario)


def test_forks_are_shown_beside_each_other(run):
    async def scenario(client, open_page):
        page = await open_page()
        await page.stand_still()
        await page.step(left=1)
        await page.ask("fork", by="held", other_noise=False)
        await page.until(lambda: len(page.header["branches"]) == 2)
        await page.step(right=1)
        left, right = page.header["branches"]
        assert left["action"][0] == -right["action"][0] and len(page.chunks[-1][1]) == 2
        await page.ask("choose", branch=1, by="you")
        await page.until(lambda: page.header["branches"][1]["by"] == "you")
        await page.ask("join", keep=1)
        await page.until(lambda: len(page.header["branches"]) == 1)
        assert page.told["heading"] == right["heading"]

    run(scenario)


def test_a_slow_page_gets_the_newest_pictures_and_stalls_nothing(run, monkeypatch):
    monkeypatch.setattr(PlayWorld, "chunk_seconds", 0.02)

    async def scenario(client, open_page):
        slow, quick = await open_page(slow=True), await open_page()
        while len(slow.chunks) < visitors.IN_FLIGHT:
            await slow.receive()
        await quick.until(lambda: quick.told["step"] >= 30)
        with pytest.raises(TimeoutError):
            await slow.websocket.receive(timeout=0.2)
        await slow.ask("seen", number=slow.header["number"])
        await slow.receive()
        assert slow.told["step"] > 20 and slow.header["dropped"] > 15
        assert slow.header["number"] == visitors.IN_FLIGHT + 1

    run(scenario)


def test_a_pressed_key_does_not_wait_for_its_turn(run, monkeypatch):
    monkeypatch.setattr(PlayWorld, "chunk_seconds", 3.0)

    async def scenario(client, open_page):
        page = await open_page()
        await page.until(lambda: page.told["step"] >= 0)
        await asyncio.sleep(0.2)
        await page.ask("input", id=1, keys={"a": 1})
        await page.until(lambda: page.header["input"] == 1)
        assert page.header["latency"] is None and page.told["action"][0] > 0
        step = page.told["step"]
        for number in range(2, 12):  # who drums on the keys does not make time run faster
            await page.ask("input", id=number, keys={"d": number % 2})
        with pytest.raises(TimeoutError):
            await page.websocket.receive(timeout=0.5)
        assert page.told["step"] == step

    run(scenario)


def test_visitors_do_not_disturb_each_other(run, checkpoint):
    alone = PlayWorld(CAR, world_model=checkpoint, device="cpu")
    alone.reset(3)

    async def scenario(client, open_page):
        pages = [await open_page() for _ in range(2)]
        for page in pages:
            await page.stand_still()
        for _ in range(3):
            await asyncio.gather(pages[0].step(), pages[1].step(left=1))
            alone.step(np.zeros(2, np.float32))
        assert pages[0].chunks[-1][1] == [encode_pictures(alone.main.now.info["frames"])]
        assert pages[0].told["heading"] == 0 < pages[1].told["heading"]
        await pages[1].websocket.close()
        assert (await pages[0].step())["step"] == 4

    run(scenario, seed=3)


def test_there_is_room_for_so_many_and_who_is_away_leaves(run):
    async def scenario(client, open_page):
        page = await open_page()
        await page.heard("hello")
        late = await open_page()
        assert "1 visitors are here already" in (await late.heard("problem"))["text"]
        assert "did nothing for 0.5 s" in (await page.heard("problem"))["text"]
        await page.ended()
        assert (await client.get("/files/gone/x.rrd")).status == 404
        await (await open_page()).heard("hello")

    run(scenario, max_visitors=1, idle_seconds=0.5)


def test_a_picture_of_ones_own_is_a_start(run):
    async def scenario(client, open_page):
        page = await open_page()
        hello = await page.heard("hello")
        await page.stand_still()
        for content, status, told in (
            (b"no picture", 400, "no picture that can be read"),
            (bytes(MAX_UPLOAD + 1), 413, "too large, expected 8 MB"),
        ):
            answer = await client.post(f"/image/{hello['token']}", data=content)
            assert answer.status == status and told in await answer.text()
        answer = await client.post(f"/image/{hello['token']}", data=file_of(Image.new("RGB", (90, 60), (240, 20, 20))))
        before = page.chunks[-1][1]
        assert answer.status == 200
        await page.until(lambda: page.chunks[-1][1] != before)
        small = await client.post(f"/image/{hello['token']}", data=file_of(Image.new("RGB", (9, 9))))
        assert small.status == 200 and "at least 32, 32" in (await page.heard("problem"))["text"]
        assert (await page.step(left=1))["step"] == 1

    run(scenario)


def test_what_is_recorded_can_be_downloaded(run, tmp_path):
    async def scenario(client, open_page):
        page = await open_page()
        await page.ask("save")
        assert "Nothing is recorded" in (await page.heard("problem"))["text"]
        await page.stand_still()
        await page.ask("record", on=True)
        await page.step(left=1)
        await page.step(right=1)
        await page.ask("save")
        saved = await page.heard("saved")
        assert saved["folder"] == str(tmp_path / "out")
        for file in saved["files"]:
            answer = await client.get(f"/{file['url']}")
            assert answer.status == 200 and "attachment" in answer.headers["Content-Disposition"]
            (tmp_path / file["name"]).write_bytes(await answer.read())
        assert (await client.get(f"/{file['url']}x")).status == 404

    run(scenario)
    zipfile.ZipFile(next(tmp_path.glob("*.zip"))).extractall(tmp_path / "set")
    (clip,) = load_dataset("lerobot", tmp_path / "set")
    np.testing.assert_allclose(clip.actions[[0, -1], 0], [0.6, -0.6], atol=1e-6)
    assert next(tmp_path.glob("*.rrd")).read_bytes()[:4] == b"RRF2"


def test_wrong_messages_are_one_sentence_each(run):
    async def scenario(client, open_page):
        page = await open_page()
        await page.stand_still()
        wrong = ["{", "[1]", '{"type": "fly"}', '{"type": "go"}', '{"type": "go", "to": true}', "[" * 9000]
        wrong += ['{"type": "reset", "seed": -1}', '{"type": "input", "keys": {"x": 1}}', '{"type": "join", "keep": 7}']
        wrong += ['{"type": "prompt", "text": "rain"}', '{"type": "fork", "by": "nobody", "other_noise": false}']
        for text in wrong:
            await page.websocket.send_str(text)
            problem = (await page.heard("problem"))["text"]
            assert problem.endswith(".") and "\n" not in problem, text
        await page.websocket.send_bytes(b"\x80\x04.")
        assert "no text" in (await page.heard("problem"))["text"]
        assert (await page.step())["step"] == 1
        await page.websocket.send_str(" " * 20_000)
        await page.ended()

    run(scenario)


def test_pages_of_other_sites_are_turned_away(run):
    async def scenario(client, open_page):
        host = f"127.0.0.1:{client.port}"
        for headers, status in (
            ({}, 200),
            ({"Host": f"localhost:{client.port}"}, 200),
            ({"Host": "[::1]:8000"}, 200),
            ({"Host": "rebound.example"}, 403),
            ({"Host": ""}, 403),
            ({"Host": host, "Origin": f"http://{host}"}, 200),
            ({"Host": host, "Origin": "http://elsewhere.example"}, 403),
            ({"Host": host, "Origin": "null"}, 403),
        ):
            answer = await client.get("/", headers=headers)
            assert answer.status == status, headers
            assert status == 403 or "default-src 'self'" in answer.headers["Content-Security-Policy"]
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await client.ws_connect("/socket", headers={"Origin": "http://elsewhere.example"})
        for path in ("/page/../server.py", "/page/%2e%2e/server.py", "/files/x/y", "/nothing"):
            assert (await client.get(path)).status == 404
        assert (await client.get("/page/play.js")).status == 200

    run(scenario)


def failing(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_info:
        main(["play", *arguments])
    assert exit_info.value.code == 2
    return capsys.readouterr().err


def test_what_a_user_can_put_right_is_one_sentence(capsys, checkpoint):
    assert "invalid choice: 'Astra-Moon-v0'" in failing(capsys, "Astra-Moon-v0")
    told = failing(capsys, CAR, "--world-model", checkpoint, "--policy", "nowhere:act")
    assert told.startswith("astra-env play: There is no policy 'nowhere:act'") and told.count("\n") == 1
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = failing(capsys, CAR, "--world-model", checkpoint, "--port", str(port))
    assert told == f"astra-env play: Port {port} of 127.0.0.1 is in use; choose another with --port, 0 for any.\n"


def test_a_missing_package_is_named():
    script = f"import sys; sys.modules['aiohttp'] = None; from astra_env.cli import main; main(['play', '{CAR}'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "needs the package aiohttp; install it with: pip install" in done.stderr
