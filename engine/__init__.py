"""MultiTalk Engine: talking videos from a picture and voices, put together from plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.data import Access, Cue, Delivery, Plan, Progress, Region, Request, Speaker
from engine.errors import EngineError
from engine.plugin.spec import hookimpl
from engine.serving.jobs.script import read_script
from engine.serving.jobs.speakers import SILENCE, read_boxes, read_speakers
from engine.serving.jobs.timeline import read_timeline

if TYPE_CHECKING:
    from engine.pipeline import Engine
    from engine.service import EngineService
    from engine.talker import Talker, TalkingVideo

__all__ = [
    "SILENCE",
    "Access",
    "Cue",
    "Delivery",
    "Engine",
    "EngineError",
    "EngineService",
    "Plan",
    "Progress",
    "Region",
    "Request",
    "Speaker",
    "Talker",
    "TalkingVideo",
    "hookimpl",
    "read_boxes",
    "read_script",
    "read_speakers",
    "read_timeline",
]


def __getattr__(name: str) -> Any:
    # The network needs torch, which takes seconds to import: only those who ask for it pay.
    if name == "Engine":
        from engine.pipeline import Engine

        return Engine
    if name == "EngineService":
        from engine.service import EngineService

        return EngineService
    if name in ("Talker", "TalkingVideo"):
        import engine.talker

        return getattr(engine.talker, name)
    raise AttributeError(f"module 'engine' has no attribute {name!r}")
