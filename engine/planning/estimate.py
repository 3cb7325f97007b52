"""Plan and sizes -> Estimates: memory by stage, operations, and seconds and cost on named GPUs."""

from __future__ import annotations

import sys
from dataclasses import replace

from engine.data import Plan, Window
from engine.data.estimates import CardEstimate, Estimates
from engine.machine.profiles import STREAMED, allowance, choose_profile, resident_blocks, room_for_blocks
from engine.planning import memory
from engine.planning.gpus import Card, cards, find_card, prices
from engine.planning.memory import Load, Work
from engine.planning.network import Section, costs_of
from engine.planning.operations import Multiplied
from engine.planning.parameters import PARTS, Count, Sizes
from engine.planning.rates import rates_of
from engine.planning.timing import codec_operations, latents_of, times

#: Stands for unknown free memory, which is assumed to be enough.
_ENOUGH = sys.maxsize


def estimate(
    plan: Plan,
    sizes: Sizes,
    load: Load,
    *,
    card: str | None = None,
    host_free: int = _ENOUGH,
    start_bytes: int | None = None,
) -> Estimates:
    """Estimate the needs of `plan` with weights kept as `load` says.

    `card` is the driver's name of this machine's GPU, `host_free` its free host memory in bytes (for memory=auto),
    `start_bytes` the size of the weight files, if they exist. The GPUs of the table are estimated in bfloat16 on CUDA,
    whatever `load` says about this machine; memory=auto is resolved for each GPU, with enough host memory. Raises
    UnknownComponent for a memory profile or quantisation that cannot be estimated.
    """
    load.check()
    work, gpu = largest_work(plan, sizes), find_card(card or "")
    device_free = None if load.device == "cpu" else _ENOUGH if gpu is None else free_of(gpu)
    resolved = resolve_memory(sizes, load, device_free, host_free)
    resolved = resolve_batch(sizes, resolved, work, None if gpu is None or load.device == "cpu" else gpu.memory)
    stages = memory.stages(sizes, resolved, work)
    on_cards = tuple(_on_card(one, plan, sizes, load, work) for one in cards() if multiplies(one, load.multiplied))
    here = next((one for one in on_cards if gpu is not None and one.card == gpu.name), None)
    forward = costs_of(sizes).forward_work(work.section, value=2, multiplied=load.multiplied)
    source = prices()
    return Estimates(
        device=load.device,
        dtype=load.dtype,
        card=gpu.name if gpu is not None else card,
        device_memory_bytes=memory.device_bytes(stages) if load.device == "cuda" else None,
        host_memory_bytes=memory.host_bytes(stages),
        seconds=here.seconds if here is not None else None,
        cost=here.cost if here is not None else None,
        parameters={part: sizes.counts[part].parameters for part in PARTS},
        weights=memory.weights_bytes(sizes, resolved),
        stages=stages,
        forward_flops=forward.operations,
        products_in_8_bits=forward.in_8_bits / forward.products,
        flops=sum(_operations(plan, sizes, window) for window in plan.windows),
        start_bytes=_start_bytes(sizes, load) if start_bytes is None else start_bytes,
        cards=on_cards,
        prices=f"{source.currency}, {source.what}, {source.source}, {source.date}",
        picked=resolved.memory if load.memory == "auto" else "",
    )


def largest_work(plan: Plan, sizes: Sizes) -> Work:
    """Return the largest window of `plan` and the voices in it."""
    frames = max(window.frames for window in plan.windows)
    width, height = plan.canvas.target
    return Work(
        latents=latents_of(sizes, frames, (width, height)),
        frames=frames,
        height=height,
        width=width,
        speakers=len(plan.seats),
        passes=plan.passes,
        seconds=plan.seconds,
        windows=len(plan.windows),
        motion=max(window.motion for window in plan.windows),
    )


def _operations(plan: Plan, sizes: Sizes, window: Window) -> int:
    latents = latents_of(sizes, window.frames, plan.canvas.target)
    forward = costs_of(sizes).forward_work(Section(latents, len(plan.seats), window.motion), value=2)
    return plan.forwards // len(plan.windows) * forward.operations + sum(codec_operations(plan, sizes, window))


def multiplies(card: Card, multiplied: Multiplied | None) -> bool:
    """Return whether a card has the products in 8 bits that are chosen, if any are."""
    return multiplied is None or card.speed_up(multiplied.format) > 1


def free_of(card: Card) -> int:
    """Return the bytes that a card has for tensors."""
    return card.memory - memory.CONTEXT


def resolve_memory(sizes: Sizes, load: Load, device_free: int | None, host_free: int) -> Load:
    """Return `load` with "auto" resolved as when the weights are loaded; `device_free` None: on a CPU."""
    if "auto" not in (load.memory, load.resident):
        return load
    frames, height, across = load.window
    costs = costs_of(sizes)
    length = costs.tokens(Section(latents_of(sizes, frames, (across, height)), 1))
    weights = memory.weights_bytes(sizes, replace(load, loras=0))
    # It always stays on the CPU.
    del weights["audio_encoder"]
    allowed = allowance(length, costs.width, memory.WIDTHS[load.dtype])
    if load.resident == "auto":
        load = replace(load, resident=_staying(sizes, load, room_for_blocks(allowed, device_free or 0)))
    if load.memory != "auto":
        return load
    name, _ = choose_profile(weights, allowed, device_free=device_free, host_free=host_free)
    return replace(load, memory=name)


def resolve_batch(sizes: Sizes, load: Load, work: Work, memory_bytes: int | None) -> Load:
    """Return `load` with batched=None resolved; `memory_bytes` are a card's, None: on a CPU.

    It is true if blocks are streamed, which is then done once for all passes, and if the memory is sufficient.
    """
    if work.passes < 2 or memory_bytes is None:
        return replace(load, batched=bool(load.batched) and work.passes > 1)
    if load.batched is not None:
        return load
    together = replace(load, batched=True)
    fits = load.memory in STREAMED and memory.device_bytes(memory.stages(sizes, together, work)) <= memory_bytes
    return together if fits else replace(load, batched=False)


def _staying(sizes: Sizes, load: Load, room: int) -> int:
    value, quant = memory.WIDTHS[load.dtype], load.kept
    return resident_blocks(
        room,
        root=sizes.root.bytes(value) + load.loras,
        block=sizes.block.bytes(value, quant),
        places=load.blocks + 1,
        layers=costs_of(sizes).layers,
    )


def _on_card(card: Card, plan: Plan, sizes: Sizes, choices: Load, work: Work) -> CardEstimate:
    load = resolve_memory(sizes, replace(choices, device="cuda", dtype="bfloat16"), free_of(card), _ENOUGH)
    load = resolve_batch(sizes, load, work, card.memory)
    stages = memory.stages(sizes, load, work)
    needed, host = memory.device_bytes(stages), memory.host_bytes(stages)
    weights = memory.weights_bytes(sizes, load)
    took = times(card, plan, sizes, load, weights)
    rates, cost = rates_of(card), took.total * card.price
    return CardEstimate(
        card=card.name,
        memory_bytes=card.memory,
        needed_bytes=needed,
        fits=needed <= card.memory,
        host_needed_bytes=host,
        host_memory_bytes=card.host_memory,
        host_listed_bytes=card.host_listed,
        fits_host=None if card.host_memory is None else host <= card.host_memory,
        forward_seconds=took.forward,
        step_seconds=took.step,
        window_seconds=took.window,
        seconds=took.total,
        cost=cost,
        cost_of_second=cost / plan.seconds if plan.seconds else 0.0,
        measured=rates.measured,
        measured_where=rates.source,
        picked=load.memory if choices.memory == "auto" else "",
        batched=bool(load.batched),
        most_seconds=took.total * (1 + plan.retakes) if plan.retakes else None,
    )


def _start_bytes(sizes: Sizes, load: Load) -> int:
    return _published(sizes, load.quant if load.stored == "none" else load.stored)


def _published(sizes: Sizes, quant: str) -> int:
    """Return the bytes of the published files: float32, encoders of text and picture in 16 bits; or quantised."""
    sizes_in_bytes = {part: count.parameters * 4 for part, count in sizes.counts.items()}
    sizes_in_bytes["transformer"] = sizes.counts["transformer"].parameters * costs_of(sizes).published
    text = sizes.configs["text_encoder"]
    table = text["vocab_size"] * text["d_model"]
    sizes_in_bytes["text_encoder"] = sizes.counts["text_encoder"].parameters * 2
    sizes_in_bytes["image_encoder"] = sizes.counts["image_encoder"].parameters * 2
    scheme = memory.QUANTS.get(quant)
    if scheme is not None and quant.endswith("-quanto"):
        sizes_in_bytes["transformer"] = sizes.counts["transformer"].bytes(2, scheme)
        # The token table is not quantised.
        sizes_in_bytes["text_encoder"] = Count(
            cast=table, linear=sizes.counts["text_encoder"].parameters - table
        ).bytes(2, scheme)
    return sum(sizes_in_bytes.values())
