"""The limits of an endpoint: the platform's own values where it has them, and how this endpoint treats its workers."""

from __future__ import annotations

from dataclasses import dataclass, fields

from engine.errors import ConfigError

MB = 1_000_000


@dataclass(frozen=True)
class EndpointLimits:
    """Sizes in bytes, times in seconds. The defaults are the platform's documented values."""

    #: Largest request and response body of /run and of /runsync.
    run_bytes: int = 10 * MB
    sync_bytes: int = 20 * MB
    #: Larger chunks of a stream are split.
    chunk_bytes: int = 1 * MB
    #: How long a result is kept.
    run_retention: float = 30 * 60
    sync_retention: float = 60
    #: How long /runsync waits if the caller sets no time.
    sync_wait: float = 90
    #: For a job whose policy sets no value.
    execution_timeout: float = 600
    ttl: float = 24 * 3600
    #: Largest number of waiting jobs, and of bytes of inputs held in memory; 0: no limit.
    queue_jobs: int = 1000
    queue_bytes: int = 1000 * MB
    #: Calls of one operation in ten seconds before the answer is 429; 0: no limit.
    rate: int = 0
    webhook_retries: int = 2
    webhook_delay: float = 10
    #: How many workers may die during a job before the job fails.
    attempts: int = 3
    #: How long a worker may take from its start to its first request for a job.
    start_timeout: float = 7 * 60
    #: How long a worker may take to stop a cancelled job, or to shut down, before it is killed.
    grace: float = 10
    #: How long a worker's request for jobs or stop signals is held open: less than the SDK's own timeout of 90.
    poll: float = 20

    def check(self) -> None:
        """Raise ConfigError if a limit is out of range."""
        for field in fields(self):
            value = getattr(self, field.name)
            least = 1 if field.name == "attempts" else 0
            if not least <= value < float("inf"):
                what = f"{field.name}={value} is out of range"
                raise ConfigError(what, field="entrypoint", hint=f"give a number, {least} or more")
