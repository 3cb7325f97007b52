"""The worker's log: one JSON object per line on stderr, with the job's id and without secrets."""

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


class LogContext:
    """The id and the secrets of the running job, for log lines of all threads; there is one job at a time."""

    def __init__(self) -> None:
        self.job = ""
        self._machine = named_secrets(os.environ)
        self._jobs: tuple[str, ...] = ()

    def begin(self, job: str, secrets: tuple[str, ...] = ()) -> None:
        """Add this job's id to all log lines from now on, and hide `secrets` in them."""
        # If this job has no secrets, those of the last job are kept: threads of a library may log late.
        self.job, self._jobs = job, secrets or self._jobs

    def end(self) -> None:
        """Stop adding a job's id."""
        self.job = ""

    def redact_text(self, text: str) -> str:
        """Return `text` without secrets of the machine and of jobs."""
        return redact(text, (*self._machine, *self._jobs))


def install(level: str, context: LogContext, stream: IO[str] | None = None) -> logging.Handler:
    """Let all loggers write only to `stream` (default: stderr). Raises ConfigError for an unknown level."""
    name = level.upper()
    if name not in LEVELS:
        raise ConfigError(f"no log level {level!r}", field="entrypoint.log_level", hint=", ".join(LEVELS))
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json(context))
    handler.addFilter(_Redacted(context))
    root = logging.getLogger()
    # The SDK configures the root logger at import, without a filter.
    for other in root.handlers[:]:
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(name)
    logging.captureWarnings(True)
    return handler


class _Redacted(logging.Filter):
    """Redacts the record itself, so that no formatter can restore the original values."""

    def __init__(self, context: LogContext) -> None:
        super().__init__()
        self._context = context

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact the record and accept it."""
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 - a record of a library whose arguments do not match its format
            text = str(record.msg)
        record.msg, record.args = self._context.redact_text(text), None
        if record.exc_info or record.exc_text:
            text = record.exc_text or logging.Formatter().formatException(record.exc_info)  # type: ignore[arg-type]
            record.exc_text, record.exc_info = self._context.redact_text(text), None
        if record.stack_info:
            record.stack_info = self._context.redact_text(record.stack_info)
        return True


class _Json(logging.Formatter):
    def __init__(self, context: LogContext) -> None:
        super().__init__()
        self._context = context

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            # The SDK's own name of the id, so that the platform's console finds both.
            "requestId": self._context.job or None,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_text:
            entry["exception"] = record.exc_text
        if record.stack_info:
            entry["stack"] = record.stack_info
        return json.dumps(entry, ensure_ascii=False)
