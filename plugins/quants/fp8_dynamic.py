"""Products in 8-bit floats: weights with one scale per row, activations quantised row by row (torchao's tensors)."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine import hookimpl
from engine.components import Quantiser
from engine.config import DynamicQuantConfig, one_of
from engine.loading.dynamic_quantiser import DynamicQuantiser
from engine.plugin.register import Register


@dataclass
class Fp8DynamicConfig(DynamicQuantConfig):
    """Products in 8-bit floats, on GPUs from compute capability 8.9 on; halves the weights; needs the extra [quant]."""

    name: str = "fp8-dynamic"
    stored: str = field(default="none", metadata=one_of("none", "fp8-quanto"))


class Fp8Dynamic(DynamicQuantiser):
    """Products of 8-bit floats; sums are float32."""

    products = "fp8"


@hookimpl
def register_quants(register: Register[Quantiser]) -> None:
    register(Fp8Dynamic, Fp8DynamicConfig)
