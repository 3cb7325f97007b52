"""Bounds on untrusted documents: size, nesting depth and number of values.

Checking a document, and quoting it in an error, takes time and memory for each value. These bounds are checked first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from engine.errors import RequestError

#: Values in a document: objects, lists, texts, numbers. The largest useful job has about 150.
MOST_VALUES = 10_000
#: Nesting depth of lists and objects. A job has 7.
MOST_DEPTH = 16
#: Entries of one list or object. A longer one is counted as one value and its entries are not examined: the schema has
#: smaller bounds for each list and object of a job, and reports them with better messages.
MOST_ENTRIES = 1000
#: Characters of all texts together; media as base64 are texts, too.
MOST_CHARACTERS = 2**28
#: Bytes of a document before it is parsed.
MOST_BYTES = 2**28

_HINT = "send what the job API describes (docs/api.md), large media as addresses"


class TooLarge(ValueError):
    """The JSON text exceeds one of the bounds."""


def check_bounds(document: Any, *, field: str = "") -> None:
    """Raise RequestError for a document with too many values or characters, or nested too deeply.

    `field` is the caller's name of the document. Nothing is copied. A value that is referenced twice, as by YAML
    aliases, counts twice, because printing the document prints it twice.
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
                raise _out_of_range(f"the value is nested deeper than {MOST_DEPTH} lists and objects", where)
            if len(value) <= MOST_ENTRIES:
                if isinstance(value, Mapping):
                    characters += sum(len(name) for name in value if isinstance(name, str))
                    waiting += [(inner, depth + 1, where or _short(name)) for name, inner in value.items()]
                else:
                    waiting += [(inner, depth + 1, where) for inner in value]
        if values + len(waiting) > MOST_VALUES:
            raise _out_of_range(f"the document holds more than {MOST_VALUES} values", where)
        if characters > MOST_CHARACTERS:
            raise _out_of_range(f"the document holds more than {MOST_CHARACTERS} characters", where)


def parse_json(raw: bytes) -> Any:
    """Return the value of a JSON text in UTF-8, with or without a byte order mark.

    Raises ValueError (TooLarge, JSONDecodeError, UnicodeDecodeError) and RecursionError. The number of values is
    estimated before the text is parsed, because parsed values take up to ten times the memory of the text.
    """
    if len(raw) > MOST_BYTES:
        raise TooLarge(f"it has {len(raw)} bytes, more than {MOST_BYTES}")
    # Each value except the first follows one of these characters. Texts can have them, too, but base64 does not.
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > 20 * MOST_VALUES:
        raise TooLarge("it holds far more values than a job has")
    return json.loads(raw.decode("utf-8-sig"))


def reason(error: Exception) -> str:
    """Return in a few words why `parse_json` failed; the words quote nothing of the text."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeError):
        return "it is not UTF-8"
    return str(error) if isinstance(error, TooLarge) else "a number in it has too many digits"


def _out_of_range(what: str, where: str) -> RequestError:
    return RequestError(what, field=where or "job", hint=_HINT, code="out_of_range")


def _short(name: Any) -> str:
    text = name if isinstance(name, str) else "job"
    return text if len(text) <= 40 else f"{text[:40]}..."
