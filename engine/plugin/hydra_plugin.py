"""Where Hydra finds the components and presets of the engine and its plugins."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from engine.config import store_schema
from engine.plugin.register import Presets, Register
from engine.plugin.user_files import store_told

if TYPE_CHECKING:
    from hydra.core.config_search_path import ConfigSearchPath


def store(registers: Iterable[Register[object]], presets: Presets) -> None:
    """Store the schemas and all configs of `registers` in Hydra, and search the packages of `presets`."""
    store_schema()
    for register in registers:
        register.store()
    store_told()
    _PresetPath.packages = presets.packages
    Plugins.instance().register(_PresetPath)


class _PresetPath(SearchPathPlugin):
    """Searches the plugins' preset packages after the engine's own."""

    packages: list[str] = []

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for package in self.packages:
            search_path.append(provider=package, path=f"pkg://{package}")
