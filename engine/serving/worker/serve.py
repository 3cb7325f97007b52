"""All that a serverless worker does between its start and its end."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, runtime_checkable

from engine.components import Service
from engine.errors import ConfigError
from engine.serving.worker import heartbeat, logs, sdk
from engine.serving.worker.fitness import checks
from engine.serving.worker.handler import ENVELOPE, Handler, Terms
from engine.serving.worker.warm_engine import WarmEngine
from engine.serving.worker.warm_up import warm_up


@runtime_checkable
class LeadingService(Protocol):
    """A service that can share its videos with processes that it starts."""

    def lead(self) -> AbstractContextManager[None]:
        """Have the other processes of `parallel` inside a `with`, if the config asks for some. Raises ConfigError."""
        ...


def check_terms(terms: Terms) -> None:
    """Raise ConfigError if an answer could not even hold an error."""
    if terms.answer_bytes <= ENVELOPE:
        raise ConfigError(
            f"{terms.answer_bytes} bytes are too few",
            field="entrypoint.answer_bytes",
            hint=f"give more than {ENVELOPE}",
        )


def serve(
    service: Service,
    terms: Terms,
    *,
    grace: float,
    log_level: str,
    test_input: str | None = None,
    warm: bool = False,
) -> int:
    """Take jobs from RunPod's queue until the worker is stopped, and return the process' exit status.

    `grace` is the time in seconds that a running job then has to finish. With `warm` the worker makes short videos
    before it is ready. `test_input` is a job as JSON that is done
    instead, without the platform. Raises MissingExtra without RunPod's SDK, and ConfigError.
    """
    sdk.require()
    context = logs.LogContext()
    # In this order: the SDK configures its log at import; the heartbeat process inherits the log level, and must be
    # forked before threads run and torch is imported.
    sdk.redact_sdk_log(context)
    logs.install(log_level, context)
    mirror = heartbeat.start()
    with service.lead() if isinstance(service, LeadingService) else nullcontext():
        warm_engine = WarmEngine(service, warm_up if warm else None)
        warm_engine.warm()
        try:
            return sdk.serve(
                Handler(warm_engine, terms, poster=sdk.poster, streamer=sdk.streamer, context=context),
                warm_engine,
                checks(service),
                grace=grace,
                context=context,
                mirror=mirror,
                test_input=test_input,
            )
        finally:
            warm_engine.close()
