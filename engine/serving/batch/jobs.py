"""Reads a file of jobs, one JSON object per line: an index of its lines, and each job when it is needed."""

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
from engine.serving.jobs.schema import SECRET, job_schema, quote_value

_FIELD = "entrypoint.jobs"
#: Characters of a job's hash in its name, and most characters of its id before them.
_HASH_LENGTH, _MAX_ID = 12, 100


@dataclass(frozen=True)
class Line:
    """A line of the file, without the job itself, which may hold megabytes of media."""

    #: The job's own id, else one that is made from its content.
    id: str
    #: Line number, from 1, as in editors.
    number: int
    #: SHA-256 of the job without its id and its keys.
    sha256: str
    #: Unique name of the job for the engine's sinks; a changed job gets another name.
    job: str
    #: File name of the video in the sink's folder; None: it has no such name, or goes to another sink.
    filename: str | None
    #: Offset of the line in the file, in bytes.
    offset: int


class JobFile:
    """The jobs of a file, which is read line by line and never as a whole."""

    def __init__(self, path: Path, *, sink: str, in_folder: bool) -> None:
        """Read the file once. `sink` keeps the videos; with `in_folder`, as files in a folder.

        Errors in a single job are reported when it runs. Raises ConfigError for a file that cannot be read, for a file
        without jobs, and for two jobs with the same name, with both line numbers.
        """
        self.path = path
        self._sink = sink
        self._in_folder = in_folder
        try:
            self.lines = tuple(self._index())
        except OSError as error:
            hint = "give a file with one job per line"
            raise ConfigError(f"cannot read {str(path)!r}: {error.strerror}", field=_FIELD, hint=hint) from error
        if not self.lines:
            raise ConfigError(f"there is no job in {str(path)!r}", field=_FIELD, hint="write one JSON object per line")
        _check_once(self.lines, lambda line: line.id, "the id")
        _check_once(self.lines, lambda line: line.filename, "the file name")

    def job(self, line: Line) -> dict[str, Any]:
        """Return the job of a line, with its id and a file name for its video.

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
            raise RequestError("the file was changed during the batch", field=where, hint="start the batch again")
        if not isinstance(job, dict):
            raise RequestError(
                f"the job is {quote_value(job)}, not an object",
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
        id_pattern = re.compile(job_schema()["properties"]["id"]["pattern"])
        seen: Counter[str] = Counter()
        offset = 0
        with self.path.open("rb") as file:
            for number, (raw, length) in enumerate(_lines(file), start=1):
                line_offset, offset = offset, offset + length
                if not raw.strip():
                    continue
                try:
                    job = parse_json(raw)
                    sha256 = _sha256(job)
                except (ValueError, RecursionError):
                    job, sha256 = None, hashlib.sha256(raw).hexdigest()
                name = job.get("id") if isinstance(job, dict) else None
                if isinstance(name, str) and id_pattern.match(name):
                    key = f"{name[:_MAX_ID]}-{sha256[:_HASH_LENGTH]}"
                else:
                    # From the content, so that lines can be added and moved; identical lines are numbered.
                    seen[sha256] += 1
                    name = key = f"job-{sha256[:_HASH_LENGTH]}" + (f"-{seen[sha256]}" if seen[sha256] > 1 else "")
                yield Line(name, number, sha256, key, self._filename(job, name), line_offset)

    def _filename(self, job: Any, name: str) -> str | None:
        inputs = job.get("input") if isinstance(job, dict) else None
        if not self._in_folder or not isinstance(inputs, dict):
            return None
        output = inputs.get("output") or {}
        if not isinstance(output, dict) or output.get("sink") not in (None, self._sink):
            return None
        if inputs.get("action") not in (None, "generate") or inputs.get("health_check"):
            return None
        filename = output.get("filename")
        if filename is None:
            return f"{name}.mp4"
        # A name of another type, or with a folder in it, fails when the job is parsed.
        return filename if isinstance(filename, str) and not re.search(r"[/\\\0]", filename) else None


def _lines(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yield each line and its length in bytes; a line that is too long for a job is truncated."""
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
                f"lines {first[name]} and {line.number} both have {what} {name!r}",
                field=_FIELD,
                hint="rename one of them, or leave it out",
            )
        first[name] = line.number
