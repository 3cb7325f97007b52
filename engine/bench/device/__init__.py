"""Measure an unknown card in ten minutes with the 14B model's shapes on random weights, as JSON."""

from __future__ import annotations

from engine.bench.device.supervisor import run

__all__ = ["run"]
