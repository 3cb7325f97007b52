"""Camera and microphone of the studio's page, with the devices that Chromium makes up."""

from __future__ import annotations

import asyncio
import json
import wave
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, opened
from studio_page import DONE, EXAMPLES, READY, needs_browser, studio, type_in

from engine.media.audio import decode

pytest.importorskip("gradio", reason="needs Gradio: nox -s studio installs it in an environment of its own")
pytestmark = needs_browser
FAKE = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


def button(part: str, text: str) -> str:
    """Return the shown button of a part of the page whose name or text has `text`."""
    every = f"[...document.querySelectorAll('#{part} button')]"
    words = "`${one.ariaLabel} ${one.innerText}`.toLowerCase()"
    return f"{every}.find((one) => one.offsetParent !== null && {words}.includes({json.dumps(text)}))"


async def press(tab: Browser, part: str, text: str) -> None:
    await tab.until(button(part, text))
    await tab.run(f"{button(part, text)}.click()")


async def take(tab: Browser) -> dict[str, Any]:
    await tab.until(READY)
    await press(tab, "picture", "capture from camera")
    await press(tab, "picture", "access webcam")
    await tab.until("document.querySelector('#picture video')?.videoWidth")
    # Its first pictures are black.
    await asyncio.sleep(2)
    await press(tab, "picture", "capture photo")
    await tab.until("document.querySelector('#boxes .stage:not([hidden]) img')?.naturalWidth")
    await press(tab, "voice1", "record audio")
    await asyncio.sleep(1)
    await press(tab, "voice1", "record")
    await asyncio.sleep(3)
    await press(tab, "voice1", "stop")
    await type_in(tab, "#prompt textarea", "A woman speaks.")
    await type_in(tab, "#seconds input", "0.4")
    await tab.until("document.querySelector('#plan')?.innerText.includes('0.40 s')")
    await tab.run("document.querySelector('#make').click()")
    await tab.until(DONE)
    return {"name": (await tab.run("location.search")).removeprefix("?job=")}


def test_a_picture_of_the_camera_and_a_voice_of_the_microphone_make_a_video(tmp_path: Path) -> None:
    spoken = tmp_path / "spoken.wav"
    with wave.open(str(spoken), "wb") as file:
        sound = decode(EXAMPLES / "one.flac", 48_000, "mono")
        file.setparams((1, 2, 48_000, 0, "NONE", ""))
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    with studio(tmp_path / "history", "device=cpu") as url:
        flags = (*FAKE, f"--use-file-for-fake-audio-capture={spoken}")
        name = asyncio.run(opened(url, tmp_path / "browser", take, *flags))["name"]
    folder = tmp_path / "history" / name
    media = json.loads((folder / "entry.json").read_text("utf-8"))["media"]
    heard = decode(folder / media["voice1"], 16_000, "mono")
    assert len(heard) > 16_000
    assert float(abs(heard).max()) > 0.01
    assert (folder / "video.mp4").stat().st_size > 0
