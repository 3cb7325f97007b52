"""States of unfinished videos on disk: what the next window needs, in one folder per video.

After each window the folder gets a segment file, named after its content, and a state file, which lists the segments
of all windows so far. Files are written atomically and checked by SHA-256 when they are read, so processes that make
the same video at once do not damage each other's: the last state file of a window wins, with its own segments.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.files.atomic import make_folder, part_in

FORMAT = 1
#: Names of videos: which video, and what computes it.
NAME = re.compile(r"[0-9a-f]{24}-[0-9a-f]{24}")
#: Suffix of a folder that is being removed: no state in it counts any more.
_REMOVED = ".removed"
#: File that says for which job a video was delivered.
_DELIVERED = "delivered"
#: Marks states that stay after the delivery, so that a later run without `resume.keep` does not remove them.
_KEPT = "kept"
_MAGIC = b"multitalk-state"
_STATE = re.compile(r"(\d{5})\.state")
_PIECE = 2**20
#: States that are kept besides the newest one, in case that one is damaged.
_SPARE = 1
#: Largest head of a state file: one line of JSON, about 100 bytes for each window.
_HEAD = 64 * 2**20

#: Called after each mebibyte: a caller in another thread sees that the disk still works.
Beat = Callable[[], None]


@dataclass(frozen=True)
class Entry:
    """A segment's file in the folder of its video."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class State:
    """The state after a number of windows."""

    #: Number of finished windows, 1 or more.
    windows: int
    segments: tuple[Entry, ...]
    #: Array name -> its bytes.
    arrays: Mapping[str, bytes]
    #: Array name -> dtype and shape.
    forms: Mapping[str, tuple[str, tuple[int, ...]]]
    #: Plain JSON values that later windows, or the answer, need.
    facts: Mapping[str, Any]


@dataclass
class Found:
    """A usable state, if there is one, and why newer ones are not."""

    state: State | None = None
    #: Copies of its segments, in order.
    segments: tuple[Path, ...] = ()
    problems: list[str] = field(default_factory=list)


class Damaged(Exception):
    """A file of a state is not what was written."""


class StateFolder:
    """The states of one video. Methods raise OSError."""

    def __init__(self, parent: Path, name: str, *, keep: bool = False, beat: Beat = lambda: None) -> None:
        """Touch nothing yet. With `keep`, states of earlier windows stay, not only the newest two."""
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a state")
        self.path = parent / name
        self._name = name
        #: Whether the states stay after the delivery: asked for now, or (after `look`) by an earlier run.
        self.keeps = keep
        self._beat = beat

    def look(self) -> None:
        """Find out whether an earlier run asked for states that stay."""
        self.keeps = self.keeps or (self.path / _KEPT).exists()

    def put_segment(self, index: int, content: bytes) -> Entry:
        """Store the segment of window `index`, from 0."""
        sha256 = hashlib.sha256(content).hexdigest()
        entry = Entry(f"{index:05}-{sha256[:16]}.segment", sha256, len(content))
        self._write(entry.file, [content])
        return entry

    def put_state(
        self,
        segments: Sequence[Entry],
        arrays: Mapping[str, tuple[str, Sequence[int], memoryview]],
        facts: Mapping[str, Any],
    ) -> None:
        """Store the state after `len(segments)` windows, whose segments are stored already.

        `arrays` are dtype, shape and bytes by name. Older states are removed.
        """
        windows = len(segments)
        head = {
            "name": self._name,
            "windows": windows,
            "segments": [[entry.file, entry.sha256, entry.bytes] for entry in segments],
            "arrays": [[name, dtype, list(shape), len(data)] for name, (dtype, shape, data) in arrays.items()],
            "facts": facts,
        }
        body: list[bytes | memoryview] = [json.dumps(head).encode() + b"\n"]
        body += [data for _, _, data in arrays.values()]
        digest = hashlib.sha256()
        for piece in _pieces(body):
            digest.update(piece)
        first = b"%s %d %s\n" % (_MAGIC, FORMAT, digest.hexdigest().encode())
        self._write(f"{windows:05}.state", [first, *body])
        if self.keeps:
            if not (self.path / _KEPT).exists():
                self._write(_KEPT, [])
        else:
            for number in self.numbers():
                if number < windows - _SPARE:
                    self._state_path(number).unlink(missing_ok=True)

    def numbers(self) -> list[int]:
        """Return the numbers of finished windows of all states, newest first."""
        try:
            names = [path.name for path in self.path.iterdir()]
        except FileNotFoundError:
            return []
        return sorted((int(match[1]) for name in names if (match := _STATE.fullmatch(name))), reverse=True)

    def find(self, into: Path, *, most: int, exact: bool = False) -> Found:
        """Return the newest valid state of at most `most` windows (`exact`: of just so many).

        Its segments are copied to the folder `into`, so that nothing depends on this folder any more.
        """
        found = Found()
        for number in self.numbers():
            if number > most or (exact and number != most):
                continue
            try:
                state = self._read(number)
                found.segments = tuple(self._copy(entry, into) for entry in state.segments)
            except (Damaged, OSError) as error:
                reason = (error.strerror or "cannot be read") if isinstance(error, OSError) else error
                found.problems.append(f"the state after window {number} was ignored: {reason}")
                continue
            found.state = state
            break
        return found

    def mark_delivered(self, job: str) -> None:
        """Note that the video was delivered for `job`, in case this process ends before its answer arrives."""
        self._write(_DELIVERED, [job.encode()])

    def delivered(self) -> str | None:
        """Return the job for which the video was delivered, if it was."""
        try:
            return (self.path / _DELIVERED).read_text("utf-8", "replace")
        except FileNotFoundError:
            return None

    def remove(self) -> None:
        """Remove all states of the video."""
        dead = self.path.with_name(self.path.name + _REMOVED)
        # At once for whoever looks for states: without a part of its files a folder would pass for a damaged one.
        with suppress(FileNotFoundError):
            shutil.rmtree(dead)
        with suppress(FileNotFoundError):
            self.path.rename(dead)
            shutil.rmtree(dead)

    def _state_path(self, windows: int) -> Path:
        return self.path / f"{windows:05}.state"

    def _write(self, name: str, parts: Iterable[bytes | memoryview]) -> None:
        make_folder(self.path, mode=0o700)
        with part_in(self.path, name) as part:
            for piece in _pieces(parts):
                part.file.write(piece)
                self._beat()
            part.name(self.path / name, replace=True)
        self._beat()

    def _read(self, windows: int) -> State:
        digest = hashlib.sha256()
        with self._state_path(windows).open("rb") as file:
            words = file.readline(256).split()
            if len(words) != 3 or words[0] != _MAGIC:
                raise Damaged("it is not a state")
            if words[1] != b"%d" % FORMAT:
                raise Damaged(f"it has another format than {FORMAT}")
            line = file.readline(_HEAD)
            digest.update(line)
            data = bytearray()
            while piece := file.read(_PIECE):
                digest.update(piece)
                data += piece
                self._beat()
        if digest.hexdigest().encode() != words[2]:
            raise Damaged("it is cut short or changed")
        try:
            head = json.loads(line)
            if head["name"] != self._name or head["windows"] != windows or len(head["segments"]) != windows:
                raise Damaged("it belongs to another video")
            arrays, forms, place = {}, {}, 0
            for name, dtype, shape, size in head["arrays"]:
                arrays[name], forms[name] = bytes(data[place : place + size]), (dtype, tuple(shape))
                place += size
            segments = tuple(Entry(*row) for row in head["segments"])
            return State(windows, segments, arrays, forms, dict(head["facts"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Damaged("it is not a state") from error

    def _copy(self, entry: Entry, into: Path) -> Path:
        if Path(entry.file).name != entry.file:
            raise Damaged("it names a file elsewhere")
        copy, digest = into / entry.file, hashlib.sha256()
        with (self.path / entry.file).open("rb") as file, copy.open("wb") as out:
            while piece := file.read(_PIECE):
                digest.update(piece)
                out.write(piece)
                self._beat()
        if digest.hexdigest() != entry.sha256:
            raise Damaged(f"the segment {entry.file[:5]} is cut short or changed")
        return copy


def relatives(parent: Path, name: str) -> int:
    """Return how many other folders are of the same video, computed in another way. Raises OSError."""
    try:
        names = [path.name for path in parent.iterdir()]
    except FileNotFoundError:
        return 0
    return sum(bool(NAME.fullmatch(one)) and one != name and one[:25] == name[:25] for one in names)


#: Seconds after which states of a delivered video are swept: its process removes them earlier, unless it was killed.
_ANSWERED = 60.0


def sweep_states(parent: Path, *, days: float, most: float, using: str = "", beat: Beat = lambda: None) -> int:
    """Remove states older than `days`, then the oldest until all have at most `most` bytes; return their number.

    Those of delivered videos are removed after a minute. The folder named `using`, and everything that is no folder of
    states, stays. Raises OSError for a folder that cannot be listed; states that cannot be removed stay.
    """
    kept: list[tuple[float, int, Path]] = []
    removed, now = 0, time.time()
    for path in _folders(parent):
        beat()
        newest, size = _age_and_size(path)
        most_age = min(days * 86_400, _ANSWERED) if (path / _DELIVERED).exists() else days * 86_400
        if path.suffix == _REMOVED or (path.name != using and now - newest > most_age):
            shutil.rmtree(path, ignore_errors=True)
            removed += 1
        else:
            kept.append((newest, size, path))
    total = sum(size for _, size, _ in kept)
    for _, size, path in sorted(kept):
        if total <= most:
            break
        beat()
        if path.name != using:
            shutil.rmtree(path, ignore_errors=True)
            total -= size
            removed += 1
    return removed


def _folders(parent: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError), os.scandir(parent) as entries:
        for entry in entries:
            if NAME.fullmatch(entry.name.removesuffix(_REMOVED)) and entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)


def _age_and_size(path: Path) -> tuple[float, int]:
    newest, size = 0.0, 0
    with suppress(OSError):
        newest = path.stat().st_mtime
        with os.scandir(path) as entries:
            for entry in entries:
                with suppress(OSError):
                    facts = entry.stat(follow_symlinks=False)
                    newest, size = max(newest, facts.st_mtime), size + facts.st_size
    return newest, size


def _pieces(parts: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    for part in parts:
        view = memoryview(part).cast("B")
        for begin in range(0, len(view), _PIECE):
            yield view[begin : begin + _PIECE]
