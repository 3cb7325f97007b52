"""Write the comparison page of a sweep: one HTML file that needs only the videos next to it."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from engine.errors import SinkError, plain
from engine.files.atomic import write
from engine.sweeps.runs import FIGURES, Figure, Run, best, differing
from engine.text.pages import read_template

PAGE = "index.html"


def write_page(folder: Path, runs: Sequence[Run]) -> Path:
    """Write the page about `runs` into their `folder`, and return its path. Raises SinkError."""
    path = folder / PAGE
    try:
        write(path, render(folder.resolve().name, runs).encode())
    except OSError as error:
        hint = "make it writable"
        raise SinkError(f"cannot write {path}: {error.strerror or error}", field="DIR", hint=hint) from error
    return path


def render(name: str, runs: Sequence[Run]) -> str:
    """Return the page as HTML. Every text of a run is escaped, and the page's policy allows only its own script."""
    here = files("engine.sweeps")
    style, script = (here.joinpath(file).read_text("utf-8") for file in ("page.css", "page.js"))
    keys = differing(runs)
    figures = [figure for figure in FIGURES if any(figure.place in run.figures for run in runs)]

    def choices(key: str) -> list[str]:
        values = dict.fromkeys(_text(run.overrides.get(key)) for run in runs if run.overrides)
        return [value for value in values if value]

    def chosen(run: Run) -> list[tuple[str, str]]:
        return [(key, _text(run.overrides[key])) for key in keys if key in run.overrides]

    return read_template("engine.sweeps", "page.html").render(
        policy=f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}; media-src 'self' file:; "
        "base-uri 'none'; form-action 'none'",
        name=plain(name),
        # Only these two are not escaped: they are files of this package, and the policy contains their hashes.
        style=Markup(style),  # noqa: S704 - a file of this package
        script=Markup(script),  # noqa: S704 - a file of this package
        summary=_summary(runs),
        keys=keys,
        runs=runs,
        figures=figures,
        failed=any(run.status != "done" for run in runs),
        winners={figure.place: best(runs, figure) for figure in figures},
        unmeasured=_unmeasured(runs, figures),
        choices=choices,
        chosen=chosen,
        plain=plain,
        text=_text,
        link=_link,
        about=_about,
        rank=_rank,
        formatted=_formatted,
    )


def _summary(runs: Sequence[Run]) -> str:
    counts = {status: sum(run.status == status for run in runs) for status in ("done", "failed", "unfinished")}
    parts = [f"{count} {status}" for status, count in counts.items() if count]
    return f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}: {', '.join(parts)}."


def _link(run: Run) -> str:
    # The name of a folder may not be valid Unicode.
    return quote(os.fsencode(f"{run.name}/{run.video}"))


def _rank(run: Run, figure: Figure) -> str:
    """Return the value by which the column is sorted."""
    value = run.figures[figure.place] * figure.scale
    return f"{abs(value) if figure.better == 'zero' else value:.6g}"


def _formatted(run: Run, figure: Figure) -> str:
    return f"{run.figures[figure.place] * figure.scale:.{figure.digits}f}"


def _unmeasured(runs: Sequence[Run], figures: Sequence[Figure]) -> list[tuple[Figure, list[str]]]:
    """Return the figures that no run has, each with the reasons in the runs."""
    absent = [figure for figure in FIGURES if figure not in figures]
    with_reasons = [(figure, {run.reasons.get(figure.place) for run in runs} - {None}) for figure in absent]
    return [(figure, sorted(map(str, reasons))) for figure, reasons in with_reasons if reasons]


def _about(figure: Figure) -> str:
    return f"{figure.about}; bar for drawn people: {figure.bar}" if figure.bar else figure.about


def _text(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
