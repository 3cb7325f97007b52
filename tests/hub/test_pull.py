"""Weights are got from a hub that fails in every way hubs do, and only whole, verified files stand in their place."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, SIGNATURE, Fault, HubServer, hub_server

from engine.errors import SourceError
from engine.hub.manifest import Manifest, Preset
from engine.hub.pull import Options, is_complete, pull
from engine.hub.record import COMPLETE, PRIVATE, Record

BIG = random.Random(7).randbytes(600_000)
OTHER = random.Random(8).randbytes(300_000)
FILES = {
    "acme/talk": {"talk.safetensors": BIG, "quant/map.json": b'{"a": 1}', "unused.bin": b"x" * 5000},
    "acme/voice": {"model.safetensors": OTHER, "config.json": b"{}"},
}
QUICK = (0.01,) * 6
#: Bytes that are written at a time: what of a cut connection is surely kept.
PIECE = 65_536


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_server({name: dict(files) for name, files in FILES.items()}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.hub)
        yield running


def preset(server: HubServer, *names: str, **changes: Any) -> Preset:
    table = server.manifest(one=["talk", "voice"], one_b=["voice"], two=["voice"])
    table["parts"]["talk"]["files"] = [file for file in table["parts"]["talk"]["files"] if file["path"] != "unused.bin"]
    for part, file, key, value in changes.get("files", ()):
        table["parts"][part]["files"][file][key] = value
    for repository, revision in changes.get("revisions", {}).items():
        table["repositories"][repository]["revision"] = revision
    return Manifest(table).preset(*(names or ("one",)))


def options(**settings: Any) -> Options:
    return Options(**{"waits": QUICK, **settings})


def whole(folder: Path) -> bool:
    return (
        (folder / "talk.safetensors").read_bytes() == BIG
        and (folder / "quant" / "map.json").read_bytes() == b'{"a": 1}'
        and (folder / "model.safetensors").read_bytes() == OTHER
    )


def parts(folder: Path) -> list[Path]:
    return list((folder / PRIVATE / "parts").glob("*"))


def test_a_preset_is_got_and_nothing_else(server: HubServer, tmp_path: Path) -> None:
    folder = pull(preset(server), tmp_path)
    assert folder == tmp_path / "one"
    assert whole(folder)
    assert not (folder / "unused.bin").exists()
    assert not parts(folder)
    assert (folder / COMPLETE).read_text().split() == ["one"]


def test_what_is_complete_asks_nobody(server: HubServer, tmp_path: Path) -> None:
    pull(preset(server), tmp_path)
    server.asked.clear()
    pull(preset(server), tmp_path)
    assert not server.asked


def test_what_came_first_is_recorded_beside_the_weights(server: HubServer, tmp_path: Path) -> None:
    pull(preset(server, files=[("talk", 0, "sha256", sha(BIG))]), tmp_path)
    entries = Record(tmp_path / "one").entries
    assert entries["talk.safetensors"].sha256 == sha(BIG)
    assert entries["talk.safetensors"].trust == "manifest"
    assert entries["quant/map.json"].sha256 == sha(b'{"a": 1}')
    assert entries["quant/map.json"].trust == "first use"
    assert {entry.revision for entry in entries.values()} == {COMMIT}


def test_a_cut_connection_is_gone_on_with(server: HubServer, tmp_path: Path) -> None:
    server.faults[sha(BIG)] = [Fault(cut=3 * PIECE), Fault(cut=2 * PIECE)]
    assert whole(pull(preset(server), tmp_path, options()))
    ranges = [asked.range for asked in server.asked if asked.server == "cdn" and sha(BIG) in asked.path]
    assert ranges == ["", f"bytes={3 * PIECE}-", f"bytes={5 * PIECE}-"]
    assert server.sent() == len(BIG) + len(OTHER)


def test_a_stalled_connection_is_gone_on_with(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 1.0)
    server.faults[sha(BIG)] = [Fault(cut=4 * PIECE, stall=3)]
    assert whole(pull(preset(server), tmp_path, options()))
    assert server.sent() == len(BIG) + len(OTHER)


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_in_trouble_is_asked_again(server: HubServer, tmp_path: Path, status: int) -> None:
    server.faults[sha(OTHER)] = [Fault(status=status)]
    assert whole(pull(preset(server), tmp_path, options()))
    assert status in [asked.status for asked in server.asked]


def test_a_hub_in_trouble_is_asked_again(server: HubServer, tmp_path: Path) -> None:
    server.refusals += [503]
    assert whole(pull(preset(server), tmp_path, options()))


def test_an_address_that_has_expired_is_asked_for_anew(server: HubServer, tmp_path: Path) -> None:
    server.faults[sha(BIG)] = [Fault(cut=200_000), Fault(status=403)]
    assert whole(pull(preset(server), tmp_path, options()))
    heads = [asked for asked in server.asked if asked.method == "HEAD" and "talk.safetensors" in asked.path]
    assert len(heads) > 1


def test_a_server_that_ignores_ranges_starts_the_file_anew(server: HubServer, tmp_path: Path) -> None:
    server.faults[sha(BIG)] = [Fault(cut=200_000), Fault(whole=True)]
    assert whole(pull(preset(server), tmp_path, options()))


def test_one_that_never_recovers_is_given_up_and_what_came_is_kept(server: HubServer, tmp_path: Path) -> None:
    server.faults[sha(BIG)] = [Fault(cut=3 * PIECE), *[Fault(status=503)] * 9]
    with pytest.raises(SourceError, match=r"talk\.safetensors .*HTTP 503\) after 196608 of 600000 bytes") as caught:
        pull(preset(server), tmp_path, options(waits=(0.01, 0.01)))
    assert SIGNATURE not in str(caught.value)
    assert not (tmp_path / "one" / COMPLETE).exists()
    server.faults.clear()
    already = server.sent()
    assert whole(pull(preset(server), tmp_path, options()))
    assert server.sent() - already <= len(BIG) - 3 * PIECE + len(OTHER)


def test_damage_on_the_way_never_takes_the_files_place(server: HubServer, tmp_path: Path) -> None:
    honest = server.blob
    server.blob = lambda sha256: honest(sha256)[:-1] + b"?" if sha256 == sha(BIG) else honest(sha256)  # type: ignore[method-assign]
    with pytest.raises(SourceError, match=r"talk\.safetensors .* damaged: SHA-256"):
        pull(preset(server), tmp_path, options())
    assert not (tmp_path / "one" / "talk.safetensors").exists()
    assert not (tmp_path / "one" / COMPLETE).exists()


def test_bytes_lost_with_the_power_are_got_again(server: HubServer, tmp_path: Path) -> None:
    server.faults[sha(BIG)] = [Fault(cut=3 * PIECE), *[Fault(status=503)] * 9]
    with pytest.raises(SourceError):
        pull(preset(server), tmp_path, options(waits=(0.01,)))
    (part,) = [path for path in parts(tmp_path / "one") if path.stat().st_size == 3 * PIECE]
    part.write_bytes(bytes(3 * PIECE))
    server.faults.clear()
    assert whole(pull(preset(server), tmp_path, options()))


def test_a_file_that_is_not_the_manifests_is_refused_before_a_byte_of_it_comes(
    server: HubServer, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=r"another file as talk\.safetensors .*SHA-256"):
        pull(preset(server, files=[("talk", 0, "sha256", sha(OTHER))]), tmp_path, options())
    assert not server.sent()
    with pytest.raises(SourceError, match="size 600000 instead of 5"):
        pull(preset(server, files=[("talk", 0, "size", 5)]), tmp_path, options())


def test_a_branch_that_moves_does_not_change_what_came_first(server: HubServer, tmp_path: Path) -> None:
    moving = preset(server, revisions={"acme/talk": "main"})
    folder = pull(moving, tmp_path)
    (folder / "talk.safetensors").unlink()
    server.files["acme/talk"]["talk.safetensors"] = bytes(600_000)
    with pytest.raises(SourceError, match=f"SHA-256 {sha(bytes(600_000))} instead of {sha(BIG)}"):
        pull(moving, tmp_path, options())
    assert not (folder / COMPLETE).exists()


def test_the_token_is_for_the_hub_alone(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_sentinel")
    said: list[str] = []
    out = io.StringIO()
    server.faults[sha(BIG)] = [Fault(cut=100_000)]
    folder = pull(preset(server), tmp_path, options(say=said.append, out=out))
    assert {asked.authorization for asked in server.asked if asked.server == "hub"} == {"Bearer hf_sentinel"}
    assert {asked.authorization for asked in server.asked if asked.server == "cdn"} == {""}
    written = "".join(said) + out.getvalue()
    written += "".join(path.read_text("latin-1") for path in folder.rglob("*") if path.is_file())
    assert "sentinel" not in written
    assert SIGNATURE not in written


def test_nothing_signed_reaches_the_log(
    server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    server.faults[sha(BIG)] = [Fault(cut=100_000), Fault(status=503)]
    pull(preset(server), tmp_path, options())
    assert SIGNATURE not in caplog.text + "".join(capfd.readouterr())


def test_a_file_the_hub_does_not_have_is_named(server: HubServer, tmp_path: Path) -> None:
    wanted = preset(server)
    del server.files["acme/voice"]["config.json"]
    with pytest.raises(SourceError, match=r"404 for config\.json of acme/voice"):
        pull(wanted, tmp_path, options())


def test_a_refusal_asks_for_a_token(server: HubServer, tmp_path: Path) -> None:
    server.refusals += [401] * 9
    with pytest.raises(SourceError, match=r"401 .*HF_TOKEN"):
        pull(preset(server), tmp_path, options())


def test_a_disk_that_is_too_small_is_found_before_anything_comes(server: HubServer, tmp_path: Path) -> None:
    server.sizes["acme/talk", "talk.safetensors"] = 10**17
    with pytest.raises(SourceError, match=r"needs 100000000\.\d GB more .* are free"):
        pull(preset(server), tmp_path, options())
    assert not server.sent()


def test_a_disk_that_fills_up_is_told_in_one_line(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    # The one call whose failure no test can have the disk bring about without a file system of its own.
    monkeypatch.setattr("engine.hub.remote.os.fsync", full)
    with pytest.raises(SourceError, match="No space left on device; free disk space"):
        pull(preset(server), tmp_path, options())


def test_a_folder_that_cannot_be_is_told_in_one_line(server: HubServer, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("not a folder")
    with pytest.raises(SourceError, match="cannot be written to: Not a directory"):
        pull(preset(server), tmp_path / "models", options())


def test_offline_names_what_is_missing_and_asks_nobody(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match=r"one lacks talk\.safetensors, .*; unset HF_HUB_OFFLINE"):
        pull(preset(server), tmp_path, options())
    assert not server.asked


def test_files_that_are_there_and_right_are_taken(server: HubServer, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "talk.safetensors").write_bytes(BIG)
    assert whole(pull(preset(server), tmp_path, options()))
    assert server.sent() == len(OTHER)


def test_a_strangers_file_in_the_way_is_not_touched_until_told(server: HubServer, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    mine = tmp_path / "one" / "talk.safetensors"
    mine.write_bytes(b"my own weights")
    with pytest.raises(
        SourceError, match=r"needed names in .*: talk\.safetensors \(14 bytes instead of 600000\); .*--repair"
    ):
        pull(preset(server), tmp_path, options())
    assert mine.read_bytes() == b"my own weights"
    assert whole(pull(preset(server), tmp_path, options(repair=True)))


def test_a_file_changed_after_the_download_is_noticed_by_the_next(server: HubServer, tmp_path: Path) -> None:
    folder = pull(preset(server), tmp_path)
    (folder / "talk.safetensors").write_bytes(BIG[:-1] + b"?")
    with pytest.raises(SourceError, match=r"talk\.safetensors \(SHA-256"):
        pull(preset(server), tmp_path, options())
    assert not (folder / COMPLETE).exists()
    assert whole(pull(preset(server), tmp_path, options(repair=True)))


def test_presets_of_one_folder_share_it_and_those_of_another_get_links(server: HubServer, tmp_path: Path) -> None:
    folder = pull(preset(server), tmp_path)
    sent = server.sent()
    pull(preset(server, "one_b"), tmp_path)
    assert (folder / COMPLETE).read_text().split() == ["one", "one_b"]
    other = pull(preset(server, "two"), tmp_path)
    assert server.sent() == sent
    assert (other / "model.safetensors").stat().st_ino == (folder / "model.safetensors").stat().st_ino


def test_without_hard_links_a_folder_gets_files_of_its_own(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("engine.hub.pull.os.link", refuse)
    folder, other = pull(preset(server), tmp_path), pull(preset(server, "two"), tmp_path)
    assert (other / "model.safetensors").read_bytes() == OTHER
    assert (other / "model.safetensors").stat().st_ino != (folder / "model.safetensors").stat().st_ino


def test_files_come_side_by_side(server: HubServer, tmp_path: Path) -> None:
    server.rate = 1_000_000
    together = threading.Barrier(2, timeout=5)
    honest = server.blob

    def wait_for_the_other(sha256: str) -> bytes:
        together.wait()
        return honest(sha256)

    server.blob = wait_for_the_other  # type: ignore[method-assign]
    assert whole(pull(preset(server), tmp_path, options(workers=2)))


def test_one_failure_stops_the_rest_at_once(server: HubServer, tmp_path: Path) -> None:
    server.rate = 60_000
    server.faults[sha(OTHER)] = [Fault(status=503)] * 9
    with pytest.raises(SourceError, match=r"model\.safetensors"):
        pull(preset(server), tmp_path, options(waits=(0.01,), workers=4))
    assert server.sent() < len(BIG)


def test_progress_tells_amount_rate_and_rest(server: HubServer, tmp_path: Path) -> None:
    out = io.StringIO()
    pull(preset(server), tmp_path, options(out=out))
    first, last = out.getvalue().splitlines()
    assert first == "0.00B of 900kB (0%), ?B/s, ? left"
    assert re.fullmatch(r"900kB of 900kB \(100%\), \d\S*B/s, 00:00 left", last)


def test_two_processes_get_it_once(server: HubServer, tmp_path: Path) -> None:
    server.rate = 2_000_000
    said: list[str] = []
    wanted = preset(server)
    threads = [
        threading.Thread(target=pull, args=(wanted, tmp_path, options(say=said.append, lease=5))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert whole(tmp_path / "one")
    assert server.sent() == len(BIG) + len(OTHER)
    assert [line for line in said if "another process is using" in line]


def test_the_lock_of_a_machine_that_died_is_taken_over(server: HubServer, tmp_path: Path) -> None:
    from filelock import SoftFileLease

    lock = tmp_path / "one" / PRIVATE / "lock"
    lock.parent.mkdir(parents=True)
    dead = SoftFileLease(lock, lease_duration=1.0, heartbeat_interval=0.9)
    dead.acquire()
    # As if another machine had written it and never touched it again.
    text = lock.read_text().replace(os.uname().nodename, "elsewhere")
    dead.release()
    lock.write_text(text)
    assert "elsewhere" in text
    assert whole(pull(preset(server), tmp_path, options(lease=1.0)))


def test_a_lost_lock_ends_the_work(server: HubServer, tmp_path: Path) -> None:
    server.rate = 200_000
    caught: list[Exception] = []

    def work() -> None:
        try:
            pull(preset(server), tmp_path, options(lease=0.6))
        except SourceError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while not parts(tmp_path / "one"):
        assert thread.is_alive()
        time.sleep(0.005)
    (tmp_path / "one" / PRIVATE / "lock").unlink()
    thread.join()
    assert "lock of" in str(caught[0])
    assert not (tmp_path / "one" / COMPLETE).exists()


def test_a_damaged_record_says_what_to_do(server: HubServer, tmp_path: Path) -> None:
    folder = pull(preset(server), tmp_path)
    (folder / PRIVATE / "record.json").write_text("{")
    with pytest.raises(SourceError, match="remove it"):
        pull(preset(server), tmp_path)
    (folder / PRIVATE / "record.json").unlink()
    sent = server.sent()
    assert whole(pull(preset(server), tmp_path))
    assert server.sent() == sent


def test_a_run_that_ended_before_the_mark_is_finished_by_the_next(server: HubServer, tmp_path: Path) -> None:
    folder = pull(preset(server), tmp_path)
    (folder / COMPLETE).unlink()
    server.asked.clear()
    pull(preset(server), tmp_path)
    assert (folder / COMPLETE).read_text().split() == ["one"]
    assert not server.asked


def test_the_mark_never_names_more_than_the_record(server: HubServer, tmp_path: Path) -> None:
    folder = pull(preset(server), tmp_path)
    pull(preset(server, "one_b"), tmp_path)
    record = Record(folder)
    del record.complete["one"]
    record.save()
    assert (folder / COMPLETE).read_text().split() == ["one_b"]
    assert json.loads((folder / PRIVATE / "record.json").read_text())["complete"].keys() == {"one_b"}


def sharded(server: HubServer, *names: str) -> Preset:
    """Return a preset whose shards only their index names."""
    index = json.dumps({"weight_map": {f"layer{number}": name for number, name in enumerate(names)}}).encode()
    for name, content in {
        "model.safetensors.index.json": index,
        "a-1.safetensors": BIG,
        "a-2.safetensors": OTHER,
    }.items():
        server.files["acme/talk"][name] = content
    table = server.manifest(one=["talk", "voice"])
    table["parts"]["talk"]["files"] = [
        {"path": "model.safetensors.index.json", "to": "base/", "about": 100, "shards": 900_000}
    ]
    return Manifest(table).preset("one")


def test_shards_that_only_the_index_names_are_got_with_it(server: HubServer, tmp_path: Path) -> None:
    preset = sharded(server, "a-1.safetensors", "a-2.safetensors", "a-1.safetensors")
    assert not preset.exact
    assert preset.size > 900_000

    folder = pull(preset, tmp_path, options())

    assert (folder / "base" / "a-1.safetensors").read_bytes() == BIG
    assert (folder / "base" / "a-2.safetensors").read_bytes() == OTHER
    assert is_complete(preset, folder)
    (folder / "base" / "a-2.safetensors").unlink()
    assert not is_complete(preset, folder)
    pull(preset, tmp_path, options())
    assert (folder / "base" / "a-2.safetensors").read_bytes() == OTHER


@pytest.mark.parametrize("name", ["../a-1.safetensors", "/etc/passwd", ".hidden", "sub/a-1.safetensors", ""])
def test_an_index_cannot_name_files_outside_its_folder(name: str, server: HubServer, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="index"):
        pull(sharded(server, "a-1.safetensors", name), tmp_path, options())
    assert {path.name for path in (tmp_path / "one" / "base").iterdir()} == {"model.safetensors.index.json"}
