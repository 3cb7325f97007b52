"""Weights in the hub's local cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from engine import hookimpl
from engine.components import ModelSource
from engine.config import ComponentConfig
from engine.data import Weights
from engine.hub.cached import find, hub_cache, link
from engine.hub.manifest import Preset, read_manifest
from engine.plugin.register import Register


@dataclass
class HubConfig(ComponentConfig):
    """The hub's cache ($HF_HUB_CACHE, $HF_HOME) and RunPod's, if they have every file of the preset."""

    name: str = "hub"
    #: Further caches, searched first.
    caches: list[str] = field(default_factory=lambda: ["/runpod-volume/huggingface-cache/hub"])
    #: A weights preset of `multitalk models list`; "": the one for model and quant.
    preset: str = ""


class Hub:
    """Creates a folder of links to the cached files of a preset."""

    def __init__(self, config: HubConfig, into: Path | None = None) -> None:
        self.config = config
        self._into = into

    def locate(self, weights: Weights) -> Path | None:
        """Return a folder of links; None if a file is not cached or the model is not published."""
        preset = self._preset(weights)
        if preset is None:
            return None
        cached, missing = find(preset, self._caches())
        return None if missing else link(cached, preset.name, self._into)

    def looked(self, weights: Weights) -> str:
        """Return the folders of the cache, and how many of the files they have."""
        preset = self._preset(weights)
        where = ", ".join(map(str, self._caches()))
        if preset is None:
            return f"the hub's cache ({where}), where this model with quant={weights.quant} is not published"
        cached, missing = find(preset, self._caches())
        return f"the hub's cache ({where}), with {len(cached)} of {len(cached) + len(missing)} files of {preset.name}"

    def _preset(self, weights: Weights) -> Preset | None:
        return read_manifest().chosen(self.config.preset, weights.model, weights.quant)

    def _caches(self) -> list[Path]:
        return [*(Path(cache).expanduser() for cache in self.config.caches), hub_cache()]


@hookimpl
def register_sources(register: Register[ModelSource]) -> None:
    """Offer the hub's cache as a source."""
    register(Hub, HubConfig)
