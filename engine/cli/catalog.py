"""The installed components and presets by group, with the package of each."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import packages_distributions
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from engine.errors import EngineError, plain
from engine.plugin.manager import Registry, loaded
from engine.plugin.user_files import VARIABLE, UserRecipe, user_recipes
from engine.text.terminal import columns, hanging, styled

OURS = "multitalk-engine"
#: Width from which the table has a column of packages.
_WIDE = 110
#: The package of the engine's own presets.
_CONF = "engine.conf"


@dataclass(frozen=True)
class Choice:
    """One thing to choose: `group=name`."""

    group: str
    name: str
    #: "component" (code) or "preset" (YAML).
    kind: str
    package: str
    about: str


def choices(registry: Registry | None = None) -> list[Choice]:
    """Return everything that can be chosen, sorted by group and name."""
    registry = registry or loaded()
    choices_found = [*_components(registry), *_presets(_CONF, OURS)]
    for package in registry.presets.packages:
        choices_found += _presets(package, _distribution(package))
    choices_found += (
        Choice("recipe", recipe.name, "preset", "your own", recipe.about)
        for recipe in _own_recipes()
        if recipe.error is None
    )
    return sorted(choices_found, key=lambda choice: (choice.group, choice.name))


def groups(registry: Registry | None = None) -> dict[str, list[str]]:
    """Return the names in each group."""
    named: dict[str, list[str]] = {}
    for choice in choices(registry):
        named.setdefault(choice.group, []).append(choice.name)
    return named


def resolutions() -> dict[str, list[str]]:
    """Return the resolutions of each model preset, the default first; empty for a preset that cannot be composed."""
    # Hydra: the help, which prints the names only, does not need it.
    from engine.assembly.compose import compose

    sizes: dict[str, list[str]] = {}
    for name in groups()["model"]:
        try:
            model = compose([f"model={name}"]).model
        except EngineError:
            sizes[name] = []
            continue
        sizes[name] = sorted(model.resolutions, key=lambda key: (key != model.resolution, key))
    return sizes


def print_catalog(*, as_json: bool) -> int:
    """Print what is installed, as text or as one JSON object."""
    registry = loaded()
    entries, sizes = choices(registry), resolutions()
    broken = registry.broken | {
        f"recipe {recipe.name}": plain(str(recipe.error)) for recipe in _own_recipes() if recipe.error is not None
    }
    if as_json:
        answer = {"choices": [asdict(choice) for choice in entries], "resolutions": sizes, "broken": broken}
        print(json.dumps(answer))
        return 0
    width = max(len(choice.name) for choice in entries)
    package = max(len(choice.package) for choice in entries)
    limit = columns()
    for group in dict.fromkeys(choice.group for choice in entries):
        print(styled(group, "bold"))
        for choice in (choice for choice in entries if choice.group == group):
            head, about = f"  {choice.name:<{width}}  {choice.kind:<9}  ", choice.about
            if limit is None or limit >= _WIDE:
                head += f"{choice.package:<{package}}  "
            elif choice.package != OURS:
                about += f" ({choice.package})"
            print("\n".join(hanging(head, about, limit, style="cyan")))
    print(styled("resolution", "bold"))
    for model, names in sizes.items():
        print("\n".join(hanging("  ", f"{', '.join(names) or 'unreadable'} (model={model})", limit)))
    for name, reason in broken.items():
        print("\n".join(hanging("broken: ", f"{name}: {reason}", limit, style="red")))
    return 0


def _components(registry: Registry) -> Iterator[Choice]:
    # A plugin's components belong to its distribution, in whichever of its modules the config is.
    packages = sorted(registry.packages.items(), key=lambda item: -len(item[0]))
    for register in registry.registers:
        for name in register.names():
            config = register.config(name)
            module = config.__module__
            package = next((dist for own, dist in packages if module == own or module.startswith(f"{own}.")), OURS)
            yield Choice(register.group, name, "component", package, _about(config))


def _own_recipes() -> list[UserRecipe]:
    """Return the recipes of the person whose settings the command line has read."""
    folder = os.environ.get(VARIABLE)
    return user_recipes(Path(folder)) if folder else []


def _about(config: type) -> str:
    text = inspect.getdoc(config) or ""
    # A dataclass without a docstring gets its signature as docstring.
    return "" if text.startswith(f"{config.__name__}(") else text.partition("\n")[0]


def _presets(package: str, distribution: str) -> Iterator[Choice]:
    for folder in files(package).iterdir():
        if folder.is_dir() and not folder.name.startswith(("_", ".")):
            yield from _group(folder, folder.name, distribution)


def _group(folder: Traversable, group: str, distribution: str) -> Iterator[Choice]:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.name.startswith(("_", ".")):
            yield from _group(entry, f"{group}/{entry.name}", distribution)
        elif entry.name.endswith(".yaml"):
            comments = (line[1:].strip() for line in entry.read_text("utf-8").splitlines() if line.startswith("#"))
            about = next((comment for comment in comments if not comment.startswith("@package")), "")
            yield Choice(group, entry.name.removesuffix(".yaml"), "preset", distribution, about)


def _distribution(package: str) -> str:
    return next(iter(packages_distributions().get(package.partition(".")[0], ())), "unknown")
