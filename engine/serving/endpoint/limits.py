"""The numbers of an endpoint: the platform's own where it has them, and how this one treats its workers."""

from __future__ import annotations

from dataclasses import dataclass, fields

from engine.errors import ConfigError

MB = 1_000_000


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds. What the platform documents is the default."""

    #: Largest body of /run and of /runsync, in both directions.
    run_bytes: int = 10 * MB
    sync_bytes: int = 20 * MB
    #: Larger pieces of a stream are split.
    chunk_bytes: int = 1 * MB
    #: How long a result can be fetched.
    run_retention: float = 30 * 60
    sync_retention: float = 60
    #: How long /runsync waits where the caller does not say.
    sync_wait: float = 90
    #: Of a job whose policy does not say.
    execution_timeout: float = 600
    ttl: float = 24 * 3600
    #: Jobs that may wait, and bytes of the inputs that are held in memory; 0: any number.
    queue_jobs: int = 1000
    queue_bytes: int = 1000 * MB
    #: Calls of one verb in ten seconds before 429 is answered; 0: never.
    rate: int = 0
    webhook_retries: int = 2
    webhook_delay: float = 10
    #: Times a job is given to a worker before its death counts as the job's own fault.
    attempts: int = 3
    #: How long a worker may take from its start to its first question for a job.
    start_timeout: float = 7 * 60
    #: How long a worker may go on with a job that was stopped, and with closing down, before it is killed.
    grace: float = 10
    #: How long a worker's question for jobs or stop signals is held open: below the SDK's own 90.
    poll: float = 20

    def check(self) -> None:
        """Raise ConfigError for a number that nobody can mean."""
        for field in fields(self):
            value = getattr(self, field.name)
            least = 1 if field.name == "attempts" else 0
            if not least <= value < float("inf"):
                raise ConfigError(f"{value} as {field.name}", field="entrypoint", hint=f"give a number from {least} up")
