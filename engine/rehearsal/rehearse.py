"""A rehearsal from overrides to report, and its table for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from engine.errors import ConfigError
from engine.planning.gpus import Card, cards
from engine.planning.parameters import Sizes, make_sizes, read_sizes
from engine.rehearsal.report import Numbers, Report, make_report, reckon
from engine.rehearsal.walk import Scene, Walk, architecture_of, walk


def rehearse(overrides: Sequence[str], card: Card, scene: Scene, *, expandable: bool = True) -> Report:
    """Walk through a generation with `overrides` on a pretended `card`; see docs/rehearsal.md.

    `expandable`: torch's allocator uses expandable segments, as the engine has it. With `scene.blocks` that many blocks
    of the transformer are run, and once more with one more, and the numbers for all of them are reckoned from both.
    Raises ConfigError for a config that cannot be rehearsed.
    """
    first = walk(overrides, card, scene, expandable=expandable)
    if scene.blocks is None:
        return make_report(first, sizes_of(first))
    second = walk(overrides, card, replace(scene, blocks=scene.blocks + 1), expandable=expandable)
    whole = replace(scene, blocks=None)
    return reckon(
        make_report(first, sizes_of(first)),
        make_report(second, sizes_of(second)),
        int(sizes_of(replace(first, scene=whole)).configs["transformer"]["num_layers"]),
    )


def default_card(overrides: Sequence[str]) -> Card:
    """Return the smallest known card of the size in the recipe's name, as in card-24gb; without one the largest."""
    known = sorted(cards(), key=lambda card: card.memory)
    recipes = [word.partition("=")[2] for word in overrides if word.lstrip("+").startswith("recipe=")]
    sizes = [part.removesuffix("gb") for part in "".join(recipes[-1:]).split("-") if part.endswith("gb")]
    # Their names hold what the maker says: "RTX 4090 24 GB".
    return next((card for card in known if sizes and card.name.endswith(f" {sizes[0]} GB")), known[-1])


def sizes_of(seen: Walk) -> Sizes:
    model = seen.config.model
    if model.packaged:
        return read_sizes(_packaged(model.folder))
    return make_sizes(architecture_of(seen.config, seen.scene))


def _packaged(folder: str) -> Path:
    found = Path(str(files("engine") / "weights" / folder))
    if not found.is_dir():
        raise ConfigError(f"the package has no weights in {folder}", field="model.folder")
    return found


# --- for people -------------------------------------------------------------------------------------------------------


def table(report: Report) -> Iterator[str]:
    """Yield the lines of a report as a person reads it."""
    said = report.settings
    size = "" if said["size"] is None else f", {said['size'][0]} x {said['size'][1]}"
    yield f"rehearsal of {said['model']} on a pretended {report.card}{size}, {said['frames']} frames a window"
    yield (
        f"quant {said['quant']}, memory {said['profile']}, {said['sampler']}, guidance {said['guidance']}, "
        f"cache {said['cache']}, continuation {said['continuation']}"
    )
    yield f"{said['speakers']} speakers, {said['windows']} windows of {said['steps']} steps, {said['blocks']} blocks"
    if report.reckoned:
        yield report.reckoned
    yield ""
    heads = (
        "stage",
        "peak GB",
        "plan",
        "left",
        "host",
        "up GB",
        "blocking",
        "down",
        "waits",
        "launches",
        "TFLOP",
        "GB r/w",
    )
    yield f"{heads[0]:<16}" + "".join(f"{head:>9}" for head in heads[1:])
    for stage in report.stages:
        yield _line(stage)
    yield ""
    yield from _forwards(report)
    held = f", {report.held / 1e9:.2f} with what the allocator holds" if report.held else ""
    verdict = "fits" if report.fits else "does not work"
    yield (
        f"{verdict}: {report.needed / 1e9:.2f} GB needed{held}, of {report.memory / 1e9:.2f}; "
        f"host {report.host_peak / 1e9:.2f} GB at most, {report.pinned / 1e9:.2f} pinned"
    )
    for fault in report.faults:
        yield f"fault: {fault}"
    yield f"took {report.seconds:.0f} s"


def _line(stage: Numbers) -> str:
    name = f"{stage['stage']} {stage['window']}" if stage["window"] else stage["stage"]
    plan = "" if stage["off"] is None else f"{stage['off']:+.1%}"
    cells = (
        f"{stage['peak'] / 1e9:.2f}",
        plan,
        f"{stage['after'] / 1e9:.2f}",
        f"{stage['host_peak'] / 1e9:.2f}",
        f"{stage['up']['bytes'] / 1e9:.2f}",
        f"{stage['up']['blocking_bytes'] / 1e9:.2f}",
        f"{stage['down']['bytes'] / 1e9:.2f}",
        f"{sum(stage['waits'].values())}",
        f"{stage['launches']}",
        f"{stage['flops'] / 1e12:.1f}",
        f"{stage['moved'] / 1e9:.0f}",
    )
    return f"{name:<16}" + "".join(f"{cell:>9}" for cell in cells)


def _forwards(report: Report) -> Iterator[str]:
    for stage in report.stages:
        forward = stage["forward"]
        if forward is not None:
            yield (
                f"a forward of window {stage['window']}: {forward['launches']:.0f} launches, "
                f"{forward['flops'] / 1e12:.1f} TFLOP, {forward['moved'] / 1e9:.0f} GB read and written, "
                f"{forward['copies']:.0f} copies, {forward['up'] / 1e9:.2f} GB up, {forward['waits']:.0f} waits"
            )
