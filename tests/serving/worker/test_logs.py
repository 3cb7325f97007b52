"""Log lines: JSON with the job's id, and no secret, no media and no signed URL at any level."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from worker_fakes import GOOD, STORE, FakeService, ask

from engine.errors import ConfigError
from engine.redaction import named_secrets, redact
from engine.serving.worker.handler import Handler, Terms
from engine.serving.worker.logs import LogContext, install
from engine.serving.worker.warm_engine import WarmEngine

SECRET = "sentinel/secret+0123456789"
SIGNED = (
    "https://films.s3.eu-west-1.amazonaws.com/videos/job-1/talk.mp4?X-Amz-Algorithm=AWS4-HMAC-SHA256"
    "&X-Amz-Credential=AKIASENTINEL0123&X-Amz-Signature=5e17135e17135e17135e1713"
)
MEDIA = "U0VOVElORUw" * 40


class Log:
    def __init__(self, stream: io.StringIO, context: LogContext) -> None:
        self.stream = stream
        self.context = context

    def told(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """Install the worker's log at DEBUG, and put back what was there."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream, context = io.StringIO(), LogContext()
    install("debug", context, stream)
    yield Log(stream, context)
    logging.captureWarnings(False)
    root.handlers[:] = before
    root.setLevel(level)


def test_a_line_is_json_with_the_jobs_id(log: Log) -> None:
    log.context.begin("job-1")
    logging.getLogger("acme.part").info("%d of %d", 1, 2)
    log.context.end()
    logging.getLogger("acme.part").warning("later")
    first, second = log.told()
    assert (first["message"], first["requestId"], first["level"], first["logger"]) == (
        "1 of 2",
        "job-1",
        "INFO",
        "acme.part",
    )
    assert second["requestId"] is None


@pytest.mark.parametrize(
    "text",
    [
        f"the key is {SECRET}",
        f"Authorization: Bearer {SECRET}",
        "{'access': '" + SECRET + "'}",
        "GET /?secret=sentinel%2Fsecret%2B0123456789",
        f"uploaded to {SIGNED}",
        f"b'{MEDIA}'",
        f"data:image/png;base64,{MEDIA[:60]}",
        "https://anna:sentinel-word@example.com/sentinel.png",
        "CanonicalRequest X-Amz-Signature=5e17135e17135e17135e1713",
    ],
)
def test_no_level_shows_what_must_not_be_kept(log: Log, text: str) -> None:
    logger = logging.getLogger("botocore.sentinel")
    for level in (logging.DEBUG, logging.INFO, logging.ERROR):
        logger.log(level, "said: %s", text)
        logger.log(level, text.replace("%", "%%"))
    try:
        raise ValueError(text)
    except ValueError:
        logger.exception("it broke")
    written = log.stream.getvalue()
    for sentinel in (SECRET, "secret%2B", "5e17135e", "SENTINEL", "U0VOVElORUw", "sentinel-word", "sentinel.png"):
        assert sentinel not in written
    assert len(log.told()) == 7
    assert log.told()[-1]["exception"].startswith("Traceback")


def test_a_jobs_own_keys_are_hidden_before_the_job_is_understood(log: Log) -> None:
    def work(service: FakeService, request: Any, *_: object) -> None:
        logging.getLogger("acme").debug("keys: %s", request.store.credentials.secret_key)
        raise ValueError(STORE["accessSecret"])

    handler = Handler(WarmEngine(FakeService(work)), Terms(), context=log.context)
    ask(handler, s3Config=STORE)
    ask(handler, {**GOOD, "num_frames": STORE["accessSecret"]}, s3Config=STORE)
    written = log.stream.getvalue()
    assert STORE["accessSecret"] not in written
    assert STORE["accessId"] not in written
    assert "keys: [hidden]" in written


def test_a_host_and_a_path_stay_readable() -> None:
    assert redact("from https://example.com: slow") == "from https://example.com: slow"
    assert redact("from https://example.com/a/b.png: slow") == "from https://example.com/[hidden] slow"
    assert redact("in /runpod-volume/models/multitalk") == "in /runpod-volume/models/multitalk"
    assert redact("sha256 " + "a1" * 32) == "sha256 " + "a1" * 32


def test_a_long_line_is_cut_after_it_was_cleaned() -> None:
    text = redact("word " * 10_000 + SECRET, [SECRET])
    assert len(text) < 21_000
    assert "sentinel" not in redact("word " * 3_999 + SECRET, [SECRET])


def test_secrets_of_the_environment_are_known_by_their_names() -> None:
    environment = {"HF_TOKEN": "hf_0123456789", "BUCKET_SECRET_ACCESS_KEY": "0123456789", "HOME": "/home/anna-long"}
    assert set(named_secrets(environment)) == {"hf_0123456789", "0123456789"}


def test_an_unknown_level_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"entrypoint\.log_level: no log level 'LOUD'; DEBUG, INFO"):
        install("LOUD", LogContext())


def test_the_sdks_log_is_held_at_info_and_cleaned(capsys: pytest.CaptureFixture[str], log: Log) -> None:
    from runpod.serverless.modules.rp_logger import RunPodLogger

    from engine.serving.worker.sdk import redact_sdk_log

    logger = RunPodLogger()
    before = logger.level
    logger.level = "DEBUG"
    try:
        redact_sdk_log(log.context)
        logger.debug(f"Handler output: {MEDIA}", "job-1")  # noqa: G004 - as the SDK does
        logger.error(f"Failed to return job results. | {SIGNED}", "job-1")  # noqa: G004
        redact_sdk_log(log.context)
        logger.info("once", "job-1")
    finally:
        vars(logger).pop("log", None)
        logger.level = before
    told = capsys.readouterr().out
    assert "Handler output" not in told
    assert "X-Amz" not in told
    assert told.count("once") == 1
