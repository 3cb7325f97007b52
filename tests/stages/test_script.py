"""A script is read with errors that name its line, and spoken with its pauses; eSpeak NG really speaks."""

from __future__ import annotations

import itertools
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from engine.data import Request
from engine.errors import RequestError
from engine.stages.script import parse_script
from engine.stages.speak import speak
from plugins.speech.espeak import Espeak, EspeakConfig

needs_espeak = pytest.mark.skipif(
    shutil.which("espeak-ng") is None and find_spec("espeakng_loader") is None, reason="needs eSpeak NG"
)


def test_people_are_ordered_as_they_are_declared_and_silent_without_a_line() -> None:
    script = parse_script(
        "# a comment\n@ben voice=m3 speed=1.2 box=0,0,0.5,1\n@anna language=de\n@carl\nanna: Hallo\nBen: Hi\n"
    )
    assert [person.name for person in script.people] == ["ben", "anna", "carl"]
    assert [turn.person for turn in script.turns] == [1, 0]
    ben, anna, _ = script.people
    assert (ben.voice.name, ben.voice.speed, ben.region.box) == ("m3", 1.2, (0, 0, 0.5, 1))
    assert anna.voice.language == "de"


def test_pauses_add_up_an_overlap_is_negative_and_indented_lines_continue() -> None:
    script = parse_script(
        "(pause 1)\na: One\n  and two: three.\n(pause 0.5)\n(pause 0.3)\nb: Four\n(overlap 0.2)\na: Five\n(pause 2)"
    )
    assert [turn.gap for turn in script.turns] == [1, 0.8, -0.2]
    assert script.turns[0].text == "One and two: three."
    assert script.after == 2


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("anna: Hi\nBen says hello\n", "line 2"),
        ("anna: Hi\n(pause long)\n", "line 2"),
        ("anna: Hi\n(pause 1000)\n", "line 2"),
        ("(overlap 1)\nanna: Hi\n", "line 1"),
        ("@anna\n@anna\nanna: Hi\n", "line 2"),
        ("@anna\nana: Hi\n", "line 2: 'ana' is not declared; did you mean anna"),
        ("@anna colour=red\nanna: Hi\n", "line 1"),
        ("@anna voice=../../x\nanna: Hi\n", "line 1"),
        ("@anna box=1,0,0,1\nanna: Hi\n", "line 1"),
        ("anna: Hi\n@ben\n", "line 2"),
        ("anna:\n", "line 1: nothing is said"),
        ("anna: \x1b[31m\n", "line 1"),
        ("# only a comment\n", "nobody speaks"),
        ("a: x\n" * 501, "line 501"),
        ("".join(f"p{'abcdefghi'[n]}: x\n" for n in range(9)), "line 9"),
    ],
)
def test_an_error_names_the_line(text: str, line: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_script(text)
    assert line in str(error.value)
    assert error.value.field == "request.script"


def spoken(text: str, into: Path) -> Request:
    into.mkdir()
    speech = Espeak(EspeakConfig())
    return speak(Request("p", "i", ()), parse_script(text), speech, by="speech=espeak", gap=0.35, most=60, into=into)


@needs_espeak
def test_a_script_is_spoken_with_its_pauses_and_twice_with_the_same_bytes(tmp_path: Path) -> None:
    text = "anna: Hello Ben.\nben: Hello.\n(pause 1)\nanna: Good.\n(overlap 0.1)\nben: Yes.\n"
    one, two = spoken(text, tmp_path / "one"), spoken(text, tmp_path / "two")
    assert one.made is not None
    assert two.made is not None
    turns = one.made.dialogue.turns
    gaps = [after.begins - before.ends for before, after in itertools.pairwise(turns)]
    assert gaps == pytest.approx([0.35, 1, -0.1], abs=1e-4)
    assert [speaker.delay for speaker in one.speakers] == [turns[0].begins, turns[1].begins]
    for address, path in one.made.files.items():
        assert path.read_bytes() == two.made.files[address].read_bytes()


@needs_espeak
@pytest.mark.parametrize(
    ("person", "what"), [("voice=nobody", "no voice 'nobody'"), ("language=xx", "does not speak 'xx'")]
)
def test_an_unknown_voice_or_language_names_the_line(person: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=rf"line 2, anna: .*{what}"):
        spoken(f"@anna {person}\nanna: Hello\n", tmp_path / "x")
