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
from engine.serving.jobs.inline import as_address
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


def odd(content: bytes) -> dict[str, str]:
    """Return the forms in which a file arrives as text."""
    text = base64.b64encode(content).decode()
    broken = base64.encodebytes(content).decode()
    return {
        "blanks around": f"  {text}\n",
        "tabs and a no-break space around": f"\t\u00a0{text}\u00a0\t",
        "a byte order mark before": f"\ufeff{text}",
        "broken lines": broken,
        "broken lines of Windows": broken.replace("\n", "\r\n"),
        "lines broken by blanks": broken.replace("\n", " "),
        "literal line breaks": broken.replace("\n", "\\n"),
        "literal line breaks of Windows": broken.replace("\n", "\\r\\n"),
        "escaped slashes": text.replace("/", "\\/"),
        "escaped twice": text.replace("=", "\\u003d").replace("+", "\\u002b"),
        "no padding": text.rstrip("="),
        "the URL-safe alphabet": base64.urlsafe_b64encode(content).decode(),
        "the URL-safe alphabet without padding": base64.urlsafe_b64encode(content).decode().rstrip("="),
        "Python's bytes": repr(text.encode()),
        "Python's bytes of broken lines": repr(broken.encode()),
        "Python's bytes in double quotes": f'b"{text}"',
        "quotes": f'"{text}"',
        "percent signs": text.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
        "a data: URL": f"data:image/png;base64,{text}",
        "a data: URL with blanks around": f" data:image/png;base64,{text}\n",
        "a data: URL in quotes": f"'data:image/png;base64,{text}'",
        "a data: URL with blanks within": f"data: image/png; base64, {broken}",
        "a data: URL without a type": f"data:;base64,{text}",
        "a data: URL in capitals": f"DATA:IMAGE/PNG;BASE64,{text}",
        "a data: URL with a parameter": f"data:image/png;charset=utf-8;base64,{text}",
        "a data: URL with a comma in quotes": f'data:image/png;name="a,b.png";base64,{text}',
        "a data: URL whose base64 is not last": f"data:image/png;base64;charset=utf-8,{text}",
        "a data: URL with slashes": f"data://image/png;base64,{text}",
        "a data: URL without padding": f"data:image/png;base64,{text.rstrip('=')}",
        "a data: URL of the URL-safe alphabet": f"data:image/png;base64,{base64.urlsafe_b64encode(content).decode()}",
        "a data: URL with literal line breaks": "data:image/png;base64," + broken.replace("\n", "\\n"),
        "a data: URL with percent signs": f"data:image/png;base64,{text.replace('+', '%2B').replace('=', '%3D')}",
        "a data: URL of percent signs alone": "data:image/png," + "".join(f"%{byte:02X}" for byte in content),
    }


#: But for short texts of MP3 and AAC: their two bytes are no sign of a medium, and a path may look like them.
SENT = [
    (kind, form, size)
    for kind in KINDS
    for form in odd(b"")
    for size in (90, 91, 92, 2500)
    if kind not in ("MP3", "AAC") or size > 300 or form.startswith("a data")
]


@pytest.mark.parametrize(("kind", "form", "size"), SENT)
def test_base64_in_whatever_form_it_is_sent_is_the_file(tmp_path: Path, kind: str, form: str, size: int) -> None:
    content = (KINDS[kind] + bytes(range(250, 256)) + bytes(range(256)) * (size // 256 + 1))[:size]
    address = as_address(odd(content)[form], field="x")
    path = open_address(address=address, scheme="data", access=Access(), into=tmp_path)
    assert path is not None
    assert path.read_bytes() == content


def test_escapes_are_understood_where_pieces_meet(tmp_path: Path) -> None:
    content = KINDS["PNG"] + bytes(range(251, 256)) * 170_000
    text = base64.b64encode(content).decode()
    for shift in range(7):
        for escaped in (text.replace("/", "\\u002F"), text.replace("/", "\\/"), text.replace("/", "%2f")):
            address = as_address("\n" * 3 + escaped[:8] + " " * shift + escaped[8:], field="x")
            path = open_address(address=address, scheme="data", access=Access(), into=tmp_path)
            assert path is not None
            assert path.read_bytes() == content


@given(content=st.binary(min_size=300, max_size=900), padded=st.booleans(), data=st.data())
def test_bytes_of_any_kind_are_known_by_their_length(content: bytes, padded: bool, data: st.DataObject) -> None:
    content = b"\x00" + content
    text = base64.urlsafe_b64encode(content).decode()
    text = text if padded else text.rstrip("=")
    place = data.draw(st.integers(0, len(text)))
    text = f"{text[:place]}\n{text[place:]}"
    assert as_address(text, field="x") == HEAD + text.strip()


@pytest.mark.parametrize(
    "address", ["https://example.org/a.png", "s3://media/a b.png", "anna.png", "/inputs/anna.png", "data:,x"]
)
@pytest.mark.parametrize("around", ["{} ", "\n{}\n", "\ufeff{}", " \t{}\r\n", "\u00a0{}"])
def test_blanks_around_an_address_do_not_count(address: str, around: str) -> None:
    assert as_address(around.format(address), field="x") == address


def test_quotes_around_a_url_do_not_count_and_those_of_a_name_stay() -> None:
    assert as_address('"https://example.org/a.png"', field="x") == "https://example.org/a.png"
    assert as_address("'a.png'", field="x") == "'a.png'"


@pytest.mark.parametrize("text", [" ", "\n" * 68, "\u200b", "\t \r\n"])
def test_nothing_but_blanks_is_told(text: str) -> None:
    with pytest.raises(RequestError, match="x: the text has only spaces; give a URL"):
        as_address(text, field="x")


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
        "Ä" * 68,
    ],
)
def test_everything_else_stays_an_address(address: str) -> None:
    assert as_address(address, field="x") is address


@pytest.mark.parametrize(
    "text", ["A" * 4097, "A" * 5000 + "." + "A" * 3, "A" * 4999 + "=" * 5 + "A", "/x" * 2500 + "."]
)
def test_text_too_long_for_an_address_says_what_it_is_not(text: str) -> None:
    assert "position" in said(text) or "truncated" in said(text)
    with pytest.raises(RequestError, match=f"reference_image: a text of {len(text)} characters") as caught:
        as_address(text, field="reference_image")
    assert caught.value.code == "bad_base64"


def said(text: str) -> str:
    with pytest.raises(RequestError) as caught:
        as_address(text, field="x")
    return str(caught.value)


def test_the_character_that_does_not_belong_is_named_with_its_place() -> None:
    assert "it has '!' at position 5001" in said("A" * 5000 + "!" + "A" * 3000)


def test_a_large_file_is_copied_once() -> None:
    text = "A" * 8_000_000
    tracemalloc.start()
    try:
        as_address(text, field="x")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.1 * len(text)
