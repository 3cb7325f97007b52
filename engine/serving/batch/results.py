"""The file of results: one line for each job that is done or failed, written at once."""

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
#: Seconds without a heartbeat after which the lock of a batch on another machine counts as abandoned.
_LEASE_SECONDS = 60.0


class Results:
    """The results of a batch. Its methods are thread-safe.

    Each line is on the disk before the next job begins, so a batch that is killed loses only the running jobs. The
    names of running jobs are in a second, hidden file: a video of one of them that has no result is a leftover of a
    killed batch. It is removed, so that the job can be done again.
    """

    def __init__(self, path: Path, folder: Path | None, lease_lost: threading.Event) -> None:
        """Read existing results. `folder` is the folder of the videos, if any. Raises ConfigError and OSError.

        `lease_lost` is set when another process has taken over the file.
        """
        self.path = path
        self._lease_lost = lease_lost
        self._folder = folder
        self._lock = threading.Lock()
        #: Id -> its last status and the hash of the job. Answers are not kept, because they may hold whole videos.
        self._last: dict[str, tuple[Status, str]] = {}
        self._count: Counter[str] = Counter()
        for record in _records(path):
            self._note(record)
        self._begun_path = path.with_name(f".{path.name}.begun")
        self._clear()
        self._begun: set[str] = set()
        self._file: IO[bytes] = path.open("ab")
        self._begun_file: IO[bytes] = self._begun_path.open("wb")
        # Lines on the disk can be found only if the file's name is on the disk, too.
        sync_folder(path.parent)

    def status(self, line: Line) -> Status | None:
        """Return the status of a job; None if it has no result, or failed and its line was changed since."""
        status, _ = self._last.get(line.id, (None, ""))
        return None if status == "failed" and self.changed(line) else status

    def changed(self, line: Line) -> bool:
        """Return whether the job differs from the one with the same id that has a result."""
        return self._last[line.id][1] != line.sha256

    def begin(self, line: Line) -> None:
        """Note that a job begins. Raises SinkError if this process no longer holds the lease of the file."""
        with self._lock:
            self._check()
            if self._folder is None or line.filename is None or (self._folder / line.filename).exists():
                # An existing file is not ours: the sink will report it.
                return
            self._begun.add(line.id)
            begun = {"id": line.id, "filename": line.filename, "results": self._count[line.id]}
            _append(self._begun_file, begun)

    def discard(self, line: Line) -> None:
        """Remove what a job that did not finish may have left."""
        with self._lock:
            if self._folder is not None and line.filename is not None and line.id in self._begun:
                (self._folder / line.filename).unlink(missing_ok=True)
                self._begun.remove(line.id)

    def add(self, line: Line, answer: Mapping[str, Any], seconds: float) -> Status:
        """Record the answer of a job. Raises SinkError if this process no longer holds the lease of the file."""
        status: Status = "failed" if "error" in answer else "done"
        head = {"id": line.id, "line": line.number, "status": status, "seconds": round(seconds, 3)}
        result = dict(answer) if status == "failed" else {"output": dict(answer)}
        record = head | result | {"sha256": line.sha256}
        with self._lock:
            self._check()
            _append(self._file, record)
            self._note(record)
            self._begun.discard(line.id)
        return status

    def close(self) -> None:
        """Close the files; remove the hidden one unless jobs have begun and have no result."""
        self._file.close()
        self._begun_file.close()
        if not self._begun:
            self._begun_path.unlink(missing_ok=True)

    def _check(self) -> None:
        if self._lease_lost.is_set():
            raise SinkError(
                f"another batch has taken over {str(self.path)!r}",
                field=_FIELD,
                hint="let only one batch write to it at a time; does the volume hang sometimes?",
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
                # An incomplete line: that job had not begun.
                continue
            # Others may write to this file, so nothing outside of the folder is removed because of it.
            if not is_plain(begun["filename"]):
                continue
            if self._count[begun["id"]] == begun["results"]:
                (self._folder / begun["filename"]).unlink(missing_ok=True)


@contextmanager
def open_results(path: Path, folder: Path | None) -> Iterator[Results]:
    """Open the results at `path` with a lock that holds on all machines that share the folder.

    Raises ConfigError if another batch holds the lock, and SinkError if the file cannot be written.
    """
    from filelock import SoftFileLease, Timeout

    lease_lost = threading.Event()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A lease, because on many network volumes the kernel's locks work on one machine only.
        name = path.with_name(f".{path.name}.lock")
        lock = SoftFileLease(name, lease_duration=_LEASE_SECONDS, on_compromise=lambda _: lease_lost.set())
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(
            f"another batch writes to {str(path)!r}", field=_FIELD, hint="wait for it, or choose another file"
        ) from error
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        try:
            results = Results(path, folder, lease_lost)
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            yield results
        finally:
            results.close()
    finally:
        lock.release()


def _records(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the records of the file; an incomplete last line, left by a killed process, is removed."""
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
                valid = isinstance(record["id"], str) and record["status"] in ("done", "failed") and record["sha256"]
            except (ValueError, TypeError, KeyError):
                valid = False
            if not valid:
                raise ConfigError(
                    f"line {number} of {str(path)!r} is not a result of a batch",
                    field=_FIELD,
                    hint="remove that line, or choose another file",
                )
            yield record


def _append(file: IO[bytes], record: Mapping[str, Any]) -> None:
    # As ASCII, with escapes for bytes of a file name that are not valid text.
    file.write(json.dumps(record).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def _unwritable(path: Path, error: OSError) -> SinkError:
    reason = error.strerror or str(error)
    return SinkError(f"cannot write {str(path)!r}: {reason}", field=_FIELD, hint="choose a file that can be written")
