"""8-bit integers with one scale a row, made while loading (torchao)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from engine import hookimpl
from engine.components import Quantiser
from engine.config import QuantConfig
from engine.errors import MissingExtra
from engine.plugin.register import Register


@dataclass
class Int8Config(QuantConfig):
    """Linear weights of the transformer as 8-bit integers, one scale a row (torchao); needs the extra [quant]."""

    name: str = "int8"


class Int8:
    """Quantises only weights; computation stays in the model's dtype."""

    def __init__(self, config: Int8Config) -> None:
        pass

    def check(self) -> None:
        """Raise MissingExtra without torchao."""
        if find_spec("torchao") is None:
            raise MissingExtra("quant=int8", "torchao", "quant")

    def cost(self) -> tuple[float, int]:
        """Return 1 byte per value and 5 per row: a float32 scale and torchao's zero point."""
        return 1, 5

    def apply(self, transformer: Any, chosen: Callable[[Any, str], bool]) -> None:
        """Replace the layers with torchao's. Raises MissingExtra without torchao."""
        try:
            from torchao.quantization import Int8WeightOnlyConfig, quantize_
        except ImportError as error:
            raise MissingExtra("quant=int8", "torchao", "quant") from error
        # Without set_inductor_config=False it would change the compiler's settings for the whole process.
        quantize_(transformer, Int8WeightOnlyConfig(set_inductor_config=False), filter_fn=chosen)


@hookimpl
def register_quants(register: Register[Quantiser]) -> None:
    register(Int8, Int8Config)
