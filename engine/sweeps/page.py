"""Runs -> one HTML file that needs nothing but the videos beside it."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from engine.errors import SinkError, plain
from engine.files.atomic import write
from engine.sweeps.runs import FIGURES, Figure, Run, best, differing

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
    """Return the page. Whatever comes from a run is escaped, and the page's policy allows no script but its own."""
    here = files("engine.sweeps")
    style, script = (here.joinpath(file).read_text("utf-8") for file in ("page.css", "page.js"))
    keys = differing(runs)
    figures = [figure for figure in FIGURES if any(figure.place in run.figures for run in runs)]
    failed = any(run.status != "done" for run in runs)
    return Template(here.joinpath("page.html").read_text("utf-8")).substitute(
        policy=f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}; media-src 'self' file:; "
        "base-uri 'none'; form-action 'none'",
        title=f"Comparison of {escape(plain(name))}",
        style=style,
        script=script,
        summary=_summary(runs),
        filters="\n".join(_filter(runs, key, column) for column, key in enumerate(keys, 1)),
        videos="\n".join(_card(run, keys) for run in runs),
        heads="\n".join(_heads(keys, figures, failed)),
        rows="\n".join(_rows(runs, keys, figures, failed)),
        notes=_notes(runs, figures),
    )


def _summary(runs: Sequence[Run]) -> str:
    counts = {status: sum(run.status == status for run in runs) for status in ("done", "failed", "unfinished")}
    told = [f"{count} {status}" for status, count in counts.items() if count]
    return f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}: {', '.join(told)}."


def _filter(runs: Sequence[Run], key: str, column: int) -> str:
    values = dict.fromkeys(_text(run.overrides.get(key)) for run in runs if run.overrides)
    options = "".join(f'<option value="{escape(value)}">{escape(value)}</option>' for value in values if value)
    identity = f"filter-{column}"
    return (
        f'  <p><label for="{identity}">{escape(key)}</label>\n'
        f'    <select id="{identity}" data-column="{column}"><option value="">all</option>{options}</select></p>'
    )


def _card(run: Run, keys: Sequence[str]) -> str:
    number = escape(plain(run.name))
    chosen = [(key, _text(run.overrides[key])) for key in keys if key in run.overrides]
    about = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in chosen)
    label = escape(f"Run {plain(run.name)}: " + ", ".join(f"{key} {value}" for key, value in chosen))
    if run.video is not None:
        # The name of a folder need not be text.
        link = quote(os.fsencode(f"{run.name}/{run.video}"))
        shown = (
            f'<video src="{link}" controls muted playsinline preload="auto" aria-label="{label}"></video>'
            '<p class="error unplayable" hidden>This browser cannot play the video.</p>'
        )
        name = f'<a href="{link}">Run {number}</a>'
    else:
        told = run.error or "The video is not in the run's folder."
        shown = f'<p class="error"><strong>{run.status.capitalize()}.</strong> {escape(told)}</p>'
        name = f"Run {number}"
    return f'<figure data-run="{number}">{shown}<figcaption>{name}<dl>{about}</dl></figcaption></figure>'


def _heads(keys: Sequence[str], figures: Sequence[Figure], failed: bool) -> list[str]:
    def head(title: str, about: str = "", kind: str = "") -> str:
        extra = f' title="{escape(about)}"' if about else ""
        return f'<th scope="col"{kind}{extra}><button type="button">{escape(title)}</button></th>'

    return [
        head("Run"),
        *(head(key) for key in keys),
        *([head("State")] if failed else []),
        *(head(figure.title, _about(figure), ' class="number"') for figure in figures),
    ]


def _rows(runs: Sequence[Run], keys: Sequence[str], figures: Sequence[Figure], failed: bool) -> list[str]:
    winners = {figure.place: best(runs, figure) for figure in figures}
    rows = []
    for run in runs:
        name = escape(plain(run.name))
        cells = [f'<th scope="row" data-value="{name}">{name}</th>']
        for value in (_text(run.overrides.get(key)) for key in keys):
            cells.append(f'<td data-value="{escape(value)}">{escape(value)}</td>')
        if failed:
            told = "done" if run.status == "done" else f"{run.status}: {run.error}"
            kind = "" if run.status == "done" else ' class="error"'
            cells.append(f'<td{kind} data-value="{run.status}">{escape(told)}</td>')
        cells += [_figure(run, figure, run.name in winners[figure.place]) for figure in figures]
        rows.append(f'<tr data-run="{name}">{"".join(cells)}</tr>')
    return rows


def _figure(run: Run, figure: Figure, wins: bool) -> str:
    if figure.place not in run.figures:
        reason = escape(run.reasons.get(figure.place) or run.error or "not measured")
        return f'<td class="number" data-value="" title="{reason}">–<span class="unseen">{reason}</span></td>'
    value = run.figures[figure.place] * figure.scale
    star = '<span class="unseen">best: </span>★ ' if wins else ""
    kind = "number best" if wins else "number"
    if figure.place in run.missed:
        kind = "number missed"
        star = f'<span class="unseen">misses its bar, {figure.bar}: </span>✗ '
    rank = abs(value) if figure.better == "nought" else value
    return f'<td class="{kind}" data-value="{rank:.6g}">{star}{value:.{figure.digits}f}</td>'


def _notes(runs: Sequence[Run], figures: Sequence[Figure]) -> str:
    about = [f"<dt>{escape(figure.title)}</dt><dd>{escape(_about(figure))}</dd>" for figure in figures]
    for figure in FIGURES:
        reasons = {run.reasons[figure.place] for run in runs if figure.place in run.reasons}
        if figure not in figures and reasons:
            told = "; ".join(sorted(reasons))
            about.append(f"<dt>{escape(figure.title)}</dt><dd>not measured: {escape(told)}</dd>")
    return f'<dl class="legend">{"".join(about)}</dl>' if about else ""


def _about(figure: Figure) -> str:
    return f"{figure.about}; bar for drawn people: {figure.bar}" if figure.bar else figure.about


def _text(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
