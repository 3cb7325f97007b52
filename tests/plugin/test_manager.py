"""Plugins register by name; what is broken is named and takes nothing else with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pytest

from engine import hookimpl
from engine.config import ComponentConfig
from engine.errors import ConfigError, UnknownComponent
from engine.plugin.manager import GROUP, Registry, installed

ROOT = Path(__file__).parents[2]
PLUGINS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "plugins").rglob("*.py")
    # The modules of a family are no plugins of their own.
    if path.name != "__init__.py" and "families" not in path.parts
} | {
    # A family is a package that offers itself.
    ".".join(path.parent.relative_to(ROOT).parts)
    for path in (ROOT / "plugins" / "families").glob("*/__init__.py")
    if "register_families" in path.read_text("utf-8")
}


def bundled() -> dict[str, str]:
    setup = ConfigParser(interpolation=None)
    setup.optionxform = str  # type: ignore[assignment,method-assign]
    setup.read(ROOT / "setup.cfg", "utf-8")
    lines = setup["options.entry_points"][GROUP].split("\n")
    pairs = [(name, value) for name, _, value in (line.partition(" = ") for line in lines if line)]
    assert len(pairs) == len({name for name, _ in pairs})
    return dict(pairs)


@dataclass
class CopperConfig(ComponentConfig):
    """A sink of the tests."""

    name: str = "copper"


@dataclass
class OtherCopperConfig(ComponentConfig):
    """Another one of the same name."""

    name: str = "copper"


Plugin = Callable[..., EntryPoint]


@pytest.fixture
def plugin() -> Iterator[Plugin]:
    """Return a maker of entry points whose modules stand in sys.modules while the test runs."""
    made: list[str] = []

    def make(name: str, *, module: str = "", **hooks: Any) -> EntryPoint:
        module = module or name.replace("-", "_")
        made.append(module)
        sys.modules[module] = types.ModuleType(module)
        for hook, implementation in hooks.items():
            setattr(sys.modules[module], hook, hookimpl(implementation, specname=hook))
        return EntryPoint(name, module, GROUP)

    yield make
    for module in made:
        del sys.modules[module]


def sink(config: type[ComponentConfig]) -> Callable[..., None]:
    def register_sinks(register: Any) -> None:
        register(lambda config: config.name, config)

    return register_sinks


def test_each_bundled_file_has_one_entry_point_and_each_entry_point_a_file() -> None:
    assert sorted(bundled().values()) == sorted(PLUGINS)


def test_entry_points_are_named_after_their_file() -> None:
    for name, value in bundled().items():
        kind, file = value.split(".")[1:]
        kind = {"addresses": "address", "families": "family", "vocals": "vocals"}.get(kind, kind.removesuffix("s"))
        assert name == f"multitalk-{kind}-{file.replace('_', '-')}"


def test_installed_entry_points_are_those_of_setup_cfg() -> None:
    # Fails where the environment was installed before setup.cfg changed: `make env` mends it.
    found = {point.name: point.value for point in entry_points(group=GROUP) if point.name in bundled()}
    assert found == bundled()


def test_every_bundled_plugin_is_registered_under_its_file_name() -> None:
    registry = installed()
    assert not registry.broken
    known = {
        "families": registry.families.names(),
        "sources": registry.sources.names(),
        "readers": registry.readers.names(),
        "attention": registry.attention.names(),
        "samplers": registry.samplers.names(),
        "quants": registry.quants.names(),
        "guidance": registry.guidance.names(),
        "caches": registry.caches.names(),
        "regions": registry.regions.names(),
        "speech": registry.speech.names(),
        "diarisers": registry.diarisers.names(),
        "vocals": registry.vocals.names(),
        "sinks": registry.sinks.names(),
        "launchers": registry.launchers.names(),
        "entrypoints": registry.entrypoints.names(),
    }
    for value in bundled().values():
        kind, file = value.split(".")[1:]
        if kind != "addresses":
            assert file.replace("_", "-") in known[kind]
        assert registry.packages[value] == "multitalk-engine"


def test_a_registered_component_is_built_by_name(plugin: Plugin) -> None:
    registry = Registry()
    registry.load([plugin("acme-copper", register_sinks=sink(CopperConfig))])
    assert registry.sinks.names() == ("copper",)
    assert registry.sinks.build(CopperConfig()) == "copper"  # type: ignore[comparison-overlap]


def test_two_components_of_one_name_are_an_error_that_names_both(plugin: Plugin) -> None:
    points = [
        plugin("acme-copper", register_sinks=sink(CopperConfig)),
        plugin("bolt-copper", register_sinks=sink(OtherCopperConfig)),
    ]
    with pytest.raises(ConfigError, match=r"sink: sink 'copper' is registered twice.*MULTITALK_DISABLED_PLUGINS"):
        Registry().load(points)


def test_disabling_one_of_two_of_the_same_name_helps(plugin: Plugin) -> None:
    registry = Registry()
    points = [
        plugin("acme-copper", register_sinks=sink(CopperConfig)),
        plugin("bolt-copper", register_sinks=sink(OtherCopperConfig)),
    ]
    registry.load(points, disabled=["bolt-copper"])
    assert registry.sinks.config("copper") is CopperConfig


def test_two_entry_points_of_one_name_are_an_error(plugin: Plugin) -> None:
    points = [plugin("acme-copper", module="acme_one"), plugin("acme-copper", module="acme_two")]
    with pytest.raises(ConfigError, match="two installed plugins are called 'acme-copper': acme_one and acme_two"):
        Registry().load(points)


def test_the_same_entry_point_found_twice_counts_once(plugin: Plugin) -> None:
    registry = Registry()
    point = plugin("acme-copper", register_sinks=sink(CopperConfig))
    registry.load([point, point])
    assert registry.sinks.names() == ("copper",)


def test_a_broken_plugin_is_named_and_takes_nothing_else_with_it(
    plugin: Plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "acme_broken.py").write_text("raise RuntimeError('no copper left')\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry()
    registry.load(
        [
            EntryPoint("acme-broken", "acme_broken", GROUP),
            EntryPoint("acme-absent", "acme_absent", GROUP),
            plugin("acme-copper", register_sinks=sink(CopperConfig)),
        ]
    )
    assert registry.sinks.names() == ("copper",)
    assert registry.broken["acme-broken"] == "RuntimeError: no copper left"
    assert "No module named 'acme_absent'" in registry.broken["acme-absent"]


def test_an_unknown_name_lists_the_installed_and_the_broken(plugin: Plugin) -> None:
    @dataclass
    class TinConfig(ComponentConfig):
        name: str = "tin"

    registry = Registry()
    registry.load(
        [EntryPoint("acme-tin", "acme_tin_absent", GROUP), plugin("acme-copper", register_sinks=sink(CopperConfig))]
    )
    with pytest.raises(UnknownComponent) as caught:
        registry.sinks.build(TinConfig())
    assert str(caught.value) == ("sink: no sink named 'tin'; installed: copper (plugins that failed to load: acme-tin)")


def test_a_hook_that_no_specification_knows_is_an_error(plugin: Plugin) -> None:
    def register_kitchens(register: Any) -> None: ...

    with pytest.raises(ConfigError, match=r"acme_kitchen.*register_kitchens"):
        Registry().load([plugin("acme-kitchen", register_kitchens=register_kitchens)])


def test_presets_of_plugins_are_searched_in_order_and_once(plugin: Plugin) -> None:
    def presets(*names: str) -> Callable[..., None]:
        def register_presets(presets: Any) -> None:
            for name in names:
                presets(name)

        return register_presets

    registry = Registry()
    registry.load(
        [
            plugin("acme-one", register_presets=presets("acme.conf", "acme.conf")),
            plugin("acme-two", register_presets=presets("bolt.conf")),
        ]
    )
    assert sorted(registry.presets.packages) == ["acme.conf", "bolt.conf"]


def multitalk_plugins(**environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "engine", "plugins", "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return {**answer, "stderr": done.stderr}


def names(answer: dict[str, Any], group: str) -> set[str]:
    return {choice["name"] for choice in answer["choices"] if choice["group"] == group}


def test_disabled_plugins_come_from_the_environment() -> None:
    answer = multitalk_plugins(MULTITALK_DISABLED_PLUGINS="multitalk-sampler-unipc,multitalk-attention-sage")
    assert names(answer, "sampler") == {
        *("distilled", "euler", "heun", "renoise", "standard", "turbo"),
        *("longcat", "longcat-distilled", "longcat-tail"),
    }
    assert "sage" not in names(answer, "attention")
    assert not answer["broken"]


def test_deleting_plugin_files_removes_their_choices_and_breaks_nothing_else(tmp_path: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("engine", "plugins"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignore)
    before = multitalk_plugins(PYTHONPATH=str(tmp_path))
    removed = {"sampler": "unipc", "guidance": "apg", "cache": "teacache", "quant": "int8"}
    for kind, name in removed.items():
        folder = kind if kind == "guidance" else f"{kind}s"
        (tmp_path / "plugins" / folder / f"{name}.py").unlink()
    after = multitalk_plugins(PYTHONPATH=str(tmp_path))

    gone = [choice for choice in before["choices"] if choice not in after["choices"]]
    assert {choice["group"]: choice["name"] for choice in gone} == removed
    assert len(gone) == len(removed)
    assert [choice for choice in after["choices"] if choice not in before["choices"]] == []
    assert sorted(after["broken"]) == sorted(f"multitalk-{kind}-{name}" for kind, name in removed.items())
    assert "multitalk-sampler-unipc" in after["stderr"]
    assert after["resolutions"] == before["resolutions"]
