"""Suggestions for a mistyped name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: Characters of a stranger's name that are compared: the time goes with the product of both lengths.
MOST = 64


def similar(name: str, known: Iterable[str], *, most: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return up to `most` of the `known` names that are most like `name`, the most similar first.

    `cutoff` is the least likeness, 0 to 1.
    """
    return difflib.get_close_matches(name[:MOST], list(known), n=most, cutoff=cutoff)
