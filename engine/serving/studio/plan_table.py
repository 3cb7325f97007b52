"""A plan as the studio's page shows it: length, windows, work, and time and price on each card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from engine.serving.studio.studio import duration

#: Rows of the table of cards.
_CARDS = 6
#: Turns of a dialogue that are listed.
_TURNS = 20


def plan_html(plan: Mapping[str, Any], rate: float | None) -> str:
    """Return the plan as HTML; `rate` are seconds per forward of an earlier video on this machine or worker."""
    windows = len(plan["windows"])
    rows = [
        ("Length", f"{plan['seconds']:.2f} s: {plan['frames']} frames at {plan['fps']:g} per second"),
        ("Picture", _picture(plan)),
        ("Work", f"{_count(windows, 'window')}, {plan['steps']} steps each, {plan['forwards']} forwards"),
    ]
    if rate is not None:
        rows.append(("Time here", f"about {duration(rate * plan['forwards'])}, by your last video of this kind"))
    estimates = plan.get("estimates") or {}
    here = estimates.get("seconds")
    if rate is None and here is not None:
        rows.append(("Time here", f"about {duration(here)} on {estimates['card']}, predicted"))
    lines = "".join(f"<tr><th scope=row>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows)
    warnings = "".join(f"<li>{escape(str(warning))}</li>" for warning in plan.get("warnings") or ())
    told = f"<ul class=warnings>{warnings}</ul>" if warnings else ""
    return f"<table class=plan>{lines}</table>{told}{_dialogue(plan.get('dialogue'))}{_cards(estimates)}"


def _dialogue(dialogue: Mapping[str, Any] | None) -> str:
    """Return who speaks when, if a script or a recording says it."""
    turns = (dialogue or {}).get("turns") or ()
    if dialogue is None or not turns:
        return ""
    names = dialogue.get("people") or ()
    rows = "".join(
        f"<tr><td>{turn['begins']:.1f} to {turn['ends']:.1f} s</td>"
        f"<th scope=row>{escape(_name(names, turn['person']))}</th><td>{escape(str(turn.get('text') or ''))}</td></tr>"
        for turn in turns[:_TURNS]
    )
    more = f"<p class=note>and {len(turns) - _TURNS} more</p>" if len(turns) > _TURNS else ""
    summary = f"Who speaks when: {_count(len(turns), 'turn')}, {escape(str(dialogue.get('by') or ''))}"
    return f"<details><summary>{summary}</summary><table class=plan>{rows}</table>{more}</details>"


def _name(names: Sequence[str], person: int) -> str:
    return str(names[person]) if person < len(names) else f"speaker {person + 1}"


def _picture(plan: Mapping[str, Any]) -> str:
    canvas = plan.get("canvas") or {}
    width, height = canvas.get("target") or (0, 0)
    return f"{width} x {height} pixels, resolution {plan['resolution']}"


def _cards(estimates: Mapping[str, Any]) -> str:
    cards = [card for card in estimates.get("cards") or () if card["fits"]]
    cards.sort(key=lambda card: card["cost"])
    if not cards:
        return ""
    rows = "".join(
        f"<tr><th scope=row>{escape(card['card'])}</th><td>{duration(card['seconds'])}</td>"
        f"<td>{_price(card['cost'])}</td></tr>"
        for card in cards[:_CARDS]
    )
    best = cards[0]
    summary = f"On a rented card: from {_price(best['cost'])} ({escape(best['card'])}, {duration(best['seconds'])})"
    head = "<tr><th scope=col>Card</th><th scope=col>Time</th><th scope=col>Price</th></tr>"
    note = f"<p class=note>Predicted, with loaded weights. {escape(str(estimates.get('prices') or ''))}</p>"
    return f"<details><summary>{summary}</summary><table class=plan>{head}{rows}</table>{note}</details>"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _price(cost: float) -> str:
    return f"${cost:.2f}" if cost >= 0.01 else "under $0.01"
