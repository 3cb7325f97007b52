"""A video that is published to a bucket while it is made: what a player fetches, and in which order it is stored."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from s3_store import HOSTS, Proxy, client, fetch, own_store, refuse, stored
from segments import decoded, video, write

from engine.errors import Cancelled
from engine.stages.publish import Publisher
from plugins.sinks.s3 import S3Config, S3Sink

COUNTS = (9, 5)


def publish(sink: S3Sink, folder: Path, *, remove: bool = False) -> Publisher:
    with video(folder / "a.mp4", 25.0, COUNTS) as writer, Publisher(sink.live(None), writer, 1, remove=remove) as live:
        write(writer, COUNTS, live.add)
    return live


def lines(playlist: str) -> list[str]:
    return fetch(playlist)[0].decode().splitlines()


def parts(playlist: str) -> list[str]:
    return [line for line in lines(playlist) if not line.startswith("#")]


def test_a_player_gets_all_parts_by_the_urls_in_the_playlist(
    config: S3Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    live = publish(S3Sink(config).for_job("live-1", None), tmp_path)

    assert live.warnings == ()
    text = fetch(live.address)
    assert text[1] == "application/vnd.apple.mpegurl"
    init = next(line for line in lines(str(live.address)) if line.startswith("#EXT-X-MAP")).split('"')[1]
    pieces = [fetch(url) for url in (init, *parts(str(live.address)))]
    assert [kind for _, kind in pieces] == ["video/mp4", "video/iso.segment", "video/iso.segment"]
    (tmp_path / "whole.mp4").write_bytes(b"".join(content for content, _ in pieces))
    assert decoded(str(tmp_path / "whole.mp4"))[0] == decoded(str(tmp_path / "a.mp4"))[0]
    # A signed URL is a key.
    assert "X-Amz-Signature=" in str(live.address)
    assert "X-Amz-Signature=" not in caplog.text


def test_parts_may_be_cached_for_good_and_the_playlist_may_not(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    publish(S3Sink(config).for_job("live-2", None), tmp_path)
    store = client(proxy.store)
    keys = [entry["Key"] for entry in store.list_objects_v2(Bucket="films", Prefix="videos/live-2/")["Contents"]]
    cached = {key: store.head_object(Bucket="films", Key=key)["CacheControl"] for key in keys}

    assert cached.pop("videos/live-2/live/index.m3u8") == "no-cache"
    assert len(cached) == 3
    assert set(cached.values()) == {"public, max-age=31536000, immutable"}
    assert all(key.startswith("videos/live-2/live/") for key in cached)


def test_another_attempt_of_a_job_has_the_same_playlist_and_other_parts(config: S3Config, tmp_path: Path) -> None:
    first = publish(S3Sink(config).for_job("live-3", None), tmp_path)
    old = {url.partition("?")[0] for url in parts(str(first.address))}
    second = publish(S3Sink(config).for_job("live-3", None), tmp_path)
    new = {url.partition("?")[0] for url in parts(str(second.address))}

    assert str(first.address).partition("?")[0] == str(second.address).partition("?")[0]
    assert not old & new


def test_a_playlist_never_names_a_part_that_is_not_stored(
    config: S3Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, order = S3Sink(config).for_job("live-4", None), []
    send = sink._bucket.write

    def note(key: str, content: bytes, headers: dict[str, str]) -> object:
        order.append((key.rpartition("/")[2].rpartition("-")[2], content.decode("latin-1").count(".m4s")))
        return send(key, content, headers)

    monkeypatch.setattr(sink._bucket, "write", note)
    publish(sink, tmp_path)

    assert order == [
        ("init.mp4", 0),
        ("00000.m4s", 0),
        ("index.m3u8", 1),
        ("00001.m4s", 0),
        ("index.m3u8", 2),
        ("index.m3u8", 2),
    ]


def test_a_public_address_has_no_signature(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    public = replace(config, public_url=f"{proxy.url}/{{bucket}}/{{key}}")
    live = publish(S3Sink(public).for_job("live-5", None), tmp_path)
    assert live.address == f"{proxy.url}/films/videos/live-5/live/index.m3u8"


def test_a_jobs_own_bucket_gets_the_parts_of_its_video(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    sink = S3Sink(replace(config, public_url="https://example.com/{key}")).for_job("live-6", own_store(proxy), HOSTS)
    live = publish(sink, tmp_path)
    assert str(live.address).startswith(f"{proxy.url}/films/videos/live-6/live/index.m3u8?")


def test_a_store_that_refuses_for_a_moment_is_asked_again(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.once("PUT", *(refuse(503, "SlowDown") for _ in range(3)))
    live = publish(S3Sink(config).for_job("live-7", None), tmp_path)
    assert live.warnings == ()
    assert len(parts(str(live.address))) == 2


def test_a_store_that_refuses_for_good_costs_the_stream_and_not_the_video(config: S3Config, tmp_path: Path) -> None:
    live = publish(S3Sink(replace(config, bucket="missing")).for_job("live-8", None), tmp_path)
    assert (tmp_path / "a.mp4").exists()
    assert live.warnings == ("the live playlist ends after 0.00 s: there is no bucket 'missing' at 127.0.0.1",)
    assert live.address is None


def test_what_was_published_can_be_removed(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    place = S3Sink(config).for_job("live-9", None).live(None)
    place.part("init.mp4", b"init", "video/mp4")
    place.playlist("#EXTM3U\n")
    assert stored(proxy, "videos/live-9/live/index.m3u8") == b"#EXTM3U\n"

    place.remove()

    assert "Contents" not in client(proxy.store).list_objects_v2(Bucket="films", Prefix="videos/live-9/live/")


def test_a_cancelled_job_sends_no_more_parts_and_ends_its_playlist(
    config: S3Config, proxy: Proxy, tmp_path: Path
) -> None:
    class Token:
        set = False

        def is_set(self) -> bool:
            return self.set

    token = Token()
    place = S3Sink(config).for_job("live-10", None).until(token).live(None)
    place.part("init.mp4", b"init", "video/mp4")
    token.set = True
    with pytest.raises(Cancelled):
        place.part("part-00000.m4s", b"part", "video/iso.segment")
    place.playlist("#EXT-X-ENDLIST\n")
    assert stored(proxy, "videos/live-10/live/index.m3u8") == b"#EXT-X-ENDLIST\n"
