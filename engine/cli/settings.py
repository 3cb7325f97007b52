"""A person's own settings: `~/.config/multitalk/` with config.yaml and recipes, and the variables MULTITALK_*."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.assembly.composition import compositions
from engine.assembly.typed_overrides import as_text
from engine.errors import ConfigError, EngineError, plain
from engine.plugin.manager import installed
from engine.plugin.user_files import VARIABLE, Table, read_table, recipe_keys, store_recipes, user_recipes
from engine.serving.worker.defaults import environment_overrides, environment_recipe
from engine.text.similar import similar
from engine.text.terminal import tell

#: Section of config.yaml for all commands.
ALL = "all"
#: Entrypoint that does not read a person's folder unless it is told to: a worker runs for others.
WORKER = "runpod"
RECIPE, OVERRIDES = "MULTITALK_RECIPE", "MULTITALK_OVERRIDES"

FIRST_FILE = """\
# Settings of your own for the commands of multitalk (docs/cli.md, "Settings of your own").
# Arguments of the command line, MULTITALK_OVERRIDES and MULTITALK_RECIPE win over this file.
# `multitalk config` shows each value and where it comes from; `multitalk config KEY` explains a key.

# For all commands:
all: {}
#   sampler: turbo
#   video.crf: 20

# For generate, plan, doctor and rehearse:
generate: {}
#   sink.folder: /home/anna/films

# For batch, and for endpoint:
# batch:
#   launcher: local
# endpoint:
#   entrypoint.port: 9000

# Recipes of your own stand beside this file: recipes/NAME.yaml, chosen with recipe=NAME.
"""


@dataclass(frozen=True)
class Setting:
    """An override that was not typed."""

    override: str
    #: Where it comes from: "FILE:LINE", MULTITALK_OVERRIDES or MULTITALK_RECIPE.
    origin: str

    @property
    def key(self) -> str:
        """The key that it sets."""
        return self.override.lstrip("+~").partition("=")[0]


class Settings:
    """The settings that hold for one command, in the order in which they are applied."""

    def __init__(self, entries: Sequence[Setting] = ()) -> None:
        self.entries = tuple(entries)

    @property
    def overrides(self) -> list[str]:
        """The overrides, which stand before those of the command line."""
        return [entry.override for entry in self.entries]

    def show(self, given: Sequence[str]) -> None:
        """Tell on stderr which settings hold, unless one of `given` says entrypoint.quiet=true."""
        named = {word.lstrip("+~").partition("=")[0] for word in given}
        if "entrypoint.quiet=true" in (*given, *self.overrides):
            return
        by_origin: dict[str, list[str]] = {}
        for entry in self.entries:
            if entry.key not in named:
                by_origin.setdefault(entry.origin.rpartition(":")[0] or entry.origin, []).append(entry.override)
        for origin, overrides in by_origin.items():
            tell("", plain(f"settings of {origin}: {' '.join(overrides)}"))

    def located(self, error: EngineError, given: Sequence[str]) -> EngineError:
        """Return the error, with the place of the setting that it is about if it was not typed."""
        named = {word.lstrip("+~").partition("=")[0] for word in given}
        for entry in reversed(self.entries):
            if entry.key == error.field and entry.key not in named and entry.origin not in error.what:
                error.what = plain(f"{error.what} ({entry.origin})")
                error.args = (error.what,)
                break
        return error


def config_folder() -> Path:
    """Return the folder of a person's settings: MULTITALK_CONFIG_DIR, else multitalk in XDG_CONFIG_HOME."""
    if own := os.environ.get("MULTITALK_CONFIG_DIR"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.config").expanduser()) / "multitalk"  # noqa: PTH117


def config_file() -> Path | None:
    """Return the file of settings that holds; None: none. MULTITALK_CONFIG names one, or is empty for none."""
    named = os.environ.get("MULTITALK_CONFIG")
    if named is not None:
        return Path(named).expanduser() if named else None
    path = config_folder() / "config.yaml"
    return path if path.exists() else None


def settings_for(entrypoint: str, given: Sequence[str] = ()) -> Settings:
    """Return the settings of a command, make a person's recipes known, and check one that `given` chooses.

    For a worker only what it is told by --config, MULTITALK_CONFIG or MULTITALK_CONFIG_DIR; it reads the variables
    MULTITALK_OVERRIDES and MULTITALK_RECIPE itself. Raises ConfigError with file and line.
    """
    told = any(os.environ.get(name) for name in ("MULTITALK_CONFIG", "MULTITALK_CONFIG_DIR"))
    entries: list[Setting] = []
    if entrypoint != WORKER or told:
        file = config_file()
        own_recipes = os.environ.get("MULTITALK_CONFIG") != ""
        recipes = config_folder() / "recipes" if own_recipes else None
        if recipes is not None and recipes.is_dir():
            os.environ[VARIABLE] = str(recipes)
        store_recipes(recipes)
        compositions().cached.clear()
        if file is not None:
            entries += _entries(read_table(file), file, entrypoint)
    chosen = [word.partition("=")[2].strip("'\"") for word in given if word.startswith("recipe=")]
    if recipe := (chosen[-1] if chosen else environment_recipe()):
        # A recipe that is chosen for this command is stronger than the file.
        folder = Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None
        keys = recipe_keys(recipe, folder, installed().presets.packages) | {"recipe"}
        entries = [entry for entry in entries if entry.key not in keys]
    if entrypoint != WORKER:
        if recipe := environment_recipe():
            entries.append(Setting(f"recipe={recipe}", RECIPE))
        for override in environment_overrides():
            # An endpoint's workers read their own part themselves.
            if entrypoint != "endpoint" or not override.lstrip("+~").startswith("entrypoint"):
                entries.append(Setting(override, OVERRIDES))
    settings = Settings(entries)
    _check_recipe([*settings.overrides, *given])
    return settings


def settings_again(given: Sequence[str], is_fixed: Callable[[str], bool]) -> list[str]:
    """Return the settings for making a video again: those that are not fixed by its provenance; name the others."""
    entries = settings_for("generate", given).entries
    if unused := [entry.override for entry in entries if is_fixed(entry.override)]:
        tell("warning", plain(f"settings that are not used, since the video has its own: {' '.join(unused)}"))
    settings = Settings([entry for entry in entries if not is_fixed(entry.override)])
    settings.show(given)
    return settings.overrides


def _check_recipe(overrides: Sequence[str]) -> None:
    """Raise the error of a chosen recipe that is damaged."""
    chosen = [word.partition("=")[2].strip("'\"") for word in overrides if word.startswith("recipe=")]
    if chosen and (folder := os.environ.get(VARIABLE)):
        for recipe in user_recipes(Path(folder)):
            if recipe.name == chosen[-1] and recipe.error is not None:
                raise recipe.error


def _entries(table: Table, path: Path, entrypoint: str) -> Iterator[Setting]:
    known = (ALL, *installed().entrypoints.names())
    for section, line in table.lines.items():
        place = f"{path}:{line}"
        if section not in known:
            near = similar(section, known)
            hint = f"did you mean {near[0]}?" if near else f"sections: {', '.join(known)}"
            raise ConfigError(f"there is no command {section!r}", field=place, hint=hint)
        if not isinstance(table.values[section], Table) and table.values[section] is not None:
            raise ConfigError(f"{section!r} is not a table", field=place, hint="such as sampler: turbo, below it")
    for section in (ALL, entrypoint):
        below = table.values.get(section)
        if isinstance(below, Table):
            yield from _overrides(below, path, "")


def _overrides(table: Table, path: Path, prefix: str) -> Iterator[Setting]:
    for key, value in table.values.items():
        place = f"{path}:{table.lines[key]}"
        if key in ("entrypoint", "hydra") or key.startswith("hydra."):
            raise ConfigError(f"{key!r} cannot be set here", field=place, hint="give it on the command line")
        if isinstance(value, Table):
            yield from _overrides(value, path, f"{prefix}{key}.")
        else:
            yield Setting(f"{prefix}{key}={_text(f'{prefix}{key}', value)}", place)


def _text(key: str, value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(_text(key, part) for part in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{name}:{_text(key, part)}' for name, part in value.items())}}}"
    if isinstance(value, str):
        if re.fullmatch(r"[A-Za-z][\w-]*", value) and value.lower() not in ("true", "false", "null", "nan", "inf"):
            return value
        return as_text(key, os.path.expanduser(value) if value.startswith("~/") else value).partition("=")[2]  # noqa: PTH111
    return json.dumps(value)


def init() -> Path:
    """Write a first config.yaml with comments, and return its path. Raises ConfigError if there is one."""
    folder = config_folder()
    path = folder / "config.yaml"
    try:
        (folder / "recipes").mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(FIRST_FILE)
    except FileExistsError:
        raise ConfigError("is there already", field=str(path), hint="edit it, or move it away") from None
    except OSError as error:
        raise ConfigError(
            f"cannot be written: {error.strerror}", field=str(path), hint="set MULTITALK_CONFIG_DIR"
        ) from error
    return path
