"""Reads lists of entries, such as speakers and prompts by time, from a YAML or JSON file or from JSON text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from engine.errors import RequestError
from engine.serving.jobs.document_bounds import MOST_BYTES, check_bounds
from engine.text.similar import similar

#: Most bytes of a YAML file, which is read far more slowly than JSON.
_MOST_YAML = 2**20


@dataclass(frozen=True)
class Form:
    """The form of a document `{key: [entry, ...]}`."""

    key: str
    #: For hints.
    example: str

    @property
    def field(self) -> str:
        """The request's field with the document."""
        return f"request.{self.key}"


def read_entries(source: str, form: Form) -> tuple[Any, Path | None]:
    """Return the list of a YAML or JSON file, or of `source` itself if it is a JSON object; and the file's folder.

    Raises RequestError; the entries are not checked.
    """
    if source.lstrip().startswith("{"):
        return _parse(source, "the text", form), None
    path = Path(source)
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise RequestError(f"{source!r} has more than {MOST_BYTES} bytes", field=form.field, hint=form.example)
        text = raw.decode("utf-8")
    except OSError as error:
        raise RequestError(f"cannot read {source!r}: {error.strerror}", field=form.field, hint=form.example) from error
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{source!r} is not UTF-8 text", field=form.field, hint="give a YAML or JSON file"
        ) from error
    return _parse(text, repr(source), form), path.parent


def entries_of(entries: Any, form: Form) -> Sequence[Any]:
    """Return `entries` if it is a list with at least one entry. Raises RequestError."""
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise RequestError("not a list with at least one entry", field=form.field, hint=form.example)
    return entries


def address_of(value: Any, where: str, folder: Path | None) -> str:
    """Return an address; a relative path is relative to `folder`, if there is one. Raises RequestError."""
    if not isinstance(value, str) or not value:
        raise RequestError(
            f"{shown(value)} is not an address", field=where, hint="a path or an address with its scheme"
        )
    has_scheme = value.startswith("data:") or re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", value)
    return value if has_scheme or folder is None else str(folder / value)


def only(entry: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
    """Raise RequestError for a key of `entry` that is not in `known`."""
    for key in entry:
        if key not in known:
            near = similar(str(key), known)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise RequestError(f"unknown key {shown(key)}", field=where, hint=hint)


def shown(value: Any) -> str:
    """Quote a value, at most 80 characters of it."""
    text = repr(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _parse(text: str, name: str, form: Form) -> Any:
    try:
        data = json.loads(text)
    except ValueError:
        data = _yaml(text, name, form)
    except RecursionError:
        raise _nested(name, form) from None
    # With YAML aliases a few lines can become a value that is too large to print.
    check_bounds(data, field=form.field)
    if not isinstance(data, Mapping) or form.key not in data:
        raise RequestError(f"{name} has no list {form.key!r}", field=form.field, hint=form.example)
    only(data, (form.key,), form.field)
    return data[form.key]


def _yaml(text: str, name: str, form: Form) -> Any:
    if len(text) > _MOST_YAML:
        what = f"{name} is not JSON, and too long to be read as YAML ({len(text)} characters)"
        raise RequestError(what, field=form.field, hint=form.example)
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise _nested(name, form) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "unreadable"
        raise RequestError(
            f"{name} is neither YAML nor JSON: {problem}{place}", field=form.field, hint=form.example
        ) from error


def _nested(name: str, form: Form) -> RequestError:
    return RequestError(f"{name} is nested too deeply", field=form.field, hint=form.example)
