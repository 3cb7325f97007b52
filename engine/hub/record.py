"""What was downloaded into a model's folder, kept beside the weights: the mark of completeness and the hashes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.errors import SourceError
from engine.files.atomic import write as write_whole
from engine.text.names import is_inside

#: In the model's folder; hidden, so that nobody looks for weights in it.
PRIVATE = ".multitalk"
COMPLETE = "download_complete.txt"
_FORMAT = 1


@dataclass
class Entry:
    """One file as it was when it was verified."""

    repository: str
    path: str
    #: The commit it came from.
    revision: str
    size: int
    sha256: str
    #: "manifest": the hash stands in the manifest. "first use": it is that of what came first, as the hub stated it.
    trust: str
    #: Of the file, when it was verified: tells a changed file without reading it.
    mtime_ns: int

    @property
    def key(self) -> str:
        """Return what names this file among all repositories."""
        return f"{self.repository}:{self.path}"


class Record:
    """The files of one folder that are ours, by their place in it, and the presets that are complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        #: Preset -> the places of its files.
        self.complete: dict[str, list[str]] = {}
        try:
            told: dict[str, Any] = json.loads(self._file.read_text("utf-8"))
            if told["format"] != _FORMAT:
                raise SourceError(f"{self._file} is of format {told['format']}", field="--model-path")
            self.entries = {place: Entry(**entry) for place, entry in told["files"].items()}
            # These are read, compared and removed: none may lead out of the folder, whoever wrote the record.
            if not all(map(is_inside, self.entries)):
                raise ValueError("it names a file outside its folder")
            # The mark is written last: without it a preset is not complete, whatever the record had been told.
            self.complete = {name: places for name, places in told["complete"].items() if name in self._marked()}
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SourceError(
                f"{self._file} cannot be read ({error})",
                field="--model-path",
                hint="remove it: files that are there are then verified anew",
            ) from error

    @property
    def _file(self) -> Path:
        return self.folder / PRIVATE / "record.json"

    def save(self) -> None:
        """Write the record and the mark of completeness, which at no moment names more than the record has."""
        marked = self._marked()
        if not set(marked) <= self.complete.keys():
            self._mark([name for name in marked if name in self.complete])
        told = {
            "format": _FORMAT,
            "files": {place: asdict(entry) for place, entry in sorted(self.entries.items())},
            "complete": self.complete,
        }
        write(self._file, json.dumps(told, indent=1) + "\n")
        self._mark(sorted(self.complete))

    def _marked(self) -> list[str]:
        with suppress(OSError):
            return (self.folder / COMPLETE).read_text("utf-8").split()
        return []

    def _mark(self, presets: Sequence[str]) -> None:
        mark = self.folder / COMPLETE
        if presets:
            write(mark, "".join(f"{name}\n" for name in presets))
        else:
            mark.unlink(missing_ok=True)

    def unchanged(self, place: str) -> bool:
        """Return whether the file at `place` is, by size and time, the one that was verified."""
        entry = self.entries.get(place)
        with suppress(OSError):
            stat = (self.folder / place).stat()
            return entry is not None and (stat.st_size, stat.st_mtime_ns) == (entry.size, entry.mtime_ns)
        return False

    def has_all(self, preset: str, places: Sequence[str]) -> bool:
        """Return whether `preset` was completed with at least these files, and none of them changed since."""
        return set(places) <= set(self.complete.get(preset, ())) and all(map(self.unchanged, places))


def write(path: Path, text: str) -> None:
    """Write a small file so that it is there whole or not at all, and is on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())


def records(root: Path) -> list[Record]:
    """Return the records of all models below `root`. Raises SourceError."""
    return [Record(path.parent.parent) for path in sorted(root.glob(f"*/{PRIVATE}/record.json"))]
