"""`multitalk examples`: the files that the documents use, in a folder of the user's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.cli.main import main

ROOT = Path(__file__).parents[2]
PACKAGED = ROOT / "engine" / "examples"
FILES = sorted(path.relative_to(PACKAGED) for path in PACKAGED.rglob("*") if path.is_file() and path.suffix != ".md")


def test_the_examples_are_copied_with_their_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["examples", str(tmp_path / "mine")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/mine\n"
    copied = sorted(path.relative_to(tmp_path / "mine") for path in (tmp_path / "mine").rglob("*") if path.is_file())
    assert copied == FILES
    for path in FILES:
        assert (tmp_path / "mine" / path).read_bytes() == (PACKAGED / path).read_bytes()


def test_without_a_folder_they_are_in_examples_as_the_documents_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["examples"]) == 0
    assert (tmp_path / "examples" / "one.png").is_file()


def test_a_second_copy_changes_nothing_and_a_missing_file_comes_back(tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert main(["examples", folder]) == 0
    (tmp_path / "one.png").unlink()
    before = (tmp_path / "two.png").stat().st_mtime_ns
    assert main(["examples", folder]) == 0
    assert (tmp_path / "one.png").is_file()
    assert (tmp_path / "two.png").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["two.png", "shots.jsonl"])
def test_a_file_of_the_users_is_never_replaced(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(b"mine")
    assert main(["examples", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert f"{name} exists with other content" in told
    assert "give another folder" in told
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_that_is_a_file_is_an_error_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    assert main(["examples", str(tmp_path / "file" / "below")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_every_example_is_in_the_table_and_every_name_in_the_documents_exists() -> None:
    table = set(re.findall(r"`([\w./-]+)`", (PACKAGED / "README.md").read_text("utf-8")))
    assert {str(path) for path in FILES} <= table
    assert (ROOT / "examples").resolve() == PACKAGED
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for name in re.findall(r"(?<![\w/.])examples/([\w./-]+\.\w+)", page.read_text("utf-8")):
            assert (PACKAGED / name).is_file(), f"{page.name}: examples/{name}"


def test_no_example_is_large() -> None:
    assert sum((PACKAGED / path).stat().st_size for path in FILES) < 2**20
