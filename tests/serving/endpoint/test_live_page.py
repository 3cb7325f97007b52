"""A video is played in a browser while it is made: by the page, and by a player for HLS."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser, opened
from running_endpoint import RunningEndpoint, running

pytest.importorskip("aiohttp")
ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "engine" / "examples"
WORKER = ROOT / "tests" / "support" / "live_worker.py"
#: A copy of hls.light.min.js, which is not part of this project: `npm pack hls.js`.
HLS_JS = os.environ.get("HLS_JS", "")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
VIDEO = "document.getElementById('video')"
#: Seconds by which sound ends before pictures until the next part comes: three packets of AAC.
BEHIND = 0.065
#: The end of what can be played, in seconds.
BUFFERED = f"({VIDEO}.buffered.length ? {VIDEO}.buffered.end(0) : 0)"


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the files for which the worker waits before it makes a window."""
    return tmp_path_factory.mktemp("gates")


@pytest.fixture(scope="module")
def server(gates: Path) -> Iterator[RunningEndpoint]:
    path = os.pathsep.join(filter(None, (str(ROOT), str(WORKER.parent), os.environ.get("PYTHONPATH"))))
    environment = {"LIVE_GATE": str(gates / "gate"), "PYTHONPATH": path}
    with running(worker=[sys.executable, str(WORKER)], environment=environment) as made:
        yield made


def gate(folder: Path, prompt: str, number: int) -> None:
    (folder / f"gate-{prompt}-{number}").touch()


async def submit(tab: Browser, prompt: str) -> None:
    await tab.until("document.readyState === 'complete' && document.getElementById('health').innerText.includes('of')")
    await tab.choose("picture", EXAMPLES / "one.png")
    await tab.choose("voice1", EXAMPLES / "one.flac")
    await tab.run(f"document.getElementById('prompt').value = '{prompt}'")
    await tab.run("document.getElementById('live').click()")
    # Without sound a page may play by itself.
    await tab.run(f"{VIDEO}.muted = true")
    await tab.run("document.getElementById('send').click()")


async def watch(tab: Browser, *, folder: Path) -> dict[str, Any]:
    await submit(tab, "watched")
    told: dict[str, Any] = {}
    # Window 2 is not begun before the first one has been seen.
    await tab.until(f"{VIDEO}.currentTime > 0.5")
    told["first"] = [await tab.run(BUFFERED), await tab.run("document.getElementById('state').innerText")]
    told["early"] = await tab.run("document.getElementById('early-text').innerText")
    told["strip"] = await tab.until(
        "document.getElementById('strip').naturalWidth > 0", "document.getElementById('strip').naturalWidth"
    )
    gate(folder, "watched", 1)
    await tab.until(f"{BUFFERED} > 2.9")
    told["second"] = await tab.run("document.getElementById('state').innerText")
    before = await tab.until(f"{VIDEO}.currentTime > 2.2", f"{VIDEO}.currentTime")
    gate(folder, "watched", 2)
    await tab.until("!document.getElementById('save').hidden")
    await tab.until(f"{VIDEO}.readyState > 1")
    told["went on"] = await tab.run(f"{VIDEO}.currentTime >= {before}")
    told["duration"] = await tab.run(f"{VIDEO}.duration")
    told["strip hidden"] = await tab.run("document.getElementById('strip').hidden")
    return told


@needs_browser
@pytest.mark.slow
def test_the_page_plays_the_first_window_while_the_others_are_made(
    server: RunningEndpoint, gates: Path, tmp_path: Path
) -> None:
    told = asyncio.run(opened(server.endpoint.url, tmp_path / "browser", partial(watch, folder=gates)))

    assert told["first"] == [pytest.approx(2.0, abs=BEHIND), "Running"]
    assert told["early"] == "The first 2.0 s are ready."
    assert told["strip"] == 640
    assert told["second"] == "Running"
    assert told["went on"]
    assert told["duration"] == pytest.approx(4.0, abs=0.03)
    assert told["strip hidden"]


def get(url: str, headers: dict[str, str] | None = None) -> tuple[int, bytes, dict[str, str]]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=30) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def start(server: RunningEndpoint, prompt: str) -> str:
    body = json.dumps({"input": {"prompt": prompt}}).encode()
    with urllib.request.urlopen(server.url("run"), body, timeout=30) as answer:
        return str(json.load(answer)["id"])


def published(server: RunningEndpoint, job: str, parts: int) -> str:
    """Return the playlist of a job once it has that many parts."""

    def ready() -> bool:
        output = server.job(job).output
        return isinstance(output, dict) and output.get("live", {}).get("parts", 0) >= parts

    server.until(ready)
    return str(server.ask(lambda: server.job(job).output["live"]["playlist"]))


def test_the_endpoint_serves_playlist_and_parts_as_players_need_them(server: RunningEndpoint, gates: Path) -> None:
    job = start(server, "served")
    playlist = published(server, job, 1)
    status, text, headers = get(playlist)
    assert (status, headers["Content-Type"], headers["Cache-Control"]) == (
        200,
        "application/vnd.apple.mpegurl",
        "no-cache",
    )
    assert "#EXT-X-ENDLIST" not in text.decode()
    kinds = {}
    for name in ("init.mp4", "part-00000.m4s"):
        status, _, headers = get(playlist.replace("index.m3u8", name))
        assert status == 200
        kinds[name] = headers["Content-Type"], headers["Cache-Control"]
    forever = "private, max-age=31536000, immutable"
    assert kinds == {"init.mp4": ("video/mp4", forever), "part-00000.m4s": ("video/iso.segment", forever)}
    for wrong in ("part-00007.m4s", "..%2findex.m3u8", "%2e%2e%2f%2e%2e%2fsecret.mp4", ".part-00000.m4s"):
        assert get(playlist.replace("index.m3u8", wrong))[0] == 404
    assert get(playlist.replace(job, "another-job"))[0] == 404
    assert get(playlist, {"Host": "example.com"})[0] == 403

    for number in (1, 2):
        gate(gates, "served", number)
    server.until(lambda: server.job(job).final)
    pieces = json.loads(get(server.url(f"stream/{job}"))[1])["stream"]
    live = [piece["output"]["live"] for piece in pieces if "live" in piece["output"]]
    assert [part["begins"] for piece in live for part in piece["parts"]] == [0, 2, 3]
    assert get(live[0]["parts"][0]["address"])[0] == 200
    assert live[-1]["ended"]
    # Those who watch may still be in the middle; it is removed with the job.
    assert get(playlist)[1].decode().endswith("#EXT-X-ENDLIST\n")
    folder = server.endpoint.pool.live
    assert folder is not None
    assert (folder / job).is_dir()
    server.ask(lambda: server.endpoint.jobs._forget(server.job(job)))
    assert not (folder / job).exists()
    assert get(playlist)[0] == 404


def test_the_playlist_of_a_failed_job_has_an_end(server: RunningEndpoint, gates: Path) -> None:
    job = start(server, "fail")
    playlist = published(server, job, 1)
    gate(gates, "fail", 1)
    server.until(lambda: server.job(job).final)
    assert server.job(job).state == "FAILED"
    lines = get(playlist)[1].decode().splitlines()
    assert lines[-2:] == ["part-00000.m4s", "#EXT-X-ENDLIST"]


async def play(tab: Browser, *, folder: Path, playlist: str) -> dict[str, Any]:
    await tab.until("document.readyState === 'complete'")
    await tab.run(f"{Path(HLS_JS).read_text('utf-8')};window.Hls = self.Hls; true")
    await tab.run(
        f"window.errors = []; {VIDEO}.muted = true; {VIDEO}.hidden = false;"
        "window.hls = new Hls({enableWorker: false});"
        "hls.on(Hls.Events.ERROR, (_, d) => errors.push([d.type, d.details, d.fatal]));"
        f"hls.loadSource('{playlist}'); hls.attachMedia({VIDEO});"
        f"hls.on(Hls.Events.MANIFEST_PARSED, () => {VIDEO}.play()); true"
    )
    told: dict[str, Any] = {}
    await tab.until(f"{VIDEO}.currentTime > 0.5")
    told["first"] = await tab.run(BUFFERED)
    gate(folder, "played", 1)
    await tab.until(f"{BUFFERED} > 2.9")
    gate(folder, "played", 2)
    await tab.until(f"{VIDEO}.ended")
    told["end"] = await tab.run(f"{VIDEO}.currentTime")
    told["frames"] = await tab.run(f"{VIDEO}.getVideoPlaybackQuality().totalVideoFrames")
    told["errors"] = await tab.run("errors.filter(([, details]) => details !== 'bufferStalledError')")
    return told


@needs_browser
@pytest.mark.skipif(not HLS_JS, reason="needs HLS_JS, the path of hls.light.min.js")
def test_hls_js_plays_a_job_while_it_runs(server: RunningEndpoint, gates: Path, tmp_path: Path) -> None:
    playlist = published(server, start(server, "played"), 1)
    player = partial(play, folder=gates, playlist=playlist)
    told = asyncio.run(opened(server.endpoint.url, tmp_path / "browser", player))

    assert told["first"] == pytest.approx(2.0, abs=BEHIND)
    assert told["end"] == pytest.approx(4.0, abs=0.05)
    assert told["frames"] == 100
    assert told["errors"] == []


async def see(tab: Browser) -> dict[str, Any]:
    """Watch a job of the embedded model until its first window plays."""
    await tab.until("document.readyState === 'complete'")
    for field, value in (("seconds", 8), ("fps", 25)):
        await tab.run(f"document.getElementById('{field}').value = '{value}'")
    await tab.run("document.getElementById('turbo').click()")
    await submit(tab, "A woman speaks.")
    await tab.until(f"{VIDEO}.currentTime > 0.5")
    picture = await tab.call("Page.captureScreenshot", captureBeyondViewport=True)
    return {
        "state": await tab.run("document.getElementById('state').innerText"),
        "detail": await tab.run("document.getElementById('detail').innerText"),
        "picture": picture["data"],
    }


@needs_browser
@pytest.mark.slow
def test_the_embedded_model_is_watched_while_it_makes_its_second_window(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "engine", "runpod", "model=tiny", "device=cpu"]
    with running(worker=command) as server:
        told = asyncio.run(opened(server.endpoint.url, tmp_path / "browser", see))
    assert told["state"] == "Running"
    assert "windows" in told["detail"]
    if place := os.environ.get("LIVE_PICTURE"):
        Path(place).write_bytes(base64.b64decode(told["picture"]))
