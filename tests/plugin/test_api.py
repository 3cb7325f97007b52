"""The list of what plugins may import: bundled plugins keep to it, and nothing stands in it for nobody."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from string import Template

import pytest

from engine.plugin.api import API, EVERY
from engine.plugin.manager import Registry

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "tests" / "support" / "example_plugin"
TEMPLATES = ROOT / "engine" / "cli" / "plugin_template"
BUNDLED = sorted(
    path
    for path in (ROOT / "plugins").rglob("*.py")
    if path.name != "__init__.py" or path.parent.parent.name == "families"
)
EXAMPLES = sorted(EXAMPLE.rglob("*.py"))
DRAFTS = sorted(TEMPLATES.glob("*.py.txt"))
#: Folders of `plugins` that are not called as their config group in the plural.
FOLDERS = {"addresses": "address", "caches": "cache", "regions": "regions"}

#: What fills a template.
FILLED = {"name": "acme", "module": "acme", "Name": "Acme", "kind": "sink"}

Name = tuple[str, str]


def public(kind: str | None = None) -> set[Name]:
    """Return module and name of all that plugins of a kind may import."""
    rows = [row for row in API if kind is None or kind in row.kinds or EVERY in row.kinds]
    return {(row.module, name) for row in rows for name in row.names}


def used(path: Path) -> set[Name]:
    """Return what of the engine, or of another plugin, a file imports, inside functions and for type checkers too."""

    text = path.read_text("utf-8")
    if path.suffix == ".txt":
        text = Template(text).substitute(FILLED)

    def names() -> Iterator[Name]:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                yield from ((alias.name, "") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from ((str(node.module), alias.name) for alias in node.names)

    return {(module, name) for module, name in names() if module.partition(".")[0] in ("engine", "plugins")}


def family_of(path: Path) -> str:
    """Return the package of the family that a file belongs to; "" for other plugins."""
    parts = path.relative_to(ROOT).parts
    return ".".join(parts[:3]) if parts[:2] == ("plugins", "families") else ""


def outside(path: Path) -> set[Name]:
    """Return what a file imports from outside: a family is a package whose modules import each other."""
    family = family_of(path)
    return {(module, name) for module, name in used(path) if not family or not f"{module}.".startswith(f"{family}.")}


def kind_of(path: Path) -> str:
    if family_of(path):
        return "family"
    folder = path.parent.name
    return FOLDERS.get(folder, folder if folder == "attention" else folder.removesuffix("s"))


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_bundled_plugin_imports_what_plugins_of_its_kind_may(path: Path) -> None:
    wrong = outside(path) - public(kind_of(path))
    assert not wrong, "engine/plugin/api.py is the list"


@pytest.mark.parametrize("path", [*EXAMPLES, *DRAFTS], ids=lambda path: path.name)
def test_an_example_imports_what_plugins_may(path: Path) -> None:
    assert not used(path) - public()


def test_each_name_of_the_list_is_used_by_a_bundled_plugin_or_an_example() -> None:
    assert public() == set().union(*map(outside, BUNDLED), *map(used, [*EXAMPLES, *DRAFTS]))


def test_each_name_of_the_list_exists() -> None:
    for module, name in public():
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def test_each_name_stands_in_the_list_once_for_a_kind() -> None:
    seen = [(row.module, name, kind) for row in API for name in row.names for kind in row.kinds]
    assert len(seen) == len(set(seen))
    assert not {(module, name) for module, name, kind in seen if kind != EVERY} & {
        (module, name) for module, name, kind in seen if kind == EVERY
    }


def test_the_kinds_of_the_list_are_those_of_components_addresses_and_hooks() -> None:
    known = {register.group for register in Registry().registers} | {EVERY, "address", "family", "hook"}
    assert {kind for row in API for kind in row.kinds} <= known


def test_no_name_of_the_list_is_private() -> None:
    assert not [name for row in API for name in (*row.names, *row.module.split(".")) if name.startswith("_")]
