"""Whatever the store does meanwhile, what may pass is sat out and what stays is told."""

from __future__ import annotations

import base64
import random
from dataclasses import replace
from pathlib import Path

import pytest
from s3_store import (
    LONG_VIDEO,
    SECRET,
    VIDEO,
    Fault,
    Proxy,
    artifact,
    change,
    cut,
    failure,
    refuse,
    shorten,
    slow,
    stall,
    stored,
    told,
)

from engine.errors import NotDelivered
from engine.net import retry
from engine.net.s3 import Trouble
from plugins.sinks.s3 import S3Config, S3Sink


def test_storm_of_503_is_sat_out(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.once("PUT", *[refuse(503, "ServiceUnavailable")] * 5)

    S3Sink(config).for_job("job-storm", None).put(artifact(tmp_path))

    assert proxy.count("PUT") == 6
    assert stored(proxy, "videos/job-storm/a.mp4") == VIDEO


def test_storm_in_one_part_is_sat_out(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.once("PUT", *[refuse(503, "ServiceUnavailable")] * 2)

    S3Sink(config).for_job("job-part", None).put(artifact(tmp_path, LONG_VIDEO))

    assert stored(proxy, "videos/job-part/a.mp4") == LONG_VIDEO


def test_waits_grow_and_are_random(
    config: S3Config, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, float]] = []
    waits: list[float] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return high / 4

    monkeypatch.setattr(random, "uniform", uniform)
    monkeypatch.setattr(retry, "pause", lambda seconds, *_: waits.append(seconds))
    sink = S3Sink(replace(config, attempts=8, backoff=1.0))
    passing = Trouble("s3_unreachable", "busy", passing=True)

    assert sink._patiently(lambda: passing) is passing
    assert asked == [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (0, 30), (0, 30)]
    assert waits == [high / 4 for _, high in asked]


def test_connection_cut_in_the_middle_is_tried_again(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.once("PUT", cut, cut, cut, cut)

    S3Sink(config).for_job("job-cut", None).put(artifact(tmp_path))

    assert proxy.count("PUT") == 5
    assert stored(proxy, "videos/job-cut/a.mp4") == VIDEO


def test_slow_store_is_waited_for(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.once("PUT", slow)

    S3Sink(config).for_job("job-slow", None).put(artifact(tmp_path))

    assert proxy.count("PUT") == 1
    assert stored(proxy, "videos/job-slow/a.mp4") == VIDEO


def test_silent_store_is_tried_again(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.once("PUT", stall)

    S3Sink(replace(config, timeout=0.7)).for_job("job-stall", None).put(artifact(tmp_path))

    assert proxy.count("PUT") >= 2
    assert stored(proxy, "videos/job-stall/a.mp4") == VIDEO


@pytest.mark.parametrize(
    ("status", "reason", "code", "tries"),
    [
        (400, "ExpiredToken", "s3_token_expired", 1),
        (403, "InvalidAccessKeyId", "s3_credentials_refused", 1),
        (404, "NoSuchBucket", "s3_bucket_missing", 1),
        (400, "AccessControlListNotSupported", "s3_refused", 1),
        # What could be about additional checksums is tried without them, once.
        (501, "NotImplemented", "s3_refused", 2),
        (400, f"{SECRET} <&>", "s3_refused", 2),
        (403, "AccessDenied", "s3_credentials_refused", 2),
    ],
)
def test_refusal_that_stays_is_not_tried_again(
    status: int, reason: str, code: str, tries: int, config: S3Config, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.always["PUT"] = refuse(status, reason)

    error = failure(lambda: S3Sink(config).put(artifact(tmp_path)))

    assert (error.code, type(error)) == (code, NotDelivered)
    assert not error.hint.startswith(";")
    assert proxy.count("PUT") == tries


def test_bytes_that_changed_on_the_way_are_sent_again(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.once("PUT", change)

    S3Sink(replace(config, checksum=False)).for_job("job-changed", None).put(artifact(tmp_path))

    assert proxy.count("PUT") == 2
    assert stored(proxy, "videos/job-changed/a.mp4") == VIDEO


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        (told(x_amz_checksum_sha256=base64.b64encode(b"0" * 32).decode()), "SHA-256"),
        (shorten, "size"),
    ],
)
def test_video_that_arrives_otherwise_is_not_called_delivered(
    fault: Fault, word: str, config: S3Config, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.always["HEAD"] = fault

    error = failure(lambda: S3Sink(config).put(artifact(tmp_path)))

    assert (error.code, type(error)) == ("s3_upload_failed", NotDelivered)
    assert f"its {word} differs" in str(error)
    assert proxy.count("PUT") == 2
