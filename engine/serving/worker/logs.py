"""The worker's log: one JSON object a line on stderr, the job's id on each, nothing in it that must not be kept."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import IO, Any

from engine.errors import ConfigError
from engine.redaction import named_secrets, redact

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class Lines:
    """What is said while a job runs bears its id, from whatever thread: there is one job at a time."""

    def __init__(self) -> None:
        self.job = ""
        self._machine = named_secrets(os.environ)
        self._jobs: tuple[str, ...] = ()

    def begin(self, job: str, secrets: tuple[str, ...] = ()) -> None:
        """From now on write this job's id, and hide these texts."""
        # The secrets of the job before are kept one job longer: a library's threads may speak late.
        self.job, self._jobs = job, secrets or self._jobs

    def end(self) -> None:
        """Write no job's id any more."""
        self.job = ""

    def clean(self, text: str) -> str:
        """Return `text` as a log may have it."""
        return redact(text, (*self._machine, *self._jobs))


def install(level: str, lines: Lines, stream: IO[str] | None = None) -> logging.Handler:
    """Let all loggers write to `stream` (stderr), and nowhere else. Raises ConfigError for a level that is none."""
    name = level.upper()
    if name not in LEVELS:
        raise ConfigError(f"no log level {level!r}", field="entrypoint.log_level", hint=", ".join(LEVELS))
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json(lines))
    handler.addFilter(_Redacted(lines))
    root = logging.getLogger()
    # The SDK configures the root at import, without a filter.
    for other in root.handlers[:]:
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(name)
    logging.captureWarnings(True)
    return handler


class _Redacted(logging.Filter):
    """Cleans a record itself, so that no formatter can bring back what it was made from."""

    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines = lines

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, cleaned."""
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 - a foreign record whose arguments do not fit its text
            text = str(record.msg)
        record.msg, record.args = self._lines.clean(text), None
        if record.exc_info or record.exc_text:
            said = record.exc_text or logging.Formatter().formatException(record.exc_info)  # type: ignore[arg-type]
            record.exc_text, record.exc_info = self._lines.clean(said), None
        if record.stack_info:
            record.stack_info = self._lines.clean(record.stack_info)
        return True


class _Json(logging.Formatter):
    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines = lines

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            # The SDK's own name for it, so that the platform's console finds both.
            "requestId": self._lines.job or None,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_text:
            told["exception"] = record.exc_text
        if record.stack_info:
            told["stack"] = record.stack_info
        return json.dumps(told, ensure_ascii=False)
