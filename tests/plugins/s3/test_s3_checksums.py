"""A store that refuses additional checksums, or whose ETags are of its own kind, takes videos all the same."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from s3_store import (
    HOSTS,
    LONG_VIDEO,
    VIDEO,
    Proxy,
    artifact,
    change,
    failure,
    knows_no_checksums,
    names,
    own_store,
    refuse,
    stored,
    told,
)

from engine.errors import NotDelivered
from plugins.sinks.s3 import S3Config, S3Sink

#: Public reports: cyberduck#16107, boto3#4398 and #4102, cloudflare-r2#12, and what other stores say in their place.
STORES = {
    "Backblaze B2": (400, "InvalidArgument"),
    "Ceph": (411, "MissingContentLength"),
    "Wasabi": (400, "IncompleteBody"),
    "R2": (401, "Unauthorized"),
    "none of it made": (501, "NotImplemented"),
    "headers signed otherwise": (403, "SignatureDoesNotMatch"),
    "payload hashed otherwise": (400, "XAmzContentSHA256Mismatch"),
    "rights for known headers alone": (403, "AccessDenied"),
    "no word at all": (400, ""),
}


def checksums(proxy: Proxy) -> int:
    return sum(any("checksum" in name.lower() for name in sent) for sent in proxy.headers)


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.mark.parametrize(
    ("kind", "content"),
    [*((kind, VIDEO) for kind in STORES), ("Backblaze B2", LONG_VIDEO), ("Wasabi", LONG_VIDEO)],
    ids=[*STORES, "B2 in parts", "Wasabi in parts"],
)
def test_store_that_refuses_checksums_is_tried_without_and_the_next_job_does_not_pay_again(
    kind: str,
    content: bytes,
    config: S3Config,
    proxy: Proxy,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "plugins")
    proxy.always = dict.fromkeys(("PUT", "POST", "HEAD"), knows_no_checksums(*STORES[kind]))

    kept = S3Sink(config).for_job("job-1", None).put(artifact(tmp_path, content))

    assert stored(proxy, "videos/job-1/a.mp4") == content
    (warning,) = kept.warnings
    assert "refuses additional checksums" in warning
    assert "sink.checksum=false" in warning
    assert "ETag compared" in caplog.text
    assert names(tmp_path / "kept") == []

    asked = checksums(proxy)
    again = S3Sink(config).for_job("job-2", None).put(artifact(tmp_path, content))

    assert stored(proxy, "videos/job-2/a.mp4") == content
    assert again.warnings == kept.warnings
    assert 0 < asked == checksums(proxy)


def test_store_that_takes_checksums_and_tells_none_is_tried_without(
    config: S3Config, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.always["HEAD"] = knows_no_checksums(400, "InvalidArgument")

    kept = S3Sink(config).for_job("job-head", None).put(artifact(tmp_path))

    assert len(kept.warnings) == 1
    assert proxy.count("PUT") == 2
    assert stored(proxy, "videos/job-head/a.mp4") == VIDEO


def test_own_store_of_a_job_is_tried_without_and_says_nothing_of_others(
    config: S3Config, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.always["PUT"] = knows_no_checksums(400, "InvalidArgument")

    kept = S3Sink(config).for_job("job-own", own_store(proxy, "abroad"), HOSTS).put(artifact(tmp_path))
    proxy.always.clear()

    assert len(kept.warnings) == 1
    assert stored(proxy, "videos/job-own/a.mp4", "abroad") == VIDEO
    assert S3Sink(config).for_job("job-ours", None).put(artifact(tmp_path)).warnings == ()


def test_one_attempt_is_enough_for_a_store_that_refuses_checksums(
    config: S3Config, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.always["PUT"] = knows_no_checksums(400, "IncompleteBody")

    kept = S3Sink(replace(config, attempts=1)).for_job("job-once", None).put(artifact(tmp_path))

    assert len(kept.warnings) == 1
    assert stored(proxy, "videos/job-once/a.mp4") == VIDEO


def test_damage_on_the_way_is_not_blamed_on_checksums(
    config: S3Config, proxy: Proxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "plugins")
    proxy.once("PUT", refuse(400, "IncompleteBody"))

    kept = S3Sink(config).for_job("job-damage", None).put(artifact(tmp_path))

    assert kept.warnings == ()
    assert "SHA-256 compared" in caplog.text


def test_trouble_that_passes_is_sat_out_without_checksums_too(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    refusing = knows_no_checksums(400, "InvalidArgument")
    proxy.always["PUT"] = refusing
    proxy.once("PUT", refusing, *[refuse(503, "ServiceUnavailable")] * 3)

    kept = S3Sink(config).for_job("job-both", None).put(artifact(tmp_path))

    assert len(kept.warnings) == 1
    assert checksums(proxy) == 1
    assert stored(proxy, "videos/job-both/a.mp4") == VIDEO


def test_refusal_that_has_another_reason_is_told_and_the_store_is_not_blamed(
    config: S3Config, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.always["PUT"] = refuse(403, "AccessDenied")
    sink = S3Sink(config).for_job("job-denied", None)

    error = failure(lambda: sink.put(artifact(tmp_path)))

    assert (error.code, type(error)) == ("s3_credentials_refused", NotDelivered)
    assert "s3:PutObject" in error.hint
    proxy.always.clear()
    assert sink.put(artifact(tmp_path)).warnings == ()


def test_changed_bytes_are_found_without_checksums_too(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    refusing = knows_no_checksums(400, "InvalidArgument")
    proxy.once("PUT", refusing, change, change)

    error = failure(lambda: S3Sink(replace(config, attempts=1)).put(artifact(tmp_path)))

    assert (error.code, type(error)) == ("s3_upload_failed", NotDelivered)
    assert "its ETag differs" in str(error)


def test_rehearsal_passes_where_a_video_would(config: S3Config, proxy: Proxy) -> None:
    proxy.always = dict.fromkeys(("PUT", "GET"), knows_no_checksums(400, "InvalidArgument"))

    S3Sink(config).rehearse()

    assert proxy.count("DELETE") == 1


@pytest.mark.parametrize(("checksum", "content"), [(False, VIDEO), (True, LONG_VIDEO), (False, LONG_VIDEO)])
def test_etag_that_is_the_md5_of_the_whole_is_taken_as_such(
    checksum: bool,
    content: bytes,
    config: S3Config,
    proxy: Proxy,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "plugins")
    proxy.always["HEAD"] = told(etag=f'"{md5(content)}"', x_amz_checksum_sha256="")

    S3Sink(replace(config, checksum=checksum)).for_job("job-md5", None).put(artifact(tmp_path, content))

    assert "ETag compared" in caplog.text
    assert stored(proxy, "videos/job-md5/a.mp4") == content


@pytest.mark.parametrize(
    ("etag", "content"), [("0" * 32, VIDEO), (md5(b"another file"), LONG_VIDEO)], ids=["whole", "parts"]
)
def test_etag_of_another_kind_is_told_and_the_hint_works(
    etag: str, content: bytes, config: S3Config, proxy: Proxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "plugins")
    proxy.always["HEAD"] = told(etag=f'"{etag}"', x_amz_checksum_sha256="")
    sink = S3Sink(replace(config, attempts=1))

    error = failure(lambda: sink.for_job("job-etag", None).put(artifact(tmp_path, content)))

    assert (error.code, type(error)) == ("s3_upload_failed", NotDelivered)
    assert "sink.compare=size" in error.hint
    assert names(tmp_path / "kept") == ["job-etag.json", "job-etag.mp4"]

    kept = S3Sink(replace(config, compare="size")).resume("job-etag")

    assert (kept.bytes, kept.warnings) == (len(content), ())
    assert "size compared" in caplog.text


def test_etag_of_other_parts_than_ours_says_nothing(
    config: S3Config, proxy: Proxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "plugins")
    proxy.always["HEAD"] = told(etag=f'"{"0" * 32}-7"', x_amz_checksum_sha256="")

    S3Sink(config).put(artifact(tmp_path, LONG_VIDEO))

    assert "size compared" in caplog.text


def test_size_is_compared_where_nothing_else_is(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.always["HEAD"] = told(content_length="10")

    error = failure(lambda: S3Sink(replace(config, compare="size", attempts=1)).put(artifact(tmp_path)))

    assert "its size differs" in str(error)
