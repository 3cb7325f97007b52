"""A video that cannot be uploaded waits on this machine until its job comes again."""

from __future__ import annotations

import hashlib
import json
import os
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from s3_store import HOSTS, VIDEO, Proxy, artifact, failure, fetch, names, own_store, refuse, stored

from engine.data import Artifact
from engine.errors import NotDelivered
from engine.files import atomic
from engine.files.undelivered import Shelf
from plugins.sinks.s3 import S3Config, S3Sink


def test_kept_video_of_a_job_with_its_own_bucket_goes_nowhere_else(
    config: S3Config, proxy: Proxy, tmp_path: Path
) -> None:
    sink = S3Sink(config)
    proxy.always["PUT"] = refuse(400, "ExpiredToken")
    failure(lambda: sink.for_job("job-own-2", own_store(proxy), HOSTS).put(artifact(tmp_path)))
    proxy.always.clear()

    error = failure(lambda: sink.resume("job-own-2"))
    assert "own bucket" in str(error)
    assert stored(proxy, "videos/job-own-2/a.mp4") is None

    sink.for_job("job-own-2", own_store(proxy), HOSTS).resume("job-own-2")
    assert stored(proxy, "videos/job-own-2/a.mp4") == VIDEO
    assert names(tmp_path / "kept") == []


def test_endless_storm_keeps_the_video_until_it_is_resumed(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.always["PUT"] = refuse(503, "ServiceUnavailable")
    sink = S3Sink(config)

    error = failure(lambda: sink.for_job("job-4", None).put(artifact(tmp_path)))

    assert isinstance(error, NotDelivered)
    assert (error.code, error.job) == ("s3_upload_failed", "job-4")
    assert Path(error.path).read_bytes() == VIDEO
    assert "kept" in str(error)
    assert "resume job job-4" in str(error)
    assert proxy.count("PUT") == 6
    assert names(tmp_path / "kept") == ["job-4.json", "job-4.mp4"]

    proxy.always.clear()
    kept = sink.resume("job-4")

    assert fetch(kept.address) == (VIDEO, "video/mp4")
    assert stored(proxy, "videos/job-4/a.mp4") == VIDEO
    assert names(tmp_path / "kept") == []


def test_remote_caller_is_not_told_where_the_video_waits(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.always["PUT"] = refuse(403, "AccessDenied")

    error = failure(lambda: S3Sink(config).for_job("job-5", None).put(artifact(tmp_path)))

    shown = "".join(traceback.format_exception(error)[-1:]) + str(error) + repr(error) + str(error.args)
    assert str(tmp_path) not in shown


def test_resume_that_fails_keeps_the_video(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.always["PUT"] = refuse(403, "AccessDenied")
    sink = S3Sink(config)
    failure(lambda: sink.for_job("job-6", None).put(artifact(tmp_path)))

    error = failure(lambda: sink.resume("job-6"))

    assert (error.code, type(error)) == ("s3_credentials_refused", NotDelivered)
    assert (tmp_path / "kept" / "job-6.mp4").read_bytes() == VIDEO
    proxy.always.clear()
    sink.resume("job-6")
    assert names(tmp_path / "kept") == []


def test_video_without_a_job_is_resumed_by_the_name_that_is_told(
    config: S3Config, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.always["PUT"] = refuse(403, "AccessDenied")
    sink = S3Sink(config)
    error = failure(lambda: sink.put(artifact(tmp_path)))
    proxy.always.clear()

    assert isinstance(error, NotDelivered)
    sink.resume(error.job)

    assert stored(proxy, f"videos/{hashlib.sha256(VIDEO).hexdigest()[:16]}/a.mp4") == VIDEO


def test_job_that_is_made_again_clears_what_waited(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    sink = S3Sink(config).for_job("job-7", None)
    proxy.always["PUT"] = refuse(403, "AccessDenied")
    failure(lambda: sink.put(artifact(tmp_path)))
    proxy.always.clear()

    sink.put(artifact(tmp_path, b"made again"))

    assert stored(proxy, "videos/job-7/a.mp4") == b"made again"
    assert names(tmp_path / "kept") == []


@pytest.mark.parametrize("job", ["never-was", "../kept/job", ""])
def test_nothing_to_resume_is_an_error(job: str, config: S3Config) -> None:
    assert failure(lambda: S3Sink(config).resume(job)).code == "s3_nothing_kept"


@pytest.mark.parametrize("note", ["", "[]", "{}", None])
def test_video_without_a_whole_note_is_not_resumed(note: str | None, config: S3Config, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "job-8.mp4").write_bytes(VIDEO)
    if note is not None:
        (tmp_path / "kept" / "job-8.json").write_text(note)

    assert failure(lambda: S3Sink(config).resume("job-8")).code == "s3_nothing_kept"


def keep(config: S3Config, proxy: Proxy, tmp_path: Path, job: str) -> tuple[S3Sink, Path]:
    """Return a sink whose store is back, and the video that waits since it was gone."""
    proxy.always["PUT"] = refuse(503, "ServiceUnavailable")
    sink = S3Sink(config)
    failure(lambda: sink.for_job(job, None).put(artifact(tmp_path)))
    proxy.always.clear()
    return sink, tmp_path / "kept" / f"{job}.mp4"


@pytest.mark.parametrize(
    "content",
    [VIDEO[:30_000], b"", VIDEO[:-1] + b"!", VIDEO + b"!", bytes(len(VIDEO))],
    ids=["truncated", "emptied", "changed", "longer", "holes"],
)
def test_kept_video_that_is_damaged_is_neither_delivered_nor_removed(
    content: bytes, config: S3Config, proxy: Proxy, tmp_path: Path
) -> None:
    job = f"job-11-{hashlib.sha256(content).hexdigest()[:8]}"
    sink, path = keep(config, proxy, tmp_path, job)
    path.write_bytes(content)

    for _ in range(2):
        error = failure(lambda: sink.resume(job))

        assert error.code == "s3_kept_damaged"
        assert str(tmp_path) not in str(error)
        assert stored(proxy, f"videos/{job}/a.mp4") is None
        assert path.read_bytes() == content
        assert names(tmp_path / "kept") == [f"{job}.json", f"{job}.mp4"]

    path.write_bytes(VIDEO)
    sink.resume(job)
    assert stored(proxy, f"videos/{job}/a.mp4") == VIDEO


def test_note_of_an_earlier_version_is_resumed(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    sink, path = keep(config, proxy, tmp_path, "job-12")
    told = json.loads(path.with_suffix(".json").read_text())
    assert (told.pop("bytes"), told.pop("sha256")) == (len(VIDEO), hashlib.sha256(VIDEO).hexdigest())
    path.with_suffix(".json").write_text(json.dumps(told))

    sink.resume("job-12")

    assert stored(proxy, "videos/job-12/a.mp4") == VIDEO


def test_emptied_video_of_an_earlier_version_is_not_delivered(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    note = {"media_type": "video/mp4", "seconds": 4.0, "frames": 100, "filename": "a.mp4", "own": False}
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "job-13.mp4").touch()
    (tmp_path / "kept" / "job-13.json").write_text(json.dumps(note))

    assert failure(lambda: S3Sink(config).resume("job-13")).code == "s3_kept_damaged"


def test_note_is_written_when_video_and_folder_are_on_the_disk(
    config: S3Config, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, list[str]]] = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        seen.append((name, [name for name in names(tmp_path / "kept") if not name.startswith(".")]))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    keep(config, proxy, tmp_path, "job-14")

    made, video, folder, written, last = seen
    assert made[0] == tmp_path.name
    assert (video[0][:8], video[1]) == (".job-14-", [])
    assert folder == ("kept", ["job-14.mp4"])
    assert (written[0][:8], written[1]) == (".job-14.", ["job-14.mp4"])
    assert last == ("kept", ["job-14.json", "job-14.mp4"])


def test_two_processes_may_keep_the_same_job_at_a_time(
    config: S3Config, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[str] = []
    made = atomic.Part.__init__

    def note(part: atomic.Part, path: Path) -> None:
        parts.append(path.name)
        made(part, path)

    monkeypatch.setattr(atomic.Part, "__init__", note)
    for _ in range(2):
        keep(config, proxy, tmp_path, "job-15")

    assert len(set(parts)) == 4
    assert all(name.startswith(".job-15") and name.endswith(".part") for name in parts)


def test_workers_that_keep_the_same_job_at_a_time_leave_one_video_with_its_own_note(tmp_path: Path) -> None:
    shelf = Shelf([tmp_path / "kept"], named=True)

    def keep_own(number: int) -> None:
        content = bytes([number]) * (1_000_000 + number)
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(content)
        given = Artifact(path, "video/mp4", 4.0, 100, filename="a.mp4")
        shelf.put(given, "job-17", own=False, sha256=hashlib.sha256(content).hexdigest(), size=len(content))

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(keep_own, range(6))) == [None] * 6

    shelf.find("job-17", own=False).check()
    assert names(tmp_path / "kept") == ["job-17.json", "job-17.mp4"]


def test_what_was_killed_while_it_was_kept_is_swept_and_is_no_promise(
    config: S3Config, proxy: Proxy, tmp_path: Path
) -> None:
    (tmp_path / "kept").mkdir()
    part = tmp_path / "kept" / ".job-16.part"
    part.write_bytes(VIDEO[:1000])
    os.utime(part, (0, 0))

    assert failure(lambda: S3Sink(config).resume("job-16")).code == "s3_nothing_kept"
    keep(config, proxy, tmp_path, "job-16")

    assert names(tmp_path / "kept") == ["job-16.json", "job-16.mp4"]


def test_video_is_kept_on_the_volume_where_there_is_one(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.always["PUT"] = refuse(403, "AccessDenied")
    volume = tmp_path / "volume"
    sink = S3Sink(replace(config, keep_folder=None, volume=str(volume)))

    failure(lambda: sink.for_job("job-9", None).put(artifact(tmp_path)))
    assert names(tmp_path / "home" / "multitalk-undelivered") == ["job-9.json", "job-9.mp4"]
    assert not volume.exists()

    volume.mkdir()
    failure(lambda: sink.for_job("job-10", None).put(artifact(tmp_path)))
    assert names(volume / "undelivered") == ["job-10.json", "job-10.mp4"]

    proxy.always.clear()
    for job in ("job-9", "job-10"):
        sink.resume(job)
        assert stored(proxy, f"videos/{job}/a.mp4") == VIDEO


def test_video_that_can_neither_go_nor_stay_is_told(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.always["PUT"] = refuse(403, "AccessDenied")
    (tmp_path / "file").touch()
    sink = S3Sink(replace(config, keep_folder=str(tmp_path / "file" / "kept")))

    error = failure(lambda: sink.put(artifact(tmp_path)))

    assert not isinstance(error, NotDelivered)
    assert error.code == "s3_credentials_refused"
    assert "could not be kept" in str(error)
