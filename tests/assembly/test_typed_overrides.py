"""Values of overrides work as they are typed, whatever letters they have, or the error shows the line that works."""

from __future__ import annotations

import shlex
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.assembly.compose import compose, compose_request
from engine.assembly.typed_overrides import parse, readable, shell_line
from engine.errors import ConfigError, RequestError
from engine.serving.worker.defaults import boot

LETTERS = string.printable + "äßé数据テ🎬\u202e\u00a0ñЖ"
BASE = ["source=volume"]


@pytest.mark.parametrize("letter", LETTERS)
def test_each_letter_is_taken_as_it_is_or_the_comma_is_a_sweep(letter: str) -> None:
    for text in (f"a{letter}b", f"{letter}ab", f"ab{letter}", f"a{letter}{letter}b", f"x/{letter} y"):
        (word,) = readable([f"source.path={text}"])
        found = parse(word)
        if text[0] in "[{'\"" and found is None:
            # A list or a text in quotes that does not end: told, with the line that works.
            with pytest.raises(ConfigError) as caught:
                compose([*BASE, word])
            (word,) = shlex.split(caught.value.hint.partition("such as ")[2])
            found = parse(word)
        assert found is not None, text
        if letter == ",":
            assert found.is_sweep_override() == (text != ",ab") or found.value() == text
        elif letter == "\\":
            # Hydra's own escapes, of blanks and of itself, are as they were.
            assert str(found.value()).replace("\\", "") == text.replace("\\", "").strip()
        else:
            assert str(found.value()) == text.strip(" \t"), text


@given(text=st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters=",$\\[]{}'\"\x00"), min_size=1))
def test_any_text_that_hydra_cannot_read_is_taken_as_it_is(text: str) -> None:
    before = f"source.path={text}"
    (word,) = readable([before])
    if word != before:
        found = parse(word)
        assert found is not None
        assert found.value() == text


@pytest.mark.parametrize(
    "path",
    [
        "folder/数据",
        "/films (old)",
        "it's",
        "a@b#c",
        "x=1",
        "/müller/é",
        "a b",
        "say 'hi' \"there\"",
        "~/films",
        "50%",
        "a;b",
    ],
)
def test_a_folder_of_any_letters_is_taken_without_quotes_from_all_sides(path: str) -> None:
    word = f"source.path={path}"
    assert compose([*BASE, word]).source.path == path  # type: ignore[attr-defined]
    told = boot(["entrypoint=runpod"], {"MULTITALK_OVERRIDES": shlex.join(["model=tiny", *BASE, word])})
    assert compose(told).source.path == path  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["source=volume source.path=/it's", "source=volume source.path=/数据/(a)@b#c=d"])
def test_the_environment_takes_a_value_without_blanks_unquoted(text: str) -> None:
    config = compose(boot(["entrypoint=runpod"], {"MULTITALK_OVERRIDES": f"model=tiny {text}"}))
    assert config.source.path == text.partition("path=")[2]  # type: ignore[attr-defined]


def test_the_environment_shows_how_to_quote() -> None:
    with pytest.raises(ConfigError) as caught:
        boot(["entrypoint=runpod"], {"MULTITALK_OVERRIDES": "source.path=/it's my folder model=tiny"})
    line = caught.value.hint.partition("such as ")[2]
    assert shlex.split(line) == ["source.path=/it's my folder", "model=tiny"]


@pytest.mark.parametrize("text", ["a,b", "[a]", "{a: b}", "[数据]", "a,b数据", "x,'y'", "[a", "{b", "'c", '"d'])
def test_what_hydra_reads_otherwise_is_told_with_the_line_that_works(text: str) -> None:
    try:
        config = compose([*BASE, f"source.path={text}"])
    except ConfigError as error:
        line = error.hint.partition("such as ")[2] or error.hint.rpartition("write ")[2]
        (word,) = shlex.split(line)
        config = compose([*BASE, word])
    assert config.source.path == text  # type: ignore[attr-defined]


def test_entries_of_a_list_may_have_any_letters() -> None:
    assert compose(["access.schemes=[path,数据,'a,b',x(y)]"]).access.schemes == ["path", "数据", "a,b", "x(y)"]
    assert readable(["a=[数据,[é,b],c]"]) == ['a=["数据","[é,b]",c]']


def test_values_of_a_sweep_are_looked_at_one_by_one() -> None:
    (word,) = readable(["request.prompt=a 数据,'b, c',d"], several=True)
    found = parse(word)
    assert found is not None
    assert list(found.sweep_string_iterator()) == ['"a 数据"', "'b, c'", "d"]


@pytest.mark.parametrize(
    "word", ["sampler=euler", "a='b'", "~cache", "+x=1", "a={b: 1}", "a=${b}", "a=null", "m=choice(a,b)"]
)
def test_what_hydra_reads_stays_as_it_is(word: str) -> None:
    assert readable([word]) == [word]


def test_an_interpolation_beside_odd_letters_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FILMS", "/films")
    assert compose([*BASE, "source.path=${oc.env:FILMS}/数据"]).source.path == "/films/数据"  # type: ignore[attr-defined]


@pytest.mark.parametrize("letter", "äß数🎬()]}@#=, \\:;!?&|<>%^*+~`$")
def test_overrides_of_a_job_are_understood_or_refused_in_one_line(letter: str) -> None:
    for word in (f"cache=te{letter}a", f"resolution={letter}x"):
        with pytest.raises(RequestError) as caught:
            compose_request([], [word])
        assert "cannot read" not in str(caught.value)
        assert caught.value.hint


def test_a_line_for_the_shell_brings_the_text_unchanged() -> None:
    for text in ("a,b", "it's", 'say "x"', "a\\", "'\"'", "数据 (1)"):
        (word,) = shlex.split(shell_line(f"source.path={text}"))
        assert compose([*BASE, word]).source.path == text  # type: ignore[attr-defined]
