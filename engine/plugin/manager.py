"""The installed plugins and the components they offer."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

import pluggy

from engine.components import (
    AttentionBackend,
    Diariser,
    Entrypoint,
    Guidance,
    Launcher,
    ModelSource,
    Quantiser,
    Reader,
    RegionFinder,
    Sampler,
    Sink,
    Speech,
    StepCache,
    VoiceFilter,
)
from engine.errors import ConfigError, plain
from engine.family import Family
from engine.plugin import spec
from engine.plugin.register import Presets, Register

GROUP = "multitalk_engine"


class Registry:
    """A plugin manager with the registers of its plugins."""

    def __init__(self) -> None:
        self.plugins = pluggy.PluginManager(GROUP)
        self.plugins.add_hookspecs(spec)
        self.families: Register[Family] = Register("family")
        self.sources: Register[ModelSource] = Register("source")
        self.readers: Register[Reader] = Register("reader")
        self.quants: Register[Quantiser] = Register("quant")
        self.attention: Register[AttentionBackend] = Register("attention")
        self.samplers: Register[Sampler] = Register("sampler")
        self.guidance: Register[Guidance] = Register("guidance")
        self.caches: Register[StepCache] = Register("cache")
        self.regions: Register[RegionFinder] = Register("regions")
        self.speech: Register[Speech] = Register("speech")
        self.diarisers: Register[Diariser] = Register("diariser")
        self.vocals: Register[VoiceFilter] = Register("vocals")
        self.sinks: Register[Sink] = Register("sink")
        self.launchers: Register[Launcher] = Register("launcher")
        self.entrypoints: Register[Entrypoint] = Register("entrypoint")
        self.presets = Presets()
        #: Entry points that could not be imported, with the reason.
        self.broken: dict[str, str] = {}
        #: Import name of a plugin module -> its distribution.
        self.packages: dict[str, str] = {}

    @property
    def registers(self) -> tuple[Register[object], ...]:
        """All registers of components."""
        loading = (self.families, self.sources, self.readers, self.quants, self.attention)
        choices = (self.samplers, self.guidance, self.caches, self.regions)
        voices = (self.speech, self.diarisers, self.vocals)
        return (*loading, *choices, *voices, self.sinks, self.launchers, self.entrypoints)  # type: ignore[return-value]

    def load(self, points: Iterable[EntryPoint], *, disabled: Iterable[str] = ()) -> None:
        """Import plugins and let them register.

        A plugin that cannot be imported is noted in `broken`, and the others still work. Raises ConfigError
        for two entry points of one name, because one of them would be skipped silently.
        """
        disabled = set(disabled)
        seen: dict[str, str] = {}
        for point in sorted(points, key=lambda point: point.name):
            if point.name in seen and seen[point.name] != point.value:
                raise ConfigError(
                    f"two installed plugins are called {point.name!r}: {seen[point.name]} and {point.value}",
                    hint="uninstall one of them; a plugin's entry point should start with the name of its package",
                )
            if point.name in seen or point.name in disabled:
                continue
            seen[point.name] = point.value
            try:
                module = point.load()
            except Exception as error:  # noqa: BLE001 - whatever a foreign module raises on import
                self.broken[point.name] = f"{type(error).__name__}: {error}"
                continue
            self.plugins.register(module, name=point.name)
            self.packages[module.__name__] = point.dist.name if point.dist else "unknown"
        self.register()

    def register(self) -> None:
        """Call the register hooks of all plugins. Raises ConfigError for a hook that has no specification."""
        try:
            self.plugins.check_pending()
        except pluggy.PluginValidationError as error:
            name = getattr(error.plugin, "__name__", "")
            raise ConfigError(f"plugin {name}: {error}", hint="see engine/plugin/spec.py") from error
        for register in self.registers:
            register.broken = tuple(sorted(self.broken))
        hook = self.plugins.hook
        hook.register_families(register=self.families)
        hook.register_sources(register=self.sources)
        hook.register_readers(register=self.readers)
        hook.register_quants(register=self.quants)
        hook.register_attention(register=self.attention)
        hook.register_samplers(register=self.samplers)
        hook.register_guidance(register=self.guidance)
        hook.register_caches(register=self.caches)
        hook.register_regions(register=self.regions)
        hook.register_speech(register=self.speech)
        hook.register_diarisers(register=self.diarisers)
        hook.register_vocals(register=self.vocals)
        hook.register_sinks(register=self.sinks)
        hook.register_launchers(register=self.launchers)
        hook.register_entrypoints(register=self.entrypoints, launchers=self.launchers)
        hook.register_presets(presets=self.presets)


@functools.cache
def installed() -> Registry:
    """Return the registry of the installed plugins, ready to be composed by Hydra; loaded at the first call."""
    from engine.plugin.hydra_plugin import store

    registry = loaded()
    store(registry.registers, registry.presets)
    return registry


@functools.cache
def loaded() -> Registry:
    """Return the same registry without importing Hydra, which takes as long as everything else that a help needs."""
    registry = Registry()
    disabled = os.environ.get("MULTITALK_DISABLED_PLUGINS", "").replace(",", " ").split()
    registry.load(entry_points(group=GROUP), disabled=disabled)
    for name, reason in registry.broken.items():
        print(f"multitalk: warning: plugin {name!r} could not be loaded: {plain(reason)}", file=sys.stderr)
    return registry
