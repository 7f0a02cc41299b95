"""The server of `astra-env play` over real sockets: what pages are shown, and what they do not do to each other."""

from __future__ import annotations

import asyncio
import time
import zipfile

import numpy as np
import pytest
from PIL import Image
from play_pages import CAR, file_of

from astra_env.datasets import load_dataset
from astra_env.play import visitor as visitors
from astra_env.play.packets import MAX_UPLOAD, encode_pictures
from astra_env.play.world import PlayWorld


def test_a_page_is_told_all_it_needs_and_shown_what_its_keys_do(run_pages):
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

    run_pages(scenario)


def test_time_stands_still_goes_on_and_back(run_pages):
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

    run_pages(scenario)


def test_forks_are_shown_beside_each_other(run_pages):
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

    run_pages(scenario)


def test_a_slow_page_gets_the_newest_pictures_and_stalls_nothing(run_pages, monkeypatch):
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

    run_pages(scenario)


def test_a_pressed_key_does_not_wait_for_its_turn(run_pages, monkeypatch):
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

    run_pages(scenario)


def test_visitors_do_not_disturb_each_other(run_pages, checkpoint):
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

    run_pages(scenario, seed=3)


class Pondering:
    """A policy that takes long."""

    def __init__(self, env):
        self.action = np.zeros(2, np.float32)

    def act(self, observation):
        time.sleep(1.5)
        return self.action


def test_a_slow_policy_keeps_nobody_else_waiting(run_pages):
    name = f"{__name__}:Pondering"

    async def scenario(client, open_page):
        slow, quick = await open_page(), await open_page()
        for page in (slow, quick):
            await page.stand_still()
        await slow.ask("choose", branch=0, by=name)
        await slow.ask("step", id=1)
        began = time.perf_counter()
        await quick.step()
        await quick.step()
        assert time.perf_counter() - began < 1.4
        await slow.until(lambda: slow.told["step"] == 1)
        assert slow.told["by"] == name and time.perf_counter() - began > 1.4

    run_pages(scenario, players=(name,))


def test_a_picture_of_ones_own_is_a_start(run_pages):
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

    run_pages(scenario)


def test_what_is_recorded_can_be_downloaded(run_pages, tmp_path):
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

    run_pages(scenario)
    zipfile.ZipFile(next(tmp_path.glob("*.zip"))).extractall(tmp_path / "set")
    (clip,) = load_dataset("lerobot", tmp_path / "set")
    np.testing.assert_allclose(clip.actions[[0, -1], 0], [0.6, -0.6], atol=1e-6)
    assert next(tmp_path.glob("*.rrd")).read_bytes()[:4] == b"RRF2"
