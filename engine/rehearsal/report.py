"""Make a report of a run on the pretended card: stages in numbers, the plan's figures for them, and faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from engine.assembly.estimates import make_load
from engine.components import evaluations_of
from engine.data.estimates import StageMemory
from engine.machine.profiles import PROFILES
from engine.planning import memory
from engine.planning.estimate import free_of, largest_work, resolve_memory
from engine.planning.memory import CONTEXT
from engine.planning.network import costs_of
from engine.planning.parameters import Sizes
from engine.plugin.manager import installed
from engine.rehearsal.counts import Copy, ForwardCounts
from engine.rehearsal.walk import StageRow, Walk
from engine.text.amounts import gigabytes

#: Share by which a stage of the plan may differ from the rehearsal.
TOLERANCE = 0.03
#: Bytes that may stay on the device without being a fault: rounding, tables, seeds.
_CRUMBS = 32 * 10**6
#: The same for the host, where also pictures and features of voices are tensors for a moment.
HOST_CRUMBS = 400 * 10**6
#: Profiles that keep the transformer on the device as a whole while it is used.
_WHOLE = ("none", "text-offload", "model-offload")
#: Where the buffers for streamed blocks are created.
_STREAMER = "engine/loading/streamer.py"
#: Where diffusers' step caches read from the device whether to skip forwards; others do so in their own file.
_DECIDING = "diffusers/hooks/first_block_cache.py"

Numbers = dict[str, Any]


#: Rows of the tables of a stage that a report prints. `reckon` needs all.
_LISTED = {"left": 5, "moved_by": 8}


@dataclass(frozen=True)
class Fault:
    """Something that would fail on the card, or not work as intended."""

    #: "error", "order", "memory", "copies", "waits", "left" or "plan".
    kind: str
    #: Stage and window; "" for the whole run.
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


@dataclass(frozen=True)
class Report:
    """A rehearsal in numbers; all sizes in bytes."""

    card: str
    settings: Numbers
    stages: tuple[Numbers, ...]
    #: Including CUDA's own share: the peak of live bytes, and the peak that the caching allocator reserved.
    needed: int
    held: int
    memory: int
    fits: bool
    host_peak: int
    #: The plan's figure for that; None if it has none.
    host_plan: int | None
    pinned: int
    faults: tuple[Fault, ...]
    #: How the numbers were computed if not all blocks were run, else "".
    reckoned: str
    seconds: float

    def as_json(self) -> Numbers:
        """Return the report as plain values, of long tables only the largest rows."""
        stages = [
            {**stage, **{key: _largest(stage[key], most) for key, most in _LISTED.items()}} for stage in self.stages
        ]
        return {**asdict(self), "stages": stages}


def _largest(table: Mapping[str, float], most: int) -> dict[str, float]:
    return dict(sorted(table.items(), key=lambda item: -item[1])[:most])


def make_report(walk: Walk, sizes: Sizes) -> Report:
    """Return the report of one run. `sizes` are those of its model."""
    planned, waiting = planned_stages(walk, sizes)
    stages = tuple(_stage(row, planned.get(row.stage)) for row in walk.rows)
    needed = max((max(row.counts.peak, row.counts.arrival) for row in walk.rows), default=0) + CONTEXT
    reserved = max((row.counts.held for row in walk.rows), default=0) + CONTEXT
    return Report(
        card=walk.card.name,
        settings=_settings(walk, sizes),
        stages=stages,
        needed=needed,
        held=reserved,
        memory=walk.card.memory,
        fits=not walk.missing and not walk.error,
        host_peak=max((row.counts.host_peak for row in walk.rows), default=0),
        host_plan=waiting,
        pinned=walk.pinned,
        faults=tuple(_faults(walk, planned, waiting)),
        reckoned="",
        seconds=walk.seconds,
    )


def reckon(fewer: Report, more: Report, blocks: int) -> Report:
    """Return the report for `blocks` blocks from the reports for n and n + 1 blocks.

    Each number is a constant plus a part for each block, so two of them give all others. What the allocator reserves is
    not linear, and is left out.
    """
    count = fewer.settings["blocks"]
    steps = blocks - count

    def number(first: Any, second: Any) -> Any:
        if isinstance(first, dict) or isinstance(second, dict):
            one, other = first or {}, second or {}
            numbers = {key: number(one.get(key), other.get(key)) for key in {**one, **other}}
            # Blocks are copied in pieces of several tensors, so the number of copies does not grow with each block.
            return numbers | {"copies": None} if "copies" in numbers else numbers
        if isinstance(second, (bool, str)) or isinstance(first, str):
            return second
        if first is None and second is None:
            return None
        extrapolated = (first or 0) + steps * ((second or 0) - (first or 0))
        return extrapolated if isinstance(second or first, float) else int(extrapolated)

    if len(fewer.stages) != len(more.stages) or not more.stages:
        # One of them ended early; the report says why.
        return more
    stages = []
    for one, other in zip(fewer.stages, more.stages, strict=True):
        stage = number(one, other)
        stages.append(stage | {"window": one["window"], "held": None, "off": _off(stage["peak"], stage["plan"])})
    needed, limit = max(max(stage["peak"], stage["arrival"]) for stage in stages) + CONTEXT, more.memory
    # Sizes depend on the number of blocks, and so do the plan's figures.
    faults = [fault for fault in more.faults if fault.kind not in ("memory", "plan")]
    if needed > limit:
        faults.append(Fault("memory", "", f"{gigabytes(needed, 2)} are needed of a card of {gigabytes(limit, 2)}"))
    # Pieces of pinned memory do not grow with each block, so the plan is not compared with this.
    host, waiting = max(stage["host_peak"] for stage in stages), number(fewer.host_plan, more.host_plan)
    planned = {stage["stage"]: stage["plan"] for stage in stages if stage["plan"] is not None}
    for name, peak in _worst((stage["stage"], stage["peak"]) for stage in stages).items():
        faults += _plan_faults(name, peak, planned.get(name))
    return Report(
        card=more.card,
        settings={**more.settings, "blocks": blocks},
        stages=tuple(stages),
        needed=needed,
        held=0,
        memory=limit,
        fits=not any(fault.kind in ("error", "memory") for fault in faults),
        host_peak=host,
        host_plan=waiting,
        pinned=number(fewer.pinned, more.pinned),
        faults=tuple(faults),
        reckoned=f"run with {count} and {count + 1} blocks, reckoned for {blocks}",
        seconds=fewer.seconds + more.seconds,
    )


def _settings(walk: Walk, sizes: Sizes) -> Numbers:
    config, plan = walk.config, walk.plan
    return {
        "model": config.model.name,
        "quant": config.quant.name,
        "memory": config.memory.name,
        "profile": walk.memory,
        "sampler": f"{config.sampler.name} ({config.sampler.bundle})",
        "guidance": config.guidance.name,
        "cache": config.cache.name,
        "continuation": config.continuation.style,
        "resolution": config.resolution,
        "size": None if plan is None else list(plan.canvas.target),
        "frames": config.model.window,
        "passes": None if plan is None else plan.passes,
        "speakers": walk.scene.speakers,
        "windows": walk.scene.windows,
        "steps": walk.scene.steps or config.sampler.steps,
        "blocks": costs_of(sizes).layers,
        "heard": walk.heard,
    }


def planned_stages(walk: Walk, sizes: Sizes) -> tuple[dict[str, StageMemory], int | None]:
    """Return the plan's figures for the same weights, profile and windows, by stage, and for weights on the host."""
    if walk.plan is None or walk.memory not in PROFILES or walk.config.quant.name == "gguf":
        # Nothing computes sizes for the types of a GGUF file.
        return {}, None
    work = largest_work(walk.plan, sizes)
    load = make_load(
        walk.config,
        installed(),
        device="cuda",
        dtype="bfloat16",
        memory=walk.memory,
        loras=walk.loras,
        # Files of a family with its own sizes are in the engine's layout.
        converted=not walk.config.model.packaged and walk.config.family.sizes() is None,
    )
    settled = resolve_memory(sizes, load, free_of(walk.card), walk.scene.host)
    stages = memory.stages(sizes, settled, work)
    # Arrays of frames are not tensors.
    uncounted = () if walk.heard else ("audio_encoder",)
    host = max(
        stage.tensors - sum(stage.weights[name] for name in uncounted) for stage in stages if stage.stage == "load"
    )
    return {stage.stage: stage for stage in stages if stage.device == "cuda"}, host


def _stage(row: StageRow, planned: StageMemory | None) -> Numbers:
    counts = row.counts
    return {
        "stage": row.stage,
        "window": row.window,
        "peak": counts.peak,
        "peak_where": counts.peak_where,
        "held": counts.held,
        "arrival": counts.arrival,
        "after": counts.after,
        "left": dict(counts.left.most_common()),
        "weights": dict(row.weights),
        "host_peak": counts.host_peak,
        "pinned": counts.pinned,
        "up": _copies(row, "up"),
        "down": _copies(row, "down"),
        "waits": dict(counts.waits),
        "reads": dict(counts.reads),
        "launches": counts.launches.total(),
        "moved": counts.moved.total(),
        "moved_by": dict(counts.moved.most_common()),
        "flops": counts.flops.total(),
        "flops_by": {f"{name} {dtype}": number for (name, dtype), number in counts.flops.items()},
        "attention": {" ".join(key): number for key, number in counts.attention.items()},
        "forwards": len(row.forwards),
        "forward": _forward(row),
        "plan": None if planned is None else planned.tensors,
        "off": _off(counts.peak, None if planned is None else planned.tensors),
    }


def _off(peak: int, planned: int | None) -> float | None:
    return None if planned is None or not peak else planned / peak - 1


def _copies(row: StageRow, direction: str) -> Numbers:
    copies = [copy for copy in row.counts.copies if copy.direction == direction]
    copied, number = row.counts.copied, row.counts.copies

    def total(counter: Counter[Copy], **filters: Any) -> int:
        return sum(counter[copy] for copy in copies if all(getattr(copy, key) == filters[key] for key in filters))

    by_place: Counter[str] = Counter()
    for copy in copies:
        by_place[copy.where] += copied[copy]
    return {
        "bytes": total(copied),
        "copies": total(number),
        "blocking": total(number, blocks=True),
        "blocking_bytes": total(copied, blocks=True),
        "pageable_bytes": total(copied, memory="pageable"),
        "where": dict(by_place.most_common(5)),
    }


def _forward(row: StageRow) -> Numbers | None:
    if not row.forwards:
        return None
    count = len(row.forwards)
    return {name: sum(getattr(one, name) for one in row.forwards) / count for name in ForwardCounts._fields}


# --- what must not happen
# ----------------------------------------------------------------------------------------------


def _faults(walk: Walk, planned: Mapping[str, StageMemory], waiting: int | None) -> Iterator[Fault]:
    """Yield what would fail on a real card, or differs from the plan."""
    if walk.error:
        yield Fault("error", "", f"{walk.error} at {walk.error_where}")
    for what, count in walk.races.items():
        yield Fault("order", "", f"{count} x {what}")
    if walk.missing:
        yield Fault(
            "memory", "", f"the card is too small by {gigabytes(walk.missing, 2)}, with what its allocator holds"
        )
    before: StageRow | None = None
    for row in walk.rows:
        name = _summary(row.stage, row.window)
        yield from (Fault("copies", name, what) for what in _copy_faults(walk, row))
        yield from (Fault("waits", name, what) for what in _wait_faults(walk, row))
        yield from (Fault("left", name, what) for what in _residue(walk, row, before, planned.get(row.stage)))
        before = row
    host = max((row.counts.host_peak for row in walk.rows), default=0)
    yield from _plan_faults("memory of the host", host, waiting, HOST_CRUMBS)
    for stage, peak in _worst([(row.stage, row.counts.peak) for row in walk.rows]).items():
        if stage in planned:
            yield from _plan_faults(stage, peak, planned[stage].tensors)


def _worst(peaks: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Return the largest peak of each stage over all windows: a plan is for the largest window."""
    longest: dict[str, int] = {}
    for stage, peak in peaks:
        longest[stage] = max(peak, longest.get(stage, 0))
    return longest


def _summary(stage: str, window: int) -> str:
    return f"{stage} of window {window}" if window else stage


def _plan_faults(name: str, peak: int, planned: int | None, crumbs: int = _CRUMBS) -> Iterator[Fault]:
    off = _off(peak, planned)
    if off is not None and planned is not None and abs(off) > TOLERANCE and abs(planned - peak) > crumbs:
        what = f"the plan says {gigabytes(planned, 2)}, it takes {peak / 1e9:.2f} ({off:+.1%})"
        yield Fault("plan", name, what)


def _copy_faults(walk: Walk, row: StageRow) -> Iterator[str]:
    counts, offloaded = row.counts, walk.memory not in _WHOLE
    returned = sum(size for copy, size in counts.copied.items() if copy.direction == "down" and not _frames(copy))
    if returned > _CRUMBS:
        yield f"{gigabytes(returned, 2)} are copied back to the host"
    inside = [copy for copy in counts.copies if copy.forward]
    if not offloaded and inside:
        yield f"{sum(counts.copies[copy] for copy in inside)} copies inside of forwards, at {inside[0].where}"
    slow = next((copy for copy in inside if copy.memory == "pageable" or copy.blocks), None)
    if offloaded and slow is not None:
        yield f"copies that the host waits for inside of forwards, at {slow.where}"
    if offloaded and row.forwards:
        most, whole = max(forward.up for forward in row.forwards), walk.weights.get("transformer", 0)
        if whole and most > 1.01 * whole:
            yield f"a forward brings {gigabytes(most, 2)}, more than the network's {whole / 1e9:.2f}"


def _wait_faults(walk: Walk, row: StageRow) -> Iterator[str]:
    cache = installed().caches.config(walk.config.cache.name).__module__.replace(".", "/")
    for place, number in row.counts.forward_waits.items():
        if not place.startswith((_DECIDING, f"{cache}.py")):
            yield f"the host waits for the device inside of forwards, {number} x at {place}"
    reads, allowed = row.counts.reads.total(), _deciding_reads(walk)
    if row.forwards and reads > allowed:
        yield f"{reads} values are read from the device, {allowed} may be; {', '.join(row.counts.reads)}"


def _residue(walk: Walk, row: StageRow, before: StageRow | None, planned: StageMemory | None) -> Iterator[str]:
    if planned is None:
        return
    for name, count in row.weights.items():
        over = count - planned.weights.get(name, 0)
        if over > max(_CRUMBS, 0.01 * planned.weights.get(name, 0)):
            yield f"{gigabytes(over, 2)} of the {name} are on the device, and should not be"
    if row.stage == "denoise" and before is not None:
        # Buffers for streamed blocks belong to the network as long as it is there.
        growth = row.counts.left - before.counts.left
        names = {place: size for place, size in growth.items() if not place.startswith(_STREAMER)}
        if sum(names.values()) > _latents(walk) + _CRUMBS:
            places = ", ".join(sorted(names, key=names.__getitem__, reverse=True)[:3])
            yield f"{gigabytes(sum(names.values()), 2)} are left on the device, made at {places}"


def _frames(copy: Copy) -> bool:
    # The decoded frames, which are encoded on the host.
    return copy.where.startswith(("engine/stages/", "engine/network/codec.py"))


def _deciding_reads(walk: Walk) -> int:
    steps = walk.scene.steps or walk.config.sampler.steps
    passes = 1 if walk.plan is None else walk.plan.passes
    sampler = installed().samplers.build(replace(walk.config.sampler, steps=steps))
    evaluations = sum(evaluations_of(sampler, steps))
    cache = installed().caches.build(walk.config.cache).cost(branches=passes, tokens=1, channels=1, blocks=1)
    return evaluations * cache.reads + (steps if walk.config.sampler.name == "unipc" else 0)


def _latents(walk: Walk) -> int:
    if walk.plan is None:
        return 0
    width, height = walk.plan.canvas.target
    return 2 * 16 * (1 + walk.config.model.window // 4) * (height // 8) * (width // 8) * 4
