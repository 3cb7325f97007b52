"""The tables of docs/speed.md: `python -m scripts.speed_tables` prints them, `--write` puts them into the page.

A test holds the page to them. What is measured on a card (engine/planning/rates.py) replaces predictions by itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from engine.data.estimates import CardEstimate
from engine.planning import seconds
from engine.planning.gpus import Card, cards
from engine.planning.operations import Forward
from scripts.page_tables import main as write_page
from scripts.plan_tables import card_of, estimates_of

PAGE = Path("docs/speed.md")
#: What the planner of an older commit counted.
BEFORE = Path(__file__).parents[1] / Path("docs/measured/speed-before.json")
#: Card -> the recipe for it at 480p.
FAST = {
    "L4 24 GB": "fast-24gb",
    "RTX 4090 24 GB": "fast-24gb",
    "A6000 48 GB": "fast-48gb",
    "L40S 48 GB": "fast-48gb",
    "A100 80 GB": "fast-80gb",
    "H100 80 GB": "fast-hopper",
    "H200 141 GB": "fast-hopper",
}
#: Seconds of the video of 81 frames.
_SECONDS = 3.24
#: Highest seconds that this project sets itself for a prediction, at 480p and 81 frames: of a forward, and of a window
#: of four steps.
BARS = {("H100 80 GB", "forward"): 2.6, ("RTX 4090 24 GB", "forward"): 12.0, ("H100 80 GB", "window"): 16.0}


class Public(NamedTuple):
    """A figure that others published: Wan2.1-I2V-14B, 81 frames at 480p, no voices."""

    who: str
    card: str
    what: str
    #: Forwards that it needs, and seconds in total.
    forwards: int
    seconds: float
    source: str


_LX = "https://github.com/ModelTC/LightX2V/blob/main/docs/EN/source/getting_started/benchmark_source.md"
PUBLIC = (
    Public("Wan2.1, official code", "H200 141 GB", "40 steps with guidance", 80, 366, _LX),
    Public("LightX2V, bf16, SageAttention 2", "H200 141 GB", "40 steps with guidance", 80, 216, _LX),
    Public("LightX2V, fp8", "H200 141 GB", "40 steps with guidance", 80, 191, _LX),
    Public("LightX2V, fp8, distilled", "H200 141 GB", "4 steps", 4, 14, _LX),
    Public("Wan2GP", "RTX 4090 24 GB", "40 steps with guidance", 80, 779, _LX),
    Public("LightX2V", "RTX 4090 24 GB", "40 steps with guidance", 80, 630, _LX),
    Public("LightX2V, distilled", "RTX 4090 24 GB", "4 steps", 4, 63, _LX),
    Public(
        "LightX2V", "H100 80 GB", "one step with guidance", 2, 5.18, "https://github.com/ModelTC/LightX2V (2025-12-01)"
    ),
)


def tables() -> dict[str, str]:
    """Return the tables by name."""
    return {"cards": _cards(), "public": _public(), "bars": _bars()}


def _cards() -> str:
    heads = ["card", "recipe", "figures", "a forward, s", "turbo window, s", "4-step window, s"]
    heads.append("a second of video, USD")
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for card in cards():
        forward, window = before(card)
        # There was no sampler of four steps.
        figures = f"{forward:.1f} | {window:.0f} | – | {window * card.price / _SECONDS:.3f}"
        rows.append(f"| {card.name} | before | predicted | {figures} |")
        recipe = FAST[card.name]
        turbo = card_of(estimates_of(f"recipe={recipe}", "sampler=turbo", people=2), card.name)
        few = few_steps(card.name)
        marked = f"{', '.join(few.measured)} measured" if few.measured else "predicted"
        figures = f"{few.forward_seconds:.1f} | {turbo.window_seconds:.0f} | {few.window_seconds:.0f} "
        rows.append(f"| | `recipe={recipe}` | {marked} | {figures}| {few.cost_of_second:.3f} |")
    return "\n".join(rows)


def before(card: Card, resolution: str = "480p", forwards: int = 16) -> tuple[float, float]:
    """Return the seconds of a forward and of a window as the older commit's counts and today's shares predict them.

    Unquantised weights on the card; everything in a row: autoencoder in float32, colours and H.264 on the host.
    """
    kept = json.loads(BEFORE.read_text("utf-8"))
    size = kept["sizes"][resolution]
    forward = seconds.forward_seconds(card, Forward(size["products"], size["attention"], size["moved"]))
    codec = seconds.codec_seconds(card, size["encoding"] + size["decoding"])
    return forward, forwards * forward + codec + size["pixels"] * kept["host_seconds_a_pixel"]


def _public() -> str:
    heads = ["who", "card", "work", "theirs, s", "s a forward", "ours, predicted s a forward", "source"]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for one in PUBLIC:
        ours = few_steps(one.card, people=1)
        rows.append(
            f"| {one.who} | {one.card} | {one.what} | {one.seconds:g} | {one.seconds / one.forwards:.2f} "
            f"| {ours.forward_seconds:.2f} | {_linked(one.source)} |"
        )
    return "\n".join(rows)


def _linked(source: str) -> str:
    address, _, date = source.partition(" ")
    return f"[theirs]({address}) {date}".strip()


def _bars() -> str:
    rows = ["| card | what | at most, s | predicted, s |", "|---|---|---|---|"]
    for (card, what), most in BARS.items():
        few = few_steps(card)
        predicted = few.forward_seconds if what == "forward" else few.window_seconds
        rows.append(
            f"| {card} | {'a forward' if what == 'forward' else 'a 4-step window'} | {most:g} | {predicted:.1f} |"
        )
    return "\n".join(rows)


def few_steps(card: str, people: int = 2) -> CardEstimate:
    """Return what is predicted for a card with its recipe and four steps."""
    return card_of(estimates_of(f"recipe={FAST[card]}", "sampler=distilled", people=people), card)


if __name__ == "__main__":
    write_page(PAGE, tables(), __doc__)
