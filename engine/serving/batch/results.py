"""The file of results: a line for each job that was done or has failed, there as soon as it is known."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from engine.errors import ConfigError, SinkError
from engine.files.atomic import sync_folder
from engine.serving.batch.jobs import Line
from engine.text.names import is_plain

Status = Literal["done", "failed"]

_FIELD = "entrypoint.results"
#: Seconds without a sign of life after which the lock of a batch on another machine counts as left behind.
_LEASE = 60.0


class Results:
    """What is known of the jobs of a batch. Its methods may be called from any thread.

    A line is complete when it is on the disk, so that whoever is killed loses no more than the jobs at work. Their
    names stand in a second, hidden file: a video that lies there under the name of one of them, without a result, is
    what a killed batch made last, and makes room for the same job.
    """

    def __init__(self, path: Path, folder: Path | None, taken: threading.Event) -> None:
        """Read what is there. `folder` has the videos, if they have one. Raises ConfigError and OSError.

        `taken` is set when somebody else has got hold of the file.
        """
        self.path = path
        self._taken = taken
        self._folder = folder
        self._lock = threading.Lock()
        #: Of each id the last status, and the hash of the job that it is about. Answers may hold whole videos.
        self._last: dict[str, tuple[Status, str]] = {}
        self._count: Counter[str] = Counter()
        for record in _records(path):
            self._note(record)
        self._begun_path = path.with_name(f".{path.name}.begun")
        self._clear()
        self._begun: set[str] = set()
        self._file: IO[bytes] = path.open("ab")
        self._begun_file: IO[bytes] = self._begun_path.open("wb")
        # A line that is on the disk is nothing to be found by while the file's name is not.
        sync_folder(path.parent)

    def status(self, line: Line) -> Status | None:
        """Return what came of a job, None where nothing did, or where its line has failed and was changed since."""
        status, _ = self._last.get(line.id, (None, ""))
        return None if status == "failed" and self.changed(line) else status

    def changed(self, line: Line) -> bool:
        """Whether the job asks for something else than the one of its name whose result is there."""
        return self._last[line.id][1] != line.sha256

    def begin(self, line: Line) -> None:
        """Note that a job begins. Raises SinkError where the file is no longer this process' own."""
        with self._lock:
            self._check()
            if self._folder is None or line.filename is None or (self._folder / line.filename).exists():
                # What is there already is somebody else's: the sink will say so.
                return
            self._begun.add(line.id)
            begun = {"id": line.id, "filename": line.filename, "results": self._count[line.id]}
            _append(self._begun_file, begun)

    def withdraw(self, line: Line) -> None:
        """Take away what may be left of a job that was begun and came to no end."""
        with self._lock:
            if self._folder is not None and line.filename is not None and line.id in self._begun:
                (self._folder / line.filename).unlink(missing_ok=True)
                self._begun.remove(line.id)

    def add(self, line: Line, answer: Mapping[str, Any], seconds: float) -> Status:
        """Keep the answer of a job. Raises SinkError where the file is no longer this process' own."""
        status: Status = "failed" if "error" in answer else "done"
        head = {"id": line.id, "line": line.number, "status": status, "seconds": round(seconds, 3)}
        told = dict(answer) if status == "failed" else {"output": dict(answer)}
        record = head | told | {"sha256": line.sha256}
        with self._lock:
            self._check()
            _append(self._file, record)
            self._note(record)
            self._begun.discard(line.id)
        return status

    def close(self) -> None:
        """Leave the file of results alone behind, unless jobs were begun and nothing came of them."""
        self._file.close()
        self._begun_file.close()
        if not self._begun:
            self._begun_path.unlink(missing_ok=True)

    def _check(self) -> None:
        if self._taken.is_set():
            raise SinkError(
                f"another batch has taken {str(self.path)!r} over",
                field=_FIELD,
                hint="let one batch write to it at a time; does the volume hang at times?",
            )

    def _note(self, record: Mapping[str, Any]) -> None:
        self._last[record["id"]] = record["status"], record["sha256"]
        self._count[record["id"]] += 1

    def _clear(self) -> None:
        if self._folder is None or not self._begun_path.exists():
            return
        for line in self._begun_path.read_bytes().splitlines():
            try:
                begun = json.loads(line)
            except ValueError:
                # Half a line: that job had not begun.
                continue
            # The file lies where others may write: nothing beyond the folder is removed because of it.
            if not is_plain(begun["filename"]):
                continue
            if self._count[begun["id"]] == begun["results"]:
                (self._folder / begun["filename"]).unlink(missing_ok=True)


@contextmanager
def keeping(path: Path, folder: Path | None) -> Iterator[Results]:
    """Open the results at `path` for this process alone, on all machines that share the folder.

    Raises ConfigError where another batch has them, and SinkError where they cannot be written.
    """
    from filelock import SoftFileLease, Timeout

    taken = threading.Event()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A lease, since on many network volumes the kernel's locks hold on one machine alone.
        name = path.with_name(f".{path.name}.lock")
        lock = SoftFileLease(name, lease_duration=_LEASE, on_compromise=lambda _: taken.set())
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(
            f"another batch writes to {str(path)!r}", field=_FIELD, hint="wait for it, or name another file"
        ) from error
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        try:
            results = Results(path, folder, taken)
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            yield results
        finally:
            results.close()
    finally:
        lock.release()


def _records(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield what stands in the file; what a killed process left of its last line is cut off."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        complete = 0
        for number, raw in enumerate(file, start=1):
            if not raw.endswith(b"\n"):
                file.truncate(complete)
                return
            complete += len(raw)
            try:
                record = json.loads(raw)
                known = isinstance(record["id"], str) and record["status"] in ("done", "failed") and record["sha256"]
            except (ValueError, TypeError, KeyError):
                known = False
            if not known:
                raise ConfigError(
                    f"line {number} of {str(path)!r} is no result of a batch",
                    field=_FIELD,
                    hint="take that line out, or name another file",
                )
            yield record


def _append(file: IO[bytes], record: Mapping[str, Any]) -> None:
    # In ASCII, which takes bytes of a file name that are no text.
    file.write(json.dumps(record).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def _unwritable(path: Path, error: OSError) -> SinkError:
    reason = error.strerror or str(error)
    return SinkError(f"cannot write {str(path)!r}: {reason}", field=_FIELD, hint="name a file that can be written")
