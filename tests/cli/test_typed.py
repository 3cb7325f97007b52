"""The command line as people type it: files without flags, short flags, foreign names, widths, colours and logs."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.cli.main import main
from engine.serving.worker.logs import LogContext, install
from engine.text.terminal import cells, coloured, columns, hanging, table

EXAMPLES = Path(__file__).parents[2] / "engine" / "examples"
ONE, VOICE, TWO = (str(EXAMPLES / name) for name in ("one.png", "one.flac", "two.png"))


@pytest.fixture(autouse=True)
def same_log() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    for name in ("engine", "plugins", "__main__"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1
    return text


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert main([*words, "--dry-run", "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_without_arguments_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "usage: multitalk COMMAND" in capsys.readouterr().out
    assert main(["help", "show"]) == 0
    assert "usage: multitalk show" in capsys.readouterr().out


def test_files_are_told_apart_by_what_they_are_and_flags_may_be_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Their names say nothing.
    picture, voice = tmp_path / "a=b", tmp_path / "voice"
    shutil.copy(TWO, picture)
    shutil.copy(VOICE, voice)
    plain = planned(capsys, "generate", "--image", TWO, "--audio", VOICE, "--audio", "silence", "--prompt", "x")
    typed = planned(capsys, "generate", str(voice), str(picture), "silence", "-p", "x", "-qv")
    assert typed["frames"] == plain["frames"]
    assert [seat["box"] for seat in typed["seats"]] == [seat["box"] for seat in plain["seats"]]  # type: ignore[attr-defined]
    short = planned(capsys, "-i", TWO, "-a", VOICE, "-a", f"{VOICE}", "-p", "-5", "-s7", "-f", "9")
    assert (short["seed"], short["frames"]) == (7, 9)
    assert planned(capsys, ONE, VOICE, "-p", "x")["seats"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([ONE, TWO, VOICE], "are both pictures"),
        ([ONE, "--audio", VOICE], "stands without a flag, and --audio is given"),
        ([str(EXAMPLES / "README.md")], "it cannot be told whether"),
        (["https://films.example/take?key=1"], "it cannot be told whether 'https://films.example/take' is"),
        ([str(EXAMPLES)], "is a folder"),
        (["a woman speaks"], '--prompt "..."'),
        (["nowhere.png"], "there is no file 'nowhere.png'; check the name"),
        (["nowhere/one.png"], "'nowhere' is not a folder"),
        (["nowhere"], "there is no such file"),
    ],
)
def test_what_cannot_be_told_is_said(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, "generate", *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("generate --steps 4", "sampler.steps=4?"),
        ("generate --num-inference-steps=8", "sampler.steps=8?"),
        ("generate --model x", "model=x?"),
        ("generate --sampler turbo", "sampler=turbo?"),
        ("--sampler turbo", "sampler=turbo?"),
        ("generate --resolution 480p", "resolution=480p?"),
        ("generate --guidance-scale 5", "guidance.text_scale=5?"),
        ("generate --cfg 3", "guidance.text_scale=3?"),
        ("generate --sample_audio_guide_scale 4", "guidance.audio_scale=4?"),
        ("generate --width 640", "resolution=NAME?"),
        ("generate --scheduler unipc", "sampler=unipc?"),
        ("generate --num_frames 81", "--frames"),
        ("generate --ckpt_dir w", "model.folder=FOLDER?"),
        ("generate --negative bad", "--negative-prompt"),
        ("generate --crf 3", "video.crf=3?"),
        ("generate --promt x", "--prompt?"),
        ("--vresion", "--version?"),
        ("generat", "generate?"),
        ("sampler", "sampler=VALUE?"),
        ("generate sampler=eulr", "euler?"),
        ("generate cache=teacache cache.thresholt=1", "cache.threshold?"),
        ("generate cache.thresholt=1", "cache.threshold (with cache="),
        ("generate steps=4", "sampler.steps"),
    ],
)
def test_a_name_of_another_tool_or_a_slip_is_answered_with_what_works(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"did you mean {said}" in refused(capsys, *words.split())


@pytest.mark.parametrize("width", [80, 120])
def test_every_output_fits_the_terminal(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    commands = "plan plugins config show retake again compare models doctor rehearse bench completion generate batch"
    lines = [[name, "--help"] for name in [*commands.split(), "endpoint", "runpod"]]
    lines += [["--help"], ["plugins", "new", "--help"], ["models", "list"], ["models", "pull", "--help"]]
    lines += [["plugins"], ["config"], ["config", "sampler.steps"], ["plan", ONE, VOICE, "-p", "x"], ["--steps"]]
    for words in lines:
        main(words)
        shown = capsys.readouterr()
        assert shown.out or shown.err
        for line in (shown.out + shown.err).splitlines():
            # A path, an address or a list of numbers stays whole.
            longest = max(map(cells, re.split(r"\s+", line)), default=0)
            assert cells(line) <= width or longest > width - 40 or line.lstrip().startswith(("/", "magcache: [")), line


def test_an_empty_file_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "voice.flac").touch()
    # In a process of its own: PyAV prints the traceback of what it drops past Python's stderr.
    words = [sys.executable, "-m", "engine", "generate", ONE, str(tmp_path / "voice.flac"), "-p", "x"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"multitalk: error: command line: '{tmp_path}/voice.flac' is empty (0 bytes); "
        "check that it was written completely\n"
    )


def test_an_address_of_the_internet_is_refused_with_what_allows_it(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "plan", "https://films.example/one.png", VOICE, "-p", "x")
    assert "access.schemes=[path,data,https]" in said


def test_models_knows_its_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown flag --repairs; did you mean --repair?" in refused(capsys, "models", "pull", "--repairs")
    assert "unexpected 'all'" in refused(capsys, "models", "list", "all")
    assert "multitalk models pull" in refused(capsys, "models", "verify", "--model-path", str(tmp_path))


def test_a_wide_terminal_is_used_and_a_pipe_is_not_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "word " * 60
    assert len(hanging("name  ", text, None)) == 1
    assert len(hanging("name  ", text, 160)) < len(hanging("name  ", text, 80))
    # Padding between columns is for lines that fit; below a column there is no empty line.
    assert hanging("", f"one{' ' * 20}two", 20) == ["one  two"]
    assert hanging(" " * 10, "/a/path/as/long/as/this/one", 30)[0].startswith("    /a/path")
    assert all(cells(line) <= 40 for line in table([("数据", "数据 " * 30)], 40))
    assert columns(io.StringIO()) is None
    monkeypatch.setenv("COLUMNS", "132")
    assert columns(io.StringIO()) == 132


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variables", "on_terminal", "in_pipe"),
    [
        ({}, True, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False, False),
        ({"FORCE_COLOR": "1"}, True, True),
        ({"CLICOLOR_FORCE": "1"}, True, True),
        ({"CLICOLOR_FORCE": "0"}, True, False),
        ({"TERM": "dumb"}, False, False),
    ],
)
def test_colours_follow_the_usual_variables(
    variables: dict[str, str], on_terminal: bool, in_pipe: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (coloured(Terminal()), coloured(io.StringIO())) == (on_terminal, in_pipe)


def test_colours_change_no_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def shown() -> str:
        assert main(["--help"]) == 0
        assert main(["--steps"]) == 2
        return "".join(capsys.readouterr())

    plain = shown()
    monkeypatch.setenv("FORCE_COLOR", "1")
    styled = shown()
    assert "\x1b[1;31m" in styled
    assert re.sub(r"\x1b\[[\d;]*m", "", styled) == plain


@pytest.mark.parametrize(
    ("form", "terminal", "text"),
    [("auto", True, True), ("auto", False, False), ("json", True, False), ("text", False, True)],
)
def test_logs_are_text_for_people_and_json_for_machines(
    form: str, terminal: bool, text: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, context = (Terminal() if terminal else io.StringIO()), LogContext()
    context.begin("job-1", ("hunter2secret",))
    monkeypatch.setenv("MULTITALK_LOG_FORMAT", form)
    monkeypatch.setenv("NO_COLOR", "1")
    handler = install("INFO", context, stream)
    logging.getLogger("engine.test").warning("key %s\x1b[2J", "hunter2secret")
    logging.captureWarnings(False)
    logging.getLogger().removeHandler(handler)
    line = stream.getvalue()
    assert "hunter2secret" not in line
    assert "\x1b" not in line
    if text:
        assert re.fullmatch(r"\d\d:\d\d:\d\d WARNING \[job-1\] key .*\n", line)
    else:
        assert json.loads(line)["level"] == "WARNING"


def test_wrong_levels_and_formats_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "DEBUG, INFO" in refused(capsys, "plan", "--log-level", "loud")
    assert "auto, text, json" in refused(capsys, "plan", "--log-format", "xml")


def test_open_is_refused_at_once_without_a_display_and_opens_the_video_with_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    words = ["generate", ONE, VOICE, "-p", "x", "-f", "5", "sampler=turbo", "sampler.steps=1", "-q", "--open"]
    words += ["-v", "--log-format", "text", "-o", str(tmp_path / "talk.mp4")]
    assert "--open: this machine has no display" in refused(capsys, *words)
    assert not list(tmp_path.iterdir())
    player = tmp_path / "bin" / "xdg-open"
    player.parent.mkdir()
    player.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened.part && mv {tmp_path}/opened.part {tmp_path}/opened\n')
    player.chmod(0o755)
    monkeypatch.setenv("PATH", f"{player.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("DISPLAY", ":0")
    assert main(words) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{tmp_path}/talk.mp4\n"
    assert re.search(r"INFO +denoise: \d", shown.err)
    for _ in range(100):
        if (tmp_path / "opened").exists():
            break
        time.sleep(0.05)
    assert (tmp_path / "opened").read_text() == f"{tmp_path}/talk.mp4\n"
