"""Products in 8-bit floats: weights with one scale per row, activations quantised row by row (torchao's tensors)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from engine import hookimpl
from engine.components import Quantiser
from engine.config import DynamicQuantConfig, one_of
from engine.errors import MissingExtra
from engine.plugin.register import Register


@dataclass
class Fp8DynamicConfig(DynamicQuantConfig):
    """Products in 8-bit floats, on GPUs from compute capability 8.9 on; halves the weights; needs the extra [quant]."""

    name: str = "fp8-dynamic"
    stored: str = field(default="none", metadata=one_of("none", "fp8-quanto"))


class Fp8Dynamic:
    """Quantises weights once and activations in each call; sums are float32."""

    products = "fp8"

    def __init__(self, config: Fp8DynamicConfig) -> None:
        self.text, self._keep = config.text_encoder, tuple(config.keep)

    def check(self) -> None:
        """Raise MissingExtra without torchao."""
        if find_spec("torchao") is None:
            raise MissingExtra("quant=fp8-dynamic", "torchao", "quant")

    def cost(self) -> tuple[float, int]:
        """Return 1 byte per value and 4 per row, a float32 scale."""
        return 1, 4

    def apply(self, transformer: Any, chosen: Callable[[Any, str], bool]) -> None:
        """Replace the weights of the chosen layers. Raises MissingExtra without torchao, and ConfigError."""
        from engine.loading.dynamic import quantise_blocks

        quantise_blocks(transformer, self.products, chosen, self._keep)

    def apply_text(self, text_encoder: Any) -> None:
        """Do the same for the text encoder."""
        from engine.loading.dynamic import quantise_text

        quantise_text(text_encoder, self.products)


@hookimpl
def register_quants(register: Register[Quantiser]) -> None:
    register(Fp8Dynamic, Fp8DynamicConfig)
