"""All that a serverless worker does between its start and its end."""

from __future__ import annotations

from engine.components import Service
from engine.errors import ConfigError
from engine.serving.worker import heartbeat, logs, sdk
from engine.serving.worker.fitness import checks
from engine.serving.worker.handler import ENVELOPE, Handler, Terms
from engine.serving.worker.warm_engine import Keeper


def check_terms(terms: Terms) -> None:
    """Raise ConfigError for answers that would not even hold an error."""
    if terms.answer_bytes <= ENVELOPE:
        raise ConfigError(
            f"answers of {terms.answer_bytes} bytes", field="entrypoint.answer_bytes", hint=f"more than {ENVELOPE}"
        )


def serve(service: Service, terms: Terms, *, grace: float, log_level: str, test_input: str | None = None) -> int:
    """Take jobs of RunPod's queue until told to end, and return the process' exit status.

    `grace` is the time in seconds that a job has to finish then. `test_input`, a job as JSON, is done instead, without
    the platform. Raises MissingExtra without RunPod's SDK, and ConfigError.
    """
    sdk.require()
    lines = logs.Lines()
    # In this order: the SDK configures the log for itself when it is imported; the pings take its level along, and
    # are forked before a thread runs or torch is there.
    sdk.quiet(lines)
    logs.install(log_level, lines)
    mirror = heartbeat.start()
    keeper = Keeper(service)
    keeper.warm()
    try:
        return sdk.serve(
            Handler(keeper, terms, poster=sdk.poster, lines=lines),
            keeper,
            checks(service),
            grace=grace,
            lines=lines,
            mirror=mirror,
            test_input=test_input,
        )
    finally:
        keeper.close()
