"""The configs of the families, and what plans need to know of them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from engine.config import FamilyConfig, within
from engine.data import LoraFit, Weights

#: The published int8 file, as `quant`.
INT8 = "int8-longcat"


def _find_latest(folder: Path, weights: Weights) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    from plugins.families.longcat.folders import find_parts

    return find_parts(folder, "1.5", int8=weights.quant == INT8)


def _find_first(folder: Path, weights: Weights) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    from plugins.families.longcat.folders import find_parts

    return find_parts(folder, "1.0", network=weights.adapter)


def _look_at_lora(path: Path, shapes: Mapping[str, tuple[int, ...] | None]) -> LoraFit:
    from plugins.families.longcat.lora_keys import look_at_lora

    return look_at_lora(path, shapes)


def _lora_bytes(path: Path, value: int) -> int:
    from plugins.families.longcat.lora_keys import attached_bytes

    return attached_bytes(path, value)


@dataclass
class LongCatConfig(FamilyConfig):
    """LongCat-Video-Avatar 1.5: one network for one speaker and for two, with Whisper's encoder for voices."""

    name: str = "longcat"
    #: Position of the picture in time, in latent frames of a window that continues another: near new frames it keeps
    #: them like the picture; beyond the window, such as 30, there is less repeated movement.
    reference_position: int = field(default=10, metadata=within(-1000, 1000))
    #: New latent frames at most this far from that position do not see the picture; 0: all see it. More: less repeated
    #: movement, and artefacts if it is too much.
    hidden_range: int = field(default=3, metadata=within(0, 1000))
    #: Compute keys and values of a window's given frames once for all steps. Takes up to 6 GB at 480p and saves about a
    #: fifth of the time; the video is the same but for rounding.
    keep_keys: bool = True
    #: Round times to bfloat16, as the public inference does: a step of 4 near 1000.
    rounded_times: bool = False

    components: ClassVar[tuple[str, ...]] = ("transformer", "vae", "text_encoder", "tokenizer", "audio_encoder")
    find_parts: ClassVar[Any] = _find_latest
    look_at_lora: ClassVar[Any] = _look_at_lora
    lora_bytes: ClassVar[Any] = _lora_bytes
    styles: ClassVar[tuple[str, ...]] = ("longcat",)
    cannot: ClassVar[Mapping[str, str]] = {
        "attention=radial": "it is computed from the grid of the tokens, of which groups of frames see different ones",
        "cache": "no step cache was measured with it, and keys of given frames are kept already",
        "parallel": "its forwards cannot be shared",
        "compile": "its blocks fill and read a cache, which the compiler does not see",
    }
    only: ClassVar[Mapping[str, tuple[tuple[str, ...], str]]] = {
        "quant": (("none", "int8", INT8), "it has an int8 file of its own, and no other"),
    }
    #: "1.5" or "1.0" (`plugins.families.longcat.versions`).
    version: ClassVar[str] = "1.5"

    def sizes(self, blocks: int | None = None) -> Any:
        """See `FamilyConfig`."""
        from plugins.families.longcat.costs import longcat_sizes

        return longcat_sizes(
            self.version,
            position=self.reference_position,
            hidden_range=self.hidden_range,
            keeps=self.keep_keys,
            blocks=blocks,
        )

    def published_files(
        self, *, quant: str, adapter: str, loras: Sequence[str], blocks: int | None = None
    ) -> Mapping[str, Any]:
        """See `FamilyConfig`."""
        from plugins.families.longcat.published import published_files

        return published_files(self.version, int8=quant == INT8, network=adapter, loras=loras, blocks=blocks)


@dataclass
class LongCatFirstConfig(LongCatConfig):
    """LongCat-Video-Avatar 1.0: a network for one speaker and one for two, with wav2vec 2.0 for voices."""

    name: str = "longcat-1.0"

    find_parts: ClassVar[Any] = _find_first
    only: ClassVar[Mapping[str, tuple[tuple[str, ...], str]]] = {
        "quant": (("none", "int8"), "no file in 8 bits is published of it"),
    }
    version: ClassVar[str] = "1.0"
