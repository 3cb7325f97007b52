"""Reads the text of a dialogue from a file."""

from __future__ import annotations

from pathlib import Path

from engine.errors import RequestError

FIELD = "request.script"
#: Maximum bytes of a file: four for each of the characters that a script may have.
_MOST = 80_000


def read_script(source: str) -> str:
    """Return the text of the file `source`, or `source` itself if it has several lines.

    Raises RequestError if the file cannot be read or is no UTF-8 text. The text is checked by the engine.
    """
    if "\n" in source:
        return source
    path = Path(source)
    try:
        if path.stat().st_size > _MOST:
            raise RequestError("the script is too long", field=FIELD, hint="give at most 20000 characters")
        return path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        what = "is not UTF-8 text" if isinstance(error, ValueError) else f"cannot be read: {error.strerror}"
        raise RequestError(f"{source!r} {what}", field=FIELD, hint="give a text file such as dialogue.txt") from error
