"""The worker's log: one JSON object per line on stderr, with the job's id and without secrets."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import IO, Any, ClassVar

from engine.errors import ConfigError, plain
from engine.redaction import named_secrets, redact
from engine.text.terminal import styled

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
#: JSON for machines, text for people; auto: text on a terminal.
FORMATS = ("auto", "text", "json")


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


def install(
    level: str, context: LogContext, stream: IO[str] | None = None, *, form: str | None = None
) -> logging.Handler:
    """Let all loggers write only to `stream` (default: stderr). Raises ConfigError for an unknown level or form.

    `form`: "json", "text", or "auto": text on a terminal, else JSON; None: MULTITALK_LOG_FORMAT, else auto.
    """
    name = level.upper()
    if name not in LEVELS:
        raise ConfigError(f"no log level {level!r}", field="entrypoint.log_level", hint=", ".join(LEVELS))
    handler = logging.StreamHandler(stream) if stream is not None else _Stderr()
    handler.setFormatter(formatter(context, stream, form))
    handler.addFilter(_Redacted(context))
    root = logging.getLogger()
    # The SDK configures the root logger at import, without a filter.
    for other in root.handlers[:]:
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(name)
    logging.captureWarnings(True)
    return handler


def formatter(context: LogContext, stream: IO[str] | None = None, form: str | None = None) -> logging.Formatter:
    """Return the formatter of `install` for `stream`. Raises ConfigError for an unknown form."""
    form = form or os.environ.get("MULTITALK_LOG_FORMAT") or "auto"
    if form not in FORMATS:
        raise ConfigError(f"no log format {form!r}", field="MULTITALK_LOG_FORMAT", hint=", ".join(FORMATS))
    out = stream or sys.stderr
    if form == "auto":
        form = "text" if out is not None and out.isatty() else "json"
    return _Json(context) if form == "json" else _Text(context, out)


class _Stderr(logging.StreamHandler[Any]):
    """Writes to the stderr of the moment, so that lines stand above a progress bar, which replaces it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr


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


class _Text(logging.Formatter):
    """For people: time, level, the job if there is one, and the message."""

    _STYLES: ClassVar[dict[str, str]] = {"DEBUG": "dim", "INFO": "green", "WARNING": "yellow", "ERROR": "red"}

    def __init__(self, context: LogContext, stream: Any) -> None:
        super().__init__()
        self._context, self._stream = context, stream

    def format(self, record: logging.LogRecord) -> str:
        style = self._STYLES.get(record.levelname, "red")
        time_text = styled(time.strftime("%H:%M:%S", time.localtime(record.created)), "dim", self._stream)
        job = f"[{plain(self._context.job)}] " if self._context.job else ""
        level = styled(f"{record.levelname:<7}", style, self._stream)
        lines = [f"{time_text} {level} {job}{plain(record.getMessage())}"]
        for more in (record.exc_text, record.stack_info):
            lines += [f"    {plain(line)}" for line in (more or "").splitlines()]
        return "\n".join(lines)


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
