"""The client: what it sends, repeats, follows, fetches and tells, against a network of the test's own."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import engine
from engine.client import AsyncClient, Client, ClientError, Status, file, talk
from engine.client.calls import Attempts, PollInterval, retry_after

VIDEO = b"\x00\x00\x00\x18ftypmp42" * 1000
SHA256 = hashlib.sha256(VIDEO).hexdigest()
Answer = Callable[[httpx2.Request], httpx2.Response]


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited for; they pass at once."""
    waited: list[float] = []
    sleep = asyncio.sleep

    async def pass_at_once(seconds: float) -> None:
        waited.append(seconds)
        await sleep(0)

    monkeypatch.setattr("engine.client.synchronous.time.sleep", waited.append)
    monkeypatch.setattr("engine.client.asynchronous.asyncio.sleep", pass_at_once)
    return waited


class Network:
    """Gives the answers in turn, the last one for ever, and keeps what was asked."""

    def __init__(self, *answers: httpx2.Response | Exception | Answer) -> None:
        self.answers = list(answers)
        self.asked: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx2.Response) else answer(request)

    def client(self, **options: Any) -> Client:
        return Client("e1", "key", "http://here/v2/", transport=httpx2.MockTransport(self), **options)


def told(status: str, **fields: Any) -> httpx2.Response:
    return httpx2.Response(200, json={"id": "j1", "status": status, **fields})


def completed(**output: Any) -> httpx2.Response:
    return told("COMPLETED", output=output)


def failure(call: Callable[[], Any]) -> ClientError:
    with pytest.raises(ClientError) as caught:
        call()
    return caught.value


def test_submit_sends_what_the_platform_reads() -> None:
    network = Network(told("IN_QUEUE"))
    job = network.client().submit(
        {"prompt": "a"}, policy={"ttl": 60_000}, webhook="https://hook", s3_config={"bucketName": "films"}
    )
    (request,) = network.asked
    assert (job.id, str(request.url), request.method) == ("j1", "http://here/v2/e1/run", "POST")
    assert request.headers["Authorization"] == "Bearer key"
    assert json.loads(request.content) == {
        "input": {"prompt": "a"},
        "policy": {"ttl": 60_000},
        "webhook": "https://hook",
        "s3Config": {"bucketName": "films"},
    }


def test_a_job_that_is_too_large_is_not_sent() -> None:
    network = Network(told("IN_QUEUE"))
    error = failure(lambda: network.client().submit({"audio_1": "x" * 10_000_000}))
    assert (error.code, error.field, network.asked) == ("too_large", "input", [])


def test_follow_yields_each_change_once_and_ends_with_the_end() -> None:
    half = {"percent": 50}
    network = Network(
        told("IN_QUEUE", delayTime=1),
        told("IN_QUEUE", delayTime=900),
        told("IN_PROGRESS"),
        told("IN_PROGRESS", output=half),
        told("IN_PROGRESS", output=half),
        completed(seed=1),
    )
    seen = [(status.state, status.progress) for status in network.client().job("j1").follow()]
    assert seen == [("IN_QUEUE", None), ("IN_PROGRESS", None), ("IN_PROGRESS", half), ("COMPLETED", None)]


def test_a_status_has_the_playlist_and_the_newest_preview() -> None:
    running = {"percent": 50, "live": {"playlist": "http://here/live/index.m3u8", "parts": 1}}
    picture = {"preview": {"image": f"data:image/jpeg;base64,{base64.b64encode(b'jpeg').decode()}"}}
    damaged = {"preview": {"image": "data:image/jpeg;base64,%%%"}}
    network = Network(
        *(told("IN_PROGRESS", output=output) for output in ({}, running, {**running, **picture}, damaged)),
        completed(live={"playlist": "http://here/live/index.m3u8"}),
    )
    seen = [(status.playlist, status.preview) for status in network.client().job("j1").follow()]
    url = "http://here/live/index.m3u8"
    assert seen == [(None, None), (url, None), (url, b"jpeg"), (None, None), (url, None)]


def test_a_job_is_looked_at_less_and_less_often_while_nothing_changes() -> None:
    interval = PollInterval(0.5, 2)
    waits = [interval.next(changed=False) for _ in range(5)]
    assert waits == [0.75, 1.125, 1.6875, 2, 2]
    assert interval.next(changed=True) == 0.5


def test_wait_returns_the_output() -> None:
    assert Network(told("IN_QUEUE"), completed(seed=7)).client().job("j1").wait() == {"seed": 7}


def test_wait_gives_up_and_leaves_the_job_alone() -> None:
    network = Network(told("IN_QUEUE"))
    error = failure(lambda: network.client().job("j1").wait(timeout=0))
    assert (error.code, len(network.asked)) == ("timeout", 1)


@pytest.mark.parametrize(
    ("answer", "code", "field", "line"),
    [
        (
            {
                "status": "FAILED",
                "error": "num_frames: 500 is too many; give 1 to 201",
                "output": {"error_code": "out_of_range", "field": "num_frames", "hint": "give 1 to 201"},
            },
            "out_of_range",
            "num_frames",
            "num_frames: 500 is too many; give 1 to 201",
        ),
        (
            {"status": "FAILED", "error": json.dumps({"error_message": "boom", "error_traceback": "secret"})},
            "job_failed",
            "",
            "boom",
        ),
        ({"status": "FAILED", "error": {"error": "no", "error_code": "conflict"}}, "conflict", "", "no"),
        ({"status": "TIMED_OUT"}, "timed_out", "", "the job took longer than its execution timeout"),
        ({"status": "CANCELLED"}, "cancelled", "", "the job was cancelled"),
    ],
)
def test_a_job_that_did_not_complete_tells_why(answer: dict[str, Any], code: str, field: str, line: str) -> None:
    error = failure(Network(httpx2.Response(200, json={"id": "j1", **answer})).client().job("j1").wait)
    assert (error.code, error.field, str(error)) == (code, field, line)
    assert isinstance(error.job, Status)


@pytest.mark.parametrize(
    ("status", "code"), [(401, "unauthorized"), (404, "not_found"), (413, "too_large"), (400, "refused")]
)
def test_a_refused_call_has_a_code_and_is_not_repeated(status: int, code: str) -> None:
    network = Network(httpx2.Response(status, json={"error": "no"}))
    error = failure(network.client().job("j1").status)
    assert (error.code, error.status, error.what, len(network.asked)) == (code, status, "no", 1)


def test_an_answer_that_is_no_json_is_an_error() -> None:
    assert failure(Network(httpx2.Response(200, text="<html>")).client().job("j1").status).code == "refused"


def test_429_is_repeated_after_the_time_it_names(pauses: list[float]) -> None:
    network = Network(httpx2.Response(429, headers={"Retry-After": "7"}), told("IN_QUEUE"))
    assert network.client().submit({"prompt": "a"}).id == "j1"
    assert pauses == [7]


def test_429_that_asks_for_an_hour_is_told_and_not_waited_for(pauses: list[float]) -> None:
    network = Network(httpx2.Response(429, headers={"Retry-After": "3600"}))
    assert failure(network.client().job("j1").status).code == "rate_limited"
    assert pauses == []


def test_retry_after_may_be_a_date_or_nonsense() -> None:
    past = "Wed, 21 Oct 2015 07:28:00 GMT"
    given = [retry_after(httpx2.Response(429, headers={"Retry-After": text})) for text in (past, "soon", "")]
    assert given == [0, None, None]


@pytest.mark.parametrize("trouble", [httpx2.Response(503), httpx2.ReadError("cut"), httpx2.ReadTimeout("slow")])
def test_a_status_is_asked_for_again_after_trouble(trouble: Any, pauses: list[float]) -> None:
    assert Network(trouble, trouble, told("IN_PROGRESS")).client().job("j1").status().state == "IN_PROGRESS"
    assert 0.25 <= pauses[0] <= 0.5
    assert 0.5 <= pauses[1] <= 1


@pytest.mark.parametrize("trouble", [httpx2.Response(503), httpx2.ReadError("cut"), httpx2.ReadTimeout("slow")])
@pytest.mark.parametrize("verb", ["submit", "retry"])
def test_what_may_have_arrived_is_not_sent_twice(trouble: Any, verb: str) -> None:
    network = Network(trouble, told("IN_QUEUE"))
    client = network.client()
    failure(lambda: client.submit({"prompt": "a"}) if verb == "submit" else client.job("j1").retry())
    assert len(network.asked) == 1


def test_a_job_that_cannot_have_arrived_is_sent_again() -> None:
    assert Network(httpx2.ConnectError("refused"), told("IN_QUEUE")).client().submit({"prompt": "a"}).id == "j1"


def test_tries_end_with_one_error() -> None:
    network = Network(httpx2.ConnectError("refused"))
    assert failure(network.client(tries=3).job("j1").status).code == "unreachable"
    assert len(network.asked) == 3


def test_waits_between_tries_are_bounded_and_spread() -> None:
    attempts = Attempts(12, safe=True)
    waits = [attempts.answered(httpx2.Response(503)) or 0 for _ in range(11)]
    assert all(0 < wait <= 30 for wait in waits)
    assert waits[-1] >= 15
    assert attempts.answered(httpx2.Response(503)) is None


def test_a_video_in_the_answer_is_written_whole(tmp_path: Path) -> None:
    network = Network(completed(video_base64=base64.b64encode(VIDEO).decode(), sha256=SHA256))
    saved = network.client().job("j1").download(tmp_path / "talk.mp4")
    assert (saved.path.read_bytes(), saved.sha256, saved.bytes) == (VIDEO, SHA256, len(VIDEO))
    assert [path.name for path in tmp_path.iterdir()] == ["talk.mp4"]


def test_a_video_elsewhere_is_fetched_without_our_key(tmp_path: Path) -> None:
    moved = httpx2.Response(302, headers={"Location": "https://store/talk.mp4?X-Amz-Signature=1"})
    network = Network(completed(video_url="https://films/talk.mp4"), moved, httpx2.Response(200, content=VIDEO))
    assert network.client().job("j1").download(tmp_path / "talk.mp4").sha256 == SHA256
    assert [request.url.host for request in network.asked] == ["here", "films", "store"]
    assert not any("Authorization" in request.headers for request in network.asked[1:])


def test_a_presigned_url_is_in_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    url = "https://films.example/j1.mp4?X-Amz-Signature=sentinel"
    network = Network(completed(video_url=url), httpx2.Response(200, content=VIDEO))
    with caplog.at_level("DEBUG"):
        network.client().job("j1").download(tmp_path / "talk.mp4")
    assert "GET https://films.example/j1.mp4" in caplog.text
    assert "sentinel" not in caplog.text


@pytest.mark.parametrize(
    "answers",
    [
        [completed(video_base64=base64.b64encode(VIDEO).decode(), sha256="0" * 64)],
        [completed(video_base64="AAA")],
        [completed(video_url="https://films/a", sha256="0" * 64), httpx2.Response(200, content=VIDEO)],
        [completed(video_url="https://films/a", bytes=len(VIDEO) + 1), httpx2.Response(200, content=VIDEO)],
        [
            completed(video_url="https://films/a"),
            lambda request: httpx2.Response(200, content=iter([VIDEO]), headers={"Content-Length": "99999"}),
        ],
    ],
    ids=["other bytes", "no base64", "other bytes elsewhere", "another length", "too few bytes"],
)
def test_a_damaged_video_leaves_the_old_file_and_nothing_else(tmp_path: Path, answers: list[Any]) -> None:
    target = tmp_path / "talk.mp4"
    target.write_bytes(b"old")
    error = failure(lambda: Network(*answers).client().job("j1").download(target))
    assert error.code == "damaged"
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_a_download_that_is_cut_is_fetched_again(tmp_path: Path) -> None:
    def cut(request: httpx2.Request) -> httpx2.Response:
        def body() -> Iterator[bytes]:
            yield VIDEO[:100]
            raise httpx2.ReadError("cut")

        return httpx2.Response(200, content=body())

    network = Network(completed(video_url="https://films/a"), cut, httpx2.Response(200, content=VIDEO))
    assert network.client().job("j1").download(tmp_path / "a.mp4").sha256 == SHA256


def test_a_url_that_has_run_out_is_told_without_the_url(tmp_path: Path) -> None:
    network = Network(completed(video_url="https://films/a?X-Amz-Signature=secret"), httpx2.Response(403))
    error = failure(lambda: network.client().job("j1").download(tmp_path / "a.mp4"))
    assert (error.code, error.status) == ("download_failed", 403)
    assert "secret" not in str(error)


@pytest.mark.parametrize(("output", "hint"), [({"video_path": "/runpod-volume/a.mp4"}, "sink"), ({"seed": 1}, "")])
def test_an_answer_without_a_video_to_fetch_is_told(tmp_path: Path, output: dict[str, Any], hint: str) -> None:
    error = failure(lambda: Network(completed(**output)).client().job("j1").download(tmp_path / "a.mp4"))
    assert error.code == "no_video"
    assert hint in error.hint


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    network = Network(completed(video_base64="AAAA"))
    assert failure(lambda: network.client().job("j1").download(tmp_path / "no" / "a.mp4")).code == "bad_file"


def test_file_becomes_a_data_url(tmp_path: Path) -> None:
    picture = tmp_path / "anna.png"
    picture.write_bytes(b"abc")
    assert file(picture) == "data:image/png;base64,YWJj"


def test_a_file_that_is_too_large_or_missing_is_told(tmp_path: Path) -> None:
    picture = tmp_path / "anna.png"
    picture.write_bytes(b"abcd")
    assert failure(lambda: file(picture, most=3)).code == "too_large"
    assert failure(lambda: file(tmp_path / "none.png")).code == "bad_file"


def test_async_client_does_the_same(tmp_path: Path, pauses: list[float]) -> None:
    network = Network(
        httpx2.Response(429, headers={"Retry-After": "7"}),
        told("IN_QUEUE"),
        told("IN_PROGRESS", output={"percent": 1}),
        completed(video_url="https://films/a"),
        completed(video_url="https://films/a"),
        httpx2.Response(200, content=VIDEO),
        told("CANCELLED"),
        httpx2.Response(400, json={"error": "no"}),
        httpx2.Response(200, json={"jobs": {}}),
    )

    async def talk() -> tuple[Any, ...]:
        async with AsyncClient("e1", "key", "http://here/v2", transport=httpx2.MockTransport(network)) as client:
            job = await client.submit({"prompt": "a"})
            seen = [status.state async for status in job.follow()]
            saved = await job.download(tmp_path / "a.mp4")
            state = (await job.cancel()).state
            with pytest.raises(ClientError) as caught:
                await job.retry()
            return seen, saved.sha256, state, caught.value.code, await client.health()

    assert asyncio.run(talk()) == (["IN_PROGRESS", "COMPLETED"], SHA256, "CANCELLED", "refused", {"jobs": {}})
    assert pauses[0] == 7


def test_importing_the_client_brings_neither_torch_nor_hydra() -> None:
    code = "import sys, engine.client; print([name for name in ('torch', 'hydra', 'numpy') if name in sys.modules])"
    root = Path(engine.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_the_helper_asks_for_a_video_as_long_as_its_voices(tmp_path: Path) -> None:
    voice = tmp_path / "anna.wav"
    voice.write_bytes(b"RIFF")
    asked = talk("https://example.org/a.png", voice, "s3://media/bert.wav", prompt="They talk.", seed=7)
    assert asked == {
        "reference_image": "https://example.org/a.png",
        "audio_1": file(voice),
        "audio_2": "s3://media/bert.wav",
        "prompt": "They talk.",
        "num_frames": "auto",
        "seed": 7,
    }
    assert talk("data:,", "data:,x", None, prompt="x")["speakers"] == [{"audio": "data:,x"}, {"silence": True}]
    assert talk("data:,", "data:,x", prompt="x", num_frames=9)["num_frames"] == 9
    for voices in ((), (None,)):
        with pytest.raises(ClientError, match="no voice"):
            talk("data:,", *voices, prompt="x")
