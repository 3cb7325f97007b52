"""MultiTalk and InfiniteTalk: Wan 2.1's image-to-video network with an audio attention in every block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import hookimpl
from engine.config import FamilyConfig
from engine.family import Family, FamilyModel
from engine.plugin.register import Register


@dataclass
class MultiTalkConfig(FamilyConfig):
    """MultiTalk, InfiniteTalk, and models that were distilled from them."""

    name: str = "multitalk"
    dubs = True


class MultiTalk:
    """See `engine.family.Family`."""

    def __init__(self, config: MultiTalkConfig) -> None:
        """Import nothing yet."""
        self.config = config

    def load(self, folder: Path, **options: Any) -> FamilyModel:
        """See `engine.family.Family`."""
        from plugins.families.multitalk.model import load_multitalk

        return load_multitalk(folder, **options)

    def network(self) -> Any:
        """See `engine.family.Family`."""
        from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel

        return MultiTalkTransformer3DModel

    def messages(self) -> Sequence[type]:
        """See `engine.family.Family`."""
        from engine.data import Conditions, Held, Motion
        from engine.network.embeddings import Rotary
        from engine.network.speakers import Speakers
        from plugins.families.multitalk.transformer import TransformerConditions

        return Conditions, Held, Motion, TransformerConditions, Rotary, Speakers


@hookimpl
def register_families(register: Register[Family]) -> None:
    """Offer the family."""
    register(MultiTalk, MultiTalkConfig)
