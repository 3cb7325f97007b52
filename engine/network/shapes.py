"""Checks of the shapes of a network's inputs, with errors that name the argument."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor


def check_shape(name: str, tensor: Tensor, expected: tuple[int | None, ...], note: str = "") -> None:
    """Raise RequestError unless `tensor` has the `expected` sizes; None is any. `note` ends the hint."""
    matches = tensor.ndim == len(expected) and all(
        want is None or size == want for size, want in zip(tensor.shape, expected, strict=False)
    )
    if not matches:
        text = ", ".join("any" if want is None else str(want) for want in expected)
        raise RequestError(f"shape {tuple(tensor.shape)}", field=name, hint=f"must be ({text}){note}")
