"""What MkDocs calls while it builds the site (mkdocs.yml): links to files outside docs/ become their text.

The pages link to files of the checkout, which GitHub shows and the site does not have. Their address would be that of
the repository, which this project does not know.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

#: Marks of the tests: in the middle of a table they would end it.
_MARK = re.compile(r"^<!-- .* -->\n", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")


def outside(page: str, target: str) -> bool:
    """Return whether `target`, a link of `page` (a path below docs/), leads out of docs/."""
    if "://" in target or target.startswith(("#", "mailto:")):
        return False
    return os.path.normpath(Path(page).parent / target.partition("#")[0]).startswith("..")


def within(markdown: str, page: str) -> str:
    """Return `markdown` with the links that leave docs/ replaced by their text, and without marks."""

    def replaced(link: re.Match[str]) -> str:
        return link["text"] if outside(page, link["target"]) else link[0]

    return _LINK.sub(replaced, _MARK.sub("", markdown))


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Take a page before it is converted; MkDocs finds this function by its name."""
    return within(markdown, page.file.src_uri)
