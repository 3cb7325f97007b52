"""Every block of README and the documents runs, or says why not.

Commands are planned, checked or parsed here, in one process; `nox -s blocks` runs them whole, in one folder for each
page (tests/support/doc_runs.py).
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import json
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from doc_blocks import LANGUAGES, ROOT, Block, blocks, commands, console, is_ours, words
from PIL import Image

from engine.assembly.compose import compose
from engine.cli.main import main
from engine.serving.jobs.job import parse_job

BLOCKS = blocks()
#: What pages call the reader's own files, which no example can stand for: a photograph and its voice.
OWN = ("anna.jpg", "anna.flac")


def of(*languages: str, marks: tuple[str, ...] = ("", "planned")) -> list[Any]:
    return [pytest.param(one, id=one.name) for one in BLOCKS if one.language in languages and one.mark in marks]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder as a reader has it: the examples, and a picture and a voice of their own."""
    where = tmp_path_factory.mktemp("reader")
    (where / "examples").symlink_to(ROOT / "engine" / "examples")
    Image.open(ROOT / "engine" / "examples" / "one.png").convert("RGB").save(where / OWN[0])
    shutil.copy(ROOT / "engine" / "examples" / "one.flac", where / OWN[1])
    with contextlib.chdir(where):
        yield where


def run(every: list[str]) -> tuple[int, str]:
    """Run a command line in this process; return its status and what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        status = main(every)
    return status, out.getvalue()


HELP: dict[tuple[str, ...], str] = {}


def help_of(every: list[str]) -> str:
    command = tuple(every[:2]) if every[0] in ("models", "bench") or every[:2] == ["plugins", "new"] else (every[0],)
    if command not in HELP:
        status, HELP[command] = run([*command, "--help"])
        assert status == 0, command
    return HELP[command]


def first_of(rest: list[str]) -> list[str]:
    """Return the words of a sweep's first run, which is composed as every other."""
    kept = [word for word in rest if word != "-m" and not word.startswith("hydra")]
    return [re.sub(r"^([\w./]+=[^,\[{]*),.*", r"\1", word) for word in kept if not word.startswith("experiment=")]


def check(every: list[str], *, planned: bool) -> None:
    """Plan, check or parse a command line of ours, whichever needs no video; if it is `planned`, compose its config."""
    name, rest = every[0], every[1:]
    if name.startswith("-") or "--help" in rest:
        assert run(every)[0] == 0
        return
    printed = help_of(every)
    for word in rest:
        if word.startswith("-"):
            flag = re.escape(word.partition("=")[0])
            assert re.search(rf"(?<![\w-]){flag}(?![\w-])", printed), f"{every[0]} has no {word}"
    if "-m" in rest:
        rest = first_of(rest)
    settings = [word for word in rest if re.match(r"[\w./@]+=", word)]
    if name == "generate" and planned:
        compose(settings)
    elif name in ("generate", "plan"):
        status, told = run(["plan", *rest])
        assert status == 0, told
    elif name == "batch":
        status, told = run(["batch", *rest, "--check"])
        assert status == 0, told
    elif name in ("config", "examples") or every[:2] == ["models", "list"]:
        status, told = run(every)
        assert status == 0, told
    elif name in ("doctor", "rehearse", "runpod"):
        compose([*(["entrypoint=runpod"] if name == "runpod" else []), *settings])


@pytest.mark.parametrize("block", [pytest.param(one, id=one.name) for one in BLOCKS])
def test_a_block_names_its_language_and_a_mark_names_what_exists(block: Block) -> None:
    assert block.language in LANGUAGES, "name the language of the fence; text for what is no command"
    if block.language in ("bash", "console") and block.mark != "not run":
        assert "…" not in block.text or block.language == "console", "write it as it can be typed"
    if block.mark == "run by":
        assert (ROOT / block.reason).is_file(), block.reason
    if block.mark == "file":
        assert block.text.strip() == (ROOT / block.reason).read_text("utf-8").strip()


@pytest.mark.parametrize("block", of("bash"))
def test_commands_can_be_typed(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in commands(block.text):
        variables, every = words(line.replace("$PWD", str(folder)))
        if not every:
            raise AssertionError(f"{line}: only sets variables; write them before the command")
        assert is_ours(every), f"{line}: not a command of ours; mark the block as <!-- not run: REASON -->"
        if every[0].startswith(".venv"):
            assert block.page.name in ("README.md", "start.md", "CONTRIBUTING.md")
        with monkeypatch.context() as environment:
            for name, value in variables.items():
                environment.setenv(name, value)
            check(every[1:], planned=block.mark == "planned")


@pytest.mark.parametrize("block", of("console"))
def test_a_command_prints_what_the_page_shows(block: Block, folder: Path) -> None:
    for line, expected in console(block.text):
        _, every = words(line)
        assert is_ours(every)
        told = run(every[1:])[1]
        at = 0
        for shown in expected:
            pattern = ".*?".join(re.escape(part.strip()) for part in re.split("…|\\.\\.\\.", shown))
            found = re.compile(pattern).search(told, at)
            assert found, f"{shown!r} is not printed; what is: {told}"
            at = found.end()


@pytest.mark.parametrize("block", of("python", marks=("", "planned", "not run", "run by")))
def test_python_parses_and_imports_what_exists(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("engine", "plugins"):
            assert importlib.util.find_spec(node.module), node.module
            for name in node.names:
                module = __import__(node.module, fromlist=[name.name])
                assert hasattr(module, name.name) or importlib.util.find_spec(f"{node.module}.{name.name}")


@pytest.mark.parametrize("block", of("json", "yaml", "toml", marks=("", "planned", "not run")))
def test_data_parses_and_jobs_are_accepted(block: Block, folder: Path) -> None:
    if block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "yaml":
        assert yaml.safe_load(block.text)
    else:
        try:
            values = [json.loads(block.text)]
        except json.JSONDecodeError:
            values = [json.loads(line) for line in block.text.splitlines()]
        for value in values:
            if "input" in value:
                parse_job(value)
