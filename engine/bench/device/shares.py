"""A report of the bench -> the shares of the data sheet that plans assume, as this card showed them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from engine.planning import seconds
from engine.planning.gpus import Card, find_card

Report = Mapping[str, Any]
Figures = Mapping[str, Any]

#: Where each share stands.
PLACES = {
    "PRODUCTS": "engine/planning/seconds.py",
    "CONVOLUTIONS": "engine/planning/seconds.py",
    "BANDWIDTH": "engine/planning/seconds.py",
    "LINK": "engine/planning/seconds.py",
    "attention": "engine/planning/gpus.json",
}
#: Change of a share, and of a count of bytes, that is worth a line: 3 %.
_SAME = 0.03


def derive(report: Report) -> dict[str, Any]:
    """Return each share that the report has figures for: {name: {"assumed", "measured", "rate", "unit", "from"}}.

    `rate` is what was reached, in 10^12 operations or 10^9 bytes a second; `assumed` and `measured` are null for a card
    without a data sheet in engine/planning/gpus.json. A reduced report has none.
    """
    if report.get("reduced", True):
        return {}
    card = find_card(driver_name(report) or "")
    return {name: _share(name, rate, card, origin) for name, rate, origin in _rates(report)}


def driver_name(report: Report) -> str | None:
    """Return what the driver calls the card."""
    name = _row(report, "machine", "card").get("name")
    return None if name is None else str(name)


def _share(name: str, rate: float, card: Card | None, origin: str) -> dict[str, Any]:
    found = {"rate": rate, "unit": "GB/s" if name in ("BANDWIDTH", "LINK") else "TFLOP/s", "from": origin}
    if card is None:
        return found | {"assumed": None, "measured": None}
    assumed = card.attention if name == "attention" else getattr(seconds, name)
    return found | {"assumed": assumed, "measured": rate / _data_sheet(name, card)}


def _data_sheet(name: str, card: Card) -> float:
    sheet = {"CONVOLUTIONS": card.tf32_tflops, "BANDWIDTH": card.bandwidth_gb, "LINK": card.link_gb}
    return sheet.get(name, card.bf16_tflops)


def _rates(report: Report) -> Iterator[tuple[str, float, str]]:
    """Yield (name, rate, where it is from); what a whole forward shows goes before what one kernel does alone."""
    for name, sources in (
        ("PRODUCTS", (_forward(report, "products"), _single(report, "products", "bfloat16", "tflops"))),
        ("attention", (_forward(report, "attention"), _single(report, "attention", "native", "tflops"))),
        ("BANDWIDTH", (_forward(report, "moved"), _single(report, "bandwidth", "layer_norm", "gb_per_second"))),
        ("CONVOLUTIONS", (_single(report, "codec", "float32, TF32", "tflops"),)),
        (
            "LINK",
            (
                _single(report, "offload", "bfloat16", "link_gb_per_second"),
                _single(report, "link", "host to device, pinned", "gb_per_second"),
            ),
        ),
    ):
        first = next((found for source in sources for found in source), None)
        if first is not None:
            yield (name, *first)


#: What of a forward's work is done by which kinds of kernel, and in which unit.
_DONE_BY = {
    "products": (("products", "convolutions"), 1e12),
    "attention": (("attention",), 1e12),
    "moved": (("element-wise", "copies"), 1e9),
}


def _forward(report: Report, work: str) -> Iterator[tuple[float, str]]:
    kinds, unit = _DONE_BY[work]
    rows = report.get("parts", {}).get("forward", {}).get("rows", {})
    # Two speakers last: they are what a plan is made for.
    for name, figures in reversed(list(rows.items())):
        if name.startswith("720p") or "kernels" not in figures:
            continue
        spent = sum(figures["kernels"]["groups"].get(kind, 0.0) for kind in kinds)
        if spent > 0:
            yield figures["work"][work] / spent / unit, f"forward: {name}"


def _single(report: Report, part: str, row: str, key: str) -> Iterator[tuple[float, str]]:
    """Yield the figure of the row of that name, or the median of the rows that end with it."""
    rows = report.get("parts", {}).get(part, {}).get("rows", {})
    found = [figures[key] for name, figures in rows.items() if _named(name, row) and figures.get(key)]
    if found:
        yield median(found), f"{part}: {row}"


def _named(name: str, row: str) -> bool:
    return name == row or name.endswith(f", {row}")


def _row(report: Report, part: str, row: str) -> Figures:
    found: Figures = report.get("parts", {}).get(part, {}).get("rows", {}).get(row, {})
    return found


# --- what to change ---------------------------------------------------------------------------------------------------


def corrections(reports: Sequence[tuple[str, Report]]) -> list[str]:
    """Return lines that say where engine/planning differs from the reports, which are (name of a file, report)."""
    lines: list[str] = []
    for name, report in reports:
        lines += [*_about(name, report), *(f"  {line}" for line in (*_shares(report), *_predictions(report))), ""]
    return lines[:-1]


def _about(name: str, report: Report) -> Iterator[str]:
    driver = driver_name(report)
    if report.get("bench") != "device" or "parts" not in report:
        yield f"{name}: not a report of multitalk bench device"
        return
    yield f"{name}: {driver or report.get('device', 'no device')}, {report.get('date', 'no date')}, {report['state']}"
    for part, found in report["parts"].items():
        if found["state"] != "done":
            yield f"  {part}: {found['state']}: {found.get('why', '')}"
    if report.get("reduced", True):
        yield "  reduced sizes: nothing of it says anything about a card"
    elif find_card(driver or "") is None:
        yield f'  no card in engine/planning/gpus.json has "driver": "{driver}"'
        yield "  add one from its data sheet, then run this again"


def _shares(report: Report) -> Iterator[str]:
    for name, found in derive(report).items():
        place, rate = f"{PLACES[name]}: {name}", f"{found['rate']:.4g} {found['unit']}, {found['from']}"
        if found["measured"] is None:
            yield f"{place}: reached {rate}"
        elif abs(found["measured"] / found["assumed"] - 1) <= _SAME:
            yield f"{place} = {found['assumed']:g} holds ({rate})"
        else:
            yield f"{place} = {found['assumed']:g} -> {found['measured']:.2f} ({rate})"


def _predictions(report: Report) -> Iterator[str]:
    """Seconds and bytes that a plan counts, beside those that were measured."""
    for part in ("forward", "codec", "encoders"):
        for row, figures in report.get("parts", {}).get(part, {}).get("rows", {}).items():
            for unit, measured, planned in (
                ("s", figures.get("seconds"), figures.get("predicted_seconds")),
                ("GB", figures.get("peak_bytes"), figures.get("predicted_bytes")),
            ):
                # Plans know of the decoder as the engine runs it alone.
                if measured and planned and (part != "codec" or row == "float32, TF32"):
                    scale = 1e9 if unit == "GB" else 1.0
                    yield (
                        f"{part}: {row}: {measured / scale:.3g} {unit}, planned {planned / scale:.3g} {unit} "
                        f"({planned / measured - 1:+.0%})"
                    )
