"""The studio with a worker elsewhere: a real endpoint in another process; and the code of a job."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import pytest
from browser import Browser, opened
from running_endpoint import NO_CHECKS
from studio_page import DONE, EXAMPLES, READY, ROOT, example, get, give, needs_browser, set_length, studio, type_in

pytest.importorskip("gradio", reason="needs Gradio: nox -s studio installs it in an environment of its own")
pytest.importorskip("aiohttp")
pytest.importorskip("runpod")
pytestmark = needs_browser
KEY = "a key of the endpoint"
STATE = "document.querySelector('#job-state').innerText"


@contextmanager
def endpoint(folder: Path) -> Iterator[str]:
    words = ["endpoint", "--port", "0", "--api-key", KEY, "model=tiny", "device=cpu"]
    environment = {**os.environ, **NO_CHECKS, "MODEL_PATH": str(folder)}
    process = subprocess.Popen(
        [sys.executable, "-m", "engine", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with endpoint(tmp_path_factory.mktemp("volume")) as url:
        yield url


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("history")


def at(worker: str) -> list[str]:
    return ["--worker", worker, "--api-key", KEY]


async def make(tab: Browser) -> dict[str, Any]:
    told: dict[str, Any] = {}
    await tab.until("document.querySelector('#heading')?.innerText.includes('tiny')")
    told["heading"] = await tab.run("document.querySelector('#heading').innerText")
    await example(tab, 1)
    await tab.until("document.querySelector('#plan').innerText.includes('5.52 s')")
    await set_length(tab, "4")
    await tab.until("document.querySelector('#plan').innerText.includes('4.00 s')")
    await tab.run("document.querySelector('video').muted = true; document.querySelector('#make').click()")
    told["early"] = await tab.until(
        "!document.querySelector('#videos .early').hidden", "document.querySelector('#videos .early').innerText"
    )
    video = "document.querySelector('#videos video')"
    await tab.until(f"{video}.buffered.length && {video}.buffered.end(0) > 1")
    await tab.until(DONE)
    await tab.until(f"{video}.readyState > 1")
    told["seconds"] = await tab.run(f"{video}.duration")
    told["again"] = await tab.run("document.querySelector('#videos .report').textContent")
    told["name"] = (await tab.run("location.search")).removeprefix("?job=")
    return told


async def fail_and_cancel(tab: Browser, broken: Path) -> dict[str, Any]:
    told: dict[str, Any] = {}
    await tab.until(READY)
    await give(tab, "#picture", EXAMPLES / "one.png")
    await give(tab, "#voice1", broken)
    await type_in(tab, "#prompt textarea", "A woman speaks.")
    await tab.until("document.querySelector('#plan')?.innerText.includes('No plan yet')")
    await tab.run("document.querySelector('#make').click()")
    told["error"] = await tab.until(
        "document.querySelector('#error-voice1 .error')", "document.querySelector('#error-voice1').innerText"
    )
    told["failed"] = await tab.run(STATE)
    await example(tab, 0)
    # A worker of an endpoint makes 201 frames, unless it is told otherwise.
    await set_length(tab, "20")
    told["long"] = await tab.until(
        "document.querySelector('#plan').innerText.includes('at most')", "document.querySelector('#plan').innerText"
    )
    await set_length(tab, "8")
    await tab.run("document.querySelector('#turbo input').click()")
    await tab.until("document.querySelector('#plan').innerText.includes('8.00 s')")
    await tab.run("document.querySelector('#make').click()")
    await tab.until("document.querySelector('#videos .detail').innerText.includes('%')")
    await tab.run("document.querySelector('#videos .cancel').click()")
    told["cancelled"] = await tab.until(f"{STATE} === 'Cancelled'", STATE)
    # The next one runs when the studio stops.
    await set_length(tab, "4")
    await tab.until("document.querySelector('#plan').innerText.includes('4.00 s')")
    await tab.run("document.querySelector('#make').click()")
    await tab.until(f"{STATE} === 'Running'")
    told["name"] = (await tab.run("location.search")).removeprefix("?job=")
    return told


def test_a_worker_elsewhere_makes_what_the_page_asks_for(worker: str, history: Path, tmp_path: Path) -> None:
    broken = tmp_path / "voice.wav"
    broken.write_bytes(b"this is no sound at all")
    with studio(history, *at(worker)) as url:
        told = asyncio.run(opened(url, tmp_path / "first", make))
        assert "on a worker elsewhere" in told["heading"]
        assert "ready and play below" in told["early"]
        assert told["seconds"] == pytest.approx(4.0, abs=0.05)
        assert "must run in the studio's own process" in told["again"]
        assert "Retake" not in told["again"]
        assert KEY not in get(f"{url}/studio/jobs/{told['name']}")[1]

        async def wrong(tab: Browser) -> dict[str, Any]:
            return await fail_and_cancel(tab, broken)

        told = asyncio.run(opened(url, tmp_path / "second", wrong))
        assert (told["failed"], told["cancelled"]) == ("Failed", "Cancelled")
        assert "cannot be decoded" in told["error"]
        assert "8.04 s" in told["long"]
    # The job continues at the worker, and the next studio follows it.
    with studio(history, *at(worker)) as url:

        async def back(tab: Browser) -> dict[str, Any]:
            await tab.until(DONE)
            listed = "[...document.querySelectorAll('.history small')].map((one) => one.innerText.split(',')[0])"
            await tab.until(f"{listed}.length === 4")
            return {"states": await tab.run(listed)}

        told = asyncio.run(opened(f"{url}/?job={told['name']}", tmp_path / "third", back))
        assert told == {"states": ["Done", "Cancelled", "Failed", "Done"]}


def pictures(video: Path) -> str:
    """Return the hash of a video's pictures."""
    found = hashlib.sha256()
    with av.open(str(video)) as container:
        for frame in container.decode(video=0):
            found.update(frame.to_ndarray(format="rgb24").tobytes())
    return found.hexdigest()


def ended(url: str, name: str) -> dict[str, Any]:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        entry: dict[str, Any] = json.loads(get(f"{url}/studio/jobs/{name}")[1])
        if entry["final"]:
            return entry
        time.sleep(0.2)
    raise AssertionError(entry)


async def short(tab: Browser) -> dict[str, Any]:
    await example(tab, 1)
    # A box of its own is in the code, too.
    await tab.run(
        "{ const box = document.querySelector('#boxes .box'); box.focus();"
        "box.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft', shiftKey: true, bubbles: true})); }"
    )
    await set_length(tab, "0.36")
    await tab.until("document.querySelector('#plan').innerText.includes('0.36 s')")
    await tab.run("document.querySelector('#make').click()")
    await tab.until(DONE)
    return {"name": (await tab.run("location.search")).removeprefix("?job=")}


def test_the_code_of_a_job_makes_the_same_video(worker: str, history: Path, tmp_path: Path) -> None:
    with studio(history, *at(worker)) as url:
        name = asyncio.run(opened(url, tmp_path / "browser", short))["name"]
        code = ended(url, name)["code"]
    folder = history / name
    wanted = pictures(folder / "video.mp4")
    environment = {**os.environ, "MULTITALK_KEY": KEY}

    sent = subprocess.run(
        ["bash", "-c", code["curl"]], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    job = json.loads(sent.stdout)["id"]
    asked = urllib.request.Request(f"{worker}/v2/local/status/{job}", headers={"Authorization": f"Bearer {KEY}"})
    answer: dict[str, Any] = {}
    end = time.monotonic() + 120
    while answer.get("status") != "COMPLETED" and time.monotonic() < end:
        time.sleep(0.3)
        with urllib.request.urlopen(asked, timeout=30) as response:
            answer = json.load(response)
    assert answer["status"] == "COMPLETED", answer
    by_curl = tmp_path / "curl.mp4"
    by_curl.write_bytes(b64decode(answer["output"]["video_base64"]))
    assert pictures(by_curl) == wanted

    subprocess.run([sys.executable, "-c", code["Python"]], cwd=folder, env=environment, check=True, timeout=120)
    assert pictures(folder / "talk.mp4") == wanted

    program, *words = shlex.split(code["Command line"])
    assert program == "multitalk"
    made = [sys.executable, "-m", "engine", *words, f"sink.folder={tmp_path}", "--output", "line.mp4", "device=cpu"]
    subprocess.run(made, cwd=folder, env={**environment, "PYTHONPATH": str(ROOT)}, check=True, timeout=120)
    assert pictures(tmp_path / "line.mp4") == wanted
