"""Read presets and their files from manifest.yaml."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from engine.errors import ConfigError, SourceError
from engine.hub.record import COMPLETE
from engine.text.names import is_inside, is_plain

COMMIT = re.compile(r"[0-9a-f]{40}")
#: Values of quant that read quantised files; the others read the files of quant=none and quantise while loading.
STORED = ("int8-quanto", "fp8-quanto", "gguf")


@dataclass(frozen=True)
class File:
    """One published file."""

    part: str
    repository: str
    #: A commit, or a branch if no source records a commit.
    revision: str
    #: Path inside the repository.
    path: str
    #: Path inside the model's folder.
    to: str
    #: Bytes: exact if a source records them, else approximate.
    size: int
    exact: bool
    #: "" if no source records it.
    sha256: str
    licence: str
    #: Approximate bytes of the shards that this file, an index, names; 0: it is no index, or they are listed.
    shards: int = 0

    @property
    def key(self) -> str:
        """Return the key that identifies this file among all repositories."""
        return f"{self.repository}:{self.path}"


@dataclass(frozen=True)
class Preset:
    """A set of files that make up a model."""

    name: str
    about: str
    #: Below the folder of all models.
    folder: str
    #: Overrides with which the engine uses it.
    use: str
    files: tuple[File, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """Return the names of its parts, in order."""
        return tuple(dict.fromkeys(file.part for file in self.files))

    @property
    def words(self) -> dict[str, str]:
        """Return `use` by key, completed with the model's defaults."""
        return {"model.folder": self.folder, "quant": "none"} | dict(word.split("=") for word in self.use.split())

    @property
    def size(self) -> int:
        """Return its bytes on disk; a download never needs more, because no file is stored twice."""
        return sum(file.size + file.shards for file in self.files)

    def with_shards(self, folder: Path) -> Preset:
        """Return the preset with the shards that the indexes in `folder` name. Raises SourceError for a bad index.

        Where an index is missing, its shards are not known yet.
        """
        return replace(self, files=tuple(one for file in self.files for one in expand(file, folder / file.to)))

    @property
    def exact(self) -> bool:
        """Whether `size` is exact."""
        return all(file.exact and not file.shards for file in self.files)


class Manifest:
    """The presets, by name."""

    def __init__(self, table: dict[str, Any]) -> None:
        self._table = table
        self.default: str = table["default"]

    def names(self) -> tuple[str, ...]:
        """Return the names of all presets, in the order of the file."""
        return tuple(self._table["presets"])

    def parts(self) -> tuple[str, ...]:
        """Return the names of all parts."""
        return tuple(self._table["parts"])

    def repositories(self) -> dict[str, dict[str, Any]]:
        """Return the repositories by name, as the file has them."""
        return dict(self._table["repositories"])

    def packaged(self) -> dict[str, dict[str, Any]]:
        """Return the weights that ship in the package, as the file has them; a manifest of one's own has none."""
        return dict(self._table.get("packaged", {}))

    def preset(self, name: str, *, extra: Sequence[str] = (), without: Sequence[str] = ()) -> Preset:
        """Return a preset, with the parts `extra` added and the parts `without` left out. Raises ConfigError."""
        row = self._table["presets"].get(name)
        if row is None:
            raise ConfigError(f"no preset named {name!r}", field="--preset", hint=f"known: {', '.join(self.names())}")
        for field, parts, allowed in (
            ("--with", extra, self.parts()),
            ("--without", without, (*row["parts"], *extra)),
        ):
            for part in parts:
                if part not in allowed:
                    raise ConfigError(f"no part named {part!r}", field=field, hint=f"known: {', '.join(allowed)}")
        parts = [part for part in dict.fromkeys([*row["parts"], *extra]) if part not in without]
        files = tuple(file for part in parts for file in self._files(part))
        _check_places(name, row["folder"], files)
        return Preset(name, row["about"], row["folder"], row["use"], files)

    def presets(self) -> tuple[Preset, ...]:
        """Return all presets."""
        return tuple(self.preset(name) for name in self.names())

    def chosen(self, name: str, model: str, quant: str) -> Preset | None:
        """Return the preset `name`, or if it is "" the preset of `model` and `quant`. Raises ConfigError."""
        return self.preset(name) if name else self.preset_of(model, quant)

    def preset_of(self, model: str, quant: str = "none") -> Preset | None:
        """Return the preset that `model=… quant=…` reads; None if none is published.

        A quantisation that is made while loading reads the files of quant=none.
        """
        stored_quant = quant if quant in STORED else "none"
        mine = (preset for preset in self.presets() if "model.folder=" not in preset.use)
        return next((one for one in mine if (one.words["model"], one.words["quant"]) == (model, stored_quant)), None)

    def offers(self, model: str, quant: str, folder: str) -> tuple[Preset, ...]:
        """Return the presets to suggest if `model=… quant=… model.folder=…` finds no weights, the best one first.

        These are the presets that it reads. If they are 32-bit files, presets with the quantisation of the default
        preset come first. If there are none, presets of other folders follow, then those with the quantisation of the
        default preset.
        """
        default_quant = self.preset(self.default).words["quant"]
        stored_quant = quant if quant in STORED else "none"
        mine = [preset for preset in self.presets() if preset.words["model"] == model]
        here = [preset for preset in mine if preset.folder == folder]
        exact = [preset for preset in here if preset.words["quant"] == stored_quant]
        if stored_quant == "none":
            exact = [*(preset for preset in here if preset.words["quant"] == default_quant), *exact]
        for presets in (
            exact,
            [preset for preset in mine if preset.words["quant"] == stored_quant],
            [preset for preset in mine if preset.words["quant"] == default_quant],
        ):
            if presets:
                # One of each quantisation: files of other folders are variants.
                return tuple({preset.words["quant"]: preset for preset in reversed(presets)}.values())[::-1]
        return ()

    def part_of(self, place: str) -> str | None:
        """Return the part that has a file at `place` in the model's folder; None if there is none."""
        return next((part for part in self.parts() for file in self._files(part) if file.to == place), None)

    def _files(self, part: str) -> tuple[File, ...]:
        row = self._table["parts"][part]
        repository = row["repository"]
        source = self._table["repositories"][repository]
        return tuple(
            File(
                part=part,
                repository=repository,
                revision=source["revision"],
                path=file["path"],
                to=_place(file["path"], file.get("to", "")),
                size=file.get("size", file.get("about")),
                exact="size" in file,
                sha256=file.get("sha256", ""),
                licence=source["licence"],
                shards=file.get("shards", 0),
            )
            for file in row["files"]
        )


def expand(file: File, index: Path) -> list[File]:
    """Return `file`, and if it is an index, which exists at `index`, the shards that it names. Raises SourceError."""
    if not file.shards or not index.is_file():
        return [file]
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        if not names or not all(map(is_plain, names)) or any(name.startswith(".") for name in names):
            raise ValueError("it names no files of its own folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(
            f"the index {file.to} cannot be used: {error}", field="download", hint="get it again with --repair"
        ) from error
    shard = replace(file, size=file.shards // len(names), exact=False, sha256="", shards=0)
    path, place = Path(file.path), Path(file.to)
    named = [
        replace(shard, path=path.with_name(name).as_posix(), to=place.with_name(name).as_posix()) for name in names
    ]
    return [replace(file, shards=0), *named]


def _check_places(name: str, folder: str, files: Sequence[File]) -> None:
    """Raise ConfigError for a preset that would read or write outside its folder: a manifest may be untrusted."""
    wrong = [place for place in (name, folder) if not is_plain(place) or place.startswith(".")]
    for file in files:
        owner, slash, repository = file.repository.partition("/")
        wrong += [file.repository] if not slash or not is_plain(owner) or not is_plain(repository) else []
        wrong += [place for place in (file.revision, file.path, file.to) if not is_inside(place)]
        # Hidden files are this package's own.
        wrong += [file.to] if str(file.to).startswith(".") or file.to == COMPLETE else []
    if wrong:
        raise ConfigError(
            f"the preset {str(name)[:80]!r} has a name that must not be part of a path: {str(wrong[0])[:80]!r}",
            field="--manifest",
            hint="use relative paths without '..' and without hidden names",
        )


def _place(path: str, to: str) -> str:
    return to + Path(path).name if to.endswith("/") else to or path


@cache
def read_manifest(path: Path | None = None) -> Manifest:
    """Return the manifest at `path`, or this package's own. Raises ConfigError if the file is not a manifest."""
    import yaml

    path = path or Path(__file__).with_name("manifest.yaml")
    try:
        manifest = Manifest(yaml.safe_load(path.read_text("utf-8")))
        manifest.presets()
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is not a valid manifest ({type(error).__name__}: {error})",
            field="--manifest",
            hint="engine/hub/manifest.yaml shows the format",
        ) from error
    return manifest
