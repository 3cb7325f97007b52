"""The page at / in a real browser: a person fills it in, sees progress and gets the video."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from running_endpoint import running

CHROMIUM = shutil.which("chromium")
EXAMPLES = Path(__file__).parent.parent / "engine" / "examples"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

#: Resolves when `ready` holds; the page changes at its own pace.
WAIT = """new Promise((resolve, reject) => {{
  const end = Date.now() + 120000;
  const look = () => {{
    if ({ready}) resolve({told});
    else if (Date.now() > end) reject(new Error(document.body.innerText));
    else setTimeout(look, 20);
  }};
  look();
}})"""


class Browser:
    """One tab, through Chromium's DevTools protocol."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0

    async def call(self, method: str, **params: Any) -> Any:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        while (told := await self._socket.receive_json()).get("id") != self._number:
            pass
        assert "error" not in told, told
        return told["result"]

    async def run(self, script: str) -> Any:
        told = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def until(self, ready: str, told: str = "true") -> Any:
        return await self.run(WAIT.format(ready=ready, told=told))

    async def choose(self, field: str, path: Path) -> None:
        node = await self.call("Runtime.evaluate", expression=f"document.getElementById('{field}')")
        await self.call("DOM.setFileInputFiles", files=[str(path)], objectId=node["result"]["objectId"])


async def use(page: str, folder: Path) -> dict[str, Any]:
    import aiohttp

    words = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={folder}"]
    browser = await asyncio.create_subprocess_exec(
        str(CHROMIUM), *words, "about:blank", stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        assert browser.stderr is not None
        while b"DevTools listening on ws://" not in (line := await asyncio.wait_for(browser.stderr.readline(), 60)):
            assert line, "Chromium ended"
        port = line.decode().partition("ws://")[2].partition("/")[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{port}/json/list") as response:
                tab = next(tab for tab in await response.json() if tab["type"] == "page")
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                return await fill(Browser(socket), page)
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        await browser.wait()


async def fill(tab: Browser, page: str) -> dict[str, Any]:
    await tab.call("Page.navigate", url=page)
    await tab.until("document.readyState === 'complete' && document.getElementById('health').innerText.includes('of')")
    told: dict[str, Any] = {}
    await tab.run("document.getElementById('send').click()")
    told["asked"] = await tab.run("document.getElementById('picture-error').innerText")
    await tab.choose("picture", EXAMPLES / "one.png")
    await tab.choose("voice1", EXAMPLES / "one.flac")
    await tab.run("document.getElementById('prompt').value = 'A woman speaks.'")
    await tab.run("document.getElementById('seed').value = '7'")
    await tab.run("document.getElementById('send').click()")
    detail = "document.getElementById('detail').innerText"
    told["progress"] = await tab.until(f"{detail}.includes('%')", detail)
    told["end"] = await tab.until("!document.getElementById('save').hidden", detail)
    told["source"] = await tab.run("document.getElementById('video').src.split(':')[0]")
    told["warnings"] = await tab.run("document.getElementById('warnings').innerText")
    return told


def test_a_person_makes_a_video_with_the_page(tmp_path: Path) -> None:
    with running() as house:
        told = asyncio.run(use(house.endpoint.url, tmp_path))
    assert told["asked"] == "Choose a picture."
    assert told["progress"] == "50 %, stage denoise, step 5, steps 10"
    assert "12.5 s of video, 100 frames, seed 7" in told["end"]
    assert told["source"] == "blob"
    assert told["warnings"] == "this is no video"
