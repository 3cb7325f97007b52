"""Which sink a request gets, and the video that waits for it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from engine.assembly.access import request_access
from engine.assembly.sinks import resume, sink_for_request
from engine.components import KeepingSink
from engine.data import Access, Artifact, Credentials, Kept, Request, Speaker, Store
from engine.errors import RequestError, SinkError
from engine.plugin.manager import installed
from plugins.sinks.base64 import Base64Config, Base64Sink
from plugins.sinks.disk import DiskSink
from plugins.sinks.s3 import S3Config, S3Sink

STORE = Store("films", Credentials("id", "secret", endpoint="http://127.0.0.1:9/"))


def request(**changes: object) -> Request:
    return Request("a person talks", "a.png", (Speaker("a.wav"),), **changes)  # type: ignore[arg-type]


def sink_of(asked: Request) -> object:
    return sink_for_request(Base64Sink(Base64Config(limit=7)), asked, installed(), Access(), own="base64")


def test_a_request_has_the_engines_sink_unless_it_names_another() -> None:
    assert sink_of(request()).limit == 7  # type: ignore[attr-defined]
    assert sink_of(request(sink="base64")).limit == 7  # type: ignore[attr-defined]
    assert isinstance(sink_of(request(sink="disk")), DiskSink)
    assert isinstance(sink_of(request(sink="s3")), S3Sink)


def test_what_the_answer_carries_bounds_the_sink_that_puts_the_video_into_it() -> None:
    assert sink_of(request(answer_bytes=5)).limit == 5  # type: ignore[attr-defined]
    assert sink_of(request(answer_bytes=9)).limit == 7  # type: ignore[attr-defined]
    assert isinstance(sink_of(request(sink="disk", answer_bytes=5)), DiskSink)


def test_an_unknown_sink_is_the_requests_error() -> None:
    with pytest.raises(RequestError, match=r"request\.sink: no sink named 'tape'; installed: base64, disk, s3"):
        sink_of(request(sink="tape"))


def test_a_bucket_of_its_own_needs_a_sink_that_takes_one() -> None:
    with pytest.raises(RequestError, match="does not accept a job"):
        sink_of(request(store=STORE))


def test_a_bucket_of_its_own_may_be_for_reading_alone() -> None:
    asked = request(store=STORE, sink="base64")
    assert isinstance(sink_of(asked), Base64Sink)
    assert request_access(Access(), asked).credentials is STORE.credentials
    assert request_access(Access(), request()).credentials is None


def test_a_bucket_of_its_own_lies_on_the_public_internet() -> None:
    sink = sink_of(request(store=STORE, sink="s3"))
    assert isinstance(sink, S3Sink)
    with pytest.raises(SinkError, match=r"request\.store: 127\.0\.0\.1 is not on the public internet") as refused:
        sink.check(None)
    assert refused.value.code == "address_private"


GIVEN = Kept("https://films.example.com/7.mp4", None, "0" * 64, 7)


@dataclass
class Shelf:
    """A sink with one waiting video."""

    resumed: list[str] = field(default_factory=list)

    def put(self, artifact: Artifact) -> Kept:
        raise AssertionError

    def check(self, filename: str | None) -> None: ...

    def waiting(self, job: str) -> Artifact | None:
        return Artifact(Path("7.mp4"), "video/mp4", 4.0, 100) if job == "7" else None

    def resume(self, job: str) -> Kept:
        self.resumed.append(job)
        return GIVEN


def test_a_video_that_waits_for_the_job_is_delivered() -> None:
    shelf = Shelf()
    found = resume(shelf, request(job="7", seed=5))
    assert found is not None
    assert (found.address, found.sha256, found.bytes) == (GIVEN.address, GIVEN.sha256, GIVEN.bytes)
    assert (found.frames, found.fps, found.seed) == (100, 25.0, 5)
    assert shelf.resumed == ["7"]


def test_nothing_is_resumed_for_another_job_or_none() -> None:
    assert resume(Shelf(), request(job="8")) is None
    assert resume(Shelf(), request()) is None
    assert resume(Base64Sink(Base64Config()), request(job="7")) is None


def test_the_s3_sink_says_what_waits(tmp_path: Path) -> None:
    sink = S3Sink(S3Config(bucket="films", region=None, endpoint_url=None, keep_folder=str(tmp_path), volume=""))
    assert isinstance(sink, KeepingSink)
    assert sink.waiting("7") is None
    (tmp_path / "7.mp4").write_bytes(b"mp4")
    told = {"media_type": "video/mp4", "seconds": 4.0, "frames": 100, "filename": None, "own": False}
    (tmp_path / "7.json").write_text(json.dumps(told), "utf-8")
    waiting = sink.waiting("7")
    assert waiting is not None
    assert waiting.frames == 100
