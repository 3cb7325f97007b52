"""The schema `speakers`: one way to say who speaks where, with errors that point at the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.data import Region, Speaker
from engine.errors import RequestError
from engine.serving.jobs.speakers import parse_speakers, read_speakers


def test_voice_silence_and_every_region(tmp_path: Path) -> None:
    file = tmp_path / "who.yaml"
    file.write_text(
        "speakers:\n"
        "  - {audio: anna.wav, region: {box: [0, 0, 0.5, 1]}}\n"
        "  - {silence: true, region: {mask: right.png}}\n"
        "  - {audio: 'https://example.org/b.wav', region: auto}\n"
        "  - {audio: /voices/c.wav}\n"
    )
    assert read_speakers(str(file)) == (
        Speaker(str(tmp_path / "anna.wav"), Region(box=(0.0, 0.0, 0.5, 1.0))),
        Speaker(None, Region(mask=str(tmp_path / "right.png"))),
        Speaker("https://example.org/b.wav"),
        Speaker("/voices/c.wav"),
    )


def test_json_with_tabs_is_read_and_inline_json_keeps_its_paths(tmp_path: Path) -> None:
    (tmp_path / "who.json").write_text('{\n\t"speakers": [{"audio": "a.wav"}]\n}')
    assert read_speakers(str(tmp_path / "who.json")) == (Speaker(str(tmp_path / "a.wav")),)
    assert read_speakers('{"speakers": [{"audio": "a.wav"}]}') == (Speaker("a.wav"),)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], r"request.speakers: not a list with at least one entry"),
        ("a.wav", "request.speakers: not a list"),
        (["a.wav"], r"request\.speakers\[0\]: 'a.wav' is not a mapping"),
        ([{"audio": "a", "silence": True}], r"request\.speakers\[0\]: there is both audio and silence"),
        ([{"audio": "a"}, {}], r"request\.speakers\[1\]: there is neither audio nor silence"),
        ([{"audio": "a"}, {"silence": False}], r"request\.speakers\[1\]: there is neither"),
        ([{"silence": "yes"}], r"request\.speakers\[0\]\.silence: 'yes' is neither true nor false"),
        ([{"audio": 3}], r"request\.speakers\[0\]\.audio: 3 is not an address"),
        ([{"audoi": "a"}], r"request\.speakers\[0\]: unknown key 'audoi'; did you mean audio"),
        ([{"audio": "a", "region": "left"}], r"request\.speakers\[0\]\.region: 'left' is not a region; auto"),
        ([{"audio": "a", "region": {"box": [0, 0, 1, 1], "mask": "m"}}], r"request\.speakers\[0\]\.region: "),
        ([{"audio": "a", "region": {"bx": 1}}], r"request\.speakers\[0\]\.region: unknown key 'bx'; did you mean box"),
        ([{"audio": "a", "region": {"box": [0, 0, 1]}}], r"request\.speakers\[0\]\.region\.box: .*not four numbers"),
        (
            [{"audio": "a", "region": {"box": [0, 0, float("nan"), 1]}}],
            r"request\.speakers\[0\]\.region\.box\[2\]: nan",
        ),
        (
            [{"audio": "a", "region": {"box": [0, "0", 1, 1]}}],
            r"request\.speakers\[0\]\.region\.box\[1\]: '0' is not a number",
        ),
        ([{"audio": "a", "region": {"box": [0, 0, True, 1]}}], r"request\.speakers\[0\]\.region\.box\[2\]: True"),
        ([{"audio": "a", "region": {"box": [0.5, 0, 0.5, 1]}}], r"request\.speakers\[0\]\.region\.box: .*is empty"),
    ],
)
def test_a_wrong_entry_is_named(entries: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_speakers(entries)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"speakers: [", "neither YAML nor JSON: .* in line"),
        (b"people: []", "has no list 'speakers'"),
        (b"- a.wav", "has no list 'speakers'"),
        (b"", "has no list 'speakers'"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (json.dumps({"speakers": [], "seed": 1}).encode(), "unknown key 'seed'"),
    ],
)
def test_a_file_that_is_no_list_of_speakers_says_so_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "who.yaml"
    file.write_bytes(content)
    with pytest.raises(RequestError, match=message) as caught:
        read_speakers(str(file))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(RequestError, match=r"request\.speakers: cannot read 'nowhere\.yaml': No such file"):
        read_speakers("nowhere.yaml")
