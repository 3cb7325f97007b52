"""A rehearsal from overrides to report, and its table for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from engine.errors import ConfigError
from engine.planning.gpus import Card, cards
from engine.planning.network import costs_of
from engine.planning.parameters import Sizes, make_sizes, read_sizes
from engine.rehearsal.report import Numbers, Report, make_report, reckon
from engine.rehearsal.walk import Scene, Walk, architecture_of, walk
from engine.text.terminal import hanging


def rehearse(overrides: Sequence[str], card: Card, scene: Scene, *, expandable: bool = True) -> Report:
    """Run a generation with `overrides` on a simulated `card`; see docs/rehearsal.md.

    `expandable`: torch's allocator uses expandable segments, as in the engine. With `scene.blocks` the rehearsal runs
    with that many blocks of the transformer, again with one more, and extrapolates the numbers for all blocks.
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
        costs_of(sizes_of(replace(first, scene=whole))).layers,
    )


def default_card(overrides: Sequence[str]) -> Card:
    """Return the smallest known card of the size in the recipe's name, as in card-24gb; without one the largest."""
    by_memory = sorted(cards(), key=lambda card: card.memory)
    recipes = [word.partition("=")[2] for word in overrides if word.lstrip("+").startswith("recipe=")]
    sizes = [part.removesuffix("gb") for part in "".join(recipes[-1:]).split("-") if part.endswith("gb")]
    # Names have the maker's figure: "RTX 4090 24 GB".
    return next((card for card in by_memory if sizes and card.name.endswith(f" {sizes[0]} GB")), by_memory[-1])


def sizes_of(walk: Walk) -> Sizes:
    model = walk.config.model
    if model.packaged:
        return read_sizes(_packaged(model.folder))
    own: Sizes | None = walk.config.family.sizes(walk.scene.blocks)
    return make_sizes(architecture_of(walk.config, walk.scene)) if own is None else own


def _packaged(folder: str) -> Path:
    weights_folder = Path(str(files("engine") / "weights" / folder))
    if not weights_folder.is_dir():
        raise ConfigError(f"the package has no weights in {folder}", field="model.folder")
    return weights_folder


# --- for people -------------------------------------------------------------------------------------------------------


#: Columns of the table after the stage's name.
_HEADS = ("peak GB", "plan", "left", "host", "up GB", "blocking", "down", "waits", "launches", "TFLOP", "GB r/w")
_NAME, _CELL = 16, 9


def table(report: Report, width: int | None = None) -> Iterator[str]:
    """Yield the lines of a report for people; columns that do not fit into `width` follow below the others."""
    for line in _about(report):
        yield from hanging("", line, width)
    yield ""
    rows = [("stage", _HEADS), *(_row(stage) for stage in report.stages)]
    many = len(_HEADS) if width is None else max(1, (width - _NAME) // _CELL)
    for start in range(0, len(_HEADS), many):
        for name, cells in rows:
            yield f"{name:<{_NAME}}" + "".join(f"{cell:>{_CELL}}" for cell in cells[start : start + many])
        yield ""
    for line in (*_forwards(report), *_verdict(report)):
        yield from hanging("", line, width)


def _about(report: Report) -> Iterator[str]:
    chosen = report.settings
    size = "" if chosen["size"] is None else f", {chosen['size'][0]} x {chosen['size'][1]}"
    yield f"rehearsal of {chosen['model']} on a simulated {report.card}{size}, {chosen['frames']} frames a window"
    yield (
        f"quant {chosen['quant']}, memory {chosen['profile']}, {chosen['sampler']}, guidance {chosen['guidance']}, "
        f"cache {chosen['cache']}, continuation {chosen['continuation']}"
    )
    numbers = (
        _many(chosen["speakers"], "speaker"),
        f"{_many(chosen['windows'], 'window')} of {_many(chosen['steps'], 'step')}",
        _many(chosen["blocks"], "block"),
    )
    yield ", ".join(numbers)
    if report.reckoned:
        yield report.reckoned


def _many(number: int | None, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _verdict(report: Report) -> Iterator[str]:
    reserved = f", {report.held / 1e9:.2f} with what the allocator holds" if report.held else ""
    verdict = "fits" if report.fits else "does not work"
    yield (
        f"{verdict}: {report.needed / 1e9:.2f} GB needed{reserved}, of {report.memory / 1e9:.2f}; "
        f"host {report.host_peak / 1e9:.2f} GB at most, {report.pinned / 1e9:.2f} pinned"
    )
    for fault in report.faults:
        yield f"fault: {fault}"
    yield f"took {report.seconds:.0f} s"


def _row(stage: Numbers) -> tuple[str, tuple[str, ...]]:
    name = f"{stage['stage']} {stage['window']}" if stage["window"] else stage["stage"]
    return name, (
        f"{stage['peak'] / 1e9:.2f}",
        "" if stage["off"] is None else f"{stage['off']:+.1%}",
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


def _forwards(report: Report) -> Iterator[str]:
    for stage in report.stages:
        forward = stage["forward"]
        if forward is not None:
            copies = "" if forward["copies"] is None else f"{forward['copies']:.0f} copies, "
            yield (
                f"a forward of window {stage['window']}: {forward['launches']:.0f} launches, "
                f"{forward['flops'] / 1e12:.1f} TFLOP, {forward['moved'] / 1e9:.0f} GB read and written, "
                f"{copies}{forward['up'] / 1e9:.2f} GB up, {forward['waits']:.0f} waits, "
                f"{forward['linear_8_bits'] / max(forward['linear'], 1):.1%} of linear operations in 8 bits"
            )
