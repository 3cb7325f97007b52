"""The record of the files downloaded into a model's folder: their hashes, and which presets are complete."""

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

#: Sub-folder of the model's folder; hidden, so that no program searches it for weights.
PRIVATE = ".multitalk"
COMPLETE = "download_complete.txt"
_FORMAT = 1


@dataclass
class Entry:
    """One file in the state in which it was verified."""

    repository: str
    path: str
    #: The commit that it was downloaded from.
    revision: str
    size: int
    sha256: str
    #: Source of the hash. "manifest": the manifest. "first use": the hub's answer at the first download.
    trust: str
    #: Modification time when the file was verified: detects a changed file without reading it.
    mtime_ns: int

    @property
    def key(self) -> str:
        """Return the key that identifies this file among all repositories."""
        return f"{self.repository}:{self.path}"


class Record:
    """The downloaded files of one folder, by their place in it, and the presets that are complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        #: Preset -> the places of its files.
        self.complete: dict[str, list[str]] = {}
        try:
            content: dict[str, Any] = json.loads(self._file.read_text("utf-8"))
            if content["format"] != _FORMAT:
                raise SourceError(f"{self._file} has format {content['format']}", field="--model-path")
            self.entries = {place: Entry(**entry) for place, entry in content["files"].items()}
            # These files are read, compared and removed: none may be outside the folder, whoever wrote the record.
            if not all(map(is_inside, self.entries)):
                raise ValueError("it names a file outside its folder")
            # The mark is written last: without it a preset is not complete, whatever the record says.
            self.complete = {name: places for name, places in content["complete"].items() if name in self._marked()}
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SourceError(
                f"{self._file} cannot be read ({error})",
                field="--model-path",
                hint="remove it: the existing files are then verified again",
            ) from error

    @property
    def _file(self) -> Path:
        return self.folder / PRIVATE / "record.json"

    def save(self) -> None:
        """Write the record and the mark of completeness, which never names more presets than the record."""
        marked_presets = self._marked()
        if not set(marked_presets) <= self.complete.keys():
            self._mark([name for name in marked_presets if name in self.complete])
        content = {
            "format": _FORMAT,
            "files": {place: asdict(entry) for place, entry in sorted(self.entries.items())},
            "complete": self.complete,
        }
        write(self._file, json.dumps(content, indent=1) + "\n")
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
        """Return whether the file at `place` has the size and time of the verified one."""
        entry = self.entries.get(place)
        with suppress(OSError):
            stat = (self.folder / place).stat()
            return entry is not None and (stat.st_size, stat.st_mtime_ns) == (entry.size, entry.mtime_ns)
        return False

    def has_all(self, preset: str, places: Sequence[str]) -> bool:
        """Return whether `preset` is complete with at least these files, and none of them has changed since."""
        return set(places) <= set(self.complete.get(preset, ())) and all(map(self.unchanged, places))


def write(path: Path, text: str) -> None:
    """Write a small file atomically; it is on the disk when this returns. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())


def records(root: Path) -> list[Record]:
    """Return the records of all models below `root`. Raises SourceError."""
    return [Record(path.parent.parent) for path in sorted(root.glob(f"*/{PRIVATE}/record.json"))]
