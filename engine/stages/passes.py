"""Guidance scales -> which forwards a step takes; needs no torch, so a plan can count them."""

from __future__ import annotations

from engine.multitalk.guidance import branches

__all__ = ["branches"]
