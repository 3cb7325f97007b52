"""Compute from a report of the bench the shares of the data sheet's rates that plans assume."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from engine.errors import ConfigError
from engine.files.atomic import write
from engine.planning.gpus import Card, find_card
from engine.planning.rates import NAMES, assumed, file_of

Report = Mapping[str, Any]
Figures = Mapping[str, Any]

#: Smallest change of a share, or of a number of bytes, that is reported: 3 %.
_SAME = 0.03


def derive(report: Report) -> dict[str, Any]:
    """Return each share for which the report has figures: {name: {"assumed", "measured", "rate", "unit", "from"}}.

    `rate` is the measured rate, in 10^12 operations or 10^9 bytes per second; `assumed` and `measured` are null for a
    card without a data sheet in engine/planning/gpus.json. A reduced report has no shares.
    """
    if report.get("reduced", True):
        return {}
    card = find_card(driver_name(report) or "")
    rates = {name: (rate, origin) for name, rate, origin in _rates(report)}
    if card is not None and not card.int8_tops:
        rates.pop("eight_bit", None)
    return {name: _share(name, rate, card, origin) for name, (rate, origin) in rates.items()}


def driver_name(report: Report) -> str | None:
    """Return the driver's name of the card."""
    name = _row(report, "machine", "card").get("name")
    return None if name is None else str(name)


def _share(name: str, rate: float, card: Card | None, origin: str) -> dict[str, Any]:
    share = {"rate": rate, "unit": "GB/s" if name in ("bandwidth", "link") else "TFLOP/s", "from": origin}
    if card is None:
        return share | {"assumed": None, "measured": None}
    return share | {"assumed": getattr(assumed(card), name), "measured": rate / _data_sheet(name, card)}


def _data_sheet(name: str, card: Card) -> float:
    sheet = {"convolutions": card.tf32_tflops, "bandwidth": card.bandwidth_gb, "link": card.link_gb}
    sheet["eight_bit"] = card.int8_tops
    return sheet.get(name, card.bf16_tflops)


def _rates(report: Report) -> Iterator[tuple[str, float, str]]:
    """Yield (name, rate, its source); a whole forward counts before a single kernel."""
    for name, sources in (
        ("products", (_forward(report, "products"), _single(report, "products", "bfloat16", "tflops"))),
        ("attention", (_forward(report, "attention"), _single(report, "attention", "native", "tflops"))),
        ("bandwidth", (_forward(report, "moved"), _single(report, "bandwidth", "layer_norm", "gb_per_second"))),
        ("eight_bit", (_single(report, "products", "int8 rows, _int_mm", "tflops"),)),
        ("convolutions", (_single(report, "codec", "float32, TF32", "tflops"),)),
        (
            "decoding",
            (
                _single(report, "codec", "bfloat16, channels_last_3d", "tflops"),
                _single(report, "codec", "bfloat16", "tflops"),
            ),
        ),
        (
            "link",
            (
                _single(report, "offload", "bfloat16", "link_gb_per_second"),
                _single(report, "link", "host to device, pinned", "gb_per_second"),
            ),
        ),
    ):
        first = next((figure for source in sources for figure in source), None)
        if first is not None:
            yield (name, *first)


#: Parts of a forward's work, the kinds of kernel that do them, and their unit.
_DONE_BY = {
    "products": (("products", "convolutions"), 1e12),
    "attention": (("attention",), 1e12),
    "moved": (("element-wise", "copies"), 1e9),
}


def _forward(report: Report, work: str) -> Iterator[tuple[float, str]]:
    kinds, unit = _DONE_BY[work]
    rows = report.get("parts", {}).get("forward", {}).get("rows", {})
    # Two speakers last: plans are made for them.
    for name, figures in reversed(list(rows.items())):
        if name.startswith("720p") or "kernels" not in figures:
            continue
        spent = sum(figures["kernels"]["groups"].get(kind, 0.0) for kind in kinds)
        if spent > 0:
            yield figures["work"][work] / spent / unit, f"forward: {name}"


def _single(report: Report, part: str, row: str, key: str) -> Iterator[tuple[float, str]]:
    """Yield the figure of the row with that name, or the median of the rows whose names end with it."""
    rows = report.get("parts", {}).get(part, {}).get("rows", {})
    values = [figures[key] for name, figures in rows.items() if _matches(name, row) and figures.get(key)]
    if values:
        yield median(values), f"{part}: {row}"


def _matches(name: str, row: str) -> bool:
    return name == row or name.endswith(f", {row}")


def _row(report: Report, part: str, row: str) -> Figures:
    figures: Figures = report.get("parts", {}).get(part, {}).get("rows", {}).get(row, {})
    return figures


def keep(report: Report, where: Path) -> Path:
    """Write the measured shares into the folder `where`, for plans of that card, and return the file.

    Raises ConfigError if the report says nothing about a known card, or if the folder cannot be written.
    """
    shares = {name: share for name, share in derive(report).items() if share["measured"] is not None}
    if not shares:
        raise ConfigError(_nothing(report), field="bench device --keep", hint="run it on a card that plans know")
    driver = driver_name(report) or ""
    kept = {
        "driver": driver,
        "date": report["date"],
        "versions": _versions(report),
        "shares": {name: round(shares[name]["measured"], 4) for name in NAMES if name in shares},
        "from": {name: shares[name]["from"] for name in NAMES if name in shares},
    }
    path = where / file_of(driver)
    try:
        where.mkdir(parents=True, exist_ok=True)
        write(path, (json.dumps(kept, indent=1) + "\n").encode())
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}",
            field="bench device --keep",
            hint="use an environment in which the package's files can be written",
        ) from error
    return path


def _nothing(report: Report) -> str:
    driver = driver_name(report)
    if report.get("reduced", True):
        return "the report is of reduced sizes, which say nothing about a card"
    if find_card(driver or "") is None:
        return f"no card in engine/planning/gpus.json has the driver's name {driver!r}"
    return "no part was measured from which a share follows"


def _versions(report: Report) -> str:
    found = _row(report, "machine", "versions")
    names = (("torch", found.get("torch")), ("CUDA", found.get("cuda")), ("driver", _driver_version(report)))
    return ", ".join(f"{name} {version}" for name, version in names if version)


def _driver_version(report: Report) -> Any:
    return _row(report, "machine", "driver").get("driver_version")


# --- what to change ---------------------------------------------------------------------------------------------------


def corrections(reports: Sequence[tuple[str, Report]]) -> list[str]:
    """Return lines about differences between engine/planning and the reports, which are (file name, report)."""
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
    for part, results in report["parts"].items():
        if results["state"] != "done":
            yield f"  {part}: {results['state']}: {results.get('why', '')}"
    if report.get("reduced", True):
        yield "  reduced sizes: they say nothing about a card"
    elif find_card(driver or "") is None:
        yield f'  no card in engine/planning/gpus.json has "driver": "{driver}"'
        yield "  add one from its data sheet, then run this again"


def _shares(report: Report) -> Iterator[str]:
    for name, share in derive(report).items():
        rate = f"{share['rate']:.4g} {share['unit']}, {share['from']}"
        if share["measured"] is None:
            yield f"{name}: reached {rate}"
        elif abs(share["measured"] / share["assumed"] - 1) <= _SAME:
            yield f"{name} = {share['assumed']:g} holds ({rate})"
        else:
            yield f"{name} = {share['assumed']:g} -> {share['measured']:.2f} ({rate})"


def _predictions(report: Report) -> Iterator[str]:
    """Yield lines that compare a plan's seconds and bytes with measured ones."""
    for part in ("forward", "codec", "encoders"):
        for row, figures in report.get("parts", {}).get(part, {}).get("rows", {}).items():
            for unit, measured, planned in (
                ("s", figures.get("seconds"), figures.get("predicted_seconds")),
                ("GB", figures.get("peak_bytes"), figures.get("predicted_bytes")),
            ):
                # Plans know only the decoder as the engine runs it.
                if measured and planned and (part != "codec" or row == "float32, TF32"):
                    scale = 1e9 if unit == "GB" else 1.0
                    yield (
                        f"{part}: {row}: {measured / scale:.3g} {unit}, planned {planned / scale:.3g} {unit} "
                        f"({planned / measured - 1:+.0%})"
                    )
