"""The transformer: whole forwards with their kernels, and forwards whose blocks are copied from the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from engine.bench.device.kernels import profiled, synchronisations
from engine.bench.device.measure import DeviceBench, Row, Rows, largest_difference
from engine.bench.device.modules import stream_blocks, transformer, weight_bytes
from engine.bench.device.shapes import Grid
from engine.bench.transformer import build_inputs
from engine.loading.quantize import is_block_linear
from engine.planning.activations import forward_bytes
from engine.planning.operations import forward_work
from engine.planning.parameters import make_sizes
from engine.planning.seconds import forward_seconds
from engine.plugin.manager import installed

#: Bytes of the card that are not used here: CUDA's context, workspaces, fragmentation.
_SPARE = 2 * 10**9
#: If computing takes less than this share of the time, the link decides.
_LINK_BOUND = 0.5


def forward(bench: DeviceBench) -> Rows:
    """Forwards of the whole network with one and two speakers, and of some blocks at the second resolution."""
    shapes = bench.shapes
    (name, grid), (large, large_grid) = list(shapes.grids.items())[:2]
    layers = fitting_layers(bench, grid)
    model = transformer(bench, layers)
    yield from _forwards(bench, model, ((name, grid, 1), (name, grid, 2)))
    model.blocks = model.blocks[: shapes.few_layers]
    yield from _forwards(bench, model, ((large, large_grid, 2),))


def _forwards(bench: DeviceBench, model: Any, cases: tuple[tuple[str, Grid, int], ...]) -> Iterator[Row]:
    for name, grid, speakers in cases:
        row = f"{name}, {speakers} speaker{'s' if speakers > 1 else ''}"
        yield row, bench.attempt(partial(_forward, bench, model, grid, speakers))


def _forward(bench: DeviceBench, model: Any, grid: Grid, speakers: int) -> dict[str, Any]:
    latents, moment, conditions = build_inputs(model, grid, speakers, bench.random)

    def call() -> Any:
        return model(latents, moment, conditions=conditions)

    config = dict(model.config) | {"num_layers": len(model.blocks)}
    work = forward_work(config, conditions.latent_shape, value=2, speakers=speakers)
    first = bench.once(call)
    waits = synchronisations(bench, call)
    figures = bench.with_peak(call)
    return {
        "layers": len(model.blocks),
        "layers_of_the_model": bench.shapes.configs["transformer"]["num_layers"],
        "tokens": grid[0] * grid[1] * grid[2],
        **figures,
        "first_seconds": first,
        "predicted_seconds": None if bench.card is None else forward_seconds(bench.card, work),
        "predicted_bytes": forward_bytes(config, conditions.latent_shape, value=2, speakers=speakers),
        **bench.rate(work.operations, figures["seconds"]),
        "work": work._asdict(),
        "synchronisations": waits,
        "kernels": profiled(bench, call),
    }


def fitting_layers(bench: DeviceBench, grid: Grid) -> int:
    """Return how many blocks fit on the device together with a forward of two speakers, at most the model's number."""
    config = bench.shapes.configs["transformer"]
    layers = int(config["num_layers"])
    if not bench.cuda:
        return layers
    sizes = make_sizes(bench.shapes.configs)
    patch = config["patch_size"]
    latents = (grid[0] * patch[0], grid[1] * patch[1], grid[2] * patch[2])
    working = forward_bytes(config, latents, value=2, speakers=2)
    free = torch.cuda.mem_get_info()[0] - sizes.root.bytes(2) - working * 11 // 10 - _SPARE
    return max(1, min(layers, free // sizes.block.bytes(2)))


# --- offloading -------------------------------------------------------------------------------------------------------


def offload(bench: DeviceBench) -> Rows:
    """Forwards whose blocks are copied from the host as in the engine, compared with blocks that stay."""
    int8 = partial(installed().quants.build_default("int8").apply, chosen=is_block_linear)
    quantisers: dict[str, Callable[[Any], Any] | None] = {"bfloat16": None, "int8": int8}
    for name, quantise in quantisers.items():
        yield name, bench.attempt(partial(_offload, bench, quantise))


def _offload(bench: DeviceBench, quantise: Callable[[Any], Any] | None) -> dict[str, Any]:
    # The previous model and its hooks are in reference cycles.
    bench.free()
    model: Any = transformer(bench, bench.shapes.few_layers)
    if quantise is not None:
        quantise(model)
    _, grid = bench.shapes.first
    # One frame: computing is so short that copying the blocks takes all of the time.
    inputs = [build_inputs(model, size, 1, bench.random) for size in (grid, (1, *grid[1:]))]
    whole, short = (partial(model, latents, time, conditions=conditions) for latents, time, conditions in inputs)
    resident, short_resident, reference = bench.seconds(whole), bench.seconds(short), whole().sample
    moved = sum(weight_bytes(block) for block in model.blocks)
    model.to("cpu")
    bench.free()
    empty = bench.allocated()
    placing = bench.once(lambda: stream_blocks(model, bench.device))
    placed = bench.allocated()
    difference = largest_difference(whole().sample, reference)
    waits = synchronisations(bench, whole)
    figures = bench.with_peak(whole)
    short_seconds = bench.seconds(short)
    bound = bench.cuda and short_resident < _LINK_BOUND * short_seconds
    return {
        "blocks": len(model.blocks),
        "moved_bytes": moved,
        "placing_seconds": placing,
        "placed_bytes": None if empty is None or placed is None else placed - empty,
        "resident_seconds": resident,
        **figures,
        "exposed_seconds": max(0.0, figures["seconds"] - resident),
        "one_frame_resident_seconds": short_resident,
        "one_frame_seconds": short_seconds,
        # The link's rate as the engine uses it; null if computing one frame takes as long.
        "link_gb_per_second": moved / short_seconds / 1e9 if bound else None,
        "largest_difference": difference,
        "synchronisations": waits,
    }
