"""Check names from outside (a server, a manifest, an index) that are going to be used as paths."""

from __future__ import annotations

from typing import Any

#: Limits of file systems: bytes of one part of a path, and of the whole path.
_PART, _WHOLE = 255, 1024


def is_inside(name: Any) -> bool:
    """Return whether `name` is a relative path, with slashes, that stays below the folder it is joined to.

    False for anything that is not text, is absolute, has an empty part, "." or "..", a backslash, a control character
    or a lone surrogate, or is longer than file systems allow.
    """
    if not isinstance(name, str):
        return False
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return False
    if size > _WHOLE or any(ord(char) < 32 or ord(char) == 127 or char == "\\" for char in name):
        return False
    return all(part not in ("", ".", "..") and len(part.encode()) <= _PART for part in name.split("/"))


def is_plain(name: Any) -> bool:
    """Return whether `name` is the name of one file or folder, without a folder in front."""
    return is_inside(name) and "/" not in name
