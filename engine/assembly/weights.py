"""Config -> what is to be loaded; and the weights in memory, which the next engine takes over if it wants the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.assembly.compatibility import LoraFit, check_suited, look_at_loras, tell_loras
from engine.assembly.loras import Loras, bundled_loras, loadable_loras
from engine.assembly.prompts import tell_prompts
from engine.assembly.provenance import weights_hash
from engine.assembly.settings import largest_window, locate_weights, weights_of
from engine.components import Quantiser, Reader
from engine.config import ComponentConfig, Config
from engine.data import Plan, Request
from engine.loading.component_files import BUILDING
from engine.loading.model import Model, load_model
from engine.loading.placement import Profile
from engine.plugin.manager import Registry


@dataclass(frozen=True)
class Wanted:
    """What is to be loaded, and how. Equal ones load equal weights."""

    #: Of `load_model`, but for the reader.
    arguments: dict[str, Any]
    #: Choices at boot like the others; built ones do not compare.
    reader: ComponentConfig
    quant: ComponentConfig


@dataclass(frozen=True)
class Loaded:
    """Weights in memory."""

    wanted: Wanted
    model: Model
    #: Hash of their files.
    fingerprint: str
    #: What each LoRA that is loaded has for the network.
    fits: Mapping[Path, LoraFit]

    @property
    def folder(self) -> Path:
        """Where their files lie."""
        folder: Path = self.wanted.arguments["folder"]
        return folder

    def loras(self, config: Config) -> Loras:
        """Return the LoRAs (file, scale) that `config` wants on."""
        return bundled_loras(config, self.folder)

    def tell(self, plan: Plan, request: Request, config: Config, branches: Sequence[str]) -> Plan:
        """Return `plan` with what is known of the weights: LoRAs that are on, and words that the encoder cuts off."""
        text = self.model.text
        plan = tell_loras(plan, config, self.folder, self.fits)
        return tell_prompts(plan, request, config, branches, lambda prompt: (text.lost(prompt), text.text_len))


def find_weights(config: Config, registry: Registry) -> Path:
    """Return the folder of the weights, brought there if they may be. Raises SourceError and ConfigError.

    What they lack for the config is said as well: nothing but headers is read.
    """
    folder = locate_weights(config, registry, fetch=True)
    check_suited(config, folder, registry)
    return folder


def find_wanted(config: Config, registry: Registry, *, device: str, dtype: str, **others: Any) -> Wanted:
    """Return what `config` asks for; `others` go to `load_model`. Raises SourceError and ConfigError."""
    folder = find_weights(config, registry)
    arguments = {
        "folder": folder,
        "device": device,
        "dtype": dtype,
        "quant": config.quant.name,
        "wanted": weights_of(config),
        "memory": _profile(config),
        "loras": loadable_loras(config, folder),
        "lora_mode": config.lora.mode,
        **others,
    }
    return Wanted(arguments, config.reader, config.quant)


def load(wanted: Wanted, reader: Reader, quantiser: Quantiser | None) -> Loaded:
    """Load them. Raises SourceError and ConfigError."""
    arguments = wanted.arguments
    fingerprint = weights_hash(arguments["folder"])
    fits = look_at_loras(arguments["wanted"], arguments["folder"], arguments["loras"])
    with BUILDING:
        model = load_model(**arguments, reader=reader, quantiser=quantiser)
    return Loaded(wanted, model, fingerprint, fits)


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
