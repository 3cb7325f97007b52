"""The lines of a plan about memory, work, and the time and price on each card."""

from __future__ import annotations

from collections.abc import Sequence

from engine.data import CardEstimate, Estimates

#: Width of the column of a plan's table with the host memory of a card's machine.
_HOST = len("host 100.0 GB of 100 to 100 GB, some too small")


def estimate_lines(estimates: Estimates) -> list[tuple[str, str]]:
    where = f"{estimates.device}, {estimates.dtype}" + (
        f", memory=auto picks {estimates.picked}" if estimates.picked else ""
    )
    worst = max(
        (stage for stage in estimates.stages if stage.device == estimates.device),
        key=lambda stage: stage.total,
    )
    peak = estimates.host_memory_bytes if estimates.device_memory_bytes is None else estimates.device_memory_bytes
    host = "" if estimates.device_memory_bytes is None else f", and {_giga(estimates.host_memory_bytes)} of the host's"
    weights = ", ".join(f"{name} {_giga(size)}" for name, size in estimates.weights.items())
    work = f"{_operations(estimates.forward_flops)} operations per forward, {_operations(estimates.flops)} in all"
    if estimates.products_in_8_bits:
        work += f", {estimates.products_in_8_bits:.1%} of matrix products in 8 bits"
    return [
        ("memory", f"{_giga(peak)} ({where}), most in {worst.stage}{host}"),
        ("kept", weights),
        ("work", f"{work}; {_giga(estimates.start_bytes)} of weights read at the start"),
        *(("cards" if index == 0 else "", _card(card)) for index, card in enumerate(estimates.cards)),
        ("", f"host: of machines that RunPod rents with the card (docs/plan.md); {estimates.prices}"),
        ("", _predicted(estimates.cards)),
    ]


def _card(card: CardEstimate) -> str:
    needed = f"{card.card:<15}{_giga(card.needed_bytes):>9}  {_host(card)}"
    if not card.fits:
        return f"{needed}  too much; it fits with {' '.join(card.change)}" if card.change else f"{needed}  too much"
    took = f"{_time(card.forward_seconds)} a forward, {_time(card.window_seconds)} a window"
    if card.most_seconds is not None:
        took += f", with every retake {_minutes(card.most_seconds)}"
    picked = f", {card.picked}" if card.picked else ""
    picked += ", passes batched" if card.batched else ""
    price = f"{card.cost:.2f} ({card.cost_of_second:.3f} a second)"
    return f"{needed}  {took}, {_minutes(card.seconds)}, {price}{picked}"


def _time(seconds: float) -> str:
    if seconds >= 120:
        return _minutes(seconds)
    return f"{seconds:.1f} s" if seconds >= 0.05 else "under 0.1 s"


def _predicted(cards: Sequence[CardEstimate]) -> str:
    measured = [
        f"{card.card}: {', '.join(card.measured)} measured {card.measured_where}" for card in cards if card.measured
    ]
    assumed = "bfloat16; predicted, by assumed shares of the data sheet's rates (docs/speed.md)"
    return "; ".join([assumed, *measured])


def _host(card: CardEstimate) -> str:
    """Return the column of host memory: what is needed, what such machines have, and whether it is enough."""
    needed, least = card.host_needed_bytes, card.host_memory_bytes
    if least is None:
        return f"host {_giga(needed)} of unknown".ljust(_HOST)
    listed = max(least, card.host_listed_bytes or 0)
    there = f"{least / 1e9:.0f}" + (f" to {listed / 1e9:.0f}" if listed > least else "")
    short = "" if card.fits_host else ", some too small" if needed <= listed else ", too small"
    return f"host {_giga(needed)} of {there} GB{short}".ljust(_HOST)


def _giga(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"


def _operations(count: int) -> str:
    return f"{count / 1e15:.2f} peta" if count >= 1e14 else f"{count / 1e12:.2f} tera"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
