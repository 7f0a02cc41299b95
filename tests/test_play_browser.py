"""The page of `astra-env play` in a real browser: keys are pressed in it, and the world turns the right way."""

from __future__ import annotations

import asyncio
import base64
import itertools
import re

import cv2
import numpy as np
import pytest
from play_pages import serving

from astra_env.play.server import PlayConfig
from benchmarks.browser import find_browser, open_page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_browser() is None, reason="there is no Chromium"),
]
STEP = "Number(document.getElementById('clock').textContent.split('step ')[1])"
TOLD = "document.querySelector('.told').textContent"
PICTURE = "document.querySelector('canvas').toDataURL('image/png').split(',')[1]"

SLOW_PICTURES = """
    const decode = createImageBitmap, wait = () => new Promise((done) => setTimeout(done, 500));
    window.createImageBitmap = (blob) => wait().then(() => decode(blob));
"""


def visit(scenario, environment: str, **config) -> None:
    """Run an async function of a page that shows the world."""

    async def go() -> None:
        async with (
            serving(PlayConfig(environment, {"device": "cpu"}, **config)) as address,
            open_page(address) as page,
        ):
            await page.wait_for(f"{STEP} > 0")
            await asyncio.wait_for(scenario(page), 60)

    asyncio.run(go())


def test_a_browser_that_does_not_start_or_goes_away_is_told(monkeypatch):
    async def go() -> None:
        async with open_page("data:text/html,here") as page:
            await page.call("Browser.close")
            with pytest.raises(ConnectionError, match="has ended before it answered"):
                await page.wait_for("false")
        monkeypatch.setattr("benchmarks.browser.find_browser", lambda: "false")
        with pytest.raises(RuntimeError, match="ended with code 1 before it showed a page"):
            async with open_page("about:blank"):
                pass

    asyncio.run(asyncio.wait_for(go(), 60))


async def grey(page) -> np.ndarray:
    """What is on the canvas, float32 (H, W)."""
    encoded = np.frombuffer(base64.b64decode(await page.evaluate(PICTURE)), np.uint8)
    return cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE).astype(np.float32)


async def steps(page, count: int) -> list[np.ndarray]:
    """The last picture now and after each of so many single steps."""
    pictures = [await grey(page)]
    for _ in range(count):
        before = await page.evaluate(STEP)
        await page.press(".")
        await page.release(".")
        await page.wait_for(f"{STEP} === {before + 1}")
        await asyncio.sleep(0.3)  # a chunk is shown for 0.2 s
        pictures.append(await grey(page))
    return pictures


def shift_right(pictures: list[np.ndarray]) -> float:
    """Pixels by which the pictures' content has moved to the right, by phase correlation of neighbours."""
    window = cv2.createHanningWindow(pictures[0].shape[::-1], cv2.CV_32F)
    shifts = [cv2.phaseCorrelate(a, b, window)[0][0] for a, b in itertools.pairwise(pictures)]
    return float(np.sum(shifts))


def test_the_car_turns_where_the_arrow_points():
    async def scenario(page):
        for key, way in (("ArrowLeft", "left"), ("d", "right")):
            await page.press("w")
            await page.press(key)
            told = await page.wait_for(f"/turned [2-9][0-9]° {way}/.test({TOLD}) && {TOLD}")
            assert "m/s" in told
            lit = await page.evaluate("[...document.querySelectorAll('#legend .down')].map((k) => k.dataset.key)")
            assert set(lit) == {"w", "up"} | ({"a", "left"} if way == "left" else {"d", "right"})
            await page.release(key)
            await page.release("w")
            assert re.match(r"p50 \d+ ms", await page.evaluate("document.getElementById('latency-page').textContent"))
            await page.press("n")  # a new start looks ahead again
            await page.release("n")
            await page.wait_for(f"{STEP} < 3")

    visit(scenario, "Astra-NuScenes-v0")


def test_what_the_camera_sees_moves_against_its_turn():
    async def scenario(page):
        await page.press("p")
        await page.release("p")
        await page.wait_for("document.getElementById('play').textContent.startsWith('Play')")
        shifts = {}
        for key in ("ArrowLeft", "ArrowRight"):
            await page.press(key)
            shifts[key] = shift_right(await steps(page, 3))
            await page.release(key)
        assert shifts["ArrowLeft"] > 3 and shifts["ArrowRight"] < -3, shifts

    visit(scenario, "Astra-Sekai-v0")


def test_who_acts_is_shown_however_it_was_chosen():
    async def scenario(page):
        select = "document.querySelector('select.by')"
        await page.evaluate(f"{select}.focus(); {select}.value = 'random'; {select}.dispatchEvent(new Event('change'))")
        for by in ("you", "random"):
            before = await page.evaluate(STEP)
            await page.wait_for(f"{STEP} > {before + 1}")
            await page.press("t")
            await page.release("t")
            await page.wait_for(f"{select}.value === '{by}'", 10)

    visit(scenario, "Astra-NuScenes-v0")


def test_who_finds_no_room_reads_why():
    async def scenario(page):
        async with open_page(await page.evaluate("location.href")) as late:
            await late.wait_for(
                "document.getElementById('problem').textContent.includes('1 visitors are here already')"
            )
            await asyncio.sleep(0.5)  # the connection ends
            assert "come back later" in await late.evaluate("document.getElementById('problem').textContent")

    visit(scenario, "Astra-NuScenes-v0", max_visitors=1)


def test_buttons_do_what_they_say(tmp_path):
    async def click(page, name: str) -> None:
        await page.evaluate(f"document.getElementById('{name}').click()")

    async def scenario(page):
        await click(page, "fork")
        await page.wait_for("!document.querySelectorAll('figure')[1].hidden")
        await click(page, "record")
        told = "document.getElementById('recording').textContent"
        await page.wait_for(f"/0 episodes recorded, .*[1-9].* s of the next/.test({told})")
        await click(page, "keep-right")
        await page.wait_for("document.querySelectorAll('figure')[1].hidden")
        await page.evaluate(SLOW_PICTURES)
        await asyncio.sleep(0.4)  # now some are on their way that still tell that something is recorded
        await click(page, "save")
        await page.wait_for("document.querySelectorAll('#recording a').length === 2")
        at = await page.evaluate(STEP)
        await page.wait_for(f"{STEP} > {at + 3}")
        assert await page.evaluate("document.querySelectorAll('#recording a').length") == 2
        await click(page, "play")
        await page.wait_for("document.getElementById('play').textContent.startsWith('Play')")
        before = await page.evaluate(STEP)
        await click(page, "second")
        await page.wait_for(f"{STEP} === {max(0, before - 5)}")
        await page.evaluate(
            "fetch('image/none', {method: 'POST', body: 'x'}).then((r) => r.text()).then((t) => window.told = t)"
        )
        assert "visit is over" in await page.wait_for("window.told")
        assert await page.evaluate("document.getElementById('problem').hidden")

    visit(scenario, "Astra-SpatialVID-v0", out=str(tmp_path))
    assert len(list(tmp_path.glob("*.rrd"))) == 1
