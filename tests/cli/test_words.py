"""From the words of a command line to the config: nothing is lost and nothing is added."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.assembly.compose import compose
from engine.assembly.escape import override, override_list
from engine.cli.parser import ParsedArguments, entrypoint_parser, read_entrypoint
from engine.errors import ConfigError
from engine.plugin.manager import installed

NASTY = [
    "a man, a woman, and a dog",
    "she says \"no\" and it's 'fine'",
    "seed=7, frames = 3",
    "${oc.env:HOME}",
    "\\${oc.env:HOME}",
    "\\\\${request.seed}",
    "${",
    "$ {a} } ${a",
    "back\\slash and the last\\",
    "two at the end\\\\",
    "\\'",
    "\\\\'\\",
    "line\nbreak\r\nand\ttab",
    "Grüße aus Köln: 一个女人在说话 🎤👩🏽‍🚀",
    "  blanks around  ",
    "{braces: [brackets]}",
    "null",
    "true",
    "1e3",
    "-5",
    "--seed",
    "-x",
    "~gone",
    "+more",
    "@package",
    "#comment",
    "a#b: c",
    "'",
    '"',
    "choice(a,b)",
    "",
]


def read(*words: str) -> ParsedArguments:
    config = installed().entrypoints.config("generate")
    return read_entrypoint("generate", entrypoint_parser("generate", config, ""), words)


def test_every_text_arrives_as_it_was_typed() -> None:
    request = compose(read(*(f"--audio={text}" for text in NASTY)).overrides).request
    assert request.audio == NASTY


@pytest.mark.parametrize("text", ["${oc.env:HOME}\\", "-5", "a, b='c' \"d\"", "\\'${x}\\\\"])
def test_a_prompt_arrives_through_the_entrypoints_config(text: str) -> None:
    config = compose(read("--prompt", text).overrides)
    assert config.request.prompt == text
    assert config.entrypoint.request.prompt == text  # type: ignore[attr-defined]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    st.lists(st.text("\\$'\"{}[]=,:. \nxü中~+@#"), min_size=8, max_size=8),
)
def test_any_text_arrives_as_it_was_typed(prompt: str, audio: list[str]) -> None:
    words = [f"--prompt={prompt}", *(f"--audio={text}" for text in audio)]
    if "???" in (prompt, *audio):
        return
    request = compose(read(*words).overrides).request
    assert request.prompt == prompt
    assert request.audio == audio


def test_the_mark_of_a_missing_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"request\.prompt: .*missing"):
        override("request.prompt", "???")
    with pytest.raises(ConfigError):
        override_list("request.audio", ["a", "???"])


def test_flags_and_overrides_mix_in_any_order() -> None:
    words = read("sampler=turbo", "--seed", "7", "request.frames=5", "--image", "a b.png", "-m", "quant=none")
    assert words.multirun
    assert words.overrides[1:] == [
        "request.image='a b.png'",
        "request.seed='7'",
        "sampler=turbo",
        "request.frames=5",
        "quant=none",
    ]


def test_numbers_from_flags_are_numbers_in_the_config() -> None:
    request = compose(read("--seed", "9", "--frames", "12", "--fps", "12.5").overrides).request
    assert (request.seed, request.frames, request.fps) == (9, 12, 12.5)


def test_output_names_folder_and_file() -> None:
    config = compose(read("--output", "films/a, b.mp4").overrides)
    assert config.request.filename == "a, b.mp4"
    assert str(config.sink.folder) == "films"  # type: ignore[attr-defined]


def test_output_without_a_folder_is_the_current_one() -> None:
    assert "sink.folder='.'" in read("--output", "a.mp4").overrides


def test_output_for_another_sink_is_a_name_alone() -> None:
    assert read("--output", "a.mp4", "sink=base64").overrides[1:] == ["request.filename='a.mp4'", "sink=base64"]
    with pytest.raises(ConfigError, match="only the disk sink has folders"):
        read("--output", "b/a.mp4", "sink=base64")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--promt", "x"], "did you mean --prompt"),
        (["--frame=3"], "did you mean --frames"),
        (["--image"], "--image"),
        (["--image", "--audio", "b.wav"], "--image needs a value"),
        (["picture.png"], "there is no file 'picture.png'"),
        (["-m", "--seed", "1,2"], "request.seed=1,2"),
        (["--output", "folder/"], "names no file"),
        (["--json=yes"], "--json"),
    ],
)
def test_words_that_cannot_be_understood_are_named(words: list[str], hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        read(*words)


def test_an_entrypoints_own_fields_are_flags() -> None:
    config = compose(read("--dry-run", "--preview", "a=b.png", "--quiet", "--json").overrides).entrypoint
    assert (config.dry_run, config.preview, config.quiet, config.json) == (True, "a=b.png", True, True)  # type: ignore[attr-defined]
