"""Bounds on a document that somebody else wrote: its size, its depth and the number of its values.

What checks a document, or quotes it in an error, takes time and memory with each. These bounds are looked at first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from engine.errors import RequestError

#: Values in a document: objects, lists, texts, numbers. The largest sensible job has about 150.
MOST_VALUES = 10_000
#: Lists and objects within each other. A job has 7.
MOST_DEPTH = 16
#: Entries of one list or object. A longer one is counted as one value and not looked into: whatever a job may hold has
#: a lower bound of its own in the schema, which is told in its own words.
MOST_ENTRIES = 1000
#: Characters of all texts together: media as base64 are texts.
MOST_CHARACTERS = 2**28
#: Bytes of a document that is not read yet.
MOST_BYTES = 2**28

_HINT = "send what the job API describes (docs/api.md), large media as addresses"


class TooLarge(ValueError):
    """A JSON text exceeds one of the bounds."""


def check_bounds(document: Any, *, field: str = "") -> None:
    """Raise RequestError for a document of too many values or characters, or nested too deep.

    `field` is what the caller calls the document. Nothing is copied. A value that stands in two places, as YAML's
    aliases put it there, counts twice: for whoever prints it, it is there twice.
    """
    values = characters = 0
    waiting: list[tuple[Any, int, str]] = [(document, 0, field)]
    while waiting:
        value, depth, where = waiting.pop()
        values += 1
        if isinstance(value, str | bytes):
            characters += len(value)
        elif isinstance(value, Mapping | list | tuple):
            if depth >= MOST_DEPTH:
                raise _refused(f"the value is nested deeper than {MOST_DEPTH} lists and objects", where)
            if len(value) <= MOST_ENTRIES:
                if isinstance(value, Mapping):
                    characters += sum(len(name) for name in value if isinstance(name, str))
                    waiting += [(inner, depth + 1, where or _short(name)) for name, inner in value.items()]
                else:
                    waiting += [(inner, depth + 1, where) for inner in value]
        if values + len(waiting) > MOST_VALUES:
            raise _refused(f"the document holds more than {MOST_VALUES} values", where)
        if characters > MOST_CHARACTERS:
            raise _refused(f"the document holds more than {MOST_CHARACTERS} characters", where)


def parse_json(raw: bytes) -> Any:
    """Return the value of a JSON text in UTF-8, a byte order mark before it or not.

    Raises ValueError (TooLarge, JSONDecodeError, UnicodeDecodeError) and RecursionError. What the text would take as
    values is bounded before it is parsed: a list of empty objects takes ten times its own bytes.
    """
    if len(raw) > MOST_BYTES:
        raise TooLarge(f"it has {len(raw)} bytes, and at most {MOST_BYTES} are read")
    # Each value but the first follows one of these. They may stand in a text, too, but base64 has none of them.
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > 20 * MOST_VALUES:
        raise TooLarge("it holds far more values than a job has")
    return json.loads(raw.decode("utf-8-sig"))


def reason(error: Exception) -> str:
    """Return in a few words why `parse_json` could not read a text; nothing of the text is in it."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at letter {error.pos + 1}"
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, UnicodeError):
        return "it is not UTF-8"
    return str(error) if isinstance(error, TooLarge) else "a number in it has too many digits"


def _refused(what: str, where: str) -> RequestError:
    return RequestError(what, field=where or "job", hint=_HINT, code="out_of_range")


def _short(name: Any) -> str:
    text = name if isinstance(name, str) else "job"
    return text if len(text) <= 40 else f"{text[:40]}..."
