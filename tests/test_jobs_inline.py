"""Base64 text in the place of an address is known from everything else."""

from __future__ import annotations

import base64
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data import Access
from engine.errors import RequestError
from engine.jobs.inline import as_address
from plugins.addresses.data import open_address

HEAD = "data:application/octet-stream;base64,"
#: How files begin that people send.
KINDS = {
    "PNG": b"\x89PNG\r\n\x1a\n",
    "JPEG": b"\xff\xd8\xff\xe0",
    "WebP": b"RIFF\0\0\0\0WEBP",
    "WAV": b"RIFF\0\0\0\0WAVE",
    "MP3": b"\xff\xfb\x90\x64",
    "MP3 with tags": b"ID3\x03",
    "AAC": b"\xff\xf1\x50\x80",
    "FLAC": b"fLaC",
    "Ogg": b"OggS",
    "MP4": b"\0\0\0\x20ftyp",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [60, 61, 62, 3000, 9000])
def test_file_as_base64_becomes_a_data_url(kind: str, size: int) -> None:
    text = base64.b64encode(KINDS[kind] + bytes(range(256)) * 36)[: 4 * (size // 3)].decode()
    assert as_address(text, field="audio_1") == HEAD + text


@given(content=st.binary(min_size=50, max_size=300))
def test_whatever_is_encoded_is_known_or_looks_like_a_path(content: bytes) -> None:
    text = base64.b64encode(content).decode()
    assert as_address(text, field="x") == (
        text if text.startswith("/") and text[1:3] != "9j" and text[1] != "/" else HEAD + text
    )


def test_broken_lines_are_known_and_decode(tmp_path: Path) -> None:
    content = bytes(range(256)) * 20
    for text in (base64.encodebytes(content).decode(), base64.encodebytes(content).decode().replace("\n", "\r\n")):
        address = as_address(text, field="x")
        path = open_address(address=address, scheme="data", access=Access(), into=tmp_path)
        assert path is not None
        assert path.read_bytes() == content


@pytest.mark.parametrize(
    "address",
    [
        "anna.png",
        "/runpod-volume/inputs/anna.png",
        "AAAA",
        "A" * 64,
        "https://example.org/" + "a" * 5000,
        "s3://bucket/" + "a" * 100,
        "data:image/png;base64," + "A" * 8000,
        "DATA:image/png;base64," + "A" * 80,
        "file:///" + "a" * 92,
        "/" + "a/b" * 33,
        "/workspace/" + "a" * 89,
        "inputs/" + "a" * 89 + ".png",
        "A" * 66,
        "A" * 67,
        "=" * 68,
        "A" * 65 + "===",
        "A" * 34 + "=" + "A" * 33,
        "A" * 67 + "_",
        "A" * 67 + "-",
        "A" * 67 + " ",
        " " + "A" * 67,
        "Ä" * 68,
        "\n" * 68,
        "A" * 4093 + "-_-",
    ],
)
def test_everything_else_stays_an_address(address: str) -> None:
    assert as_address(address, field="x") is address


@pytest.mark.parametrize(
    "text", ["A" * 4097, "A" * 8190 + "-_", "A" * 5000 + " " * 4, "A" * 4999 + "=====", "/x" * 2500 + "-"]
)
def test_text_too_long_for_an_address_says_what_it_is_not(text: str) -> None:
    with pytest.raises(RequestError, match=f"reference_image: a text of {len(text)} letters") as caught:
        as_address(text, field="reference_image")
    assert caught.value.code == "bad_base64"


def test_a_large_file_is_copied_once() -> None:
    text = "A" * 8_000_000
    tracemalloc.start()
    try:
        as_address(text, field="x")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.1 * len(text)
