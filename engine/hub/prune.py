"""The state of presets on the volume, the files that no preset in use needs, and their removal."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ConfigError
from engine.hub.check import foreign_files, unmark
from engine.hub.lock import locked
from engine.hub.manifest import Manifest
from engine.hub.record import PRIVATE, Record, records


@dataclass(frozen=True)
class State:
    """A preset and how much of it is on the volume."""

    preset: str
    about: str
    folder: str
    use: str
    #: "complete", "partial" or "absent".
    state: str
    #: Bytes of its downloaded files, and of all its files; approximate unless `exact`.
    there: int
    size: int
    exact: bool
    #: Licences of its files.
    licences: tuple[str, ...]


@dataclass(frozen=True)
class Removable:
    """A file that can be removed."""

    path: Path
    size: int
    #: "unneeded": downloaded, but no preset in use needs it. "unfinished": a partial download. "foreign": not
    #: downloaded by this program.
    why: str


def states(manifest: Manifest, root: Path) -> list[State]:
    """Return the state of every preset of the manifest below `root`. Raises SourceError."""
    result = []
    for listed in manifest.presets():
        preset = listed.with_shards(root / listed.folder)
        record = Record(root / preset.folder)
        sizes = [
            record.entries[file.to].size if file.to in record.entries else file.size + file.shards
            for file in preset.files
        ]
        there = [record.unchanged(file.to) for file in preset.files]
        # With the parts that were downloaded, which may differ from the manifest's.
        complete = preset.name in record.complete and all(map(record.unchanged, record.complete[preset.name]))
        downloaded = sum(size for size, is_there in zip(sizes, there, strict=True) if is_there)
        result.append(
            State(
                preset.name,
                preset.about,
                preset.folder,
                preset.use,
                "complete" if complete else "partial" if downloaded else "absent",
                downloaded,
                sum(sizes),
                all(file.exact or file.to in record.entries for file in preset.files),
                tuple(dict.fromkeys(file.licence for file in preset.files)),
            )
        )
    return result


def removable(manifest: Manifest, root: Path, keep: Sequence[str] = (), *, foreign: bool = False) -> list[Removable]:
    """Return the files below `root` that none of the presets `keep` needs.

    Args:
        keep: presets in use; if empty, those that are marked complete.
        foreign: also list files that were not downloaded by this program.

    Raises ConfigError if no preset is in use, and SourceError.
    """
    folder_records = records(root)
    used = set(keep) or {name for record in folder_records for name in record.complete}
    if not used:
        raise ConfigError("no preset is complete", field="--keep", hint="name the presets in use with --keep")
    files = []
    for record in folder_records:
        needed = {place for name in used for place in record.complete.get(name, ())}
        needed |= {
            file.to
            for preset in map(manifest.preset, keep)
            if preset.folder == record.folder.name
            for file in preset.with_shards(record.folder).files
        }
        for place in record.entries:
            path = record.folder / place
            if place in needed or not path.exists():
                continue
            # A foreign file can have replaced a downloaded one.
            ours = record.unchanged(place)
            if ours or foreign:
                files.append(Removable(path, path.stat().st_size, "unneeded" if ours else "foreign"))
        parts = sorted((record.folder / PRIVATE / "parts").glob("*"))
        files += [Removable(part, part.stat().st_size, "unfinished") for part in parts]
        if foreign:
            paths = [record.folder / place for place in foreign_files(record.folder, record)]
            files += [Removable(path, path.lstat().st_size, "foreign") for path in paths]
    return files


def remove(files: Sequence[Removable], root: Path) -> int:
    """Remove `files` and return their bytes; presets that need one are marked incomplete. Raises OSError."""
    for record in records(root):
        items = [item for item in files if item.path.is_relative_to(record.folder)]
        if not items:
            continue
        # A download may be running here, and its parts may look abandoned.
        with locked(record.folder):
            unmark(record.folder, {str(item.path.relative_to(record.folder)) for item in items})
            for item in items:
                item.path.unlink(missing_ok=True)
                _remove_empty(item.path.parent, root)
    return sum(item.size for item in files)


def _remove_empty(folder: Path, root: Path) -> None:
    with suppress(OSError):
        while folder != root and folder.name != PRIVATE:
            folder.rmdir()
            folder = folder.parent
