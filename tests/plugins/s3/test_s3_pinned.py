"""A job's own store is reached at the address that was judged, and a name that changes its mind gains nothing."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from loopback import reply, serving

from engine.data import Artifact, Credentials, Store
from engine.errors import NotDelivered
from engine.net import guard
from engine.net.s3 import Bucket, Trouble
from plugins.sinks.s3 import S3Config, S3Sink

#: Stands in for the public internet; 127.0.0.1 is the machine's own.
PUBLIC = "127.0.0.2"
FOUND = reply(b"", "x-amz-bucket-region: us-east-1")


@pytest.fixture(autouse=True)
def _public(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "is_public", lambda address: address == PUBLIC)


class Name:
    """A resolver whose one name leads to the first address once, and to the others afterwards."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        return [self.addresses.pop(0) if len(self.addresses) > 1 else self.addresses[0]]


def bucket(port: int, name: Name, *, scheme: str = "http") -> Bucket:
    keys = Credentials("id", "secret", endpoint=f"{scheme}://store.example:{port}", region="us-east-1")
    return Bucket("films", credentials=keys, resolve=name, timeout=5)


def test_boto3_connects_to_the_address_that_was_judged() -> None:
    name = Name(PUBLIC)
    with serving(FOUND, host=PUBLIC) as server:
        assert bucket(server.port, name).probe() is None

    # The system's resolver does not know this name at all.
    assert name.asked == ["store.example"]
    assert f"Host: store.example:{server.port}\r\n" in server.requests[0]


def test_name_that_changes_its_mind_is_judged_again() -> None:
    name = Name(PUBLIC, "127.0.0.1")
    with serving(FOUND, host=PUBLIC) as server:
        inside = socket.create_server(("127.0.0.1", server.port))
        inside.settimeout(0.2)
        with inside:
            place = bucket(server.port, name)
            assert place.probe() is None
            answer = place.attempt(lambda client: client.put_object(Bucket="films", Key="a", Body=b"video"))

            assert isinstance(answer, Trouble)
            assert (answer.code, answer.passing) == ("address_private", False)
            assert "127.0.0.1" not in answer.what
            with pytest.raises(TimeoutError):
                inside.accept()
    assert len(server.requests) == 1


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(reply(b"", status="500 x")) as proxy, serving(FOUND, host=PUBLIC) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url())
        assert bucket(server.port, Name(PUBLIC)).probe() is None
    assert proxy.requests == []


def test_tls_goes_through_the_same_judge() -> None:
    with serving(FOUND) as inside:
        answer = bucket(inside.port, Name("127.0.0.1"), scheme="https").probe()
    assert isinstance(answer, Trouble)
    assert answer.code == "address_private"
    assert inside.requests == []


def test_endpoint_is_judged_even_where_the_store_is_not_asked() -> None:
    answer = bucket(9, Name("10.0.0.1")).find_keys()
    assert isinstance(answer, Trouble)
    assert (answer.code, answer.part) == ("address_private", "endpoint_url")
    assert bucket(9, Name(PUBLIC)).find_keys() is None


def test_store_that_does_not_answer_is_tried_again() -> None:
    with serving(FOUND, host=PUBLIC) as server:
        pass
    name = Name(PUBLIC)
    answer = bucket(server.port, name).probe()
    assert isinstance(answer, Trouble)
    assert (answer.code, answer.passing) == ("s3_unreachable", True)
    assert len(name.asked) == 3


def test_video_for_a_store_that_moved_inside_is_kept(tmp_path: Path) -> None:
    name = Name(PUBLIC, "127.0.0.1")
    with serving(FOUND, host=PUBLIC) as server:
        place = bucket(server.port, name)
        config = S3Config(bucket="", region=None, endpoint_url=None, attempts=1, keep_folder=str(tmp_path / "kept"))
        own = S3Sink(config).for_job("job-1", Store("films", Credentials("id", "secret")))
        # The same, but for the resolver.
        own._bucket = place
        own.check(None)
        (tmp_path / "a.mp4").write_bytes(b"video")

        with pytest.raises(NotDelivered) as caught:
            own.put(Artifact(tmp_path / "a.mp4", "video/mp4", 1.0, 25))

    assert (caught.value.code, caught.value.field) == ("address_private", "request.store")
    assert (tmp_path / "kept" / "job-1.mp4").read_bytes() == b"video"
    assert len(server.requests) == 1
