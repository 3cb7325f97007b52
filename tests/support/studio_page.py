"""The studio as a process of its own, and what a person does on its page, for tests in a browser."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "engine" / "examples"
#: A copy of axe.min.js, which is not part of this project: `npm pack axe-core`.
AXE_JS = os.environ.get("AXE_JS", "")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
READY = "document.querySelector('#make') && document.querySelector('.history') && document.querySelector('#boxes li')"
DONE = "document.querySelector('#job-state')?.innerText === 'Done'"
FILES, CHANNELS, FOUND, SCRIPT = ("A file for", "a channel for", "is found", "A script")


@contextmanager
def studio(history: Path, *words: str, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run `multitalk ui` with `words`; yield its address."""
    command = [sys.executable, "-m", "engine", "ui", "--port", "0", "--history", str(history), *words]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def get(address: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            return answer.status, answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("utf-8", "replace")


def leaks(text: str, history: Path) -> list[str]:
    """Return paths of this machine in a text."""
    known = {str(ROOT), str(history), str(Path.home()), tempfile.gettempdir() + "/", sys.prefix}
    return sorted(path for path in known if path not in ("/", "/root", "/root/") and path in text)


async def example(tab: Browser, number: int) -> None:
    await tab.until(READY)
    await tab.run(f"document.querySelectorAll('#examples button')[{number}].click()")
    await tab.until(f"document.querySelectorAll('#boxes .box').length === {number + 1}")
    await tab.until("document.querySelector('#plan table')")
    await tab.until(f"document.querySelectorAll('[data-testid^=\"waveform-Voice\"]').length >= {number + 1}")


async def set_length(tab: Browser, seconds: str) -> None:
    await type_in(tab, "#seconds input", seconds)


async def type_in(tab: Browser, selector: str, text: str) -> None:
    """Write a text into a field, as a person does who then goes on to the next."""
    field = f"document.querySelector({json.dumps(selector)})"
    await tab.run(
        f"{{ const field = {field}; field.focus(); field.value = {json.dumps(text)};"
        "field.dispatchEvent(new Event('input', {bubbles: true}));"
        "field.dispatchEvent(new Event('change', {bubbles: true})); }"
    )
    await asyncio.sleep(0.3)
    await tab.run(f"{field}.blur()")


async def give(tab: Browser, selector: str, path: Path) -> None:
    """Choose a file for an upload inside of `selector`."""
    field = f"document.querySelector({json.dumps(selector + ' input[type=file]')})"
    await tab.until(field)
    node = await tab.call("Runtime.evaluate", expression=field)
    await tab.call("DOM.setFileInputFiles", files=[str(path)], objectId=node["result"]["objectId"])


async def voices_from(tab: Browser, source: str) -> None:
    """Choose where the voices come from."""
    found = (
        f"[...document.querySelectorAll('#source label')].find((one) => one.innerText.includes({json.dumps(source)}))"
    )
    await tab.until(found)
    await tab.run(f"{found}.querySelector('input').click()")
    await tab.until(f"{found}.querySelector('input').checked")


async def violations(tab: Browser) -> list[list[str]]:
    """Return what axe-core finds wrong on the page."""
    if not await tab.run("!!window.axe"):
        await tab.run(f"{Path(AXE_JS).read_text('utf-8')};true")
    found: list[list[str]] = await tab.run("axe.run().then((r) => r.violations.map((v) => [v.id, v.nodes[0].html]))")
    return found
