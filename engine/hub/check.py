"""Read every byte of what was downloaded and name what is not as it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engine.files.checksums import sha256_of
from engine.hub.lock import locked
from engine.hub.manifest import Preset
from engine.hub.record import COMPLETE, PRIVATE, Record


@dataclass(frozen=True)
class Finding:
    """One file that is not as it should be."""

    #: Inside the model's folder.
    file: str
    #: "missing", "truncated", "corrupt", "swapped", "unverified" or "foreign".
    kind: str
    detail: str


def verify(
    presets: Sequence[Preset], folder: Path, *, quick: bool = False, say: Callable[[str], None] = lambda _: None
) -> list[Finding]:
    """Return what is wrong in the folder of `presets`, and take the mark of completeness from those it concerns.

    Args:
        presets: those that are to be whole; all live in `folder`.
        quick: compare sizes and times alone and read nothing.

    A file is held to its SHA-256 of the manifest, else of its first download. Foreign files concern no preset.
    """
    record = Record(folder)
    files = {file.to: file for preset in presets for file in preset.files}
    # What else is recorded belongs to another preset of this folder.
    places = sorted({*files, *record.entries})
    findings = []
    # SHA-256 -> the place where that content belongs.
    belongs = {entry.sha256: place for place, entry in record.entries.items()}
    belongs |= {file.sha256: place for place, file in files.items() if file.sha256}
    for place in places:
        entry, told = record.entries.get(place), files.get(place)
        path = folder / place
        if not path.is_file():
            if told is not None:
                findings.append(
                    Finding(place, "missing", "a link that leads nowhere" if path.is_symlink() else "no file")
                )
            continue
        wanted = (told.sha256 if told else "") or (entry.sha256 if entry else "")
        size = entry.size if entry else told.size if told and told.exact else None
        if not wanted:
            findings.append(Finding(place, "unverified", "nothing tells what it should be; pull the preset"))
            continue
        if quick and entry is not None:
            if not record.unchanged(place):
                findings.append(Finding(place, "corrupt", "size or time is not that of the verified file"))
            continue
        found = path.stat().st_size
        if size is not None and found < size:
            findings.append(Finding(place, "truncated", f"{found} of {size} bytes"))
            continue
        say(f"reading {place}")
        sha256 = sha256_of(path)
        if sha256 == wanted:
            continue
        other = belongs.get(sha256)
        if other is not None:
            findings.append(Finding(place, "swapped", f"holds what belongs in {other}"))
        else:
            findings.append(Finding(place, "corrupt", f"SHA-256 {sha256} in place of {wanted}"))
    bad = {finding.file for finding in findings}
    if not bad.isdisjoint(record.entries):
        # What is found is told even where it cannot be marked.
        with suppress(OSError), locked(folder, say=say):
            unmark(folder, bad)
    return findings + [Finding(place, "foreign", "not one of ours") for place in strangers(folder, record, files)]


def unmark(folder: Path, places: Collection[str]) -> None:
    """Take the mark from presets that need one of `places`, which count as changed. Under the folder's lock.

    What they have to be stays on record: it was trusted when it first came.
    """
    record = Record(folder)
    record.complete = {name: needed for name, needed in record.complete.items() if set(needed).isdisjoint(places)}
    for place in record.entries.keys() & places:
        record.entries[place].mtime_ns = 0
    record.save()


def strangers(folder: Path, record: Record, known: Iterable[str] = ()) -> Iterator[str]:
    """Yield the files in `folder` that were neither downloaded nor are `known`."""
    ours = {*record.entries, *known, COMPLETE}
    for path, below, names in os.walk(folder):
        if Path(path) == folder and PRIVATE in below:
            below.remove(PRIVATE)
        for name in sorted(names):
            place = str((Path(path) / name).relative_to(folder))
            if place not in ours:
                yield place
