"""Who may use the server of `astra-env play`, and what it says to whoever asks for something wrong."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys

import aiohttp
import pytest
from play_pages import CAR, serving

from astra_env.cli import main
from astra_env.play.server import PlayConfig
from astra_env.play.world import PlayWorld


def test_there_is_room_for_so_many_and_who_is_away_leaves(run_pages):
    async def scenario(client, open_page):
        page = await open_page()
        await page.heard("hello")
        late = await open_page()
        assert "1 visitors are here already" in (await late.heard("end"))["text"]
        assert "did nothing for 0.5 s" in (await page.heard("end"))["text"]
        await page.ended()
        assert (await client.get("/files/gone/x.rrd")).status == 404
        await (await open_page()).heard("hello")

    run_pages(scenario, max_visitors=1, idle_seconds=0.5)


def test_wrong_messages_are_one_sentence_each(run_pages):
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

    run_pages(scenario)


def test_a_world_that_breaks_says_so(run_pages, monkeypatch):
    async def scenario(client, open_page):
        page = await open_page()
        await page.stand_still()
        monkeypatch.setattr(PlayWorld, "advance", lambda self, given: {}["compass"])
        await page.ask("step", id=1)
        assert "KeyError('compass'); reload the page" in (await page.heard("end"))["text"]
        await page.ended()

    run_pages(scenario)


def test_pages_of_other_sites_are_turned_away(run_pages):
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
            answer = await client.get(path)
            assert answer.status == 404 and answer.headers["X-Content-Type-Options"] == "nosniff"
        assert (await client.get("/page/play.js")).status == 200

    run_pages(scenario)


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
    for flag, value, told in (
        ("--port", "70000", "The port is 70000, expected 0 to 65535."),
        ("--visitors", "0", "0 visitors may play at once, expected 1 or more."),
        ("--seed", "-1", "The seed is -1, expected 0 to 2147483647."),
    ):
        message = failing(capsys, CAR, "--world-model", checkpoint, flag, value)
        assert message == f"astra-env play: {told}\n"


def test_an_address_of_many_colons_can_be_opened(checkpoint):
    async def go() -> None:
        config = PlayConfig(CAR, {"world_model": checkpoint, "device": "cpu"})
        async with serving(config, "::1") as address, aiohttp.ClientSession() as session:
            answer = await session.get(address)
            assert "astra-env play" in await answer.text()

    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no such addresses")
    asyncio.run(go())


def test_a_missing_package_is_named():
    script = f"import sys; sys.modules['aiohttp'] = None; from astra_env.cli import main; main(['play', '{CAR}'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "needs the package aiohttp; install it with: pip install" in done.stderr
