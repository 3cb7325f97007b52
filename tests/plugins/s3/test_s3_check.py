"""What stands in the way of an upload is told before any work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from s3_store import VIDEO, Proxy, artifact, failure, fetch, refuse
from store import free_port

from engine.errors import EngineError
from plugins.sinks.s3 import S3Config, S3Sink


def test_no_bucket_is_told_before_any_work(config: S3Config) -> None:
    error = failure(lambda: S3Sink(replace(config, bucket="")).check(None))

    assert (error.code, error.field) == ("s3_bucket_missing", "sink.bucket")
    assert "S3_BUCKET" in error.hint


@pytest.mark.parametrize("probe", [True, False])
def test_no_credentials_are_told_before_any_work(
    probe: bool, config: S3Config, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BUCKET_ACCESS_KEY_ID")
    monkeypatch.delenv("BUCKET_SECRET_ACCESS_KEY")

    error = failure(lambda: S3Sink(replace(config, probe=probe)).check(None))

    assert error.code == "s3_no_credentials"
    assert "AWS_ACCESS_KEY_ID" in error.hint
    assert proxy.seen == []


def test_half_of_the_credentials_is_told_by_what_is_missing(config: S3Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUCKET_SECRET_ACCESS_KEY")

    error = failure(lambda: S3Sink(config).check(None))

    assert error.code == "s3_no_credentials"
    assert "lack BUCKET_SECRET_ACCESS_KEY" in str(error)


def test_amazons_names_of_the_keys_work_too(config: S3Config, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    for ours, theirs in (("KEY_ID", "AWS_ACCESS_KEY_ID"), ("KEY", "AWS_SECRET_ACCESS_KEY")):
        monkeypatch.delenv("BUCKET_ACCESS_KEY_ID" if ours == "KEY_ID" else "BUCKET_SECRET_ACCESS_KEY")
        monkeypatch.setenv(theirs, "amazons")

    S3Sink(config).check(None)

    assert "Credential=amazons/" in proxy.headers[0]["Authorization"]


def test_missing_bucket_is_told_before_any_work(config: S3Config) -> None:
    error = failure(lambda: S3Sink(replace(config, bucket="gone")).check(None))

    assert (error.code, error.field) == ("s3_bucket_missing", "sink.bucket")
    assert "'gone'" in str(error)


def test_name_that_no_bucket_can_have_is_a_missing_bucket(config: S3Config) -> None:
    assert failure(lambda: S3Sink(replace(config, bucket="a/b c")).check(None)).code == "s3_bucket_missing"


def test_wrong_region_is_told_with_the_right_one(config: S3Config) -> None:
    error = failure(lambda: S3Sink(replace(config, bucket="abroad")).check(None))

    assert (error.code, error.field) == ("s3_wrong_region", "sink.region")
    assert "is in eu-west-1, not us-east-1" in str(error)
    S3Sink(replace(config, bucket="abroad", region="eu-west-1")).check(None)


def test_region_that_cannot_be_one_is_told(config: S3Config) -> None:
    assert failure(lambda: S3Sink(replace(config, region="eu west")).check(None)).code == "s3_wrong_region"


def test_redirect_to_another_region_is_told_with_the_right_one(config: S3Config, proxy: Proxy) -> None:
    proxy.always["HEAD"] = refuse(301, "PermanentRedirect", x_amz_bucket_region="ap-south-1")

    error = failure(lambda: S3Sink(config).check(None))

    assert error.code == "s3_wrong_region"
    assert "ap-south-1" in str(error)


@pytest.mark.parametrize(
    ("status", "reason", "code"),
    [
        (403, "AccessDenied", "s3_credentials_refused"),
        (403, "InvalidAccessKeyId", "s3_credentials_refused"),
        (403, "SignatureDoesNotMatch", "s3_credentials_refused"),
        (403, "RequestTimeTooSkewed", "s3_credentials_refused"),
        (400, "ExpiredToken", "s3_token_expired"),
        (400, "InvalidToken", "s3_credentials_refused"),
    ],
)
def test_refusal_is_told_by_its_reason_before_any_work(
    status: int, reason: str, code: str, config: S3Config, proxy: Proxy
) -> None:
    proxy.always |= {"HEAD": refuse(status, reason), "GET": refuse(status, reason)}

    error = failure(lambda: S3Sink(config).check(None))

    assert error.code == code
    assert code == "s3_token_expired" or f"({reason})" in str(error)
    assert error.hint


def test_refused_listing_does_not_matter_without_the_probe(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.once("HEAD", refuse(403, "AccessDenied"))
    sink = S3Sink(replace(config, probe=False))

    sink.check(None)
    assert proxy.seen == []
    proxy.faults.clear()
    assert fetch(sink.put(artifact(tmp_path)).address)[0] == VIDEO


def test_store_that_nobody_answers_at_is_told_before_any_work(config: S3Config) -> None:
    error = failure(lambda: S3Sink(replace(config, endpoint_url=f"http://127.0.0.1:{free_port()}")).check(None))

    assert (error.code, error.field) == ("s3_unreachable", "sink.endpoint_url")
    assert "127.0.0.1" in str(error)


@pytest.mark.parametrize("endpoint", ["films.example.com", "http://[", "ftp://", "http://a b", "http://a:b@c"])
def test_endpoint_that_is_no_url_is_told_before_any_work(endpoint: str, config: S3Config) -> None:
    error = failure(lambda: S3Sink(replace(config, endpoint_url=endpoint, attempts=1)).check(None))

    assert (error.code, error.field) == ("s3_unreachable", "sink.endpoint_url")


def test_short_trouble_at_the_check_is_sat_out(config: S3Config, proxy: Proxy) -> None:
    proxy.once("HEAD", *[refuse(503, "ServiceUnavailable")] * 4)

    S3Sink(config).check(None)

    assert proxy.count("HEAD") == 5


def test_nowhere_to_keep_a_video_is_told_before_any_work(config: S3Config, tmp_path: Path, proxy: Proxy) -> None:
    (tmp_path / "file").touch()

    error = failure(lambda: S3Sink(replace(config, keep_folder=str(tmp_path / "file" / "kept"))).check(None))

    assert (error.code, error.field) == ("s3_no_keep_folder", "sink.keep_folder")
    assert proxy.seen == []


def test_errors_are_json_for_a_remote_caller(config: S3Config) -> None:
    error: EngineError = failure(lambda: S3Sink(replace(config, bucket="gone")).check(None))

    assert json.loads(json.dumps({"code": error.code, "field": error.field, "hint": error.hint}))["code"]
