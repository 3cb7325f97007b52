"""Tables of a page that a script calculates: each stands below a comment with its name, `<!-- name -->`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path


def replaced(page: str, tables: Mapping[str, str]) -> str:
    """Return the page with these tables in place of the ones below their names. Raises KeyError for a missing name.

    What is replaced ends at `<!-- /name -->`, if the page has it, else with the rows.
    """
    for name, table in tables.items():
        head, tail = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, found, rest = page.partition(head)
        if not found:
            raise KeyError(name)
        _, ends, after = rest.partition(tail)
        page = f"{before}{head}{table}\n" + (tail + after if ends else re.sub(r"\A(?:\|.*\n)*", "", rest))
    return page


def main(page: Path, tables: Mapping[str, str], about: str | None) -> None:
    """Print the tables, or with --write put them into the page."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--write", action="store_true", help=f"write them into {page}")
    if parser.parse_args().write:
        page.write_text(replaced(page.read_text("utf-8"), tables), "utf-8")
        return
    for name, table in tables.items():
        print(f"<!-- {name} -->\n{table}\n")
