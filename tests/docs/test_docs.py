"""What the documents say is so: hooks, examples, extras and links."""

from __future__ import annotations

import ast
import re
from configparser import ConfigParser
from pathlib import Path

import pytest

from engine.serving.jobs.schema import job_schema

ROOT = Path(__file__).parents[2]
PLUGINS = (ROOT / "docs" / "plugins.md").read_text("utf-8")
EXAMPLE = ROOT / "tests" / "support" / "example_plugin" / "acme_multitalk"
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "engine/examples/*.md")
    for path in ROOT.glob(pattern)
    if not path.name.startswith(".")
)


def setup() -> ConfigParser:
    parser = ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", "utf-8")
    return parser


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PLUGINS, re.MULTILINE | re.DOTALL)


def test_neighbours_that_the_documents_point_to_are_there() -> None:
    for path in re.findall(r"`((?:engine|plugins|tests|docs|scripts|conf)/[\w./-]+)`", PLUGINS):
        assert (ROOT / path).exists(), path


def test_the_example_in_the_documents_is_the_one_that_is_tested() -> None:
    assert blocks("python")[0] == (EXAMPLE / "cosine.py").read_text("utf-8")
    assert blocks("yaml")[0] == (EXAMPLE / "conf" / "sampler" / "cosine-draft.yaml").read_text("utf-8")


def test_the_example_takes_twenty_lines() -> None:
    lines = [line for line in blocks("python")[0].splitlines() if line.strip() and '"""' not in line]
    assert len(lines) <= 20


def test_extras_that_are_named_exist() -> None:
    extras = set(setup()["options.extras_require"])
    for path in [*DOCUMENTS, *(ROOT / "plugins").rglob("*.py"), *(ROOT / "engine").rglob("*.py")]:
        for named in re.findall(r"(?:multitalk-engine|'\.)\[([\w,]+)\]", path.read_text("utf-8")):
            assert set(named.split(",")) <= extras, path
    for path in [*(ROOT / "plugins").rglob("*.py"), *(ROOT / "engine").rglob("*.py")]:
        for call in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "MissingExtra":
                extra = call.args[2]
                assert isinstance(extra, ast.Constant), path
                assert extra.value in extras, path


def test_each_code_of_an_error_is_documented() -> None:
    used = {"internal_error"}  # of what is no error of the engine's
    for path in [*(ROOT / "plugins").rglob("*.py"), *(ROOT / "engine").rglob("*.py")]:
        if path.is_relative_to(ROOT / "engine" / "client") or path == ROOT / "engine/serving/studio/backend.py":
            continue  # whose own codes stand in docs/client.md
        for word in ast.walk(ast.parse(path.read_text("utf-8"))):
            match word:
                case ast.keyword(arg="code", value=ast.Constant(value=str(code))):
                    used.add(code)
                case ast.Call(func=ast.Name(id="Trouble"), args=[ast.Constant(value=str(code)), *_]):
                    used.add(code)
                case ast.Assign(targets=[ast.Name(id="CODE")], value=ast.Constant(value=str(code))):
                    used.add(code)
    assert documented_codes() == sorted(used)


def documented_codes() -> list[str]:
    return re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "errors.md").read_text("utf-8"), re.MULTILINE)


def test_each_code_is_one_that_a_job_may_answer() -> None:
    codes = job_schema()["$defs"]["error"]["properties"]["error_code"]["anyOf"]
    assert sorted(code["const"] for code in codes if "const" in code) == documented_codes()


def test_each_code_has_a_remedy() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text("utf-8").partition("## When something goes wrong")[2]
    table = page.partition("| code |")[2].partition("\n\n")[0]
    firsts = re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE)
    assert sorted(code for first in firsts for code in re.findall(r"`(\w+)`", first)) == documented_codes()


def test_tested_versions_meet_the_requirements_of_the_package() -> None:
    from packaging.requirements import Requirement

    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").split() if "==" in line)
    wanted = setup()["options"]["install_requires"].split("\n") + setup()["options.extras_require"]["dev"].split("\n")
    for requirement in (Requirement(line) for line in wanted if line):
        if requirement.name != "wheel":
            assert requirement.specifier.contains(pinned[requirement.name]), requirement


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text("utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (path.parent / target).exists(), target


def test_changelog_is_open_for_the_next_change() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(r"^## Unreleased$", text, re.MULTILINE)
