"""Address plugins bring a file or pass; the data plugin never writes more than it may."""

from __future__ import annotations

import base64
import errno
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from engine import Access
from engine.errors import RequestError
from plugins.addresses import data, path

ACCESS = Access()


def decode(url: str, into: Path, access: Access = ACCESS) -> Path | None:
    return data.open_address(address=url, scheme="data", access=access, into=into)


def url_of(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def test_path_plugin_uses_the_file_where_it_lies(tmp_path: Path) -> None:
    file = tmp_path / "a.png"

    assert path.open_address(address=str(file), scheme="path", access=ACCESS, into=tmp_path) == file
    assert path.open_address(address="s3://b/k", scheme="s3", access=ACCESS, into=tmp_path) is None


def test_data_plugin_passes_on_other_schemes(tmp_path: Path) -> None:
    assert data.open_address(address="x", scheme="path", access=ACCESS, into=tmp_path) is None


@pytest.mark.parametrize("size", [1, 2, 3, 786_432, 786_433, 2_000_001])
def test_data_url_becomes_a_file(tmp_path: Path, size: int) -> None:
    content = (bytes(range(256)) * (size // 256 + 1))[:size]
    file = decode(url_of(content), tmp_path)

    assert file is not None
    assert file.parent == tmp_path
    assert file.read_bytes() == content


def test_white_space_and_percent_signs_are_understood(tmp_path: Path) -> None:
    content = b"\xfb\xff\xfe" * 200_000 + b"x"
    text = base64.encodebytes(content).decode().replace("+", "%2B").replace("=", "%3D")
    file = decode("DATA:audio/wav;rate=1;BASE64," + text, tmp_path)

    assert file is not None
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("data:text/plain,hello", "is not base64"),
        ("data:image/png;base64", "is not base64"),
        ("data:image/png,base64,iVBORw0KGgo=", "is not base64: ';base64' must come before the comma"),
        ("data:image/png,iVBORw0KGgoAAAANSUhEUgAA", "is not base64: ';base64' must come before the comma"),
        ("data:image/png;base64,abcda", "invalid base64: it is cut off after 5 characters"),
        ("data:image/png;base64,AAAA==AAAA", "invalid base64: it continues after its padding"),
        (
            "data:image/png;base64," + "A" * 3_000_000 + "*",
            "invalid base64: it contains '\\*' after 3000000 characters",
        ),
        ("data:image/png;base64,\ud800", "invalid base64"),
        ("data:image/png;base64,ab*d", "invalid base64"),
        ("data:image/png;base64,äöü=", "invalid base64"),
    ],
)
def test_what_is_not_base64_is_refused_and_leaves_no_file(tmp_path: Path, url: str, what: str) -> None:
    with pytest.raises(RequestError, match=what):
        decode(url, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_more_is_told_with_a_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="temporary files cannot be written: No such file") as caught:
        decode(url_of(b"abc"), tmp_path / "gone")
    assert caught.value.code == "disk_unwritable"
    shut = tmp_path / "shut"
    shut.mkdir()

    class Full:
        def __init__(self, file: Any) -> None:
            self._file = file
            self.name = file.name

        def __enter__(self) -> Full:
            self._file.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self._file.__exit__(*error)

        def write(self, content: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    made = tempfile.NamedTemporaryFile
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", lambda **options: Full(made(**options)))
    with pytest.raises(RequestError, match="No space left") as caught:
        decode(url_of(b"abc"), shut)
    assert caught.value.code == "disk_unwritable"
    assert list(shut.iterdir()) == []


def test_data_url_beyond_the_limit_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="more than 1000 bytes"):
        decode(url_of(bytes(1001)), tmp_path, Access(max_bytes=1000))
    assert list(tmp_path.iterdir()) == []


def test_data_url_is_decoded_without_a_second_copy(tmp_path: Path) -> None:
    url = url_of(bytes(16 * 2**20))

    tracemalloc.start()
    decode(url, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 8 * 2**20
