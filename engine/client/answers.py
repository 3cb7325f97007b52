"""The answers of an endpoint as values, and its errors as one class."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError

if TYPE_CHECKING:
    import httpx2

FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})


class ClientError(EngineError):
    """A job failed, or a call to the endpoint failed.

    `code` is the worker's error code if there is one (docs/api.md), else one of docs/client.md. `status` is the HTTP
    status if a call failed; `job` is the last known state of the job if the job failed.
    """

    def __init__(
        self,
        what: str,
        *,
        code: str,
        field: str = "",
        hint: str = "",
        status: int | None = None,
        job: Status | None = None,
    ) -> None:
        super().__init__(what, field=field, hint=hint)
        self.code, self.status, self.job = code, status, job

    def __str__(self) -> str:
        # The worker's message already contains field and hint.
        if self.job is not None and self.job.error:
            return self.what
        return super().__str__()


@dataclass(frozen=True)
class Status:
    """The state of a job, as /status answers it."""

    id: str
    state: str
    #: The result of a job that has ended, or the progress of a running one.
    output: Any = None
    error: Any = None
    #: Seconds in the queue, and seconds of work.
    delay: float | None = None
    execution: float | None = None
    worker: str | None = None
    #: The unchanged answer.
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def final(self) -> bool:
        """Whether the job has ended."""
        return self.state in FINAL

    @property
    def progress(self) -> Any:
        """The latest progress update of a running job."""
        return None if self.final else self.output

    @property
    def playlist(self) -> str | None:
        """The HLS playlist of a video that is published while it is made, as URL or path; None: nothing is yet."""
        live = self.output.get("live") if isinstance(self.output, Mapping) else None
        address = live.get("playlist") if isinstance(live, Mapping) else None
        return address if isinstance(address, str) else None

    @property
    def preview(self) -> bytes | None:
        """The newest preview of a running job, a JPEG; None: there is none yet, or the job did not ask for previews."""
        preview = self.progress.get("preview") if isinstance(self.progress, Mapping) else None
        image = preview.get("image") if isinstance(preview, Mapping) else None
        if not isinstance(image, str):
            return None
        try:
            return base64.b64decode(image.partition(",")[2], validate=True)
        except binascii.Error:
            return None

    @property
    def fingerprint(self) -> tuple[str, str]:
        """What two answers are compared by; the times are left out because they always differ."""
        return self.state, json.dumps(self.output, sort_keys=True)


@dataclass(frozen=True)
class Download:
    """A downloaded video."""

    path: Path
    sha256: str
    bytes: int


def read_json(response: httpx2.Response) -> dict[str, Any]:
    """Return the JSON object of an answer. Raises ClientError if it is an error or not a JSON object."""
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if response.is_success and isinstance(answer, dict):
        return answer
    text = str(answer.get("error") or "") if isinstance(answer, dict) else ""
    status = response.status_code
    code, hint = _CODES.get(status, ("server_error" if status >= 500 else "refused", ""))
    raise ClientError(
        text or f"the endpoint answered {status} {response.reason_phrase}", code=code, hint=hint, status=status
    )


def read_status(answer: Mapping[str, Any]) -> Status:
    """Return the status in an answer of /run, /status, /cancel or /retry. Raises ClientError if there is none."""
    if not isinstance(answer.get("id"), str) or not isinstance(answer.get("status"), str):
        raise ClientError("the endpoint's answer has no job id and no status", code="server_error")
    return Status(
        id=answer["id"],
        state=answer["status"],
        output=answer.get("output"),
        error=answer.get("error"),
        delay=_seconds(answer.get("delayTime")),
        execution=_seconds(answer.get("executionTime")),
        worker=answer.get("workerId"),
        raw=answer,
    )


def result(status: Status) -> Any:
    """Return the output of a job that has ended. Raises ClientError unless it completed."""
    if status.state == "COMPLETED":
        return status.output
    details: dict[str, Any] = dict(status.output) if isinstance(status.output, dict) else {}
    error = status.error
    if isinstance(error, str) and error.startswith("{"):
        # An exception that the handler did not catch: the SDK sends it as JSON with the traceback.
        with contextlib.suppress(ValueError):
            error = json.loads(error).get("error_message", error)
    if isinstance(error, dict):
        details, error = {**error, **details}, error.get("error")
    what, code = _ENDS.get(status.state, (f"the job is {status.state}", "job_failed"))
    raise ClientError(
        str(error or what),
        code=str(details.get("error_code") or code),
        field=str(details.get("field") or ""),
        hint=str(details.get("hint") or ""),
        job=status,
    )


def connection_error(error: httpx2.TransportError) -> ClientError:
    """Return the error for a failed connection."""
    text = str(error) or type(error).__name__
    return ClientError(
        f"no answer: {text}", code="unreachable", hint="is the endpoint's address right, and is it running?"
    )


def download_error(response: httpx2.Response) -> ClientError:
    """Return the error for a failed download of a video."""
    status = response.status_code
    hint = "its URL may have expired: ask for the job's status, or retry the job" if status in (403, 404) else ""
    # Not the URL: a presigned one is a key.
    return ClientError(f"the video's host answered {status}", code="download_failed", hint=hint, status=status)


def length(response: httpx2.Response) -> int | None:
    """Return the size of the body in bytes, if the answer states it."""
    text = response.headers.get("Content-Length", "")
    # Of a compressed body it is the compressed size.
    return int(text) if text.isdigit() and "Content-Encoding" not in response.headers else None


_CODES = {
    401: ("unauthorized", "check the API key"),
    403: ("unauthorized", "check the API key"),
    404: ("not_found", "results are kept for 30 minutes; check the endpoint's id as well"),
    413: ("too_large", "send large media as URLs"),
    429: ("rate_limited", "call less often"),
}
_ENDS = {
    "CANCELLED": ("the job was cancelled", "cancelled"),
    "TIMED_OUT": ("the job took longer than its execution timeout", "timed_out"),
    "FAILED": ("the job failed and its worker did not say why", "job_failed"),
}


def _seconds(milliseconds: Any) -> float | None:
    return milliseconds / 1000 if isinstance(milliseconds, int | float) else None
