"""Trying out whether a video would arrive: an object is put, read and taken away again."""

from __future__ import annotations

from s3_store import SENTINELS, Proxy, failure, refuse, stored

from plugins.sinks.s3 import S3Config, S3Sink


def test_a_rehearsal_leaves_nothing_behind(config: S3Config, proxy: Proxy) -> None:
    S3Sink(config).rehearse()

    put, taken = ([seen.split()[1] for seen in proxy.seen if seen.startswith(verb)] for verb in ("PUT", "DELETE"))
    (path,) = (part.partition("?")[0] for part in put)
    assert taken[0].partition("?")[0] == path
    assert path.startswith("/films/videos/multitalk-doctor-")
    assert stored(proxy, path.removeprefix("/films/")) is None


def test_a_rehearsal_says_what_the_keys_may_not_do(config: S3Config, proxy: Proxy) -> None:
    proxy.always["DELETE"] = refuse(403, "AccessDenied")

    error = failure(S3Sink(config).rehearse)

    assert error.code == "s3_credentials_refused"
    assert not [sentinel for sentinel in SENTINELS if sentinel in str(error)]
