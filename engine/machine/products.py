"""Which GPUs multiply in 8 bits, without torch."""

from __future__ import annotations

from collections.abc import Mapping

from engine.errors import ConfigError

#: Format of products -> least compute capability of a GPU whose tensor cores have them.
CAPABILITIES: Mapping[str, tuple[int, int]] = {"int8": (7, 5), "fp8": (8, 9)}


def check_products(products: str, dtype: str, capability: tuple[int, int], card: str) -> None:
    """Raise ConfigError if a GPU named `card` cannot multiply in `products` ("int8" or "fp8") for a model in `dtype`.

    Sources: aten/src/ATen/native/cuda/Blas.cpp and ScaledBlas.cpp; torchao, _check_hardware_support.
    """
    least = CAPABILITIES[products]
    if capability < least:
        raise ConfigError(
            f"{card} has compute capability {capability[0]}.{capability[1]}, and {products} products need "
            f"{least[0]}.{least[1]}",
            field="quant",
            hint="quant=int8-dynamic" if products == "fp8" and capability >= CAPABILITIES["int8"] else "quant=int8",
        )
    if products == "fp8" and dtype == "float32":
        raise ConfigError(
            "on a GPU fp8 products with a scale per row give bfloat16, not float32",
            field="dtype",
            hint="dtype=bfloat16, or quant=int8-dynamic",
        )
