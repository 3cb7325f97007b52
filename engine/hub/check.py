"""Verify downloaded files: read every byte and report each file that differs."""

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
    """One file that is missing, differs or was not downloaded."""

    #: Path inside the model's folder.
    file: str
    #: "missing", "truncated", "corrupt", "swapped", "unverified" or "foreign".
    kind: str
    detail: str


def verify(
    presets: Sequence[Preset], folder: Path, *, quick: bool = False, say: Callable[[str], None] = lambda _: None
) -> list[Finding]:
    """Return the problems in the folder of `presets`; presets with a problem are no longer marked complete.

    Args:
        presets: the presets that must be complete; all are in `folder`.
        quick: compare only sizes and times; read no file.

    A file must have the SHA-256 of the manifest, or else of its first download. Foreign files affect no preset.
    """
    record = Record(folder)
    files = {file.to: file for preset in presets for file in preset.with_shards(folder).files}
    # Other recorded files belong to another preset in this folder.
    places = sorted({*files, *record.entries})
    findings = []
    # SHA-256 -> the place where that content belongs.
    place_of = {entry.sha256: place for place, entry in record.entries.items()}
    place_of |= {file.sha256: place for place, file in files.items() if file.sha256}
    for place in places:
        entry, file = record.entries.get(place), files.get(place)
        path = folder / place
        if not path.is_file():
            if file is not None:
                findings.append(Finding(place, "missing", "a broken link" if path.is_symlink() else "no file"))
            continue
        expected = (file.sha256 if file else "") or (entry.sha256 if entry else "")
        size = entry.size if entry else file.size if file and file.exact else None
        if not expected:
            findings.append(Finding(place, "unverified", "its SHA-256 is not known; pull the preset"))
            continue
        if quick and entry is not None:
            if not record.unchanged(place):
                findings.append(Finding(place, "corrupt", "its size or time changed since it was verified"))
            continue
        actual_size = path.stat().st_size
        if size is not None and actual_size < size:
            findings.append(Finding(place, "truncated", f"{actual_size} of {size} bytes"))
            continue
        say(f"reading {place}")
        sha256 = sha256_of(path)
        if sha256 == expected:
            continue
        other = place_of.get(sha256)
        if other is not None:
            findings.append(Finding(place, "swapped", f"contains the data of {other}"))
        else:
            findings.append(Finding(place, "corrupt", f"SHA-256 {sha256} instead of {expected}"))
    changed = {finding.file for finding in findings}
    if not changed.isdisjoint(record.entries):
        # The problems are reported even if the record cannot be written.
        with suppress(OSError), locked(folder, say=say):
            unmark(folder, changed)
    return findings + [
        Finding(place, "foreign", "not downloaded by this program") for place in foreign_files(folder, record, files)
    ]


def unmark(folder: Path, places: Collection[str]) -> None:
    """Mark presets that need one of `places` as incomplete, and the files there as changed. Needs the folder's lock.

    The record keeps their SHA-256, which was trusted at the first download.
    """
    record = Record(folder)
    record.complete = {name: needed for name, needed in record.complete.items() if set(needed).isdisjoint(places)}
    for place in record.entries.keys() & places:
        record.entries[place].mtime_ns = 0
    record.save()


def foreign_files(folder: Path, record: Record, expected: Iterable[str] = ()) -> Iterator[str]:
    """Yield the files in `folder` that were not downloaded and are not `expected`."""
    ours = {*record.entries, *expected, COMPLETE}
    for path, below, names in os.walk(folder):
        if Path(path) == folder and PRIVATE in below:
            below.remove(PRIVATE)
        for name in sorted(names):
            place = str((Path(path) / name).relative_to(folder))
            if place not in ours:
                yield place
