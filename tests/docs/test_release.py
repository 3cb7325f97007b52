"""Version, changelog, citation and documents name one release, and a tag that they do not is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from scripts.release import notes, releases

ROOT = Path(__file__).parents[2]
HERE = "https://github.com/owner/multitalk-engine"


def stated_version() -> str:
    parser = ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", "utf-8")
    return parser["metadata"]["version"]


VERSION = stated_version()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of the files that state the version, in a repository that may release."""
    for name in ("setup.cfg", "CHANGELOG.md", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    edit(tmp_path / "setup.cfg", "project_urls =", f"project_urls =\n    Source = {HERE}")
    changelog = tmp_path / "CHANGELOG.md"
    left = releases(changelog.read_text("utf-8"))[0][2]
    if left:
        edit(changelog, left, "")
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")


def test_the_installed_package_has_the_stated_version() -> None:
    assert version("multitalk-engine") == VERSION, "run: make env"


def test_the_newest_release_of_the_changelog_is_the_package_and_each_has_a_date() -> None:
    unreleased, *released = releases((ROOT / "CHANGELOG.md").read_text("utf-8"))
    assert unreleased[:2] == ("Unreleased", "")
    assert released[0][0] == VERSION
    numbers = [tuple(int(part) for part in number.split(".")) for number, _, _ in released]
    assert numbers == sorted(set(numbers), reverse=True)
    dates = [date for _, date, _ in released]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for date in dates)
    assert dates == sorted(dates, reverse=True)
    assert all(text for _, _, text in released)


def test_the_citation_is_of_the_newest_release() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    _, (number, date, _), *_ = releases((ROOT / "CHANGELOG.md").read_text("utf-8"))
    assert (citation["version"], str(citation["date-released"])) == (number, date)
    # What the format, version 1.2.0, requires.
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert all({"type", "title", "authors"} <= set(reference) for reference in citation["references"])


def test_examples_in_documents_and_schema_show_the_version() -> None:
    schema = json.dumps(json.loads((ROOT / "engine" / "serving" / "jobs" / "schema.json").read_text("utf-8")))
    pages = {path.name: path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md")} | {"schema.json": schema}
    shown = {
        (name, number)
        for name, text in pages.items()
        for number in re.findall(r'(?:multitalk-engine |"engine_version": ")(\d[\w.]*)', text)
    }
    assert {"api.md", "doctor.md", "schema.json"} <= {name for name, _ in shown}
    assert {number for _, number in shown} == {VERSION}


def test_a_release_has_its_part_of_the_changelog_as_notes(checkout: Path) -> None:
    text = notes(f"v{VERSION}", HERE, checkout)
    assert text.startswith("### ")
    assert "\n## " not in text
    assert text == releases((ROOT / "CHANGELOG.md").read_text("utf-8"))[1][2]


@pytest.mark.parametrize(
    ("name", "old", "new", "refused"),
    [
        ("setup.cfg", f"version = {VERSION}", "version = 9.9.9", "tag: "),
        ("CHANGELOG.md", f"## {VERSION} - ", "## 9.9.9 - ", "CHANGELOG.md: the newest release is 9.9.9"),
        ("CHANGELOG.md", "## Unreleased\n", "## Unreleased\n\n- A change.\n", "CHANGELOG.md: entries stand under"),
        ("CITATION.cff", f"\nversion: {VERSION}", "\nversion: 9.9.9", "CITATION.cff: version"),
        ("CITATION.cff", "\ndate-released: 2", "\ndate-released: 1", "CITATION.cff: date-released"),
        ("setup.cfg", HERE, "https://github.com/somebody/else", "setup.cfg: project_urls"),
    ],
)
def test_a_tag_is_refused_where_a_file_disagrees(name: str, old: str, new: str, refused: str, checkout: Path) -> None:
    edit(checkout / name, old, new)
    with pytest.raises(ValueError, match=f"^{re.escape(refused)}"):
        notes(f"v{VERSION}", HERE, checkout)


def test_a_refused_tag_is_one_line_and_status_2() -> None:
    command = (sys.executable, "-m", "scripts.release", "v0.0.0")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"release: tag: 'v0.0.0' is not v{VERSION}, the version in setup.cfg\n"
