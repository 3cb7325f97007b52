"""What the caller of a job reads: the video and how it was made, or one line that gives nothing away."""

from __future__ import annotations

import logging
import socket
import time
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker_fakes import PLAN

from engine.data import Attempt, Delivery, Limit, Peak, Report, WindowReport
from engine.errors import (
    Cancelled,
    ConfigError,
    EngineError,
    MissingExtra,
    RequestError,
    SinkError,
    SourceError,
    UnknownComponent,
)
from engine.redaction import scrub
from engine.serving.jobs.answers import answer, engine_version, error_answer
from engine.serving.jobs.job import ParsedJob, parse_job
from engine.serving.jobs.schema import job_schema

GOOD = {"reference_image": "anna.png", "audio_1": "anna.wav", "prompt": "a woman speaks"}
STORE = {
    "accessId": "key-id-9",
    "accessSecret": "pass/word+9",
    "bucketName": "films",
    "endpointUrl": "https://s3.acme.io",
}
JOB = parse_job({"id": "job-1", "input": GOOD})
SECRET_JOB = parse_job({"id": "job-1", "input": GOOD, "s3Config": STORE})

DELIVERY = Delivery(
    address="https://bucket.example.org/a.mp4?X-Amz-Signature=1",
    content=None,
    sha256="0" * 64,
    bytes=7,
    media_type="video/mp4",
    seconds=12.5,
    frames=100,
    fps=8.0,
    seed=42,
    timings={"denoise": 1.23456},
    plan=PLAN,
    warnings=("the audio is cut",),
)


def holds(value: dict[str, Any], part: str) -> None:
    schema = job_schema()
    jsonschema.Draft202012Validator({"$defs": schema["$defs"], "$ref": f"#/$defs/{part}"}).validate(value)


# --- answers ----------------------------------------------------------------------------------------------------------


def test_url_of_a_video_is_answered_whole() -> None:
    told = answer(JOB, DELIVERY)
    assert told == {
        "video_url": DELIVERY.address,
        "sha256": "0" * 64,
        "bytes": 7,
        "seed": 42,
        "frames": 100,
        "fps": 8.0,
        "seconds": 12.5,
        "timings": {"denoise": 1.235},
        "prompts_reused": False,
        "windows_taken_over": 0,
        "engine_version": engine_version(),
        "warnings": ["the audio is cut"],
    }
    holds(told, "answer")


def test_the_report_is_answered_whole() -> None:
    attempts = (Attempt(None, None, ("not finite",)), Attempt(7, 0.0, (), kept=True))
    window = WindowReport(1, 0.0, 3.24, {"seam": None, "blank": 0.0}, {"seam": "the first window"}, attempts=attempts)
    report = Report((), (1,), (window,), {"blank": Limit(None, 0.0)}, {"mouth": "nobody speaks"}, 0.1)
    told = answer(JOB, replace(DELIVERY, report=report))
    holds(told, "answer")
    assert told["report"]["retaken"] == [1]
    assert told["report"]["windows"][0]["figures"] == {"seam": None, "blank": 0.0}
    assert told["report"]["windows"][0]["attempts"] == [
        {"seed": None, "badness": None, "below": ["not finite"], "kept": False},
        {"seed": 7, "badness": 0.0, "below": [], "kept": True},
    ]


def test_peaks_of_memory_are_answered_in_bytes() -> None:
    told = answer(JOB, replace(DELIVERY, peaks={"host": Peak(100, 160, {"load": 40, "denoise": 20})}))
    assert told["memory"] == {"host": {"start": 100, "peak": 160, "raised": {"load": 40, "denoise": 20}}}
    holds(told, "answer")


@pytest.mark.parametrize(
    ("address", "content", "name"),
    [("https://x.org/a.mp4", None, "video_url"), ("/videos/a.mp4", None, "video_path"), (None, "AAAA", "video_base64")],
)
def test_each_kind_of_sink_has_its_own_field(address: str | None, content: str | None, name: str) -> None:
    told = answer(JOB, replace(DELIVERY, address=address, content=content))
    assert told[name] == address or content
    assert len({"video_url", "video_path", "video_base64"} & set(told)) == 1
    holds(told, "answer")


def test_a_video_that_is_nowhere_is_an_error() -> None:
    with pytest.raises(SinkError):
        answer(JOB, replace(DELIVERY, address=None))


def test_warnings_give_nothing_away() -> None:
    told = answer(SECRET_JOB, replace(DELIVERY, warnings=("looked in /models/tiny with pass/word+9",)))
    assert told["warnings"] == ["looked in [path] with [hidden]"]


# --- errors -----------------------------------------------------------------------------------------------------------


def test_error_is_one_line_with_code_field_and_hint() -> None:
    with pytest.raises(RequestError) as caught:
        parse_job({"input": {**GOOD, "num_frames": 500}})
    told = error_answer(caught.value)
    assert [told] == job_schema()["$defs"]["error"]["examples"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineError("x"), "engine_error"),
        (ConfigError("x"), "bad_config"),
        (UnknownComponent("sampler", "eulr", ["euler"]), "unknown_component"),
        (MissingExtra("quant=int8", "torchao", "quant"), "missing_package"),
        (SourceError("x"), "weights_missing"),
        (RequestError("x"), "bad_request"),
        (SinkError("x"), "sink_failed"),
        (Cancelled("denoise"), "cancelled"),
        (RequestError("x", code="scheme_refused"), "scheme_refused"),
        (ZeroDivisionError("x"), "internal_error"),
    ],
)
def test_each_kind_of_error_has_its_code(error: Exception, code: str) -> None:
    told = error_answer(error)
    assert told["error_code"] == code
    assert "\n" not in told["error"]
    holds(told, "error")


def test_field_is_told_as_the_job_calls_it() -> None:
    error = RequestError("the file is empty", field="request.speakers[0].audio", hint="send it again")
    assert error_answer(error, JOB) == {
        "error": "audio_1: the file is empty; send it again",
        "error_code": "bad_request",
        "field": "audio_1",
        "hint": "send it again",
    }


def test_error_before_the_job_is_understood_has_names_too() -> None:
    assert error_answer(RequestError("x", field="request.image"))["field"] == "reference_image"


def test_a_bug_is_a_reference_that_the_log_carries_too(caplog: pytest.LogCaptureFixture) -> None:
    error = ValueError("/home/anna/secret password=hunter2")
    with caplog.at_level(logging.ERROR):
        told = error_answer(error, JOB)
    assert told["error_code"] == "internal_error"
    assert "anna" not in str(told)
    assert "hunter2" not in str(told)
    reference = told["error"].partition("reference ")[2].partition(")")[0]
    assert len(reference) == 8
    assert reference in told["hint"]
    (record,) = caplog.records
    assert reference in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_two_bugs_have_two_references() -> None:
    assert error_answer(ValueError())["error"] != error_answer(ValueError())["error"]


@pytest.mark.parametrize("where", ["what", "hint", "field"])
def test_keys_of_the_job_are_hidden_wherever_they_stand(where: str) -> None:
    text = "key-id-9 pass/word+9 pass%2Fword%2B9 https://s3.acme.io/films"
    error = SinkError(**{"what": "x", where: text})
    told = str(error_answer(error, SECRET_JOB))
    assert not [secret for secret in ("key-id-9", "word+9", "word%2B9", "acme") if secret in told]


def test_a_key_is_known_in_every_form_that_it_takes() -> None:
    secret = "a  b'c\\d/é"
    for text in (secret, repr(secret), str(SinkError(secret)), quote(secret), quote(secret, safe=""), f"{{{secret}}}"):
        assert "c" not in scrub(text, [secret]), text


# --- scrubbing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("/home/anna/x.png does not exist", "anna"),
        ("'/home/anna smith/films/x.png' does not exist", "smith"),
        ('"/home/anna smith" is a folder', "smith"),
        ("cannot open /home/anna smith/films/x.png", "smith"),
        ("in (/usr/lib/python3.11/site.py), line 3", "usr"),
        ("path=/etc/shadow", "shadow"),
        ("error:/etc/shadow", "shadow"),
        ("[/etc/shadow]", "shadow"),
        ("/root", "root"),
        ("//server9/share/x", "server9"),
        ("no:///etc/shadow", "shadow"),
        ("at ///etc/shadow", "shadow"),
        ("在/home/anna", "anna"),
        ("~/films/x", "films"),
        ("~anna/films", "anna"),
        ("file:///home/anna/x.png", "anna"),
        ("C:\\Users\\anna\\x.png is not there", "anna"),
        ("\\\\server9\\share\\x.png", "server9"),
        ("/runpod-volume/models/multitalk", "volume"),
        ("https://user:hunter2@example.org/x", "hunter2"),
        ("https://example.org/x?X-Amz-Signature=abcdef", "abcdef"),
        ("https://example.org/hooks/T0P-SECRET", "T0P"),
        ("http://minio:9000/films", "minio"),
        ("http://10.0.0.7/films", "10.0.0.7"),
        ("http://[fd00::7]:9000/films", "fd00"),
        ("s3://our-own-bucket/key", "our-own"),
        ("redis://:hunter2@cache.internal:6379/0", "hunter2"),
        ("cannot connect to minio:9000", "minio"),
        ("HTTPConnectionPool(host='minio', port=9000): Max retries", "minio"),
        ("cannot connect to db7.cluster.local", "db7"),
        ("cannot connect to worker3.svc:80", "worker3"),
        ("metadata.google.internal answered", "google"),
        ("10.1.2.3 refused", "10.1.2.3"),
        ("192.168.0.9:8080 refused", "192.168"),
        ("169.254.169.254 answered", "169.254"),
        ("127.0.0.1 refused", "127"),
        ("fe80::1%eth0 refused", "fe80"),
        ("::1 refused", "::1"),
        ("::ffff:10.0.0.7 refused", "10.0.0.7"),
        ("key AKIAIOSFODNN7EXAMPLE is unknown", "AKIA"),
        ("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJalr"),
        ("token hf_abcdefghijklmnop expired", "hf_"),
        ("rpa_ABCDEFGH12345678 refused", "rpa_"),
        ("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQR", "abc"),
        ("eyJhbGciOiJI.eyJzdWIi.c2ln is expired", "zdWIi"),
        ("Authorization: Bearer abc.def", "abc"),
        ("password=hunter2", "hunter2"),
        ("'secret': 'hunter 2'", "hunter"),
        ("AWS_SECRET_ACCESS_KEY=hunter2", "hunter2"),
        ("aws_session_token: hunter2", "hunter2"),
        ("api-key=hunter2;", "hunter2"),
        ('failed\nTraceback (most recent call last):\n  File "/x/y.py", line 3, in z', "line 3"),
        ("data:image/png;base64,iVBORw0KGgo= is no picture", "iVBOR"),
        ("a" * 30 + "9" * 30, "a9"),
    ],
)
def test_what_a_caller_must_not_read_is_gone(text: str, gone: str) -> None:
    assert gone not in scrub(text)
    assert gone not in str(error_answer(RequestError(f"it failed: {text} (2)", hint=f"see {text}")))


@pytest.mark.parametrize(
    "text",
    [
        "500 is more than 201; give a whole number from 1 to 201",
        "'100' is not a whole number",
        "the box [0, 0, 0.5, 1] is empty",
        "the picture has 40000 x 40000 pixels, 3/4 of them and/or more",
        "image/png, audio/wav",
        "the box reaches beyond [0.0, 0.0, 1.0, 1.0] at 12:30:45",
        "pip install 'multitalk-engine[s3]'",
        "vae/diffusion_pytorch_model.safetensors is missing",
        "multitalk models pull --preset multitalk-int8 (about 31.9 GB, used with quant=int8-quanto)",
        "use /run, not /runsync; ask /status; then /retry.",
        "8.8.8.8 and 2001:4860:4860::8888 answered",
        "speakers[0].region.box[2]: nan",
        "torch 2.13.0 needs CUDA 12.8",
        "guidance.audio_scale=4 sampler=turbo cache.threshold=0.3",
        "一个女人在说话",
        "Größe 3 × 4",
    ],
)
def test_what_a_caller_needs_stays(text: str) -> None:
    assert scrub(text) == text


def test_name_of_a_file_stays() -> None:
    assert scrub("'/models/tiny/vae/model.safetensors' is cut off") == "'[path]/model.safetensors' is cut off"


def test_own_host_name_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "5f3a9c-worker")
    assert scrub("no answer from 5f3a9c-worker") == "no answer from [internal host]"


def test_a_text_of_any_length_is_cut_to_a_line() -> None:
    for text in (
        "x " * 1_000_000,
        " " * 3_000_000 + "x",
        "a-" * 500_000 + "secret",
        "data:" * 100_000,
        "/a " * 300_000,
    ):
        began = time.process_time()
        assert len(scrub(text)) <= 500
        assert time.process_time() - began < 2


@given(text=st.text(max_size=300))
def test_scrubbed_text_is_one_line_and_stays_so(text: str) -> None:
    once = scrub(text, ["hunter2", "a"])
    assert "\n" not in once
    assert "hunter2" not in once
    assert once.isprintable()


@given(
    name=st.from_regex(r"/[a-z]{3,9}(/[a-z0-9_-]{1,9}){1,4}", fullmatch=True),
    before=st.sampled_from(["", "in ", "'", "(", "=", ": ", '"']),
)
def test_no_folder_is_told(name: str, before: str) -> None:
    after = {"'": "'", '"': '"', "(": ")"}.get(before, " is gone")
    assert name.rpartition("/")[0] not in scrub(f"{before}{name}{after}")


def test_job_without_keys_hides_nothing_more() -> None:
    assert isinstance(JOB, ParsedJob)
    assert error_answer(RequestError("key-id-9"), JOB)["error"] == "key-id-9"


def test_paths_stay_for_the_owner_of_the_machine_and_keys_do_not() -> None:
    path = "/home/anna/Projects2026/FilmsOfTheSummerHolidays/ClipNumber17/voice.wav"
    error = RequestError(f"'{path}' and {path} with Bearer abcdef123456", field="request.image", hint="look there")
    assert path not in error_answer(error)["error"]
    own = error_answer(error, local_caller=True)["error"]
    assert own.count(path) == 2
    assert "abcdef123456" not in own


def test_the_answer_names_the_attention_kernel_and_why() -> None:
    text = "native, by attention=auto: on a CPU torch's own kernel is the fastest"
    found = answer(JOB, replace(DELIVERY, plan=replace(PLAN, attention=text)))
    assert found["attention"] == text
    assert "attention" not in answer(JOB, DELIVERY)
