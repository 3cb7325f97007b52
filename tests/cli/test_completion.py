"""Completion in real shells, from a list that is read in a tenth of a second and renewed by itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.cli import complete_words
from engine.cli.completion import _SCRIPTS, cache_file
from engine.cli.main import main

#: Seconds of processor time that one press of TAB may take.
MOST = 0.1


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with scripts for all shells, and with settings of its own."""
    folder = tmp_path_factory.mktemp("home")
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    patch.delenv("MULTITALK_CONFIG", raising=False)
    (folder / "config" / "multitalk" / "recipes").mkdir(parents=True)
    try:
        import contextlib
        import io

        for shell in _SCRIPTS:
            with contextlib.redirect_stdout(io.StringIO()) as text:
                assert main(["completion", shell]) == 0
            (folder / shell).write_text(text.getvalue())
        (folder / "list").write_text(str(cache_file()))
    finally:
        patch.undo()
    return folder


def lists(home: Path) -> object:
    return json.loads(Path((home / "list").read_text()).read_text())


def offered(home: Path, line: str) -> list[str]:
    words = complete_words.split(line)
    found, directive = complete_words.answer(lists(home), words[1:-1], words[-1])
    return [*([directive] if directive else []), *(word for word, _ in found)]


def environment(home: Path) -> dict[str, str]:
    own = {"XDG_CACHE_HOME": str(home / "cache"), "XDG_CONFIG_HOME": str(home / "config"), "HOME": str(home)}
    return {name: value for name, value in os.environ.items() if name != "MULTITALK_CONFIG"} | own


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("multitalk gen", ["generate"]),
        ("multitalk generate sampler=t", ["sampler=turbo"]),
        ("multitalk sampler=t", ["sampler=turbo"]),
        ("multitalk plan --fit ", ["crop", "pad"]),
        ("multitalk generate --preview ", ["@files"]),
        ("multitalk generate 'a b.png' --audio-type a", ["add"]),
        ("multitalk generate video.cr", ["@files", "video.crf="]),
        ("multitalk generate continuation.style=m", ["continuation.style=multitalk"]),
        ("multitalk generate --imag", ["--image", "--images", "--image-at"]),
        ("multitalk models pr", ["prune"]),
        ("multitalk models pull --rep", ["--repair"]),
        ("multitalk show ", ["@files"]),
        ("multitalk plugins new --kind so", ["source"]),
        ("multitalk completion z", ["zsh"]),
        ("multitalk plan --log-level W", ["WARNING"]),
    ],
)
def test_what_may_follow_is_offered(home: Path, line: str, words: list[str]) -> None:
    assert offered(home, line) == words


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_real_shell_completes_in_a_tenth_of_a_second(home: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    if shell == "bash":
        code = (
            f"source {home}/bash; COMP_LINE='multitalk generate sampler=t'; COMP_POINT=${{#COMP_LINE}}; "
            "COMP_WORDS=(multitalk generate sampler = t); COMP_CWORD=4; _multitalk; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
    elif shell == "zsh":
        # What would be shown is printed.
        code = (
            'compdef() {}; compadd() { eval "print -l -- \\${${@[-1]}[@]}"; }; _files() { print FILES; }; '
            f"source {home}/zsh; words=(multitalk generate sampler=t); CURRENT=3; PREFIX=sampler=t; _multitalk"
        )
    else:
        code = f"source {home}/fish; complete -C 'multitalk generate sampler=t'"
    done = subprocess.run([shell, "-c", code], capture_output=True, text=True, check=True, env=environment(home))
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [
        "turbo" if shell == "bash" else "sampler=turbo"
    ]


def test_a_press_of_tab_takes_a_tenth_of_a_second_and_imports_next_to_nothing(home: Path) -> None:
    command = re.search(r"(/\S+ -I -S \S+ \S+\.json)", (home / "bash").read_text())
    assert command is not None
    python, *words = command[1].split()
    assert python == sys.executable
    before = os.times()
    done = subprocess.run(
        [python, "-X", "importtime", *words, "fish", "multitalk generate sampler=t"],
        capture_output=True,
        text=True,
        check=True,
        env=environment(home),
    )
    after = os.times()
    assert done.stdout.startswith("sampler=turbo\t")
    assert after.children_user + after.children_system - before.children_user - before.children_system < MOST
    imported = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert "json" in imported
    assert not {"torch", "hydra", "engine", "argparse", "typing", "subprocess"} & imported


@pytest.mark.slow
def test_a_new_recipe_is_offered_after_the_list_has_renewed_itself(home: Path) -> None:
    (home / "config" / "multitalk" / "recipes" / "evening.yaml").write_text("sampler: turbo\n")
    command = re.search(r"(/\S+ -I -S \S+ \S+\.json)", (home / "bash").read_text())
    assert command is not None
    for _ in range(240):
        done = subprocess.run(
            [*command[1].split(), "fish", "multitalk generate recipe=ev"],
            capture_output=True,
            text=True,
            check=True,
            env=environment(home),
        )
        if done.stdout.startswith("recipe=evening\t"):
            break
        time.sleep(0.5)
    assert done.stdout.startswith("recipe=evening\t")
    assert complete_words.fresh({**lists(home), "environment": {}})  # type: ignore[dict-item]


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "bash, zsh, fish" in capsys.readouterr().err
