"""What "auto" means for a device and for its number format, without torch."""

from __future__ import annotations


def resolve_device(name: str, *, cuda: bool) -> str:
    """Return "cuda" or "cpu" for "auto", as `cuda` says whether there is one, and any other name as it is."""
    return ("cuda" if cuda else "cpu") if name == "auto" else name


def resolve_dtype(name: str, device: str) -> str:
    """Return "bfloat16" or "float32" for "auto" on "cuda" or "cpu", and any other name as it is."""
    return ("bfloat16" if device == "cuda" else "float32") if name == "auto" else name


def resolve_decode_dtype(name: str, device: str, dtype: str) -> str:
    """Return "bfloat16" or "float32" for "auto", in which the VAE decodes; `dtype` is the transformer's."""
    return (dtype if device == "cuda" else "float32") if name == "auto" else name
