"""A model family: a puppet whose mouth opens as loud as its voice. Its network has one weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import hookimpl
from engine.config import FamilyConfig
from engine.data import Weights
from engine.family import FamilyModel
from engine.loading.layout import ComponentLayout

FILE = "puppet.safetensors"
WHOLE_NETWORK = "its network is one layer"


def find_puppet(folder: Path, _weights: Weights) -> tuple[Mapping[str, ComponentLayout], tuple[str, ...]]:
    """Return where the network is in `folder`, and the files that are missing."""
    path = folder / FILE
    return ({"transformer": ComponentLayout("original", folder, (path,))}, ()) if path.is_file() else ({}, (FILE,))


@dataclass
class PuppetConfig(FamilyConfig):
    """A puppet with one mouth."""

    name: str = "puppet"
    components = ("transformer",)
    find_parts = staticmethod(find_puppet)
    branches = ("cond",)
    cannot = dict.fromkeys(("cache", "parallel", "quant", "compile"), WHOLE_NETWORK) | {
        "lora.extra": "it has no LoRAs",
    }


class Puppet:
    """Finds the classes of the puppet when they are needed."""

    def __init__(self, config: PuppetConfig) -> None:
        """Import nothing yet."""

    def load(self, folder: Path, *, device: str, **_options: Any) -> FamilyModel:
        """Read the network, in float32 whatever the config says."""
        from acme_multitalk.puppet_model import PuppetModel

        return PuppetModel(folder / FILE, device)

    def network(self) -> Any:
        """Return the class of the network."""
        from acme_multitalk.puppet_model import Mouth

        return Mouth

    def messages(self) -> Sequence[type]:
        """Share no forwards with other processes."""
        return ()


@hookimpl
def register_families(register: Any) -> None:
    """Offer the puppet."""
    register(Puppet, PuppetConfig)
