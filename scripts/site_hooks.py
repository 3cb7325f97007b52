"""What MkDocs calls while it builds the site (mkdocs.yml): links whose text or target only a checkout has.

The pages link to files of the checkout, which GitHub shows and the site does not have. Their address would be that of
the repository, which this project does not know, so these links become their text. A link that is named by its file,
as in `[plan.md](plan.md)`, gets the title that the site's navigation has for the page.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
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


def titles(nav: Any) -> dict[str, str]:
    """Return the title of each page of a navigation, by its path below docs/."""
    if isinstance(nav, list):
        return {page: title for part in nav for page, title in titles(part).items()}
    found: dict[str, str] = {}
    for title, part in nav.items() if isinstance(nav, dict) else ():
        found.update({part: title} if isinstance(part, str) else titles(part))
    return found


def within(markdown: str, page: str, title_of: Mapping[str, str] | None = None) -> str:
    """Return the text of `page` for the site.

    Links that leave docs/ are replaced by their text, links named by a file get its title, and marks are left out.
    """

    def replaced(link: re.Match[str]) -> str:
        target = link["target"]
        if outside(page, target):
            return link["text"]
        path = os.path.normpath(Path(page).parent / target.partition("#")[0])
        title = (title_of or {}).get(path)
        if title and link["text"].removeprefix("docs/") == Path(path).name:
            return f"[“{title}”]({target})"
        return link[0]

    return _LINK.sub(replaced, _MARK.sub("", markdown))


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Take a page before it is converted; MkDocs finds this function by its name."""
    return within(markdown, page.file.src_uri, titles(config["nav"]))
