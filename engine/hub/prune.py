"""What is on the volume: which presets are there, which files no preset in use needs, and removing those."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ConfigError
from engine.hub.check import strangers, unmark
from engine.hub.lock import locked
from engine.hub.manifest import Manifest
from engine.hub.record import PRIVATE, Record, records


@dataclass(frozen=True)
class State:
    """A preset, and how much of it is on the volume."""

    preset: str
    about: str
    folder: str
    use: str
    #: "complete", "partial" or "absent".
    state: str
    #: Bytes of its files that are there, and of all of them; roughly where the manifest knows no better.
    there: int
    size: int
    exact: bool
    #: Which licences its files are under.
    licences: tuple[str, ...]


@dataclass(frozen=True)
class Removable:
    """A file that may go."""

    path: Path
    size: int
    #: "unneeded": downloaded, needed by no preset in use. "unfinished": on its way. "foreign": never ours.
    why: str


def states(manifest: Manifest, root: Path) -> list[State]:
    """Return how every preset of the manifest stands below `root`. Raises SourceError."""
    found = []
    for preset in manifest.presets():
        record = Record(root / preset.folder)
        sizes = [record.entries[file.to].size if file.to in record.entries else file.size for file in preset.files]
        there = [record.unchanged(file.to) for file in preset.files]
        # With the parts it was asked for, which may be fewer or more than the manifest's.
        whole = preset.name in record.complete and all(map(record.unchanged, record.complete[preset.name]))
        own = sum(size for size, is_there in zip(sizes, there, strict=True) if is_there)
        found.append(
            State(
                preset.name,
                preset.about,
                preset.folder,
                preset.use,
                "complete" if whole else "partial" if own else "absent",
                own,
                sum(sizes),
                all(file.exact or file.to in record.entries for file in preset.files),
                tuple(dict.fromkeys(file.licence for file in preset.files)),
            )
        )
    return found


def removable(manifest: Manifest, root: Path, keep: Sequence[str] = (), *, foreign: bool = False) -> list[Removable]:
    """Return what may go below `root`: files that none of the presets `keep` needs.

    Args:
        keep: presets in use; without any, those that are marked complete.
        foreign: list files that were not downloaded by us, too.

    Raises ConfigError where no preset is in use at all, and SourceError.
    """
    held = records(root)
    used = set(keep) or {name for record in held for name in record.complete}
    if not used:
        raise ConfigError("no preset is complete", field="--keep", hint="name the presets in use with --keep")
    found = []
    for record in held:
        needed = {place for name in used for place in record.complete.get(name, ())}
        needed |= {
            file.to
            for preset in map(manifest.preset, keep)
            if preset.folder == record.folder.name
            for file in preset.files
        }
        for place in record.entries:
            path = record.folder / place
            if place in needed or not path.exists():
                continue
            # Under a name of ours may stand a file that is not.
            ours = record.unchanged(place)
            if ours or foreign:
                found.append(Removable(path, path.stat().st_size, "unneeded" if ours else "foreign"))
        parts = sorted((record.folder / PRIVATE / "parts").glob("*"))
        found += [Removable(part, part.stat().st_size, "unfinished") for part in parts]
        if foreign:
            paths = [record.folder / place for place in strangers(record.folder, record)]
            found += [Removable(path, path.lstat().st_size, "foreign") for path in paths]
    return found


def remove(found: Sequence[Removable], root: Path) -> int:
    """Remove files, take the mark from presets that lose one by it, and return the bytes. Raises OSError."""
    for record in records(root):
        items = [item for item in found if item.path.is_relative_to(record.folder)]
        if not items:
            continue
        # A download may be at work here, with parts that looked left behind.
        with locked(record.folder):
            unmark(record.folder, {str(item.path.relative_to(record.folder)) for item in items})
            for item in items:
                item.path.unlink(missing_ok=True)
                _remove_empty(item.path.parent, root)
    return sum(item.size for item in found)


def _remove_empty(folder: Path, root: Path) -> None:
    with suppress(OSError):
        while folder != root and folder.name != PRIVATE:
            folder.rmdir()
            folder = folder.parent
