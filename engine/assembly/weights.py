"""Config -> load spec; and the loaded weights, which the next engine reuses if it needs the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from engine.assembly.compatibility import LoraFit, check_suited, look_at_loras, quantiser_of, with_loras
from engine.assembly.compiling import make_compiling
from engine.assembly.kernels import uses_triton
from engine.assembly.location import WeightsFinder, weights_of
from engine.assembly.loras import bundled_loras, loadable_loras
from engine.assembly.prompts import with_prompts
from engine.assembly.provenance import Runtime, weights_hash
from engine.assembly.settings import largest_window
from engine.components import Quantiser, Reader
from engine.config import ComponentConfig, Config
from engine.data import Plan, Request
from engine.data.attention import Attend
from engine.family import Family, FamilyModel
from engine.loading.component_files import BUILDING
from engine.loading.placement import Profile
from engine.plugin.manager import Registry
from engine.runtime.memory import reclaim


@dataclass(frozen=True)
class LoadSpec:
    """Which weights to load, and how. Equal specs load equal weights."""

    #: The family whose network it is.
    family: ComponentConfig
    #: Keyword arguments of `Family.load`, except `reader`, `quantiser` and `attend`.
    arguments: dict[str, Any]
    #: Configs, because the built components cannot be compared.
    reader: ComponentConfig
    quant: ComponentConfig


@dataclass(frozen=True)
class LoadedModel:
    """Loaded weights."""

    spec: LoadSpec
    model: FamilyModel
    #: Hash of the weight files.
    fingerprint: str
    #: How each loaded LoRA matches the network.
    fits: Mapping[Path, LoraFit]

    @property
    def folder(self) -> Path:
        """The folder of the weight files."""
        folder: Path = self.spec.arguments["folder"]
        return folder

    def set_loras(self, config: Config) -> FamilyModel:
        """Switch on the LoRAs that `config` asks for, and no others; return the model."""
        self.model.set_loras(bundled_loras(config, self.folder))
        return self.model

    def annotate(self, plan: Plan, request: Request, config: Config, branches: Sequence[str]) -> Plan:
        """Return `plan` with the active LoRAs, and with warnings about prompts that the text encoder truncates."""
        plan = with_loras(plan, config, self.folder, self.fits)
        return with_prompts(
            plan, request, config, branches, lambda prompt: (self.model.lost(prompt), self.model.prompt_limit)
        )


class WeightsHolder:
    """The weights of one engine: loaded once, or reused from the engine before it."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        runtime: Runtime,
        after: WeightsHolder | None,
        attend: Attend | None = None,
    ) -> None:
        """Load nothing yet. Take the weights of `after`: they are reused if this engine would load the same.

        Otherwise they are released before others are loaded. `attend` computes self-attention, if no kernel does.
        """
        self._config = config
        self._registry = registry
        self._runtime = runtime
        self._attend = attend
        self._quantiser = quantiser_of(config, registry)
        #: Weights of the engine before, until it is clear whether they are reused.
        self._before = None if after is None else after._hand_over()
        #: The weights of this engine, once they are in memory.
        self.loaded: LoadedModel | None = None
        #: Whether the engine before loaded them.
        self.reused = False

    def finder(self, weights: WeightsFinder | None) -> WeightsFinder:
        """Return the finder for a request: `weights`, or one for the weights that are in memory."""
        if self.loaded is not None:
            return WeightsFinder(self._registry, loaded=self.loaded.folder)
        return weights or WeightsFinder(self._registry)

    def check(self, config: Config, weights: WeightsFinder) -> None:
        """Fetch weights that are not in memory, if the source may, and check that they suit a request's config.

        Reads only headers. Raises SourceError and ConfigError.
        """
        if self.loaded is None:
            check_suited(config, weights.fetch(config), self._registry)

    def load(self, reader: Reader, weights: WeightsFinder, loading: AbstractContextManager[None]) -> LoadedModel:
        """Load the weights within `loading`, if they are not loaded yet. Raises SourceError and ConfigError."""
        if self.loaded is None:
            with loading:
                self.loaded = self._load(reader, weights)
        return self.loaded

    def close(self) -> None:
        """Release the weights, including those of the engine before that were not reused."""
        for loaded in filter(None, (self.loaded, self._before)):
            loaded.model.close()
        self.loaded = self._before = None

    def _hand_over(self) -> LoadedModel | None:
        # An engine that never loaded any passes on those of the engine before it.
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
        family = self._registry.families.build(spec.family)
        return load(spec, family, reader, self._quantiser, self._attend)


def make_load_spec(config: Config, weights: WeightsFinder, runtime: Runtime, registry: Registry) -> LoadSpec:
    """Return the load spec of `config`. Raises SourceError and ConfigError."""
    folder = weights.fetch(config)
    check_suited(config, folder, registry)
    arguments = {
        "folder": folder,
        "quant": config.quant.form,
        "wanted": weights_of(config),
        "memory": _profile(config),
        "loras": loadable_loras(config, folder),
        "lora_mode": config.lora.mode,
        "fused": uses_triton(config, runtime.device),
        "residual_dtype": config.residual_dtype,
        "compiling": make_compiling(config, folder, runtime.device),
        **asdict(runtime),
    }
    return LoadSpec(config.family, arguments, config.reader, config.quant)


def load(
    spec: LoadSpec, family: Family, reader: Reader, quantiser: Quantiser | None, attend: Attend | None = None
) -> LoadedModel:
    """Load the weights of `spec`. Raises SourceError and ConfigError."""
    arguments = spec.arguments
    fingerprint = weights_hash(arguments["folder"])
    fits = look_at_loras(arguments["wanted"], arguments["folder"], arguments["loras"])
    with BUILDING:
        model = family.load(**arguments, reader=reader, quantiser=quantiser, attend=attend)
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
        prompts=memory.prompts,
    )
    # Left out if nothing depends on it, so that another resolution reuses the weights.
    fitted = "auto" in (memory.name, memory.resident)
    return replace(profile, window=largest_window(config)) if fitted else profile
