"""The meaning of each field of a config dataclass: the `#:` comment above it, or the help text of its flag."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache


def meanings(config: type) -> dict[str, str]:
    """Return the meaning of each field of a dataclass as one paragraph; "" if it has none.

    A field's meaning is its metadata's `help` (the text of an entrypoint's flag), then the `#:` comment above it, in
    the class itself or in the nearest base class that has one. For a class without source code only `help` is known.
    """
    texts: dict[str, str] = {}
    for field in fields(config):
        comments = (_comments(base).get(field.name, "") for base in config.__mro__)
        parts = (field.metadata.get("help", ""), next(filter(None, comments), ""))
        texts[field.name] = " ".join(map(_sentence, filter(None, parts)))
    return texts


def about(config: type) -> str:
    """Return the first paragraph of a class's docstring as one line; "" if it has none of its own."""
    text = inspect.getdoc(config) or ""
    # A dataclass without a docstring gets its signature as docstring.
    return "" if text.startswith(f"{config.__name__}(") else " ".join(text.partition("\n\n")[0].split())


@lru_cache(maxsize=512)
def _comments(config: type) -> Mapping[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(config))
    except (OSError, TypeError):
        return {}
    lines = source.splitlines()
    (body,) = ast.parse(source).body
    comments = {}
    for node in body.body if isinstance(body, ast.ClassDef) else ():
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above: list[str] = []
            line = node.lineno - 2
            while line >= 0 and (text := lines[line].strip()).startswith("#:"):
                above.insert(0, text.removeprefix("#:").strip())
                line -= 1
            comments[node.target.id] = " ".join(above)
    return comments


def _sentence(text: str) -> str:
    if text.partition(" ")[0].isalpha():  # not a value, as in "para: all voices ..."
        text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "?", "!")) else f"{text}."
