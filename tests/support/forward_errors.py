"""How far choices of number formats are from the plain network on the recorded forwards, as a table in Markdown.

`python tests/support/forward_errors.py` from the root of the checkout; docs/weights.md and docs/kernels.md show it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from recordings import HOME, Recordings

from engine.loading.dynamic import FORMATS, quantise_blocks
from engine.loading.quantize import is_block_linear
from engine.loading.quanto import quantise
from engine.network.precision import cast_model


def weights(products: str) -> Callable[[Any], None]:
    """Return a function that keeps a network's linear layers in 8 bits and multiplies in its dtype."""

    def change(network: Any) -> None:
        for name, layer in network.named_modules():
            if is_block_linear(layer, name):
                kept = quantise(layer.weight.data, FORMATS[products]).kept(layer.weight.dtype)
                layer.weight = nn.Parameter(kept, requires_grad=False)

    return change


def products(name: str) -> Callable[[Any], None]:
    """Return a function that makes a network's linear layers multiply in 8 bits."""

    def change(network: Any) -> None:
        weights(name)(network)
        quantise_blocks(network, name, is_block_linear)

    return change


def half_stream(network: Any) -> None:
    """Keep the tokens between the layers in bfloat16."""
    network.stream_dtype = torch.bfloat16


CHANGES: dict[str, Callable[[Any], None]] = {
    "`residual_dtype=bfloat16`": half_stream,
    "int8 weights": weights("int8"),
    "int8 products": products("int8"),
    "float8 weights": weights("fp8"),
    "float8 products": products("fp8"),
}


def main() -> None:
    """Print one row for each recording and dtype; figures are the norm of the difference by that of the output."""
    torch.set_num_threads(1)
    recordings = Recordings(HOME)
    print(f"| recording | dtype | {' | '.join(CHANGES)} |\n{'|---' * (len(CHANGES) + 2)}|")
    for name in recordings.names("forward_*"):
        recorded, model = recordings.tensors(name), recordings.model_name(name)
        for dtype in (torch.float32, torch.bfloat16):
            plain = _replay(recordings, cast_model(recordings.model(model), dtype), recorded)
            row = []
            for change in CHANGES.values():
                network = cast_model(recordings.model(model), dtype)
                change(network)
                row.append(f"{(_replay(recordings, network, recorded) - plain).norm() / plain.norm():.2%}")
            print(f"| {name.removeprefix('forward_')} | {str(dtype)[6:]} | {' | '.join(row)} |", flush=True)


def _replay(recordings: Recordings, network: Any, recorded: Any) -> Tensor:
    output = recordings.replay(network, recorded)
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result.float()


if __name__ == "__main__":
    main()
