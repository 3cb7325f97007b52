"""The studio's page in a real browser: a person makes a video, cancels one, comes back, and reads an error."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, opened
from studio_page import (
    AXE_JS,
    CHANNELS,
    DONE,
    EXAMPLES,
    FILES,
    READY,
    ROOT,
    SCRIPT,
    example,
    get,
    give,
    leaks,
    needs_browser,
    set_length,
    studio,
    type_in,
    violations,
    voices_from,
)

pytest.importorskip("gradio", reason="needs Gradio: nox -s studio installs it in an environment of its own")
#: A folder for the pictures of docs/studio.md.
PICTURES = os.environ.get("STUDIO_PICTURES", "")


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("history")


@pytest.fixture(scope="module")
def url(history: Path) -> Iterator[str]:
    with studio(history, "device=cpu") as address:
        yield address


async def picture(tab: Browser, name: str, width: int, height: int, top: str) -> None:
    if not PICTURES:
        return
    mobile = width < 600
    await tab.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
    await asyncio.sleep(0.5)
    await tab.run(f"document.querySelector('{top}').scrollIntoView()")
    taken = await tab.call("Page.captureScreenshot")
    (Path(PICTURES) / f"{name}.png").write_bytes(base64.b64decode(taken["data"]))


async def make(tab: Browser) -> dict[str, Any]:
    told: dict[str, Any] = {}
    await tab.until(READY)
    told["heading"] = await tab.run("document.querySelector('#heading').innerText")
    # Nothing is filled in: the error is at its field.
    await tab.run("document.querySelector('#make').click()")
    told["error"] = await tab.until(
        "document.querySelector('#error-picture .error')", "document.querySelector('#error-picture').innerText"
    )
    # Both people of the picture are found.
    await give(tab, "#picture", EXAMPLES / "two.png")
    await tab.until("document.querySelectorAll('#boxes .box').length === 2")
    for number, voice in ((1, "left.flac"), (2, "right.flac")):
        await give(tab, f"#voice{number}", EXAMPLES / voice)
    await type_in(tab, "#prompt textarea", "Two people talk.")
    if not PICTURES:
        # Pictures show a job that runs, so it must take a while.
        await tab.run("document.querySelector('#turbo input').click()")
    await tab.run("document.querySelectorAll('#order input')[1].click()")
    await tab.until("document.querySelector('#plan').innerText.includes('5.52 s')")
    await set_length(tab, "4")
    told["plan"] = await tab.until(
        "document.querySelector('#plan').innerText.includes('4.00 s')", "document.querySelector('#plan').innerText"
    )
    # A box is moved by keys.
    await tab.run(
        "{ const box = document.querySelector('#boxes .box'); box.focus(); for (let i = 0; i < 5; i++)"
        "box.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft', shiftKey: true, bubbles: true})); }"
    )
    told["box"] = await tab.run("document.querySelector('#boxes .box').ariaLabel")
    await asyncio.sleep(1)
    await tab.run("document.querySelector('video').muted = true; document.querySelector('#make').click()")
    told["early"] = await tab.until(
        "!document.querySelector('#videos .early').hidden", "document.querySelector('#videos .early').innerText"
    )
    video = "document.querySelector('#videos video')"
    await tab.until(f"{video}.buffered.length && {video}.buffered.end(0) > 1")
    told["state"] = await tab.run("document.querySelector('#job-state').innerText")
    await picture(tab, "studio", 1280, 1000, "#heading")
    await picture(tab, "studio-phone", 390, 844, "#videos")
    await tab.until(DONE)
    told["detail"] = await tab.run("document.querySelector('#videos .detail').innerText")
    await tab.until(f"{video}.readyState > 1")
    told["seconds"] = await tab.run(f"{video}.duration")
    told["link"] = await tab.run("location.search")
    told["code"] = await tab.run("document.querySelector('#videos .texts').textContent")
    told["page"] = await tab.run("document.documentElement.outerHTML")
    return told


@needs_browser
def test_a_person_makes_a_video_of_two_and_comes_back_to_it(url: str, history: Path, tmp_path: Path) -> None:
    told = asyncio.run(opened(url, tmp_path / "browser", make))
    assert "tiny" in told["heading"]
    assert "drawn people only" in told["heading"]
    assert told["error"].startswith("Add a picture")
    assert "100 frames at 25 per second" in told["plan"]
    assert "On a rented card" in told["plan"]
    assert told["box"].startswith("Person 1: from 0 to 40 %")
    assert told["state"] == "Running"
    assert re.fullmatch(r"The first \d\.\d s are ready and play below\.", told["early"])
    assert told["detail"].startswith("4.00 s, 100 frames, seed ")
    assert told["seconds"] == pytest.approx(4.0, abs=0.05)
    assert "multitalk generate" in told["code"]
    assert not leaks(told["page"], history)
    name = told["link"].removeprefix("?job=")
    entry = json.loads((history / name / "entry.json").read_text("utf-8"))
    left, right = (one["region"]["box"] for one in entry["job"]["speakers"])
    assert left[2] == pytest.approx(0.4, abs=0.01)
    assert 0.4 < right[0] < 0.6

    async def again(tab: Browser) -> dict[str, Any]:
        await tab.until(DONE)
        before = {
            "listed": await tab.run("document.querySelectorAll('.history .entry').length"),
            "video": await tab.until("document.querySelector('#videos video').readyState > 0"),
        }
        await tab.run("document.querySelector('#videos .settings').click()")
        await tab.until("document.querySelectorAll('#boxes .box').length === 2")
        before["prompt"] = await tab.until(
            "document.querySelector('#prompt textarea').value", "document.querySelector('#prompt textarea').value"
        )
        return before

    told = asyncio.run(opened(f"{url}/?job={name}", tmp_path / "second", again))
    assert told == {"listed": 1, "video": True, "prompt": "Two people talk."}


@needs_browser
def test_a_person_cancels_a_video(url: str, tmp_path: Path) -> None:
    async def cancel(tab: Browser) -> dict[str, Any]:
        await example(tab, 0)
        await set_length(tab, "20")
        await asyncio.sleep(1)
        await tab.run("document.querySelector('#make').click()")
        await tab.until("document.querySelector('#videos .detail').innerText.includes('%')")
        await tab.run("document.querySelector('#videos .cancel').click()")
        state = "document.querySelector('#job-state').innerText"
        return {"state": await tab.until(f"{state} === 'Cancelled'", state)}

    assert asyncio.run(opened(url, tmp_path / "browser", cancel)) == {"state": "Cancelled"}


async def check(tab: Browser, *, scheme: str) -> dict[str, Any]:
    await tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    await tab.call("Page.reload")
    await asyncio.sleep(1)
    await example(tab, 1)
    await tab.run("document.querySelector('#more button').click()")
    await asyncio.sleep(1)
    dark = await tab.run("document.body.classList.contains('dark')")
    found, fits = {}, []
    for size, width, height in (("desktop", 1280, 1000), ("phone", 390, 844)):
        mobile = width < 600
        await tab.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
        )
        for source in (FILES, CHANNELS, SCRIPT):
            await voices_from(tab, source)
            await asyncio.sleep(0.7)
            if source != FILES:
                # With the error of the field that is empty.
                await tab.run("document.querySelector('#make').click()")
                await tab.until("document.querySelector('[aria-invalid=true]')")
            found[f"{size}, {source}"] = await violations(tab)
            fits.append(await tab.run("document.documentElement.scrollWidth <= innerWidth + 1"))
    return {"dark": dark, "found": {name: one for name, one in found.items() if one}, "fits": all(fits)}


@needs_browser
@pytest.mark.skipif(not AXE_JS, reason="needs AXE_JS, the path of axe.min.js")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation_and_the_page_fits_a_phone(url: str, tmp_path: Path, scheme: str) -> None:
    told = asyncio.run(opened(url, tmp_path / "browser", partial(check, scheme=scheme)))
    assert told == {"dark": scheme == "dark", "found": {}, "fits": True}


@pytest.mark.parametrize(
    "path",
    ["/", "/config", "/studio/jobs", "/gradio_api/info", "/studio/video/..%2f..%2fx", "/gradio_api/file=/etc/passwd",
     "/studio/jobs/nothing", "/studio/live/0000000000000000/index.m3u8", "/nothing", "/theme.css"],
)  # fmt: skip
def test_no_answer_has_a_path_of_this_machine(url: str, history: Path, path: str) -> None:
    status, text = get(url + path)
    assert status < 500, text
    assert not leaks(text, history)
    assert "root:x" not in text
    assert "Traceback" not in text


def test_an_upload_is_answered_without_the_path_and_bounded(url: str, history: Path) -> None:
    picture = (ROOT / "engine" / "examples" / "one.png").read_bytes()
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="one.png"\r\n\r\n' + picture + b"\r\n--x--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    request = urllib.request.Request(f"{url}/gradio_api/upload", body, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        text = answer.read().decode()
    assert not leaks(text, history)
    (path,) = json.loads(text)
    with urllib.request.urlopen(f"{url}/gradio_api/file={path}", timeout=30) as answer:
        assert answer.read() == picture
    large = urllib.request.Request(f"{url}/gradio_api/upload", b"x", {**headers, "Content-Length": "200000000"})
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(large, timeout=30)
    assert error.value.code == 413
