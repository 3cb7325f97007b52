"""Sizes as people read them, in powers of 1000 as disks and cards are sold."""

from __future__ import annotations


def amount(size: float) -> str:
    """Return bytes in the unit that suits them, from B to GB."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def gigabytes(size: float, digits: int = 1) -> str:
    """Return bytes in GB, however many they are, so that several can be compared at a glance."""
    return f"{size / 1e9:.{digits}f} GB"
