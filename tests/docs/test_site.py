"""The site: every page is in its navigation, nothing comes from elsewhere, and it builds without a warning."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.cli.commands_page import document
from engine.cli.help import COMMANDS
from engine.cli.main import main
from engine.plugin.manager import installed
from scripts.site_hooks import outside, titles, within

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


#: Takes MkDocs' file, whose tags name Python functions, without calling them.
Loader: Any = type("Loader", (yaml.SafeLoader,), {})
Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
SITE: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)


def pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in pages(part)]


def test_every_page_is_in_the_navigation_once() -> None:
    assert sorted(pages(SITE["nav"])) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def test_the_home_page_leads_to_pages_that_exist_and_so_does_the_readme() -> None:
    for page, least in ((DOCS / "index.md", 20), (ROOT / "README.md", 15)):
        links = set(re.findall(r"\]\(([\w./-]+\.md)", page.read_text("utf-8")))
        assert len(links) >= least
        assert all((page.parent / link).is_file() for link in links)


def test_every_picture_is_shown_and_small() -> None:
    texts = "".join(path.read_text("utf-8") for path in [ROOT / "README.md", *DOCS.rglob("*.md")])
    for picture in (DOCS / "images").iterdir():
        assert f"images/{picture.name}" in texts, picture.name
        assert picture.stat().st_size < 2**20, picture.name


def test_pictures_ask_nothing_of_other_hosts() -> None:
    for picture in (DOCS / "images").glob("*.svg"):
        loads = re.findall(r"""href=["']?[^#]|src=|@import|url\(["']?[^#]""", picture.read_text("utf-8"))
        assert not loads, picture.name


def test_the_readme_fits_and_moves() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 150
    moving = ROOT / "docs" / "images" / "talk.webp"
    assert "docs/images/talk.webp" in text
    assert moving.stat().st_size < 2 * 2**20


def test_the_readme_and_the_site_say_alike_what_has_run_where() -> None:
    tables = [
        (ROOT / page).read_text("utf-8").partition("## What has run where\n\n")[2].partition("\n\n")[0]
        for page in ("README.md", "docs/measured.md")
    ]
    assert tables[0].startswith("| ")
    assert tables[0] == tables[1]


def test_the_page_of_commands_is_what_help_prints() -> None:
    told = "run: python -m engine.cli.commands_page > docs/commands.md"
    assert document() == (DOCS / "commands.md").read_text("utf-8"), told


def test_the_page_of_commands_has_each_command() -> None:
    headings = re.findall(r"^## (\w+)$", (DOCS / "commands.md").read_text("utf-8"), re.MULTILINE)
    assert (
        {*COMMANDS, "generate", "batch", "runpod", "endpoint"}
        <= set(headings)
        <= {*COMMANDS, *installed().entrypoints.names()}
    )


@pytest.mark.parametrize(
    ("page", "target", "leaves"),
    [
        ("cli.md", "../README.md", True),
        ("cli.md", "plan.md#recipes", False),
        ("decisions/020.md", "../resume.md", False),
        ("decisions/020.md", "../../engine/errors.py", True),
        ("cli.md", "https://example.org/../x", False),
        ("cli.md", "#flags", False),
    ],
)
def test_links_out_of_the_folder_become_text_on_the_site(page: str, target: str, leaves: bool) -> None:
    assert outside(page, target) is leaves
    markdown = f"See [the page]({target}) and ![a picture]({target})."
    kept = "the page" if leaves else f"[the page]({target})"
    assert within(markdown, page) == f"See {kept} and ![a picture]({target})."


def test_links_named_by_a_file_get_the_title_of_the_page_on_the_site() -> None:
    title_of = titles(SITE["nav"])
    assert title_of["plan.md"] == "Plans, time and cost"
    text = "See [plan.md](plan.md#recipes), [docs/plan.md](plan.md) and [recipes](plan.md)."
    title = "“Plans, time and cost”"
    expected = f"See [{title}](plan.md#recipes), [{title}](plan.md) and [recipes](plan.md)."
    assert within(text, "cli.md", title_of) == expected
    assert within("[cli.md](../cli.md)", "decisions/001-time.md", title_of) == "[“Command line”](../cli.md)"


def test_marks_of_tests_do_not_end_a_table_on_the_site() -> None:
    assert within("| a |\n|---|\n<!-- stays -->\n| b |\n<!-- /stays -->\n", "weights.md") == "| a |\n|---|\n| b |\n"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs the extra docs")
def test_the_site_builds_without_a_warning_and_asks_nothing_of_other_hosts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "search" / "search_index.json").is_file()
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|iframe|source)[^>]+src="([^"]+)"', page.read_text("utf-8"))
        loaded += re.findall(r'<link[^>]+rel="(?:stylesheet|icon|preload)"[^>]+href="([^"]+)"', page.read_text("utf-8"))
        loaded += re.findall(r'<link[^>]+href="([^"]+)"[^>]+rel="(?:stylesheet|icon|preload)"', page.read_text("utf-8"))
        assert not [address for address in loaded if "//" in address], page.name


def _planned(*words: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        main(["plan", "--prompt", "x", "--audio", str(ROOT / "examples" / "one.flac"), *words])
    return printed.getvalue()


@pytest.mark.slow
def test_the_table_of_models_says_what_plans_say() -> None:
    page = (DOCS / "which-model.md").read_text("utf-8").partition("| | `tiny` |")[2].partition("\n\n")[0]
    rows = {row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:-1]] for row in page.splitlines()[2:]}
    picture = ("--image", str(ROOT / "examples" / "one.png"))
    for place, model in enumerate(("tiny", "multitalk", "infinitetalk", "flashtalk", "longcat")):
        for row, sampler in (("forwards a window, `standard`", "standard"), ("with `sampler=turbo`", "turbo")):
            told = _planned(*picture, f"model={model}", f"sampler={sampler}", "request.frames=29")
            assert f": {rows[row][place]} forwards in all" in told, (model, sampler)
        resolutions = ("small", "large") if model == "tiny" else ("480p", "720p")
        possible = [not _planned(*picture, f"model={model}", f"resolution={one}").count("error") for one in resolutions]
        assert len(rows["resolutions"][place].split(",")) == sum(possible)
        dubs = "error" not in _planned("--video", str(ROOT / "examples" / "scene.mp4"), f"model={model}")
        assert rows["dubbing (`--video`)"][place] == ("yes" if dubs else "no"), model
