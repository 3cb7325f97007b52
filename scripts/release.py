"""Check that a tag may be released, and print the release's notes.

    python -m scripts.release TAG [REPOSITORY]

TAG is `v` and the version of setup.cfg. The changelog's newest release and CITATION.cff must state that version, with
the same date, and nothing may be left under Unreleased. REPOSITORY is the address of the repository that releases, such
as https://github.com/OWNER/NAME: setup.cfg must name it as `Source` in project_urls, so that whoever has the package
finds the source. Exit status 2 and one line say what is wrong. Needs only Python.
"""

from __future__ import annotations

import re
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def releases(changelog: str) -> list[tuple[str, str, str]]:
    """Return version, date and notes of each section of `changelog`, in its order; `Unreleased` has no date."""
    parts = re.split(r"^## (.+)$", changelog, flags=re.MULTILINE)[1:]
    titles = [title.partition(" - ") for title in parts[::2]]
    return [(version, date, text.strip()) for (version, _, date), text in zip(titles, parts[1::2], strict=True)]


def notes(tag: str, repository: str = "", root: Path = ROOT) -> str:
    """Return the notes of the release of `tag`. Raises ValueError if something does not agree with it."""
    setup = ConfigParser(interpolation=None)
    setup.read(root / "setup.cfg", "utf-8")
    metadata = setup["metadata"]
    if tag != f"v{metadata['version']}":
        raise ValueError(f"tag: {tag!r} is not v{metadata['version']}, the version in setup.cfg")
    unreleased, newest, *_ = releases((root / "CHANGELOG.md").read_text("utf-8"))
    if unreleased[2]:
        raise ValueError("CHANGELOG.md: entries stand under Unreleased; move them into the release")
    version, date, text = newest
    if version != metadata["version"]:
        raise ValueError(f"CHANGELOG.md: the newest release is {version}, not {metadata['version']}")
    citation = (root / "CITATION.cff").read_text("utf-8")
    for key, value in (("version", version), ("date-released", date)):
        if f"\n{key}: {value}\n" not in citation:
            raise ValueError(f"CITATION.cff: {key} is not {value}, as in CHANGELOG.md")
    urls = dict(re.findall(r"^(.+?) *= *(.+)$", metadata.get("project_urls", ""), re.MULTILINE))
    if repository and urls.get("Source") != repository:
        raise ValueError(f"setup.cfg: project_urls must have the line `Source = {repository}`")
    return text


def main() -> None:
    """Print the notes, or exit with what is wrong."""
    if len(sys.argv) not in {2, 3}:
        print("usage: python -m scripts.release TAG [REPOSITORY]", file=sys.stderr)
        sys.exit(2)
    try:
        print(notes(sys.argv[1], "".join(sys.argv[2:])))
    except ValueError as error:
        print(f"release: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
