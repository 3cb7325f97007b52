"""The plain commands, what a stranger reads first, and an interrupt in the middle of the work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from engine import Progress, Request, hookimpl
from engine.cli.catalog import Choice, choices, print_catalog, resolutions
from engine.cli.help import COMMANDS
from engine.cli.main import main
from engine.cli.parser import REQUEST
from engine.plugin.manager import Registry, installed

EXAMPLES = Path(__file__).parents[2] / "engine" / "examples"


def test_help_names_every_command_flag_and_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for word in ("generate", "plan", "plugins", "show", "again", "bench", "--image", "--audio-type", "--json", "-m"):
        assert word in text
    for choice in choices():
        assert choice.group in text
        assert choice.name in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("command", ["generate", "plan", "plugins", "show", "again", "bench"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [command, "transformer", "--help"] if command == "bench" else [command, "--help"]
    assert main(words) == 0
    assert f"usage: multitalk {command}" in capsys.readouterr().out


def test_the_manual_names_every_flag_and_command() -> None:
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text("utf-8")
    own = [field.name for field in fields(installed().entrypoints.config("generate")) if field.name != "request"]
    flags = [flag.name for flag in REQUEST] + ["--" + name.replace("_", "-") for name in own if name != "name"]
    for word in ("--output", "--multirun", *flags, *COMMANDS):
        assert f"`{word}" in text


def test_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    name, version = capsys.readouterr().out.split()
    assert name == "multitalk-engine"
    assert version[0].isdigit()


def test_plugins_lists_components_and_presets_with_their_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_catalog(as_json=True) == 0
    answer = json.loads(capsys.readouterr().out)
    found = {(choice["group"], choice["name"]): choice for choice in answer["choices"]}
    assert found["sampler", "euler"]["kind"] == "component"
    assert found["sampler", "turbo"]["kind"] == "preset"
    assert found["cache", "teacache"]["about"].startswith("TeaCache")
    assert found["recipe", "long"]["about"].startswith("Long videos")
    assert {choice["package"] for choice in answer["choices"]} == {"multitalk-engine"}
    assert answer["resolutions"]["tiny"] == ["small", "large"]
    assert answer["broken"] == installed().broken


def test_every_choice_says_what_it_is() -> None:
    assert not [choice for choice in choices() if not choice.about]


def test_plugins_reads_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "sampler" in lines
    assert any(line.split()[:3] == ["turbo", "preset", "multitalk-engine"] for line in lines)
    assert "  small, large (model=tiny)" in lines


def test_every_registered_component_and_model_is_listed() -> None:
    listed = {(choice.group, choice.name) for choice in choices()}
    for register in installed().registers:
        assert {(register.group, name) for name in register.names()} <= listed
    assert set(resolutions()) == {name for group, name in listed if group == "model"}


def test_presets_of_another_package_are_listed_as_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme_presets" / "sampler").mkdir(parents=True)
    (tmp_path / "acme_presets" / "__init__.py").touch()
    preset = tmp_path / "acme_presets" / "sampler" / "brisk.yaml"
    preset.write_text("# @package _group_\n# Two steps, for the impatient.\ndefaults: [euler]\n")
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("acme_presets\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry()
    registry.presets("acme_presets")
    brisk = next(choice for choice in choices(registry) if choice.name == "brisk")
    assert brisk == Choice("sampler", "brisk", "preset", "acme", "Two steps, for the impatient.")


def test_a_broken_plugin_is_listed_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(installed().broken, "acme-sampler", "ImportError: no acme")
    assert main(["plugins"]) == 0
    assert "broken: acme-sampler: ImportError: no acme" in capsys.readouterr().out


def test_plan_is_generate_without_making_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--image", str(EXAMPLES / "two.png"), "--audio", str(EXAMPLES / "left.flac"), "--audio", "silence"]
    assert main(["plan", *words, "--prompt", "x", "--preview", "who.png"]) == 0
    assert "2: in" in capsys.readouterr().out
    assert main(["generate", "--dry-run", "--json", *words, "--prompt", "x"]) == 0
    assert json.loads(capsys.readouterr().out)["seats"][1]["silent"] is True
    assert [path.name for path in tmp_path.iterdir()] == ["who.png"]


def test_an_entrypoint_may_be_named_by_an_override(capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"request.image={EXAMPLES / 'one.png'}", f"request.audio=[{EXAMPLES / 'one.flac'}]", "request.prompt=x"]
    assert main([*words, "entrypoint=generate", "entrypoint.dry_run=true", "entrypoint.json=true"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "tiny"


def test_a_reader_that_stops_early_is_no_error() -> None:
    code = "import sys; from engine.cli.main import main; sys.exit(main(['plugins']))"
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writer)
    assert (done.stderr, done.returncode) == (b"", 141)


class Interrupter:
    """A plugin that presses Ctrl-C after the first step."""

    @hookimpl
    def step_finished(self, request: Request, progress: Progress) -> None:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def interrupter() -> Iterator[None]:
    plugin = Interrupter()
    installed().plugins.register(plugin)
    yield
    installed().plugins.unregister(plugin)


@pytest.mark.parametrize("sweep", [[], ["-m", "request.seed=1,2"]])
def test_an_interrupt_ends_the_work_in_one_line_and_leaves_nothing(
    sweep: list[str],
    tmp_path: Path,
    interrupter: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path)
    words = ["--image", str(EXAMPLES / "one.png"), "--audio", str(EXAMPLES / "one.flac"), "--prompt", "x"]
    status = main(["generate", *words, "--frames", "5", "--quiet", "--output", "talk.mp4", "sampler.steps=3", *sweep])
    told = capsys.readouterr()
    assert status == 130
    assert told.out == ""
    ahead, last = [line for line in told.err.splitlines() if "job 0" not in line], "multitalk: cancelled during denoise"
    assert ahead.pop() == last
    # What is known before the work is said before it.
    assert all(line.startswith("multitalk: warning: ") for line in ahead)
    # A sweep's run says of itself that it was cancelled.
    records = {"0", "config.yaml", "metrics.json"} if sweep else set[str]()
    assert {path.name for path in tmp_path.rglob("*")} == {"tmp", *records}
