"""Config -> what is to be loaded; and the weights in memory, which the next engine takes over if it wants the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from engine.assembly.compatibility import LoraFit, check_suited, look_at_loras, quantiser_of, tell_loras
from engine.assembly.location import WeightsFinder, weights_of
from engine.assembly.loras import bundled_loras, loadable_loras
from engine.assembly.prompts import tell_prompts
from engine.assembly.provenance import Runtime, weights_hash
from engine.assembly.settings import largest_window
from engine.components import Quantiser, Reader
from engine.config import ComponentConfig, Config
from engine.data import Plan, Request
from engine.loading.component_files import BUILDING
from engine.loading.model import Model, load_model
from engine.loading.placement import Profile
from engine.plugin.manager import Registry
from engine.runtime.memory import reclaim


@dataclass(frozen=True)
class LoadSpec:
    """What is to be loaded, and how. Equal specs load equal weights."""

    #: Keyword arguments of `load_model`, except `reader` and `quantiser`.
    arguments: dict[str, Any]
    #: Choices at boot like the others; built ones do not compare.
    reader: ComponentConfig
    quant: ComponentConfig


@dataclass(frozen=True)
class LoadedModel:
    """Weights in memory."""

    spec: LoadSpec
    model: Model
    #: Hash of their files.
    fingerprint: str
    #: What each LoRA that is loaded has for the network.
    fits: Mapping[Path, LoraFit]

    @property
    def folder(self) -> Path:
        """Where their files lie."""
        folder: Path = self.spec.arguments["folder"]
        return folder

    def set_loras(self, config: Config) -> Model:
        """Switch on the LoRAs that `config` asks for, and no others; return the model."""
        self.model.set_loras(bundled_loras(config, self.folder))
        return self.model

    def annotate(self, plan: Plan, request: Request, config: Config, branches: Sequence[str]) -> Plan:
        """Return `plan` with what the weights say: LoRAs that are on, and words that the text encoder cuts off."""
        text = self.model.text
        plan = tell_loras(plan, config, self.folder, self.fits)
        return tell_prompts(plan, request, config, branches, lambda prompt: (text.lost(prompt), text.text_len))


class WeightsHolder:
    """The weights of one engine: loaded once, or taken over from the engine before it."""

    def __init__(self, config: Config, registry: Registry, runtime: Runtime, after: WeightsHolder | None) -> None:
        """Load nothing yet, and take what `after` holds: it serves this engine too if this one would load the same.

        Else it is released before other weights are loaded.
        """
        self._config = config
        self._registry = registry
        self._runtime = runtime
        self._quantiser = quantiser_of(config, registry)
        #: Of the engine before, until it is known whether they serve.
        self._before = None if after is None else after._hand_over()
        #: What is in memory and is this engine's.
        self.loaded: LoadedModel | None = None
        #: Whether it was loaded by the engine before.
        self.reused = False

    def finder(self, weights: WeightsFinder | None) -> WeightsFinder:
        """Return what a request asks where the weights are: `weights`, but for those that are in memory."""
        if self.loaded is not None:
            return WeightsFinder(self._registry, loaded=self.loaded.folder)
        return weights or WeightsFinder(self._registry)

    def check(self, config: Config, weights: WeightsFinder) -> None:
        """Have weights that are not in memory brought where they may be, and look whether they suit a request's config.

        Reads nothing but headers. Raises SourceError and ConfigError.
        """
        if self.loaded is None:
            check_suited(config, weights.fetch(config), self._registry)

    def load(self, reader: Reader, weights: WeightsFinder, loading: AbstractContextManager[None]) -> LoadedModel:
        """Load the weights inside of `loading`, if that has not happened yet. Raises SourceError and ConfigError."""
        if self.loaded is None:
            with loading:
                self.loaded = self._load(reader, weights)
        return self.loaded

    def close(self) -> None:
        """Release the weights, also those of the engine before that were not taken over."""
        for loaded in filter(None, (self.loaded, self._before)):
            loaded.model.close()
        self.loaded = self._before = None

    def _hand_over(self) -> LoadedModel | None:
        # One that never loaded hands on those of the engine before it.
        loaded, self.loaded, self._before = self.loaded or self._before, None, None
        return loaded

    def _load(self, reader: Reader, weights: WeightsFinder) -> LoadedModel:
        spec = make_load_spec(self._config, weights, self._runtime, self._registry)
        before, self._before = self._before, None
        if before is not None and before.spec == spec:
            self.reused = True
            return before
        if before is not None:
            before.model.close()
            del before
            reclaim()
        return load(spec, reader, self._quantiser)


def make_load_spec(config: Config, weights: WeightsFinder, runtime: Runtime, registry: Registry) -> LoadSpec:
    """Return what `config` has loaded. Raises SourceError and ConfigError."""
    folder = weights.fetch(config)
    check_suited(config, folder, registry)
    arguments = {
        "folder": folder,
        "quant": config.quant.name,
        "wanted": weights_of(config),
        "memory": _profile(config),
        "loras": loadable_loras(config, folder),
        "lora_mode": config.lora.mode,
        **asdict(runtime),
    }
    return LoadSpec(arguments, config.reader, config.quant)


def load(spec: LoadSpec, reader: Reader, quantiser: Quantiser | None) -> LoadedModel:
    """Load what `spec` says. Raises SourceError and ConfigError."""
    arguments = spec.arguments
    fingerprint = weights_hash(arguments["folder"])
    fits = look_at_loras(arguments["wanted"], arguments["folder"], arguments["loras"])
    with BUILDING:
        model = load_model(**arguments, reader=reader, quantiser=quantiser)
    return LoadedModel(spec, model, fingerprint, fits)


def _profile(config: Config) -> Profile:
    memory = config.memory
    profile = Profile(
        memory.name,
        blocks=memory.blocks,
        resident=memory.resident,
        streams=memory.streams,
        pin=memory.pin,
        tile=memory.tile,
    )
    # Left out where nothing depends on it: another resolution needs no other weights.
    fitted = "auto" in (memory.name, memory.resident)
    return replace(profile, window=largest_window(config)) if fitted else profile
