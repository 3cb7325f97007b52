"""torch.compile: whether it can run here, how long it takes, and the speedup."""

from __future__ import annotations

from typing import Any

import torch

from engine.bench.device.codec import decode, random_latents
from engine.bench.device.measure import DeviceBench, Rows, Skipped, largest_difference
from engine.bench.device.modules import autoencoder, transformer
from engine.bench.device.network import fitting_layers
from engine.bench.transformer import build_inputs
from engine.loading.compiling import Compiling, compile_blocks
from engine.machine.compiler import missing_for_triton

#: Seconds for compiling the autoencoder.
_AUTOENCODER = 40.0


def compiled(bench: DeviceBench) -> Rows:
    """The blocks of the network, compiled as one graph each, at one size and at a second one; the autoencoder."""
    from torch._dynamo.utils import counters

    how = _how(bench)
    _, grid = bench.shapes.first
    model: Any = transformer(bench, fitting_layers(bench, grid))
    cases = [build_inputs(model, size, 2, bench.random) for size in (grid, bench.shapes.second)]
    torch._dynamo.reset()
    counters.clear()

    def call(case: int) -> Any:
        latents, moment, conditions = cases[case]
        return model(latents, moment, conditions=conditions).sample

    def graphs() -> int:
        return int(counters["stats"]["unique_graphs"])

    plain = [call(0), call(1)]
    yield "eager", {"layers": len(model.blocks)} | bench.with_peak(lambda: call(0))
    compile_blocks(model, how)
    first = bench.once(lambda: call(0))
    yield "first call", {"seconds": first, "graphs": graphs(), "backend": how.backend}
    yield "compiled", bench.with_peak(lambda: call(0)) | {"largest_difference": largest_difference(call(0), plain[0])}
    again = bench.once(lambda: call(1))
    difference = largest_difference(call(1), plain[1])
    seconds = bench.seconds(lambda: call(1))
    yield (
        "second size",
        {
            "first_seconds": again,
            "seconds": seconds,
            "graphs": graphs(),
            "largest_difference": difference,
        },
    )
    # Frees memory for the next.
    model = None
    bench.free()
    yield "autoencoder", bench.attempt(lambda: _autoencoder(bench))


def _how(bench: DeviceBench) -> Compiling:
    if not bench.cuda:
        # Graphs and numerics without generating code, which takes minutes on a CPU.
        return Compiling("eager")
    if (missing := missing_for_triton()) is not None:
        raise Skipped(missing[0])
    return Compiling()


def _autoencoder(bench: DeviceBench) -> dict[str, Any]:
    # On a CPU it shows nothing new, and tracing it takes longer than all other parts.
    bench.need_cuda()
    bench.need(_AUTOENCODER)
    vae, latents = autoencoder(bench), random_latents(bench)
    plain = decode(vae, latents, torch.float32)
    vae.decoder.compile()
    first = bench.once(lambda: decode(vae, latents, torch.float32))
    figures = bench.with_peak(lambda: decode(vae, latents, torch.float32))
    difference = largest_difference(decode(vae, latents, torch.float32), plain)
    return {"first_seconds": first, **figures, "largest_difference": difference}
