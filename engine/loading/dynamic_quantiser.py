"""The base class of quantisers whose layers multiply in 8 bits; created without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, ClassVar, Protocol

from engine.errors import MissingExtra


class Chosen(Protocol):
    """A config as `engine.config.DynamicQuantConfig`."""

    @property
    def name(self) -> str:
        """The name that users choose."""
        ...

    @property
    def keep(self) -> Sequence[str]:
        """Parts of names of layers that are not quantised."""
        ...

    @property
    def text_encoder(self) -> bool:
        """Whether the text encoder is quantised, too."""
        ...


class DynamicQuantiser:
    """Quantises weights once, with one scale per row, and activations row by row in each call (torchao's tensors)."""

    #: Format of the products, a key of `engine.loading.dynamic.FORMATS`.
    products: ClassVar[str]

    def __init__(self, config: Chosen) -> None:
        self.text = config.text_encoder
        self._name, self._keep = config.name, tuple(config.keep)

    def check(self) -> None:
        """Raise MissingExtra without torchao."""
        if find_spec("torchao") is None:
            raise MissingExtra(f"quant={self._name}", "torchao", "quant")

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
