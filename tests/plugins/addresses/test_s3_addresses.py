"""s3 addresses: an object of a real store arrives, with the right keys, and failures give none of them away."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from downloads import SECRET, Refused
from loopback import reply, serving

from engine import Access, EngineService
from engine.data import Credentials
from engine.errors import RequestError
from plugins.addresses.s3 import fetch_object, open_address

CONTENT = bytes(range(256)) * 1000
#: A key with everything in it that a URL would read otherwise.
KEY = "a folder/Bücher %2F+?x=1&y#z ü.png"
FETCH = fetch_object
ACCESS = Access(schemes=("s3",), private_hosts=("127.0.0.1",), timeout=60, buckets=("media",))


@pytest.fixture(autouse=True)
def _machine_without_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is configured for boto3."""
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE", "DEFAULT_REGION", "ENDPOINT_URL"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    # The store's own log knows the URLs that it was asked for. (A level set by caplog would hold for all loggers.)
    monkeypatch.setattr(logging.getLogger("werkzeug"), "disabled", True)


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """The endpoint of a store with one object in the bucket `media`."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    client.create_bucket(Bucket="media")
    client.put_object(Bucket="media", Key=KEY, Body=CONTENT)
    client.put_object(Bucket="media", Key="empty", Body=b"")
    yield endpoint
    server.stop()


def own(endpoint: str | None, **kept: str) -> Access:
    """Return an access with credentials of the job's own, all of them secret."""
    keys = Credentials(f"AKIA{SECRET}", SECRET, f"token-{SECRET}", endpoint)
    return replace(ACCESS, credentials=replace(keys, **kept))


def complaint(code: str, status: str, *headers: str, more: str = "") -> bytes:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{SECRET}</Message>{more}</Error>'
    return reply(body.encode(), *headers, status=status)


# --- a real store -----------------------------------------------------------------------------------------------------


def test_object_arrives_with_the_keys_of_the_job(store: str, into: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = open_address(address=f"s3://media/{KEY}", scheme="s3", access=own(store), into=into)

    assert path is not None
    assert path.parent == into
    assert path.read_bytes() == CONTENT
    assert "botocore" in caplog.text
    assert SECRET not in caplog.text


def test_object_arrives_with_the_keys_of_the_machine(
    store: str, into: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", f"AKIA{SECRET}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store)

    assert fetch_object(f"s3://media/{KEY}", ACCESS, into).read_bytes() == CONTENT
    assert SECRET not in caplog.text


def test_other_schemes_are_passed_on(into: Path) -> None:
    assert open_address(address="https://a/b", scheme="https", access=ACCESS, into=into) is None


@pytest.mark.parametrize(
    ("address", "code", "what"),
    [
        ("s3://media/gone.png", "s3_not_found", "'media' has no file with this key"),
        ("s3://nowhere/a.png", "s3_not_found", "no bucket 'nowhere'"),
        ("s3://media/empty", "download_empty", "empty"),
    ],
)
def test_what_the_store_does_not_have_is_told(address: str, code: str, what: str, store: str, refused: Refused) -> None:
    assert what in str(refused(address, code, own(store)))


def test_object_beyond_the_limit_is_refused(store: str, refused: Refused) -> None:
    refused(f"s3://media/{KEY}", "download_too_large", replace(own(store), max_bytes=len(CONTENT) - 1))


def test_store_off_the_public_internet_must_be_allowed_by_name(store: str, refused: Refused) -> None:
    refused(f"s3://media/{KEY}", "address_private", replace(own(store), private_hosts=()))
    refused(f"s3://media/{KEY}", "address_private", own(store.replace("127.0.0.1", "127.1")))


def test_store_of_the_machine_must_be_allowed_too(
    store: str, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store)

    refused(f"s3://media/{KEY}", "address_private", replace(ACCESS, private_hosts=()))


# --- whose keys, and where they go ------------------------------------------------------------------------------------


def test_machine_without_keys_says_so(refused: Refused) -> None:
    refused("s3://media/a.png", "s3_no_credentials", ACCESS)


@pytest.mark.parametrize("access", [ACCESS, replace(ACCESS, buckets=())])
def test_keys_of_the_machine_open_the_buckets_that_are_named_and_no_others(
    access: Access, store: str, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store)

    error = refused("s3://payroll/a.png", "s3_bucket_refused", access)

    assert "access.buckets" in error.hint


def test_keys_of_a_job_open_its_own_buckets(store: str, refused: Refused) -> None:
    refused("s3://nowhere/a.png", "s3_not_found", replace(own(store), buckets=()))


def test_runpods_names_of_the_keys_and_the_endpoint_work(
    store: str, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUCKET_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("BUCKET_SECRET_ACCESS_KEY", "b")

    assert fetch_object(f"s3://media/{KEY}", replace(ACCESS, endpoint_url=store), into).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("environment", "words", "buckets", "endpoint"),
    [
        ({}, [], (), None),
        ({"S3_BUCKET": "films"}, [], ("films",), None),
        ({"S3_BUCKET": "films"}, ["access.buckets=[films,media]"], ("films", "media"), None),
        (
            {"BUCKET_ENDPOINT_URL": "https://films.s3.eu-west-1.amazonaws.com"},
            [],
            ("films",),
            "https://s3.eu-west-1.amazonaws.com",
        ),
    ],
)
def test_configured_bucket_may_be_read_and_further_ones_by_config(
    environment: dict[str, str],
    words: list[str],
    buckets: tuple[str, ...],
    endpoint: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("S3_BUCKET", "BUCKET_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    access = EngineService(words).access

    assert (access.buckets, access.endpoint_url) == (buckets, endpoint)


@pytest.mark.parametrize("kept", [{"access_key": ""}, {"secret_key": ""}, {"access_key": "", "secret_key": ""}])
def test_keys_of_the_machine_do_not_complete_those_of_a_job(
    kept: dict[str, str], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with serving(reply(CONTENT)) as server:
        refused("s3://media/a.png", "s3_no_credentials", own(server.url(), session_token="", **kept))
    assert server.requests == []


def test_profile_that_is_not_there_is_told(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", SECRET)
    refused("s3://media/a.png", "s3_no_credentials", ACCESS)


@pytest.mark.parametrize(
    ("endpoint", "code"),
    [
        (SECRET, "scheme_refused"),
        (f"ftp://127.0.0.1/{SECRET}", "scheme_refused"),
        (f"http://user:{SECRET}@127.0.0.1/", "credentials_in_url"),
        ("http://169.254.169.254", "address_private"),
        ("http://[::1]:9000", "address_private"),
    ],
)
def test_endpoint_of_a_job_is_judged(endpoint: str, code: str, refused: Refused) -> None:
    refused("s3://media/a.png", code, own(endpoint))


def hosts_asked(access: Access, into: Path, address: str = "s3://media/a.png") -> list[str]:
    asked: list[str] = []

    def note(host: str, port: int) -> list[str]:
        asked.append(f"{host}:{port}")
        return ["10.0.0.1"]

    with pytest.raises(RequestError):
        fetch_object(address, access, into, resolve=note)
    return asked


def test_keys_of_a_job_never_go_to_the_endpoint_of_the_machine(into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://minio.example:9000")

    assert hosts_asked(own(None), into) == ["media.s3.amazonaws.com:443"]


def test_host_names_the_region_of_the_job(into: Path) -> None:
    assert hosts_asked(own(None, region="eu-central-1"), into) == ["media.s3.eu-central-1.amazonaws.com:443"]


def test_host_names_the_region_of_the_machine(into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-3")

    assert hosts_asked(ACCESS, into) == ["media.s3.eu-west-3.amazonaws.com:443"]


def test_bucket_with_dots_stands_in_the_path(into: Path) -> None:
    # Amazon's certificate covers one label before the host.
    access = own(None, region="eu-central-1")
    assert hosts_asked(access, into, "s3://my.media/a.png") == ["s3.eu-central-1.amazonaws.com:443"]


def test_credentials_show_nothing_in_a_repr() -> None:
    assert SECRET not in repr(own(f"https://{SECRET}.example"))


# --- what a store may answer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "status", "code"),
    [
        ("AccessDenied", "403 Forbidden", "s3_denied"),
        ("InvalidAccessKeyId", "403 Forbidden", "s3_denied"),
        ("SignatureDoesNotMatch", "403 Forbidden", "s3_denied"),
        ("ExpiredToken", "400 Bad Request", "s3_denied"),
        ("SlowDown", "503 Slow Down", "download_status"),
        (SECRET, "400 Bad Request", "download_status"),
        ("", "500 x", "download_status"),
    ],
)
def test_refusal_of_the_store_is_told(word: str, status: str, code: str, refused: Refused) -> None:
    with serving(complaint(word, status)) as server:
        refused("s3://media/a.png", code, own(server.url()))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        complaint("PermanentRedirect", "301 Moved", "x-amz-bucket-region: eu-north-1"),
        complaint("AuthorizationQueryParametersError", "400 Bad", more="<Region>eu-north-1</Region>"),
    ],
)
def test_bucket_of_another_region_is_signed_for_anew(answer: bytes, into: Path) -> None:
    with serving(answer, reply(CONTENT)) as server:
        assert fetch_object("s3://media/a.png", own(server.url()), into).read_bytes() == CONTENT
    assert "%2Fus-east-1%2Fs3%2F" in server.requests[0]
    assert "%2Feu-north-1%2Fs3%2F" in server.requests[1]


def test_store_that_sends_from_region_to_region_is_left(refused: Refused) -> None:
    answers = [complaint("PermanentRedirect", "301 Moved", f"x-amz-bucket-region: eu-north-{n}") for n in (1, 2, 3)]
    with serving(*answers) as server:
        refused("s3://media/a.png", "download_status", own(server.url()))
    assert len(server.requests) == 2


def test_refusal_that_names_the_region_is_no_reason_to_ask_again(refused: Refused) -> None:
    with serving(complaint("AccessDenied", "403 Forbidden", "x-amz-bucket-region: us-east-1")) as server:
        refused("s3://media/a.png", "s3_denied", own(server.url()))
    assert len(server.requests) == 1


def test_store_cannot_send_elsewhere(refused: Refused) -> None:
    with serving(reply(CONTENT)) as target, serving(reply(b"", f"Location: {target.url()}", status="302 x")) as server:
        refused("s3://media/a.png", "download_status", own(server.url()))
    assert target.requests == []


@pytest.mark.parametrize("region", ["x", "evil.example/", "eu-north-1.evil.example", "a" * 40, SECRET.upper()])
def test_region_that_is_none_is_not_taken(region: str, refused: Refused) -> None:
    with serving(complaint("PermanentRedirect", "301 Moved", f"x-amz-bucket-region: {region}")) as server:
        refused("s3://media/a.png", "download_status", own(server.url()))
    assert len(server.requests) == 1


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("s3://", "address_invalid"),
        ("s3://media", "address_invalid"),
        ("s3://media/", "address_invalid"),
        ("s3://media/folder/", "address_invalid"),
        ("s3:///key", "address_invalid"),
        ("s3://m/key", "address_invalid"),
        ("s3://media:80/key", "address_invalid"),
        ("s3://-media/key", "address_invalid"),
        ("s3://media?x/key", "address_invalid"),
        ("s3://media\n/key", "address_invalid"),
        ("s3://media/" + "k" * 1025, "address_invalid"),
        (f"s3://user:{SECRET}@media/key", "credentials_in_url"),
    ],
)
def test_what_is_no_address_of_an_object_is_refused(address: str, code: str, refused: Refused) -> None:
    refused(address, code, own("http://127.0.0.1:1"))


def test_key_that_is_not_unicode_is_refused(refused: Refused) -> None:
    refused("s3://media/\ud800", "address_invalid", own("http://127.0.0.1:1"))
