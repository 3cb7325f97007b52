"""Nothing that a hub, a manifest, an index or an endpoint says becomes a path outside the folder it is for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from hub_server import COMMIT, SIGNATURE, Fault, HubServer, hub_server, write_manifest

from engine.client import Client
from engine.client.answers import ClientError
from engine.errors import ConfigError, SourceError
from engine.hub.cached import snapshot
from engine.hub.manifest import Manifest, read_manifest
from engine.hub.prune import removable
from engine.hub.pull import Options, pull
from engine.hub.record import PRIVATE, Record
from engine.loading.diffusers_folder import weight_files
from engine.text.names import is_inside, is_plain

ROOT = Path(__file__).parents[2]
CODE = b"import os; open(os.environ['PWNED'], 'w')\n" * 20_000
SHA1, SHA256 = "a" * 40, "b" * 64


class HostileHub:
    """A mirror that states what it likes of one file, sends bytes and hangs up before the last of them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.headers: dict[str, str] = {}
        self.size = len(CODE)
        self.cut = 400_000
        #: Whether it answers a range with the whole file, each time.
        self.deaf = False

    def preset(self) -> Any:
        table = {
            "default": "one",
            "repositories": {"acme/talk": {"revision": COMMIT, "licence": "MIT"}},
            "parts": {"talk": {"repository": "acme/talk", "files": [{"path": "clip.pth", "about": 5}]}},
            "presets": {"one": {"about": "one", "folder": "one", "use": "model=one", "parts": ["talk"]}},
        }
        return Manifest(table).preset("one")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileHub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            told = {"ETag": f'"{SHA256}"', "X-Repo-Commit": COMMIT, "Content-Length": str(hostile.size)}
            # As bytes, and so that nothing is corrected on the way.
            lines = [f"{key}: {value}" for key, value in (told | hostile.headers).items() if value is not None]
            status = "302 Found" if "Location" in hostile.headers else "200 OK"
            head = "\r\n".join([f"HTTP/1.1 {status}", *lines, "Connection: close", "", ""])
            self.wfile.write(head.encode("latin-1"))
            self.close_connection = True

        def do_GET(self) -> None:
            if "Range" in self.headers and not hostile.deaf:
                # So that what came is kept.
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Disposition", 'attachment; filename="../../../../evil.pth"')
            self.send_header("Content-Length", str(hostile.size))
            self.end_headers()
            self.wfile.write(CODE[: hostile.cut])
            self.close_connection = True

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    hostile = HostileHub(f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("HF_ENDPOINT", hostile.url)
    yield hostile
    server.shutdown()
    server.server_close()


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


ETAGS = {
    "up": "../../../../victim/x",
    "absolute": "/{root}/victim/x",
    "backslashes": "..\\..\\x",
    "short": "a" * 39,
    "long": "a" * 5000,
    "of another alphabet": "A" * 40,
    "with more behind": f"{SHA1}-gzip",
    "with a line's end": f"{SHA256}\t",
    "empty": "",
    "a dot": "..",
}


@pytest.mark.parametrize(
    ("header", "etag"),
    # An empty one of a large file is none, and the other header counts.
    [(header, etag) for header in ("ETag", "X-Linked-ETag") for etag in ETAGS.values() if etag or header == "ETag"],
)
def test_an_etag_that_is_no_hash_is_refused_before_a_byte_is_written(
    hub: HostileHub, tmp_path: Path, header: str, etag: str
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    hub.headers = {header: f'"{etag.format(root=str(tmp_path).lstrip("/"))}"'}
    with pytest.raises(
        SourceError, match=r"the hub states (a hash that is neither|no size and hash)|does not answer for"
    ):
        pull(hub.preset(), tmp_path / "volume" / "models", Options(waits=()))
    assert files_below(tmp_path) <= {f"volume/models/one/{PRIVATE}/lock"}


@pytest.mark.parametrize("etag", [f'W/"{SHA1}"', f'"{SHA256}"', SHA256], ids=["weak", "quoted", "bare"])
def test_a_hash_in_any_of_the_forms_of_the_header_is_taken(hub: HostileHub, tmp_path: Path, etag: str) -> None:
    hub.headers = {"ETag": etag}
    with pytest.raises(SourceError, match=r"the download of .* failed"):
        pull(hub.preset(), tmp_path / "models", Options(waits=()))


def test_half_a_file_has_a_name_of_ours_that_nothing_runs_or_reads(hub: HostileHub, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"the download of .* failed"):
        pull(hub.preset(), tmp_path / "models", Options(waits=()))
    (part,) = (tmp_path / "models" / "one" / PRIVATE / "parts").iterdir()
    assert part.stat().st_size > 0
    assert part.suffix == ".part"
    assert len(part.stem) == 64
    assert SHA256 not in part.name
    assert files_below(tmp_path) == {f"models/one/{PRIVATE}/parts/{part.name}"}


def test_a_server_without_ranges_that_always_cuts_is_given_up(hub: HostileHub, tmp_path: Path) -> None:
    hub.deaf = True
    with pytest.raises(SourceError, match=r"the download of .* failed"):
        pull(hub.preset(), tmp_path / "models", Options(waits=(0.01, 0.01)))


def test_a_part_that_is_a_link_elsewhere_is_not_written_to(hub: HostileHub, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"the download of .* failed"):
        pull(hub.preset(), tmp_path / "models", Options(waits=()))
    (part,) = (tmp_path / "models" / "one" / PRIVATE / "parts").iterdir()
    part.unlink()
    part.symlink_to(tmp_path / "elsewhere.py")
    with pytest.raises(SourceError, match="is a link to another folder"):
        pull(hub.preset(), tmp_path / "models", Options(waits=()))
    assert not (tmp_path / "elsewhere.py").exists()


STATED = {
    "commit": {"X-Repo-Commit": "../../../etc"},
    "size": {"X-Linked-Size": "-5", "Location": "http://127.0.0.1:9/x"},
    "endless size": {"X-Linked-Size": "9" * 40, "Location": "http://127.0.0.1:9/x"},
    "no size": {"X-Linked-Size": "many", "Location": "http://127.0.0.1:9/x"},
    "address": {"Location": "file:///etc/passwd", "X-Linked-Size": "5"},
    "no address": {"Location": "http://[", "X-Linked-Size": "5"},
    "NUL": {"ETag": f'"{SHA1}\0"'},
}


@pytest.mark.parametrize("headers", STATED.values(), ids=STATED.keys())
def test_other_headers_that_make_no_sense_are_one_line(
    hub: HostileHub, tmp_path: Path, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is no HTTP at all the library asks for again, for 23 seconds.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.headers = headers
    with pytest.raises(SourceError) as caught:
        pull(hub.preset(), tmp_path / "models", Options(waits=()))
    assert "\n" not in str(caught.value)
    assert "passwd" not in str(caught.value)
    assert files_below(tmp_path) <= {f"models/one/{PRIVATE}/lock"}


def test_a_server_that_sends_more_than_was_stated_is_cut_off(hub: HostileHub, tmp_path: Path) -> None:
    hub.headers = {"Content-Length": "1000"}
    hub.cut = len(CODE)
    with pytest.raises(SourceError, match=r"clip\.pth .* is longer than the 1000 bytes"):
        pull(hub.preset(), tmp_path / "models", Options(waits=()))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.part")) <= 1000


OUTSIDE = ("../x", "a/../../x", "/etc/x", "a//b", "..", "", "a\\b", "a\0b", "a\nb", "\x1b[2J", "x" * 300)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_names_no_place_outside_its_folder(tmp_path: Path, name: str) -> None:
    def table() -> dict[str, Any]:
        return {
            "default": "one",
            "repositories": {"acme/talk": {"revision": COMMIT, "licence": "MIT"}},
            "parts": {"talk": {"repository": "acme/talk", "files": [{"path": "a.pth", "to": "b.pth", "about": 5}]}},
            "presets": {"one": {"about": "one", "folder": "one", "use": "model=one", "parts": ["talk"]}},
        }

    assert Manifest(table()).preset("one").files
    for change in ("path", "folder", "revision", "repository", *(["to"] if name else [])):
        told = table()
        if change in ("path", "to"):
            told["parts"]["talk"]["files"][0][change] = name
        elif change == "folder":
            told["presets"]["one"]["folder"] = name
        elif change == "revision":
            told["repositories"]["acme/talk"]["revision"] = name
        else:
            told["repositories"][f"acme/{name}"] = told["repositories"].pop("acme/talk")
            told["parts"]["talk"]["repository"] = f"acme/{name}"
        path = write_manifest(tmp_path / f"{change}.yaml", told)
        with pytest.raises(ConfigError, match="must not be part of a path"):
            read_manifest(path)


def test_a_record_that_names_files_elsewhere_has_nothing_removed(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    stat = mine.stat()
    folder = tmp_path / "models" / "one"
    (folder / PRIVATE).mkdir(parents=True)
    (folder / "download_complete.txt").write_text("one\n")
    entry = {"repository": "a/b", "path": "x", "revision": COMMIT, "size": 4, "sha256": SHA256, "trust": "manifest"}
    told = {"format": 1, "files": {"../../mine.txt": entry | {"mtime_ns": stat.st_mtime_ns}}, "complete": {"one": []}}
    (folder / PRIVATE / "record.json").write_text(json.dumps(told))
    with pytest.raises(SourceError, match="names a file outside its folder"):
        Record(folder)
    with pytest.raises(SourceError, match="names a file outside its folder"):
        removable(read_manifest(), tmp_path / "models", ["multitalk-int8"])
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("told", ["../../../../other", "/etc", "a/b", "..", "\udcff"])
def test_a_ref_of_a_cache_leads_to_a_snapshot_alone(tmp_path: Path, told: str) -> None:
    home = tmp_path / "cache" / "models--acme--talk"
    (home / "refs").mkdir(parents=True)
    (home / "snapshots").mkdir()
    (tmp_path / "other").mkdir()
    (home / "refs" / "main").write_bytes(told.encode("utf-8", "surrogateescape"))
    assert snapshot(tmp_path / "cache", "acme/talk") is None
    assert snapshot(tmp_path / "cache", "acme/talk", "../../../other") is None


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", 5, None, ["x"]])
def test_an_index_of_shards_names_files_beside_it_alone(tmp_path: Path, shard: Any) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(SourceError, match="names a file outside its folder"):
        weight_files(tmp_path, "text_encoder")


@pytest.mark.parametrize("name", ["../other/run", "a/b", "a?b", "a#b", "..%2f", "a b"])
def test_a_jobs_id_stays_one_part_of_the_address_that_gets_the_key(name: str) -> None:
    seen: list[bytes] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.url.raw_path)
        return httpx2.Response(200, json={"id": "x", "status": "COMPLETED"})

    Client("mine", "key", transport=httpx2.MockTransport(answer)).job(name).status()
    (path,) = seen
    head, _, last = path.rpartition(b"/")
    assert head.endswith(b"/mine/status")
    assert last not in (b"", b".", b"..")
    assert b"?" not in path


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_jobs_id_that_is_none_is_not_asked_about(name: str) -> None:
    client = Client("mine", "key", transport=httpx2.MockTransport(lambda _: pytest.fail("asked")))
    with pytest.raises(ClientError, match="no valid id"):
        client.job(name).status()


def test_plain_names_pass() -> None:
    assert all(map(is_plain, ("a", "a.b", "models_t5-xxl.pth", "ÄÖ é 数据.pth", ".hidden")))
    assert is_inside("single/infinitetalk.safetensors")
    assert not is_plain("single/infinitetalk.safetensors")
    assert not any(map(is_inside, (*OUTSIDE, "./a", "a/.", "a/", "\ud800", None, 5, b"a")))


@pytest.mark.parametrize("door", ["script", "library"])
def test_no_signature_reaches_the_output_of_a_fresh_process(tmp_path: Path, door: str) -> None:
    """A process of its own: which loggers are set up, and in what order, is decided by what is imported first."""
    content = os.urandom(300_000)
    with hub_server({"acme/talk": {"talk.safetensors": content}}) as server:
        import hashlib

        # A cut, a stall and a refusal: each has the library warn with the address.
        server.faults[hashlib.sha256(content).hexdigest()] = [Fault(cut=70_000), Fault(status=503), Fault(cut=70_000)]
        path = tmp_path / "manifest.yaml"
        path.write_text(yaml.safe_dump(server.manifest(one=["talk"])), "utf-8")
        words = ["--manifest", str(path), "--model-path", str(tmp_path / "models")]
        code = (
            "import logging, sys; logging.basicConfig(level=logging.DEBUG)\n"
            "from engine.cli.models import run\n"
            "sys.exit(run(['pull', *sys.argv[1:]], 'pull'))\n"
        )
        command = ["scripts/download_models.py"] if door == "script" else ["-c", code]
        environment = os.environ | {"HF_ENDPOINT": server.hub, "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(
            [sys.executable, *command, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "models" / "one" / "talk.safetensors").read_bytes() == content
    # It was asked for with one.
    assert any(SIGNATURE in asked.path for asked in server.asked)
    assert SIGNATURE not in done.stdout + done.stderr
    assert "X-Amz" not in done.stdout + done.stderr


def test_the_server_of_these_tests_signs_what_it_redirects_to() -> None:
    with hub_server({"acme/talk": {"a.safetensors": bytes(5000)}}) as server:
        assert isinstance(server, HubServer)
        found = httpx2.head(f"{server.hub}/acme/talk/resolve/main/a.safetensors")
    assert SIGNATURE in found.headers["location"]
