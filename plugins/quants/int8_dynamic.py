"""Products in 8-bit integers: weights with one scale per row, activations quantised row by row (torchao's tensors)."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine import hookimpl
from engine.components import Quantiser
from engine.config import DynamicQuantConfig, one_of
from engine.loading.dynamic_quantiser import DynamicQuantiser
from engine.plugin.register import Register


@dataclass
class Int8DynamicConfig(DynamicQuantConfig):
    """Products in 8-bit integers, by tensor cores; halves the weights; needs the extra [quant]."""

    name: str = "int8-dynamic"
    stored: str = field(default="none", metadata=one_of("none", "int8-quanto"))


class Int8Dynamic(DynamicQuantiser):
    """Products of 8-bit integers; sums are exact (32-bit integers)."""

    products = "int8"


@hookimpl
def register_quants(register: Register[Quantiser]) -> None:
    register(Int8Dynamic, Int8DynamicConfig)
