"""Plan and sizes -> Estimates: memory by stage, operations, and seconds and cost on named GPUs."""

from __future__ import annotations

from dataclasses import replace

from engine.data import Plan, Window
from engine.estimates import CardEstimate, Estimates
from engine.fit import memory, seconds
from engine.fit.cards import Card, cards, find_card, prices
from engine.fit.memory import Load, Work
from engine.fit.sizes import PARTS, Sizes
from engine.fit.work import codec_work, forward_work


def estimate(
    plan: Plan, sizes: Sizes, load: Load, *, card: str | None = None, start_bytes: int | None = None
) -> Estimates:
    """Estimate what `plan` needs with weights kept as `load` says.

    `card` is the driver's name of this machine's GPU; `start_bytes` the size of the files where they are there. The
    GPUs of the table are estimated in bfloat16 on CUDA whatever `load` says of this machine. Raises UnknownComponent
    for a memory profile or quantisation without arithmetic.
    """
    load.check()
    work = _largest(plan, sizes)
    stages = memory.stages(sizes, load, work)
    cuda = replace(load, device="cuda", dtype="bfloat16")
    needed = memory.device_bytes(memory.stages(sizes, cuda, work))
    on_cards = tuple(_on_card(one, plan, sizes, cuda, needed) for one in cards())
    known = find_card(card or "")
    here = next((one for one in on_cards if known is not None and one.card == known.name), None)
    forward = forward_work(sizes.configs["transformer"], work.latents, value=2, speakers=work.speakers)
    source = prices()
    return Estimates(
        device=load.device,
        dtype=load.dtype,
        card=known.name if known is not None else card,
        device_memory_bytes=memory.device_bytes(stages) if load.device == "cuda" else None,
        host_memory_bytes=memory.host_bytes(stages),
        seconds=here.seconds if here is not None else None,
        cost=here.cost if here is not None else None,
        parameters={part: sizes.counts[part].parameters for part in PARTS},
        weights=memory.weights_bytes(sizes, load),
        stages=stages,
        forward_flops=forward.operations,
        flops=sum(_operations(plan, sizes, window) for window in plan.windows),
        start_bytes=start_bytes if start_bytes is not None else _published(sizes),
        cards=on_cards,
        prices=f"{source.currency}, {source.what}, {source.source}, {source.date}",
    )


def latents_of(sizes: Sizes, frames: int, size: tuple[int, int]) -> tuple[int, int, int]:
    """Return the latents (T, h, w) of a window of `frames` at `size` (width, height)."""
    vae = sizes.configs["vae"]
    spatial = int(vae["patch_size"] or 1) * 2 ** (len(vae["dim_mult"]) - 1)
    temporal = 2 ** sum(map(bool, vae["temperal_downsample"]))
    return 1 + (frames - 1) // temporal, size[1] // spatial, size[0] // spatial


def _largest(plan: Plan, sizes: Sizes) -> Work:
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
    )


def _operations(plan: Plan, sizes: Sizes, window: Window) -> int:
    latents = latents_of(sizes, window.frames, plan.canvas.target)
    forward = forward_work(sizes.configs["transformer"], latents, value=2, speakers=len(plan.seats))
    return plan.steps * plan.passes * forward.operations + sum(_codec(plan, sizes, window))


def _codec(plan: Plan, sizes: Sizes, window: Window) -> tuple[int, int]:
    width, height = plan.canvas.target
    encoding, decoding = (
        codec_work(sizes.configs["vae"], side, window.frames, height, width) for side in ("encoder", "decoder")
    )
    return encoding, decoding


def _on_card(card: Card, plan: Plan, sizes: Sizes, load: Load, needed: int) -> CardEstimate:
    weights = memory.weights_bytes(sizes, load)
    transformer = sizes.configs["transformer"]
    blocks = (sizes.block * transformer["num_layers"]).bytes(2, weight=memory.QUANTS[load.quant])
    moved = blocks if load.memory == "group-offload" else 0
    unpacked = sizes.counts["transformer"].linear if load.quant != "none" else 0
    # Each window has every component on the device once, and brings it there and back.
    exchanged = 0 if load.memory == "none" else 2 * sum(weights[part] for part in ("vae", "image_encoder"))
    exchanged += 2 * weights["transformer"] if load.memory == "model-offload" else 0
    total = step = 0.0
    for window in plan.windows:
        latents = latents_of(sizes, window.frames, plan.canvas.target)
        work = forward_work(transformer, latents, value=2, speakers=len(plan.seats))
        of_step = plan.passes * seconds.forward_seconds(card, work, moved_weights=moved, unpacked=unpacked)
        step = max(step, of_step)
        total += plan.steps * of_step + seconds.codec_seconds(card, sum(_codec(plan, sizes, window)))
        total += seconds.link_seconds(card, exchanged)
    return CardEstimate(
        card=card.name,
        memory_bytes=card.memory,
        needed_bytes=needed,
        fits=needed <= card.memory,
        step_seconds=step,
        seconds=total,
        cost=total * card.price,
    )


def _published(sizes: Sizes) -> int:
    # Files come in bfloat16, those of the autoencoder and the audio encoder in float32.
    return sum(count.cast * 2 + count.linear * 2 + count.float32 * 4 for count in sizes.counts.values())
