"""A person's own files: recipes that can be chosen as `recipe=NAME`, and YAML with the line of each key."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from engine.errors import ConfigError

#: Variable with the folder of a person's recipes; the command line sets it for the processes that it starts.
VARIABLE = "MULTITALK_RECIPES"
#: Most bytes of a file of settings.
_MOST = 1_000_000
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*")
#: Name of the provider in Hydra's store.
_PROVIDER = "your own recipes"


@dataclass(frozen=True)
class Table:
    """A YAML table: values by key, and the line of each key, from 1; tables below a key are tables again."""

    values: Mapping[str, Any]
    lines: Mapping[str, int]

    def plain(self) -> dict[str, Any]:
        """Return the values as dicts."""
        return {key: value.plain() if isinstance(value, Table) else value for key, value in self.values.items()}


def read_table(path: Path) -> Table:
    """Return the table in a YAML file. Raises ConfigError with the file and the line."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST + 1)
        text = content.decode("utf-8")
    except OSError as error:
        hint = "check the path, or use --no-config"
        raise ConfigError(f"cannot be read: {error.strerror}", field=str(path), hint=hint) from error
    except UnicodeDecodeError as error:
        raise ConfigError("is not UTF-8 text", field=str(path), hint="write YAML") from error
    if len(content) > _MOST:
        raise ConfigError(f"has more than {_MOST} bytes", field=str(path), hint="write YAML")
    try:
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(
            f"{error.problem or 'cannot be read as YAML'}", field=place, hint="write key: value"
        ) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        what = str(error).partition("\n")[0] if str(error) else "nested too deeply"
        raise ConfigError(what, field=str(path), hint="write YAML") from error
    if node is None:
        return Table({}, {})
    return _table(node, path, depth=0)


def _table(node: yaml.Node, path: Path, depth: int) -> Table:
    place = f"{path}:{node.start_mark.line + 1}"
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError("is not a table", field=place, hint="write key: value, one a line")
    if depth > 20:
        raise ConfigError("is nested too deeply", field=place, hint="write a dotted key, such as sampler.steps: 4")
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else ""
        if not key or not re.fullmatch(r"[\w./@+~-]+", key):
            raise ConfigError("a key is not a name", field=f"{path}:{line}", hint="such as sampler.steps: 4")
        if key in values:
            what = f"{key!r} is given twice, first in line {lines[key]}"
            raise ConfigError(what, field=f"{path}:{line}", hint="remove one of them")
        if isinstance(value_node, yaml.MappingNode):
            values[key] = _table(value_node, path, depth + 1)
        else:
            values[key] = _value(value_node, path)
        lines[key] = line
    return Table(values, lines)


def _value(node: yaml.Node, path: Path) -> Any:
    loader = yaml.SafeLoader("")
    try:
        value = loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        what = getattr(error, "problem", None) or "a value cannot be read"
        raise ConfigError(what, field=f"{path}:{node.start_mark.line + 1}", hint="write a text in quotes") from error
    finally:
        loader.dispose()
    if not _fits(value):
        what = f"a {type(value).__name__} is no value of the config"
        raise ConfigError(what, field=f"{path}:{node.start_mark.line + 1}", hint="write a text in quotes")
    return value


def _fits(value: Any, depth: int = 0) -> bool:
    if isinstance(value, list):
        return depth < 20 and all(_fits(part, depth + 1) for part in value)
    if isinstance(value, dict):
        return depth < 20 and all(isinstance(key, str) and _fits(part, depth + 1) for key, part in value.items())
    return value is None or isinstance(value, bool | int | float | str)


@dataclass(frozen=True)
class UserRecipe:
    """A recipe of a person."""

    name: str
    path: Path
    about: str
    #: Config in Hydra's form; None: it cannot be used.
    node: Mapping[str, Any] | None
    #: Error of one that cannot be used.
    error: ConfigError | None = None


def user_recipes(folder: Path) -> list[UserRecipe]:
    """Return the recipes in the files `*.yaml` of a folder, by name; damaged ones with their error."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix in (".yaml", ".yml") and path.is_file())
    except OSError:
        return []
    taken = {entry.name for entry in (files("engine.conf") / "recipe").iterdir()}
    recipes: dict[str, UserRecipe] = {}
    for path in paths:
        node, about, error = None, "", None
        try:
            if f"{path.stem}.yaml" in taken or path.stem in recipes:
                raise ConfigError(
                    f"there is a recipe {path.stem!r} already", field=str(path), hint="give the file another name"
                )
            if not _NAME.fullmatch(path.stem):
                hint = "letters, digits, '-', '_' and '.'"
                raise ConfigError(f"{path.stem!r} cannot be the name of a recipe", field=str(path), hint=hint)
            node = _hydra_form(read_table(path))
            comments = (line.lstrip("# ").strip() for line in path.read_text("utf-8").splitlines() if line[:1] == "#")
            about = next((line for line in comments if line and not line.startswith("@package")), "")
        except ConfigError as problem:
            error = problem
        recipes.setdefault(path.stem, UserRecipe(path.stem, path, about, node, error))
    return list(recipes.values())


def store_recipes(folder: Path | None) -> None:
    """Let `recipe=NAME` find the recipes of a folder, and no others that were stored before; None: none."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    group = store.repo.get("recipe", {})
    for name in [name for name, node in group.items() if getattr(node, "provider", None) == _PROVIDER]:
        del group[name]
    for recipe in user_recipes(folder) if folder is not None else ():
        if recipe.node is not None:
            store.store(
                group="recipe", name=recipe.name, node=dict(recipe.node), package="_global_", provider=_PROVIDER
            )


def store_told() -> None:
    """Do `store_recipes` for the folder that the environment names, if it names one."""
    if folder := os.environ.get(VARIABLE):
        store_recipes(Path(folder))


def groups() -> tuple[str, ...]:
    """Return the groups of which one name is chosen (`sampler: turbo`)."""
    config = yaml.safe_load((files("engine.conf") / "config.yaml").read_text("utf-8"))
    return tuple(name for entry in config["defaults"] if isinstance(entry, dict) for name in entry if " " not in name)


def _hydra_form(table: Table) -> dict[str, Any]:
    """Return a recipe with `sampler: turbo` and `sampler.steps: 4` as Hydra writes it; one in its form is unchanged."""
    values = table.plain()
    if "defaults" in values:
        return values
    defaults: list[Any] = []
    config: dict[str, Any] = {}
    chosen = groups()
    for key, value in values.items():
        if key == "recipe" and isinstance(value, str):
            defaults.insert(0, value)
        elif key in chosen and isinstance(value, str):
            defaults.append({f"override /{key}": value})
        else:
            node = config
            *parents, last = key.split(".")
            for parent in parents:
                below = node.setdefault(parent, {})
                node = below if isinstance(below, dict) else node.setdefault(parent, {})
            if isinstance(value, dict) and isinstance(node.get(last), dict):
                node[last] |= value
            else:
                node[last] = value
    return {"defaults": [*defaults, "_self_"], **config}


def recipe_keys(name: str, folder: Path | None, packages: Iterable[str] = ()) -> set[str]:
    """Return the keys and groups that a recipe sets, with those of the recipes below it; empty if it is unknown."""
    own = {recipe.name: recipe.node for recipe in user_recipes(folder)} if folder is not None else {}
    node = own.get(name)
    for package in ("engine.conf", *packages):
        path = files(package) / "recipe" / f"{name}.yaml"
        if node is None and path.is_file():
            node = yaml.safe_load(path.read_text("utf-8"))
    found: set[str] = set()
    for entry in (node or {}).get("defaults", ()):
        if isinstance(entry, dict):
            found |= {str(key).removeprefix("override /") for key in entry}
        elif entry not in ("_self_", name):
            found |= recipe_keys(str(entry), folder, packages)
    return found | set(_leaves({key: value for key, value in (node or {}).items() if key != "defaults"}, ""))


def _leaves(node: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
