"""The registers in which plugins list their components."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from engine.config import ComponentConfig
from engine.errors import ConfigError, UnknownComponent

T = TypeVar("T")


class Register(Generic[T]):
    """The components of one config group, by name."""

    def __init__(self, group: str) -> None:
        self.group = group
        self._factories: dict[str, Callable[[Any], T]] = {}
        self._configs: dict[str, type[ComponentConfig]] = {}
        self._stored = False
        #: Names of plugins that failed to load; errors about unknown names list them.
        self.broken: tuple[str, ...] = ()

    def __call__(self, factory: Callable[[Any], T], config: type[ComponentConfig]) -> None:
        """Offer `factory`; its `config` becomes selectable as `group=name`. Raises ConfigError if the name is taken."""
        name = config.name
        if name in self._factories:
            other = self._configs[name].__module__
            raise ConfigError(
                f"{self.group} {name!r} is registered twice, by {other} and {config.__module__}",
                field=self.group,
                hint="disable one of them with MULTITALK_DISABLED_PLUGINS",
            )
        self._factories[name] = factory
        self._configs[name] = config
        if self._stored:
            self.store()

    def store(self) -> None:
        """Store the configs in Hydra's ConfigStore, from which they are composed; later ones at once."""
        from hydra.core.config_store import ConfigStore

        self._stored = True
        for name, config in self._configs.items():
            ConfigStore.instance().store(group=self.group, name=name, node=config, provider=config.__module__)

    def build(self, config: ComponentConfig) -> T:
        """Build the component that `config` names. Raises UnknownComponent."""
        try:
            factory = self._factories[config.name]
        except KeyError:
            raise UnknownComponent(self.group, config.name, self.names(), broken=self.broken) from None
        return factory(config)

    def build_default(self, name: str) -> T:
        """Build the component `name` with the defaults of its config. Raises UnknownComponent."""
        from omegaconf import OmegaConf

        # With OmegaConf, because defaults may come from the environment.
        config = OmegaConf.to_object(OmegaConf.structured(self.config(name)))
        assert isinstance(config, ComponentConfig)
        return self.build(config)

    def names(self) -> tuple[str, ...]:
        """Return the names of all components, sorted."""
        return tuple(sorted(self._factories))

    def config(self, name: str) -> type[ComponentConfig]:
        """Return the config class of a component. Raises UnknownComponent."""
        try:
            return self._configs[name]
        except KeyError:
            raise UnknownComponent(self.group, name, self.names(), broken=self.broken) from None


class Presets:
    """Package folders of YAML presets, in the order in which they are searched."""

    def __init__(self) -> None:
        self.packages: list[str] = []

    def __call__(self, package: str) -> None:
        """Add `package`, an importable package whose sub-folders are config groups."""
        if package not in self.packages:
            self.packages.append(package)
