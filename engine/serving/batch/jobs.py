"""A file of jobs, one JSON object a line -> what is known of each line, and each job when its turn comes."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from engine.errors import ConfigError, RequestError
from engine.serving.jobs.document_bounds import MOST_BYTES, parse_json, reason
from engine.serving.jobs.schema import SECRET, job_schema, shown

_FIELD = "entrypoint.jobs"
#: Letters of a job's hash in a name, and most letters of its id before them.
_HASH, _MOST = 12, 100


@dataclass(frozen=True)
class Line:
    """A line of the file. The job itself stays there: it may hold megabytes of media."""

    #: The job's own, else one that its content makes.
    id: str
    #: Counted from 1, as editors do.
    number: int
    #: SHA-256 of what the job asks for, without its name and its keys.
    sha256: str
    #: Name that the engine's sinks know it by: one that no other job has, nor this one once it was changed.
    job: str
    #: Name under which the sink's folder will hold the video; None: it has no such name, or goes elsewhere.
    filename: str | None
    #: Bytes of the file before it.
    offset: int


class Jobs:
    """The jobs of a file, which is read line by line and never held as a whole."""

    def __init__(self, path: Path, *, sink: str, folder: bool) -> None:
        """Read the file once. `sink` keeps the videos, in a `folder` by file names or otherwise.

        What is wrong with a single job shows when it is done. Raises ConfigError for a file that cannot be read, for
        one without a job, and for two jobs of one name, naming both lines.
        """
        self.path = path
        self._sink = sink
        self._folder = folder
        try:
            self.lines = tuple(self._index())
        except OSError as error:
            hint = "give a file with a job in each line"
            raise ConfigError(f"cannot read {str(path)!r}: {error.strerror}", field=_FIELD, hint=hint) from error
        if not self.lines:
            raise ConfigError(f"there is no job in {str(path)!r}", field=_FIELD, hint="write one JSON object a line")
        _check_once(self.lines, lambda line: line.id, "the id")
        _check_once(self.lines, lambda line: line.filename, "the file name")

    def job(self, line: Line) -> dict[str, Any]:
        """Return the job of a line, with its id, and with a name for its video if it has none.

        Raises RequestError for a line that is not a JSON object.
        """
        where = f"line {line.number}"
        try:
            with self.path.open("rb") as file:
                file.seek(line.offset)
                job = parse_json(file.readline(MOST_BYTES + 1))
            sha256 = _sha256(job)
        except OSError as error:
            raise RequestError(f"cannot be read again: {error.strerror}", field=where) from error
        except (ValueError, RecursionError) as error:
            raise RequestError(
                f"this is not JSON: {reason(error)}", field=where, hint="write each job as one object on one line"
            ) from error
        if sha256 != line.sha256:
            raise RequestError("the file was changed meanwhile", field=where, hint="start the batch again")
        if not isinstance(job, dict):
            raise RequestError(
                f"the job is {shown(job)}, not an object",
                field=where,
                hint='write {"input": {...}}',
                code="wrong_type",
            )
        if job.get("id") in (None, line.id):
            job["id"] = line.job
        if line.filename is not None:
            job["input"]["output"] = (job["input"].get("output") or {}) | {"filename": line.filename}
        return job

    def _index(self) -> Iterator[Line]:
        named = re.compile(job_schema()["properties"]["id"]["pattern"])
        seen: Counter[str] = Counter()
        offset = 0
        with self.path.open("rb") as file:
            for number, (raw, length) in enumerate(_lines(file), start=1):
                begins, offset = offset, offset + length
                if not raw.strip():
                    continue
                try:
                    job = parse_json(raw)
                    sha256 = _sha256(job)
                except (ValueError, RecursionError):
                    job, sha256 = None, hashlib.sha256(raw).hexdigest()
                name = job.get("id") if isinstance(job, dict) else None
                if isinstance(name, str) and named.match(name):
                    key = f"{name[:_MOST]}-{sha256[:_HASH]}"
                else:
                    # Made of the content, so that lines may be added and moved; equal lines are told apart by order.
                    seen[sha256] += 1
                    name = key = f"job-{sha256[:_HASH]}" + (f"-{seen[sha256]}" if seen[sha256] > 1 else "")
                yield Line(name, number, sha256, key, self._filename(job, name), begins)

    def _filename(self, job: Any, name: str) -> str | None:
        asked = job.get("input") if isinstance(job, dict) else None
        if not self._folder or not isinstance(asked, dict):
            return None
        output = asked.get("output") or {}
        if not isinstance(output, dict) or output.get("sink") not in (None, self._sink):
            return None
        if asked.get("action") not in (None, "generate") or asked.get("health_check"):
            return None
        filename = output.get("filename")
        if filename is None:
            return f"{name}.mp4"
        # Of another type, or with a folder in it: the job will be refused.
        return filename if isinstance(filename, str) and not re.search(r"[/\\\0]", filename) else None


def _lines(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yield each line and its bytes; of one that is too long to be a job, as much as shows that."""
    while raw := file.readline(MOST_BYTES + 1):
        length = len(raw)
        while not raw.endswith(b"\n") and (more := file.readline(2**20)):
            length += len(more)
            if more.endswith(b"\n"):
                break
        yield raw, length


def _sha256(job: Any) -> str:
    if isinstance(job, dict):
        job = {key: value for key, value in job.items() if key not in ("id", SECRET)}
    return hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()


def _check_once(lines: Iterable[Line], key: Callable[[Line], str | None], what: str) -> None:
    first: dict[str, int] = {}
    for line in lines:
        name = key(line)
        if name is None:
            continue
        if name in first:
            raise ConfigError(
                f"lines {first[name]} and {line.number} both bear {what} {name!r}",
                field=_FIELD,
                hint="rename one of them, or leave it out",
            )
        first[name] = line.number
