"""A request that is withdrawn is let go within a second, whatever it waits for."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_request import REQUEST
from loopback import reply, serving, trickle
from PIL import Image

from engine import Access, EngineService
from engine.assembly.access import make_access
from engine.assembly.location import WeightsFinder
from engine.assembly.settings import make_plan_inputs
from engine.cancel import apart, pause
from engine.data import Artifact, Media, Region, Request, Speaker
from engine.errors import Cancelled, EngineError, RequestError
from engine.net.guard import connect, dial, parse_url
from engine.net.retry import patiently
from engine.serving.worker.handler import Handler, Terms
from engine.serving.worker.warm_engine import WarmEngine
from engine.stages.plan import plan_walk
from engine.stages.read import fetch
from engine.stages.windows import plan_windows

ACCESS = Access(schemes=("http", "https", "path"), private_hosts=("127.0.0.1",))


def hold(connection: socket.socket) -> None:
    """Say nothing until the other side hangs up."""
    connection.recv(1)


@contextmanager
def counted() -> Iterator[Callable[[], float]]:
    """Count seconds, without those for which a busy machine let no thread of this process run."""
    began, starved, over = time.monotonic(), [0.0], threading.Event()

    def watch() -> None:
        while not over.is_set():
            before = time.monotonic()
            over.wait(0.02)
            starved[0] += max(0.0, time.monotonic() - before - 0.03)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: time.monotonic() - began - starved[0]
    finally:
        over.set()
        watcher.join()


def seconds_to_let_go(call: Callable[[threading.Event], object], after: float = 0.5) -> float:
    """Withdraw a call after so many seconds; return how long it took from then on until it raised Cancelled."""
    token = threading.Event()
    begun: list[Any] = []

    def withdraw() -> None:
        counting = counted()
        begun.extend([counting, counting.__enter__()])
        token.set()

    timer = threading.Timer(after, withdraw)
    timer.start()
    try:
        with pytest.raises(Cancelled):
            call(token)
        return float(begun[1]())
    finally:
        timer.cancel()
        if begun:
            begun[0].__exit__(None, None, None)


@pytest.fixture
def full() -> Iterator[int]:
    """The port of a server whose queue is full: a connection to it is neither made nor refused."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        port = int(listening.getsockname()[1])
        waiting = []
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
            waiting.append(client)
        time.sleep(0.1)
        yield port
        for client in waiting:
            client.close()


def opener(address: str, scheme: str, access: Access, into: Path) -> Path | None:
    from plugins.addresses.http import fetch_url

    return fetch_url(address, access, into) if scheme == "http" else Path(address)


# --- connections ------------------------------------------------------------------------------------------------------


def test_a_look_up_that_hangs_is_let_go() -> None:
    never = threading.Event()

    def resolve(host: str, port: int) -> list[str]:
        never.wait(5)
        return ["127.0.0.1"]

    url = parse_url("http://films.example/a.png")
    late = time.monotonic() + 60
    assert seconds_to_let_go(lambda token: dial(url, deadline=late, resolve=resolve, cancel=token)) < 1
    never.set()


def test_a_connection_that_is_not_made_is_let_go(full: int) -> None:
    url = parse_url(f"http://127.0.0.1:{full}/a.png")
    hosts, late = ("127.0.0.1",), time.monotonic() + 60
    assert seconds_to_let_go(lambda token: dial(url, deadline=late, private_hosts=hosts, cancel=token)) < 1


def test_a_handshake_that_hangs_is_let_go() -> None:
    with serving(hold) as server:
        url = parse_url(server.url(scheme="https"))
        hosts, late = ("127.0.0.1",), time.monotonic() + 60
        assert seconds_to_let_go(lambda token: connect(url, deadline=late, private_hosts=hosts, cancel=token)) < 1


@pytest.mark.parametrize(
    "script",
    [
        hold,
        trickle(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
        trickle(reply(length=10_000_000), b"x"),
        trickle(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["silence", "headers", "body", "chunks"],
)
def test_a_server_that_drips_is_let_go_and_no_file_stays(
    tmp_path: Path, script: Callable[[socket.socket], None]
) -> None:
    with serving(script) as server:
        asked = Request("hi", server.url("/a.png"), (Speaker(None),), frames=5)
        assert seconds_to_let_go(lambda token: fetch(asked, opener, ACCESS, tmp_path, cancel=token)) < 1
    assert list(tmp_path.iterdir()) == []


def test_an_s3_address_that_drips_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3")
    from plugins.addresses.s3 import fetch_object

    monkeypatch.setenv("BUCKET_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("BUCKET_SECRET_ACCESS_KEY", "secret")
    with serving(trickle(reply(length=10_000_000), b"x")) as server:
        access = replace(ACCESS, schemes=("s3",), buckets=("films",), endpoint_url=server.url(""), region="us-east-1")
        assert (
            seconds_to_let_go(
                lambda token: fetch_object("s3://films/a.png", replace(access, cancel=token), tmp_path), after=1.5
            )
            < 1
        )
    assert list(tmp_path.iterdir()) == []


def test_addresses_after_the_withdrawn_one_are_not_opened(tmp_path: Path) -> None:
    with serving(trickle(reply(length=10_000_000), b"x")) as server:
        speakers = tuple(Speaker(server.url(f"/{index}.wav")) for index in range(8))
        asked = Request("hi", REQUEST.image, speakers)
        assert seconds_to_let_go(lambda token: fetch(asked, opener, ACCESS, tmp_path, cancel=token), after=1.5) < 1
        assert len(server.requests) == 1


def test_a_plugin_that_does_not_look_is_left_behind(tmp_path: Path) -> None:
    ended = threading.Event()

    def slow(address: str, scheme: str, access: Access, into: Path) -> Path | None:
        ended.wait(5)
        return None

    assert seconds_to_let_go(lambda token: fetch(REQUEST, slow, ACCESS, tmp_path, cancel=token)) < 1
    ended.set()


# --- one deadline for all ---------------------------------------------------------------------------------------------


def test_all_addresses_of_a_request_share_one_deadline(tmp_path: Path) -> None:
    picture = Path(REQUEST.image).read_bytes()

    def late(connection: socket.socket) -> None:
        time.sleep(0.4)
        connection.sendall(reply(picture))

    with serving(late) as server:
        masks = tuple(server.url(f"/{index}.png") for index in range(9))
        speakers = tuple(Speaker(None, Region(mask=mask)) for mask in masks)
        asked = Request("hi", server.url("/a.png"), speakers, frames=5)
        access = replace(ACCESS, timeout=30, total_timeout=1.0)

        began = time.monotonic()
        with pytest.raises(RequestError, match="longer than 1 seconds, the limit for all together") as caught:
            fetch(asked, opener, access, tmp_path)
        # Ten answers of 0.4 s each would take four.
        assert time.monotonic() - began < 3.5
    assert caught.value.code == "download_timeout"
    assert caught.value.field.startswith("request.speakers[")
    assert "access.total_timeout" in caught.value.hint


def test_the_deadline_and_the_pixels_come_from_the_config() -> None:
    service = EngineService(["access.total_timeout=7", "access.max_pixels=1000"])

    assert make_access(service.config).total_timeout == 7
    with pytest.raises(RequestError, match="more than the 1000 allowed"):
        service.plan(REQUEST)
    for bad in ("access.total_timeout=0", "access.max_pixels=0", "access.max_pixels=1000000000"):
        with pytest.raises(EngineError):
            EngineService([bad])


# --- planning and decoding --------------------------------------------------------------------------------------------


def test_planning_without_end_is_let_go() -> None:
    assert seconds_to_let_go(lambda token: plan_windows(10**12, window=81, motion=25, cancel=token)) < 1


def test_a_picture_that_takes_long_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Real decoders of large pictures take as long; this one takes as long on every machine.
    from engine.media import picture as module

    real = module._load
    ended = threading.Event()

    def slow(*given: Any, **more: Any) -> Any:
        ended.wait(5)
        return real(*given, **more)

    monkeypatch.setattr(module, "_load", slow)
    assert seconds_to_let_go(lambda token: fetch(REQUEST, opener, ACCESS, tmp_path, cancel=token)) < 1
    ended.set()


def test_masks_that_take_long_are_let_go_while_planning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from engine.media import canvas

    ended = threading.Event()

    def slow(*given: Any, **more: Any) -> Any:
        ended.wait(5)
        return np.full((64, 64), 255, np.uint8)

    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr(canvas, "read_mask", slow)
    service = EngineService()
    registry = service._registry
    inputs = make_plan_inputs(service.config, registry, WeightsFinder(registry))
    asked = Request("hi", "a.png", (Speaker(None, Region(mask="m.png")),), frames=5)
    media = Media(tmp_path / "a.png", (64, 64), (None,), (0.0,), (tmp_path / "m.png",))
    assert seconds_to_let_go(lambda token: plan_walk(asked, media, inputs, cancel=token)) < 1
    ended.set()


# --- waiting and uploading --------------------------------------------------------------------------------------------


def test_a_request_that_waits_for_another_is_let_go() -> None:
    service = EngineService()
    with service._lock:
        assert seconds_to_let_go(lambda token: service.generate(replace(REQUEST, overrides=()), cancel=token)) < 1
    assert service._lock.acquire(timeout=1)
    service._lock.release()


def test_a_pause_is_as_long_as_asked_and_ends_when_withdrawn() -> None:
    began = time.monotonic()
    pause(0.25, threading.Event(), "keep")
    assert 0.25 <= time.monotonic() - began < 1
    assert seconds_to_let_go(lambda token: pause(60, token, "keep")) < 1


def test_what_a_call_returns_and_raises_comes_through() -> None:
    def late() -> None:
        raise TimeoutError("its own")

    assert apart(lambda: 3, threading.Event(), "read") == 3
    with pytest.raises(TimeoutError, match="its own"):
        apart(late, threading.Event(), "read")


def test_the_wait_between_two_uploads_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.net.s3 import Trouble

    monkeypatch.setattr("random.uniform", lambda low, high: high)
    passing = Trouble("s3_unreachable", "busy", passing=True)
    assert seconds_to_let_go(lambda token: patiently(lambda: passing, attempts=9, backoff=30, cancel=token)) < 1


@pytest.mark.parametrize("phase", ["check", "put"])
def test_a_store_that_hangs_is_let_go_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    pytest.importorskip("boto3")
    from plugins.sinks.s3 import S3Config, S3Sink

    monkeypatch.setenv("BUCKET_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("BUCKET_SECRET_ACCESS_KEY", "secret")

    def brief(connection: socket.socket) -> None:
        # What is left behind ends with the test.
        connection.settimeout(2.5)
        connection.recv(1)

    with serving(brief) as server:
        config = S3Config(
            bucket="films", region="us-east-1", endpoint_url=server.url(""), keep_folder=str(tmp_path / "kept")
        )
        video = tmp_path / "video.mp4"
        video.write_bytes(b"video" * 1000)
        sink = S3Sink(config).for_job("job-1", None)

        def call(token: threading.Event) -> None:
            mine = sink.until(token)
            if phase == "check":
                mine.check(None)
            else:
                mine.put(Artifact(video, "video/mp4", 1.0, 5))

        assert seconds_to_let_go(call, after=1.5) < 1
    assert not (tmp_path / "kept").exists()


def test_an_encoding_for_the_answer_is_let_go(tmp_path: Path) -> None:
    from engine.data import Frames
    from engine.stages.write import VideoOptions, Writer
    from plugins.sinks.base64 import Base64Config, Base64Sink

    noise = np.random.default_rng(0).integers(0, 256, (16, 480, 832, 3), np.uint8)
    sound = np.zeros((48_000 * 16, 2), np.float32)
    options = VideoOptions(preset="ultrafast", audio_bitrate=64_000)
    with Writer(tmp_path / "v.mp4", (832, 480), 8.0, sound, options) as writer:
        for _ in range(8):
            writer.add(Frames(noise, 8.0))
        artifact = writer.finish()
    sink = Base64Sink(Base64Config()).within(artifact.path.stat().st_size // 2)

    assert seconds_to_let_go(lambda token: sink.until(token).put(artifact), after=0.8) < 1
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]


# --- the worker -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["plan", "generate"])
def test_a_cancelled_job_gives_its_worker_back_within_a_second(action: str) -> None:
    with serving(trickle(reply(length=10_000_000), b"x")) as server:
        access = Access(schemes=("http", "data"), private_hosts=("127.0.0.1",))
        warm_engine = WarmEngine(EngineService(["sink=base64"], access=access))
        handler = Handler(warm_engine, Terms())
        job = {
            "action": action,
            "prompt": "hi",
            "reference_image": server.url("/a.png"),
            "audio_1": server.url("/a.wav"),
        }
        given = {"id": "job-1", "input": job | {"num_frames": 5}}

        async def cancelled() -> float:
            task = asyncio.create_task(handler.handle(given))
            while not server.requests:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
            with counted() as seconds:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                return seconds()

        try:
            assert asyncio.run(asyncio.wait_for(cancelled(), 60)) < 1
        finally:
            warm_engine.close()
