"""Nothing of strangers' files acts on a terminal: provenance, errors, plans, warnings and comparisons."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hostile_text import HOSTILE, acts
from hypothesis import given
from hypothesis import strategies as st

from engine.cli.main import main
from engine.errors import EngineError, plain, plain_json

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "engine" / "examples"
#: A title, a cleared screen, a colour, C1's own introducer, a turned line, breaks, half a character, a tag.


@given(st.text(st.characters(exclude_categories=())))
def test_no_text_acts_and_ordinary_text_stays(text: str) -> None:
    shown = plain(text)
    assert acts(shown).strip("\u200c\u200d") == ""
    assert plain(shown) == shown
    if not acts(text):
        assert shown == text
    assert acts(plain_json({text: [text]})) == ""


def test_escapes_say_what_they_stand_for() -> None:
    assert plain("a\x1b[2J\n\u202e\x9b\x7f") == r"a\x1b[2J\n\u202e\x9b\x7f"
    assert plain("Zoë 数据 \u200d ½") == "Zoë 数据 \u200d ½"


def test_an_error_of_any_text_is_plain() -> None:
    error = EngineError(HOSTILE, field=HOSTILE, hint=HOSTILE)
    for text in (str(error), error.what, error.field, error.hint, *error.lines()):
        assert acts(text) == ""
        assert "owned" in text


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "--image", f"/nowhere/{HOSTILE}".replace("\ud800", ""), "--audio", "a.wav", "--prompt", "x"],
        [HOSTILE],
        ["generate", f"sink={HOSTILE}"],
        ["show", f"/nowhere/{HOSTILE}".replace("\ud800", "")],
        ["compare", f"/nowhere/{HOSTILE}".replace("\ud800", "")],
        ["generate", "--" + HOSTILE],
        ["batch", f"/nowhere/{HOSTILE}.jsonl".replace("\ud800", "")],
    ],
)
def test_what_the_command_line_refuses_is_one_plain_line(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    told = capsys.readouterr().err
    assert acts(told.removesuffix("\n")) == ""
    assert told.startswith("multitalk: error: ")


def test_a_plan_shows_names_of_files_plain(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    voice = tmp_path / "\x1b[31mvoice\u202e.flac"
    voice.symlink_to(EXAMPLES / "one.flac")
    words = ["--image", str(EXAMPLES / "one.png"), "--audio", str(voice), "--prompt", "x", "--frames", "1"]

    assert main(["plan", *words, "model=tiny"]) == 0
    out = capsys.readouterr().out
    assert acts(out.replace("\n", "")) == ""
    assert r"\x1b[31mvoice\u202e.flac" in out
    assert main(["plan", *words, "model=tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 1
