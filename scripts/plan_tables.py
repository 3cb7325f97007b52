"""The tables of docs/plan.md: `python -m scripts.plan_tables` prints them, `--write` puts them into the page."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from engine import EngineService, Request, Speaker
from engine.data.estimates import CardEstimate, Estimates
from scripts.page_tables import main as write_page

#: Published figures for one A100 with 80 GB, three forwards per step: what is on the card, seconds per step, GB.
PUBLISHED = (
    ("480p, everything on the card", ("memory=model-offload",), "35", "48"),
    ("480p, offloaded", ("memory=group-offload",), "44", "13"),
    ("720p, everything on the card", ("memory=model-offload", "resolution=720p"), "115", "66"),
    ("480p, int8", ("memory=model-offload", "quant=int8"), "", "30"),
    ("480p, int8, offloaded", ("memory=group-offload", "quant=int8"), "", "15"),
)
#: Recipe -> the card in its table row.
SHOWN = {
    "card-24gb": "RTX 4090 24 GB",
    "card-24gb-720p": "RTX 4090 24 GB",
    "card-48gb": "L40S 48 GB",
    "card-48gb-720p": "L40S 48 GB",
    "card-80gb": "A100 80 GB",
    "card-80gb-720p": "H100 80 GB",
    "flashtalk-24gb": "RTX 4090 24 GB",
    "flashtalk-48gb": "L40S 48 GB",
    "flashtalk-80gb": "H100 80 GB",
    "longcat-24gb": "RTX 4090 24 GB",
    "longcat-48gb": "L40S 48 GB",
    "longcat-80gb": "H100 80 GB",
}


def tables(measured: Path, rehearsed: Path) -> dict[str, str]:
    """Return the tables by name.

    "measured" is from the report of `multitalk bench plan`, "rehearsed" from that of `nox -s rehearse`.
    """
    return {
        "published": _published(),
        "recipes": _recipes(),
        "eight-bits": _eight_bits(),
        "rehearsed": _rehearsed(rehearsed),
        "measured": _measured_table(measured),
    }


def _published() -> str:
    rows = [
        "| | overrides here | s a step, theirs | predicted | GB, theirs | predicted |",
        "|---|---|---|---|---|---|",
    ]
    for what, overrides, seconds, size in PUBLISHED:
        card = card_of(estimates_of("model=multitalk", *overrides), "A100 80 GB")
        words = " ".join(overrides)
        rows.append(
            f"| {what} | `{words}` | {seconds or '–'} | {card.step_seconds:.0f} "
            f"| {size} | {card.needed_bytes / 1e9:.0f} |"
        )
    return "\n".join(rows)


def _recipes() -> str:
    heads = ["recipe", "sampler", "card", "needs of the card", "needs of the host", "such hosts have"]
    heads += ["s a step", "81 frames", "USD"]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for recipe, name in SHOWN.items():
        for sampler in ("standard", "turbo"):
            card = card_of(estimates_of(f"recipe={recipe}", f"sampler={sampler}"), name)
            sizes = f"{card.needed_bytes / 1e9:.1f} GB | {card.host_needed_bytes / 1e9:.0f} GB | {_hosts(card)}"
            rows.append(
                f"| `{recipe}` | {sampler} | {name} | {sizes} "
                f"| {card.step_seconds:.1f} | {card.seconds / 60:.1f} min | {card.cost:.2f} |"
            )
    return "\n".join(rows)


def _eight_bits() -> str:
    quants = ("none", "int8", "int8-dynamic", "fp8-dynamic")
    rows = ["| card | " + " | ".join(f"`quant={quant}`" for quant in quants) + " |", "|---" * 5 + "|"]
    found = {
        quant: {card.card: card for card in estimates_of("model=multitalk", "memory=none", f"quant={quant}").cards}
        for quant in quants
    }
    for name in found["none"]:
        cells = [f"{cards[name].step_seconds:.1f}" if name in cards else "–" for cards in found.values()]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _rehearsed(path: Path) -> str:
    heads = ["recipe", "sampler", "speakers", "card", "tensors at most", "in", "plan off by", "host", "of it pinned"]
    heads += ["up a forward", "copies in it", "waits in it", "weights back"]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for run in json.loads(path.read_text("utf-8")):
        if run["reckoned"]:
            continue
        stages, settings = run["stages"], run["settings"]
        worst = max(stages, key=lambda stage: int(stage["peak"]))
        forward = next(stage["forward"] for stage in stages if stage["forward"])
        # Decoded frames go to the host; what else does would be weights.
        back = sum(stage["down"]["bytes"] for stage in stages if stage["stage"] != "vae decode")
        recipe = run["overrides"][0].partition("=")[2]
        sampler = run["overrides"][1].partition("=")[2]
        rows.append(
            f"| `{recipe}` | {sampler} | {settings['speakers']} | {run['card']} | {worst['peak'] / 1e9:.2f} GB "
            f"| {worst['stage']} | {_farthest(stages):+.1%} | {run['host_peak'] / 1e9:.1f} GB "
            f"| {run['pinned'] / 1e9:.1f} GB | {forward['up'] / 1e9:.2f} GB | {forward['copies']:.0f} "
            f"| {forward['waits']:.0f} | {back / 1e9:.2f} GB |"
        )
    return "\n".join(rows)


def _farthest(stages: Sequence[dict[str, Any]]) -> float:
    """Return the plan's largest relative error over the stages, each at its worst window."""
    peaks: dict[str, tuple[int, int]] = {}
    for stage in stages:
        if stage["plan"] is not None:
            peak, _ = peaks.get(stage["stage"], (0, 0))
            peaks[stage["stage"]] = max(peak, stage["peak"]), stage["plan"]
    return max((plan / peak - 1 for peak, plan in peaks.values()), key=abs)


def _measured_table(path: Path) -> str:
    rows = ["| case | weights | predicted | measured | off by |", "|---|---|---|---|---|"]
    for run in json.loads(path.read_text("utf-8"))["runs"]:
        sizes = " | ".join(f"{run[key] / 1e6:.0f} MB" for key in ("weights_bytes", "predicted_bytes", "measured_bytes"))
        rows.append(f"| {run['case']} | {sizes} | {run['error']:+.1%} |")
    return "\n".join(rows)


@cache
def service(*overrides: str) -> EngineService:
    """Return an engine that plans with `overrides`, composed once, because that takes longer than planning."""
    return EngineService(overrides)


@cache
def estimates_of(*overrides: str, people: int = 1) -> Estimates:
    """Plan 81 frames of `people` in a picture of 16 : 9."""
    voice = str(files("engine") / "examples" / "one.flac")
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.png"
        Image.new("RGB", (1280, 720)).save(picture)
        request = Request("a person talks", str(picture), (Speaker(voice),) * people, frames=81)
        estimates = service(*overrides).plan(request).estimates
    assert estimates is not None
    return estimates


def _hosts(card: CardEstimate) -> str:
    sizes = sorted({size for size in (card.host_memory_bytes, card.host_listed_bytes) if size is not None})
    text = " to ".join(f"{size / 1e9:.0f}" for size in sizes)
    return f"{text} GB" if sizes else "unknown"


def card_of(estimates: Estimates, name: str) -> CardEstimate:
    """Return the estimate for the card `name`."""
    return next(card for card in estimates.cards if card.card == name)


if __name__ == "__main__":
    write_page(
        Path("docs/plan.md"), tables(Path("docs/measured/plan.json"), Path("docs/measured/rehearsal.json")), __doc__
    )
