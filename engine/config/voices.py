"""The bases of the configs of speech and of diarisers."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.config.component import ComponentConfig
from engine.config.ranges import within


@dataclass
class SpeechConfig(ComponentConfig):
    """The base of every speech's config."""

    #: Seconds of silence between two turns of a script, unless it says otherwise.
    gap: float = field(default=0.35, metadata=within(0, 10))


@dataclass
class DiariserConfig(ComponentConfig):
    """The base of every diariser's config."""
