"""A page in a real browser: Chromium without a window, asked through its DevTools protocol."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")

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


async def opened(
    page: str, folder: Path, use: Callable[[Browser], Awaitable[dict[str, Any]]], *flags: str
) -> dict[str, Any]:
    """Return what `use` learns in a tab at the address `page`; `folder` is for the browser's own files."""
    import aiohttp

    words = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={folder}"]
    browser = await asyncio.create_subprocess_exec(
        str(CHROMIUM), *words, *flags, "about:blank", stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        assert browser.stderr is not None
        while b"DevTools listening on ws://" not in (line := await asyncio.wait_for(browser.stderr.readline(), 60)):
            assert line, "Chromium ended"
        port = line.decode().partition("ws://")[2].partition("/")[0]
        async with aiohttp.ClientSession() as session:
            tabs: list[dict[str, Any]] = []
            # It listens before it has the tab.
            while not (pages := [tab for tab in tabs if tab["type"] == "page"]):
                await asyncio.sleep(0.05)
                async with session.get(f"http://{port}/json/list") as response:
                    tabs = await response.json()
            tab = pages[0]
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                used = Browser(socket)
                # Without a window a page has no focus, and so no events of it.
                await used.call("Emulation.setFocusEmulationEnabled", enabled=True)
                await used.call("Page.navigate", url=page)
                return await use(used)
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        await browser.wait()
